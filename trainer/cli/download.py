"""`python -m trainer download`: the model files, from the Hugging Face hub into the layout of ComfyUI and the trainer.

What is whole already is not fetched again; what was cut off goes on where it ended. The token comes from HF_TOKEN or
from the login that `hf auth login` saved, and from nowhere else.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from huggingface_hub.utils import logging as hub_logging

from trainer.common.files import free_bytes
from trainer.common.problems import Problem, redact
from trainer.common.process import announce, ended_by_sigterm
from trainer.hub.api import Hub, connect
from trainer.hub.errors import DownloadFailed, DownloadProblem, Status
from trainer.hub.jobs import DIFFERENT, MISSING, WHOLE, Job, difference, find_jobs, look_at, obstacles
from trainer.hub.record import Record, load_record, save_record
from trainer.hub.run import fetch_all
from trainer.hub.wanted import KEYS, Wanted, base_model, lora
from trainer.models.description import DEV, KREA, SCHNELL

STATUSES = "exit statuses: 0 all is whole, " + ", ".join(
    f"{status.value} {status.name.lower().replace('_', ' ')}" for status in Status
)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        super().error(redact(message))  # someone may have put a token there


def run(argv: Sequence[str]) -> int:
    """Fetch what is wanted and not whole. Returns 0 or a `Status`; 130 and 143 after a signal."""
    arguments = _parse(argv)
    hub_logging.set_verbosity_error()  # its lines hold signed addresses
    hub = None
    try:
        with ended_by_sigterm("stopped. What is whole is kept; run it again to go on from here."):
            hub = connect()
            return _download(hub, arguments, _wanted(arguments))
    except DownloadFailed as found:
        count = len(found.problems)
        text = f"{count} thing{'s' * (count > 1)} to mend:\n{found}"
        announce(hub.scrub(text) if hub else text)
        return found.status
    except KeyboardInterrupt:
        announce("\nStopped. What is whole is kept; run it again to go on from here.")
        return 130


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = _Parser("python -m trainer download", description=__doc__, epilog=STATUSES)
    parser.set_defaults(base=DEV)
    bases = parser.add_mutually_exclusive_group()
    for flag, base in (("--krea", KREA), ("--schnell", SCHNELL)):
        bases.add_argument(
            flag, dest="base", action="store_const", const=base, help=f"{base.name} instead of {DEV.name}"
        )
    parser.add_argument("--fp8", action="store_true", help="the T5 text encoder of half the size")
    parser.add_argument("--only", nargs="+", choices=KEYS, metavar="FILE", help=f"some of: {', '.join(KEYS)}")
    parser.add_argument("--lora", action="append", metavar="OWNER/NAME", help="a LoRA into models/loras, nothing else")
    parser.add_argument("--dry-run", action="store_true", help="say what would be fetched, and what stands against it")
    parser.add_argument("--verify", action="store_true", help="read the files that are there and compare their SHA-256")
    parser.add_argument("--replace", action="store_true", help="put the hub's files in the place of different ones")
    parser.add_argument("--models_dir", "--models-dir", type=Path, default=Path("models"), metavar="DIR")
    return parser.parse_args(argv)


def _wanted(arguments: argparse.Namespace) -> tuple[Wanted, ...]:
    if arguments.lora:
        return tuple(lora(name) for name in arguments.lora)
    return base_model(arguments.base, arguments.fp8, arguments.only or ())


def _download(hub: Hub, arguments: argparse.Namespace, wanted: Sequence[Wanted]) -> int:
    models: Path = arguments.models_dir
    record = load_record(models)
    found = find_jobs(hub, wanted, models, record if arguments.verify else None)
    jobs = [look_at(job, record, read_anyway=arguments.verify, say=announce) for job in found]
    if arguments.verify:
        return _verify(jobs)
    due = [job for job in jobs if job.state != WHOLE]
    _print_plan(jobs, due, models)
    if problems := obstacles(hub, due, arguments.replace):
        raise DownloadFailed(problems)
    if arguments.dry_run:
        return 0
    known = record.with_whole(models, [(job.target, job.file) for job in jobs if _newly_whole(job, record)])
    if known != record:
        save_record(models, known)
    fetch_all(hub, due, models, known)
    announce("All is whole.")
    return 0


def _newly_whole(job: Job, record: Record) -> bool:
    return job.state == WHOLE and not record.knows_whole(job.models, job.target, job.file)


def _print_plan(jobs: Sequence[Job], due: Sequence[Job], models: Path) -> None:
    words = {WHOLE: "whole", MISSING: "to fetch", DIFFERENT: "different"}
    for job in jobs:
        size, name = job.file.size / 1e9, f"{job.file.repository}/{job.file.path}"
        print(f"{words[job.state]:<10}{size:>8.3f} GB  {job.path}  <-  {name}")
    needed = sum(job.missing_bytes for job in due) / 1e9
    print(f"{needed:.2f} GB to fetch, {free_bytes(models) / 1e9:.2f} GB free", flush=True)


def _verify(jobs: Sequence[Job]) -> int:
    """Say of each file what it is; raises `DownloadFailed` where one is missing or different."""
    problems = []
    for job in jobs:
        if job.state == WHOLE:
            kind = "sha256" if len(job.file.digest) == 64 else "git-sha1"
            print(f"whole  {kind:>8} {job.file.digest:<64}  {job.path}")
        elif job.state == MISSING:
            hint = "run this without --verify to fetch it"
            problems.append(DownloadProblem(Status.MISSING, Problem(str(job.path), "there is no such file", hint)))
        else:
            hint = "move it away, or give --replace instead of --verify"
            problems.append(DownloadProblem(Status.WRONG_BYTES, Problem(str(job.path), difference(job), hint)))
    if problems:
        raise DownloadFailed(sorted(problems, key=lambda problem: problem.status))
    print("All is whole.")
    return 0
