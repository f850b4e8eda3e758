"""`python -m trainer serve`: waits for jobs in runs/queue/ and runs them one at a time.

A job is a small TOML file with the settings of a training. The page in ComfyUI writes it, or a person does. Each job
runs as a process of its own; waiting uses no GPU memory. Ctrl-C lets the running job save; it continues at the next
start of this command.
"""

import argparse
import importlib
import os
import shutil
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType

from trainer.common.problems import Problem, Problems, raise_if_any
from trainer.common.process import announce
from trainer.config import parse_config, placed_problems
from trainer.exchange.files import replace_file
from trainer.exchange.job_file import CHECK, TRAIN
from trainer.exchange.job_queue import Job, JobQueue
from trainer.exchange.plans import Plans
from trainer.serving.comfyui import DEFAULT, address_problem
from trainer.serving.command import arguments_of, plan_arguments
from trainer.serving.outcome import saved_state
from trainer.serving.planner import Planner
from trainer.serving.server import Server

QUEUE = Path("runs/queue")
LAUNCHER = Path("containers/init.py")  # starts several processes
NICE = 10  # of the process that says what a training would take: it yields to one that trains


def run(argv: Sequence[str]) -> int:
    """Wait for jobs until SIGINT or SIGTERM comes.

    argv: the flags after `serve`. Returns the exit status: 130 or 143 after a signal. Raises `Problems`.
    """
    given = _parser().parse_args(argv)
    queue = JobQueue(QUEUE)
    if given.run_job:
        try:
            job = queue.job(given.run_job)
        except LookupError as error:  # a person has moved its file away
            raise Problems([Problem(str(QUEUE), str(error), "its file has been moved away; put it back")]) from None
        return _run_job(job, queue)
    if given.answer:
        return _answer_plan(Plans(QUEUE), given.answer, given.gpu_in_use)
    raise_if_any(_argument_problems(given))
    address = None if given.comfyui == "none" else given.comfyui
    planner = Planner(QUEUE, _plan_command)
    server = Server(queue, _command(given.num_processes), announce, address, _has_gpu(), planner)
    stops: list[int] = []

    def stop(number: int, _frame: FrameType | None) -> None:
        stops.append(number)
        if server.stop.is_set():
            server.ask_to_stop()
        server.stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    announce(f"This trainer takes jobs from {QUEUE}/. Ctrl-C stops it; a job that runs saves first.")
    server.serve()
    return 128 + stops[0] if stops else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m trainer serve", description=__doc__, allow_abbrev=False)
    text = 'address of the ComfyUI that is asked to free its models before a job starts, or "none" (%(default)s)'
    parser.add_argument("--comfyui", metavar="URL", default=DEFAULT, help=text)
    text = "processes of a training, one for each GPU (%(default)s)"
    parser.add_argument("--num_processes", type=int, metavar="N", default=1, help=text)
    parser.add_argument("--run_job", metavar="ID", help=argparse.SUPPRESS)  # in the process that does one job
    parser.add_argument("--answer", metavar="ID", help=argparse.SUPPRESS)  # in one that says what a training would take
    parser.add_argument("--gpu_in_use", action="store_true", help=argparse.SUPPRESS)
    return parser


def _argument_problems(given: argparse.Namespace) -> list[Problem]:
    problems = []
    if given.comfyui != "none" and (what := address_problem(given.comfyui)):
        problems.append(Problem("--comfyui", what, f'write {DEFAULT}, or "none"'))
    if given.num_processes < 1:
        problems.append(Problem("--num_processes", f"{given.num_processes} is fewer than 1", "one for each GPU"))
    if given.num_processes > 1 and not LAUNCHER.is_file():
        hint = "run this in the repository's folder"
        problems.append(
            Problem("--num_processes", f"several processes are started by {LAUNCHER}, which is missing", hint)
        )
    return problems


