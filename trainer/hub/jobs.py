"""Which files are there, which have to be downloaded, and every problem that can be found before the first byte."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from trainer.common.disk import Share, shortage, write_problems
from trainer.common.files import out_of_reach, sha256_file
from trainer.hub.api import Hub, HubFile
from trainer.hub.errors import DownloadFailed, DownloadProblem, Status, explain
from trainer.hub.patience import patiently
from trainer.hub.record import Record
from trainer.hub.wanted import Wanted

COMPLETE, MISSING, DIFFERENT = "complete", "missing", "different"
LARGE = 1 << 30  # bytes; hashing a larger file takes long enough to say so


@dataclass(frozen=True)
class Job:
    """A file on the Hub and where it goes.

    key: as in `Wanted`; models: the models folder; target: the file's path in it; state: what is at that path:
    COMPLETE (the file itself), MISSING (nothing) or DIFFERENT.
    """

    key: str
    file: HubFile
    models: Path
    target: str
    state: str = MISSING

    @property
    def path(self) -> Path:
        """The path of the complete file."""
        return self.models / self.target

    @property
    def part(self) -> Path:
        """The path of the partial file while it is downloaded: hidden, in the final folder, specific to the content."""
        return self.path.with_name(f".{self.path.name}.{self.file.digest[:12]}.part")

    @property
    def missing_bytes(self) -> int:
        """Bytes that the partial file lacks, all if there is none; not meaningful for a file that is COMPLETE."""
        return self.file.size - (self.part.stat().st_size if self.part.is_file() else 0)


def find_jobs(
    hub: Hub, wanted: Sequence[Wanted], models: Path, say: Callable[[str], object], stated: Record | None = None
) -> list[Job]:
    """Look up the wanted files on the Hub; returns a job for each file, with `state` not yet determined (`with_state`).

    models: the folder to download to; say: called with messages about progress and retries; stated: a record of earlier
    downloads (the Hub is not asked about repositories whose wanted files it lists). Raises `DownloadFailed` with every
    problem if a repository cannot be listed or lacks a file.
    """
    listings: dict[str, Mapping[str, HubFile]] = {}
    jobs, problems = [], []
    for repository in dict.fromkeys(want.repository for want in wanted):
        known = stated.listing(repository) if stated else {}
        if known and all(_select(want, known) for want in wanted if want.repository == repository):
            listings[repository] = known
            continue
        say(f"reading the list of files of {repository}")
        try:
            listings[repository] = patiently(lambda name=repository: hub.listing(name), repository, say)
        except Exception as error:
            problems += explain(error, repository, hub.endpoint, hub.token is not None)
        if any(problem.status == Status.NO_NETWORK for problem in problems):
            break  # the other repositories are on the same server
    for want in wanted:
        listing = listings.get(want.repository)
        if listing is not None:
            found = _select(want, listing)
            jobs += [Job(want.key, file, models, _target(want, file)) for file in found]
            problems += [] if found else [_not_listed(want, listing)]
    if problems:
        raise DownloadFailed(problems)
    return jobs


def with_state(job: Job, record: Record, say: Callable[[str], object], read_anyway: bool = False) -> Job:
    """A copy of the job with its `state`, found by comparing the file at its path with what the Hub lists.

    record: of files verified earlier, which are not hashed again unless read_anyway; say: called with a message before
    a large file is hashed.
    """
    if not job.path.exists() and not job.path.is_symlink():
        return replace(job, state=MISSING)
    if not read_anyway and record.is_verified(job.models, job.target, job.file):
        return replace(job, state=COMPLETE)
    if not job.path.is_file() or job.path.stat().st_size != job.file.size:
        return replace(job, state=DIFFERENT)
    if job.file.size > LARGE:
        say(f"hashing {job.path} ({job.file.size / 1e9:.1f} GB)")
    return replace(job, state=COMPLETE if digest_of(job.path, job.file) == job.file.digest else DIFFERENT)


def digest_of(path: Path, file: HubFile) -> str:
    """The hex digest of the content at `path`, to be compared with `file.digest`.

    It is of the same kind: SHA-256, or git's SHA-1 of a blob.
    """
    if len(file.digest) == 64:
        return sha256_file(path)
    content = path.read_bytes()  # small: not in LFS
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content, usedforsecurity=False).hexdigest()


def obstacles(
    hub: Hub, jobs: Sequence[Job], replace_different: bool, say: Callable[[str], object]
) -> list[DownloadProblem]:
    """Everything that would make downloading these jobs fail: files in the way, access, write permission, disk space.

    Jobs that are COMPLETE are ignored. replace_different: an existing file with other content is no obstacle; say:
    called with messages about retries.
    """
    due = [job for job in jobs if job.state != COMPLETE]
    problems = [] if replace_different else [_in_the_way(job) for job in due if job.state == DIFFERENT]
    for repository in dict.fromkeys(job.file.repository for job in due):
        first = next(job.file for job in due if job.file.repository == repository)
        try:
            patiently(lambda file=first: hub.check_access(file), repository, say)
        except Exception as error:
            problems += explain(error, repository, hub.endpoint, hub.token is not None)
    folders = dict.fromkeys(job.path.parent for job in due)
    for locked in write_problems(("--models_dir", folder) for folder in folders):
        problems.append(DownloadProblem(locked.where, locked.what, locked.hint, status=Status.NOT_WRITABLE))
    shares = [Share(job.path.parent, job.path.name, job.missing_bytes) for job in due]
    hint = "free some space, or download less with --only or --fp8; nothing has been downloaded yet"
    for line in shortage([shares]) if shares else []:
        problems.append(DownloadProblem("not enough disk space", line, hint, status=Status.DISK_FULL))
    return problems


def difference(job: Job) -> str:
    """How what is at `job.path` differs from the file on the Hub, for a message after the path: "has 12 bytes; …"."""
    if why := out_of_reach(job.path):
        return f"cannot be accessed: {why}"
    if job.path.is_symlink() and not job.path.exists():
        return "is a link to a file that does not exist"
    if not job.path.is_file():
        return "is not a regular file"
    size = job.path.stat().st_size
    if size != job.file.size:
        return f"has {size:,} bytes; {job.file.path} of {job.file.repository} has {job.file.size:,}"
    return f"has the size of {job.file.path} of {job.file.repository}, but other content"


def _in_the_way(job: Job) -> DownloadProblem:
    hint = "move it away, or add --replace: it is replaced once the new file is complete"
    return DownloadProblem(str(job.path), difference(job), hint, status=Status.IN_THE_WAY)


def _select(want: Wanted, listing: Mapping[str, HubFile]) -> list[HubFile]:
    if want.source.endswith("/"):
        return [file for path, file in sorted(listing.items()) if path.startswith(want.source) and ".." not in path]
    if want.source:
        return [listing[want.source]] if want.source in listing else []
    loras = _safetensors(listing)
    return loras if len(loras) == 1 else []


def _safetensors(listing: Mapping[str, HubFile]) -> list[HubFile]:
    return [file for path, file in sorted(listing.items()) if path.endswith(".safetensors")]


def _target(want: Wanted, file: HubFile) -> str:
    return want.target + file.path.removeprefix(want.source) if want.source.endswith("/") else want.target


def _not_listed(want: Wanted, listing: Mapping[str, HubFile]) -> DownloadProblem:
    found = [file.path for file in _safetensors(listing)]
    if want.source:
        what, hint = f"has no {want.source}", "check the repository's list of files"
    elif found:
        what = f"has several files: {', '.join(found)}"
        hint = f"choose one, as in --lora {want.repository}/{found[0]}"
    else:
        what, hint = "has no .safetensors file", "choose another repository"
    return DownloadProblem(want.repository, what, hint, status=Status.NOT_FOUND)
