"""What is there, what is to be fetched, and all that stands against it, found before the first byte."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from trainer.common.disk import Share, shortage, write_problems
from trainer.common.files import out_of_reach, sha256_file
from trainer.common.problems import Problem
from trainer.hub.api import Hub, HubFile
from trainer.hub.errors import DownloadFailed, DownloadProblem, Status, explain
from trainer.hub.patience import patiently
from trainer.hub.record import Record
from trainer.hub.wanted import Wanted

WHOLE, MISSING, DIFFERENT = "whole", "missing", "different"


@dataclass(frozen=True)
class Job:
    """A file of the hub and where it goes; state: WHOLE, MISSING or DIFFERENT."""

    key: str
    file: HubFile
    models: Path
    target: str
    state: str = MISSING

    @property
    def path(self) -> Path:
        """The final name."""
        return self.models / self.target

    @property
    def part(self) -> Path:
        """The name while it is unfinished: of this very content, on the same disk, no model to any program."""
        return self.path.with_name(f".{self.path.name}.{self.file.digest[:12]}.part")

    @property
    def missing_bytes(self) -> int:
        """What is still to come."""
        return self.file.size - (self.part.stat().st_size if self.part.is_file() else 0)


def find_jobs(hub: Hub, wanted: Sequence[Wanted], models: Path, stated: Record | None = None) -> list[Job]:
    """One job for each file, not looked at yet. Raises `DownloadFailed`.

    stated: a record to take the hub's word from, where it has one; else the hub is asked.
    """
    listings: dict[str, Mapping[str, HubFile]] = {}
    jobs, problems = [], []
    for repository in dict.fromkeys(want.repository for want in wanted):
        known = stated.listing(repository) if stated else {}
        if known and all(_select(want, known) for want in wanted if want.repository == repository):
            listings[repository] = known
            continue
        try:
            listings[repository] = patiently(lambda name=repository: hub.listing(name))
        except Exception as error:
            problems.append(explain(error, repository, hub.endpoint, hub.token is not None))
    for want in wanted:
        listing = listings.get(want.repository)
        if listing is not None:
            found = _select(want, listing)
            jobs += [Job(want.key, file, models, _target(want, file)) for file in found]
            problems += [] if found else [_not_listed(want, listing)]
    if problems:
        raise DownloadFailed(problems)
    return jobs


def look_at(job: Job, record: Record, read_anyway: bool = False, say: Callable[[str], object] = print) -> Job:
    """The job with its state. read_anyway: hash the file even if the record knows it whole."""
    if not job.path.exists() and not job.path.is_symlink():
        return replace(job, state=MISSING)
    if not read_anyway and record.knows_whole(job.models, job.target, job.file):
        return replace(job, state=WHOLE)
    if not job.path.is_file() or job.path.stat().st_size != job.file.size:
        return replace(job, state=DIFFERENT)
    if job.file.size > 1 << 30:
        say(f"reading {job.path} ({job.file.size / 1e9:.1f} GB)")
    return replace(job, state=WHOLE if digest_of(job.path, job.file) == job.file.digest else DIFFERENT)


def digest_of(path: Path, file: HubFile) -> str:
    """The content's digest, of the kind that the hub states for this file."""
    if len(file.digest) == 64:
        return sha256_file(path)
    content = path.read_bytes()  # small: not in LFS
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content, usedforsecurity=False).hexdigest()


def obstacles(hub: Hub, jobs: Sequence[Job], replace_different: bool) -> list[DownloadProblem]:
    """All that stands against fetching what is not whole."""
    due = [job for job in jobs if job.state != WHOLE]
    problems = [] if replace_different else [_in_the_way(job) for job in due if job.state == DIFFERENT]
    for repository in dict.fromkeys(job.file.repository for job in due):
        first = next(job.file for job in due if job.file.repository == repository)
        try:
            patiently(lambda file=first: hub.check_access(file))
        except Exception as error:
            problems.append(explain(error, repository, hub.endpoint, hub.token is not None))
    folders = dict.fromkeys(job.path.parent for job in due)
    locked = write_problems(("--models_dir", folder) for folder in folders)
    problems += [DownloadProblem(Status.NOT_WRITABLE, problem) for problem in locked]
    shares = [Share(job.path.parent, job.path.name, job.missing_bytes) for job in due]
    hint = "make room, or take less with --only or --fp8; nothing has been fetched yet"
    lines = shortage([shares]) if shares else []
    problems += [DownloadProblem(Status.DISK_FULL, Problem("not enough room", line, hint)) for line in lines]
    return problems


def difference(job: Job) -> str:
    """How a file that is there differs from what the hub states."""
    if why := out_of_reach(job.path):
        return f"cannot be looked at: {why}"
    if job.path.is_symlink() and not job.path.exists():
        return "is a link to a file that is not there"
    if not job.path.is_file():
        return "is not a file"
    size = job.path.stat().st_size
    if size != job.file.size:
        return f"has {size:,} bytes; {job.file.path} of {job.file.repository} has {job.file.size:,}"
    return f"has other content than {job.file.path} of {job.file.repository}"


def _in_the_way(job: Job) -> DownloadProblem:
    hint = "move it away, or give --replace: it is replaced when the new one is whole"
    return DownloadProblem(Status.IN_THE_WAY, Problem(str(job.path), difference(job), hint))


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
    if want.source:
        return DownloadProblem(
            Status.NOT_FOUND, Problem(want.repository, f"has no {want.source}", "see its list of files")
        )
    several = [file.path for file in _safetensors(listing)]
    if several:
        hint = f"name one, as in --lora {want.repository}/{several[0]}"
        return DownloadProblem(
            Status.NOT_FOUND, Problem(want.repository, f"has several files: {', '.join(several)}", hint)
        )
    return DownloadProblem(
        Status.NOT_FOUND, Problem(want.repository, "has no .safetensors file", "name another repository")
    )