def _has_gpu() -> bool:
    """Whether jobs train on a GPU, as far as that is known without torch."""
    on_cpu = os.environ.get("CUDA_VISIBLE_DEVICES") == "" or os.environ.get("ACCELERATE_USE_CPU") == "true"
    return not on_cpu and shutil.which("nvidia-smi") is not None


def _command(num_processes: int) -> Callable[[Job], list[str]]:
    several = [sys.executable, str(LAUNCHER), f"--num_processes={num_processes}"] if num_processes > 1 else []

    def command(job: Job) -> list[str]:
        launcher = several if job.kind == TRAIN else []
        return [*launcher, sys.executable, "-m", "trainer", "serve", f"--run_job={job.id}"]

    return command


def _plan_command(plan: str, gpu_in_use: bool) -> list[str]:
    busy = ["--gpu_in_use"] if gpu_in_use else []
    return [sys.executable, "-m", "trainer", "serve", f"--answer={plan}", *busy]


def _answer_plan(plans: Plans, plan: str, gpu_in_use: bool) -> int:
    """Answer what a training would take, in this process; nothing else is written.

    gpu_in_use: do not touch the GPU, on which a job trains; memory and time stay unknown.
    """
    os.nice(NICE)
    path, dataset = plans.path(plan, ".toml"), plans.path(plan, ".dataset.toml")
    names = {str(dataset): "the new dataset file", str(path): "settings"}  # nobody knows the temporary files
    try:
        # imported late: `serve` itself needs no torch
        import torch

        from trainer.preflight.check import make_plan
        from trainer.serving.check_result import plan_result

        flags = plan_arguments(path, dataset if dataset.exists() else None)
        config, _ = parse_config(flags)
        device = torch.device("cuda" if torch.cuda.is_available() and not gpu_in_use else "cpu")
        with placed_problems(flags):
            found = make_plan(config, device=device)
        warnings = tuple(_with_names(each, names) for each in found.warnings)
        plans.answer(plan, {**plan_result(replace(found, warnings=warnings)), "gpu_in_use": gpu_in_use})
    except Problems as found:
        plans.answer(plan, {"problems": [_with_names(each, names).as_dict() for each in found.problems]})
    return 0


def _with_names(problem: Problem, names: Mapping[str, str]) -> Problem:
    """The problem with `names` in place of paths."""
    texts = [problem.where, problem.what, problem.hint]
    for path, name in names.items():
        texts = [text.replace(path, name) for text in texts]
    return Problem(*texts)


def _run_job(job: Job, queue: JobQueue) -> int:
    """Do one job, in this process. Its problems go into the queue too, where the page finds them."""
    try:
        verb, *flags = arguments_of(job, queue.path(job.id, ".toml"))
        if verb == CHECK:
            from trainer.cli.check import plan_and_report
            from trainer.serving.check_result import check_result

            replace_file(queue.path(job.id, ".result.json"), check_result(plan_and_report(flags)))
            return 0
        more = _continuing(job, flags) if verb == TRAIN else []
        return importlib.import_module(f"trainer.cli.{verb}").run([*flags, *more])  # one of the kinds of jobs
    except Problems as found:
        if os.environ.get("RANK", "0") == "0":
            _keep(queue, job, found)
        raise


def _continuing(job: Job, flags: Sequence[str]) -> list[str]:
    """The flags that continue a training which was started before: --resume with the newest state that it has saved.

    Without one it starts from the beginning and writes its checkpoints again: --overwrite, unless a file of its name is
    older than the job.
    """
    if job.status.attempts < 2:
        return []
    if state := saved_state(job):
        return [f"--resume={state}"]
    from trainer.preflight.outputs import earlier_files, modified

    earlier = earlier_files(parse_config(flags)[0])
    is_own = all(modified(path) >= job.status.submitted for path in earlier)
    return ["--overwrite"] if earlier and is_own else []


def _keep(queue: JobQueue, job: Job, found: Problems) -> None:
    held = tuple(each.as_dict() for each in found.problems)
    queue.update(job.id, lambda status: replace(status, problems=held))
