"""`python -m trainer download`: model files from the Hugging Face Hub, into the folders of ComfyUI and the trainer.

Complete files are not downloaded again, and an interrupted download continues where it stopped. The token comes from
HF_TOKEN or from the login that `hf auth login` saved, and from nowhere else.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from huggingface_hub.utils import logging as hub_logging

from trainer.captioning.description import CAPTION_MODELS
from trainer.common.files import free_disk_bytes
from trainer.common.problems import redact
from trainer.common.process import announce, ended_by_sigterm
from trainer.comparison.description import JUDGE_MODELS
from trainer.config.paths import path_flag
from trainer.hub.api import Hub, connect
from trainer.hub.errors import DownloadFailed, DownloadProblem, Status
from trainer.hub.jobs import COMPLETE, DIFFERENT, MISSING, Job, difference, find_jobs, obstacles, with_state
from trainer.hub.record import Record, load_record, save_record
from trainer.hub.run import fetch_all
from trainer.hub.wanted import KEYS, Wanted, base_model, lora, published
from trainer.masking.description import MASK_MODELS
from trainer.models.description import FLUX1

STATUSES = "exit statuses: 0 all files are complete, " + ", ".join(
    f"{status.value} {status.name.lower().replace('_', ' ')}" for status in Status
)


STOPPED = "Stopped. Complete files are kept; run it again to continue where it stopped."


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        super().error(redact(message))  # which may contain a token


def run(argv: Sequence[str]) -> int:
    """Download the requested files that are missing or incomplete.

    argv: the flags after `download`. Returns the exit status: 0, a `Status` saying what failed, 130 or 143 after a
    signal.
    """
    arguments = _parse(argv)
    hub_logging.set_verbosity_error()  # its other lines contain signed addresses
    hub = None
    try:
        with ended_by_sigterm(STOPPED):
            hub = connect()
            return _download(hub, arguments, _wanted(arguments))
    except DownloadFailed as found:
        count = len(found.problems)
        text = f"{count} problem{'s' * (count > 1)} found:\n{found}"
        announce(hub.scrub(text) if hub else text)
        return found.status
    except KeyboardInterrupt:
        announce(f"\n{STOPPED}")
        return 130


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = _Parser("python -m trainer download", description=__doc__, epilog=STATUSES)
    parser.set_defaults(base=FLUX1.bases[0])
    bases = parser.add_mutually_exclusive_group()
    for base in FLUX1.bases[1:]:
        text = f"{base.name} instead of {FLUX1.bases[0].name}"
        bases.add_argument(base.flag, dest="base", action="store_const", const=base, help=text)
    parser.add_argument("--fp8", action="store_true", help="the T5 text encoder in fp8, half the size")
    parser.add_argument("--only", nargs="+", choices=KEYS, metavar="FILE", help=f"only some of: {', '.join(KEYS)}")
    parser.add_argument("--lora", action="append", metavar="OWNER/NAME", help="a LoRA into models/loras, nothing else")
    parser.add_argument("--masks", action="store_true", help="the models of `trainer mask` (1.8 GB), nothing else")
    parser.add_argument("--captions", action="store_true", help="the model of `trainer caption`, nothing else")
    text = "the models of `trainer compare`, DINOv2 and SigLIP 2 (1.9 GB), nothing else"
    parser.add_argument("--judges", action="store_true", help=text)
    parser.add_argument("--dry-run", action="store_true", help="list what would be downloaded, and every problem")
    parser.add_argument("--verify", action="store_true", help="compare the SHA-256 of existing files with the Hub's")
    parser.add_argument("--replace", action="store_true", help="replace files that differ from the Hub's")
    parser.add_argument("--models_dir", "--models-dir", type=path_flag, default=Path("models"), metavar="DIR")
    return parser.parse_args(argv)


def _wanted(arguments: argparse.Namespace) -> tuple[Wanted, ...]:
    groups = ((arguments.masks, MASK_MODELS), (arguments.captions, CAPTION_MODELS), (arguments.judges, JUDGE_MODELS))
    models = [model for asked, group in groups if asked for model in group]
    if arguments.lora or models:
        return (*map(lora, arguments.lora or ()), *published(models))
    return base_model(arguments.base, arguments.fp8, arguments.only or ())


def _download(hub: Hub, arguments: argparse.Namespace, wanted: Sequence[Wanted]) -> int:
    models: Path = arguments.models_dir
    record = load_record(models)

    def say(text: str) -> None:
        announce(hub.scrub(text))

    found = find_jobs(hub, wanted, models, say, record if arguments.verify else None)
    jobs = [with_state(job, record, say, read_anyway=arguments.verify) for job in found]
    if arguments.verify:
        return _verify(jobs)
    due = [job for job in jobs if job.state != COMPLETE]
    _print_plan(jobs, due, models)
    if problems := obstacles(hub, due, arguments.replace, say):
        raise DownloadFailed(problems)
    if arguments.dry_run:
        return 0
    known = record.with_verified(models, [(job.target, job.file) for job in jobs if _newly_verified(job, record)])
    if known != record:
        save_record(models, known)
    fetch_all(hub, due, models, known)
    announce("All files are complete.")
    return 0


def _newly_verified(job: Job, record: Record) -> bool:
    return job.state == COMPLETE and not record.is_verified(job.models, job.target, job.file)


def _print_plan(jobs: Sequence[Job], due: Sequence[Job], models: Path) -> None:
    words = {COMPLETE: "complete", MISSING: "download", DIFFERENT: "differs"}
    for job in jobs:
        size, name = job.file.size / 1e9, f"{job.file.repository}/{job.file.path}"
        print(f"{words[job.state]:<10}{size:>8.3f} GB  {job.path}  <-  {name}")
    needed = sum(job.missing_bytes for job in due) / 1e9
    print(f"{needed:.2f} GB to download, {free_disk_bytes(models) / 1e9:.2f} GB free", flush=True)


def _verify(jobs: Sequence[Job]) -> int:
    """Print the digest of each file. Raises `DownloadFailed` if one is missing or differs."""
    problems = []
    for job in jobs:
        if job.state == COMPLETE:
            kind = "sha256" if len(job.file.digest) == 64 else "git-sha1"
            print(f"complete  {kind:>8} {job.file.digest:<64}  {job.path}")
        elif job.state == MISSING:
            hint = "run this without --verify to download it"
            problems.append(DownloadProblem(str(job.path), "no such file", hint, status=Status.MISSING))
        else:
            hint = "move it away, or run this with --replace instead of --verify"
            problems.append(DownloadProblem(str(job.path), difference(job), hint, status=Status.WRONG_BYTES))
    if problems:
        raise DownloadFailed(sorted(problems, key=lambda problem: problem.status))
    print("All files are complete.")
    return 0
