"""A job that is paused or killed, in every phase of its training: what it says, and how it goes on. No test waits."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.job_queue import attempt, settings
from tests.kept_logging import logging_kept  # noqa: F401 (a fixture)
from tests.recipe_files import Workshop
from trainer import train as training
from trainer.common.problems import Problems
from trainer.engine import run as preparing
from trainer.engine import saving
from trainer.engine.log import RunLog
from trainer.engine.run import Run
from trainer.exchange.job_queue import Job, JobQueue
from trainer.exchange.status import Status
from trainer.serving.outcome import Left, judge

STEPS = 4
BEGINNING = "No step is saved: it would start from the beginning."
TOO_LATE = "It had finished before it could be paused."
# where the signal comes, whether at the nth call, and what the job says then
PHASES = {
    "generating images": (training, "with_generated_images", 1, BEGINNING),
    "encoding": (preparing, "fill_cache", 1, BEGINNING),
    "loading the model": (preparing, "load_adapted_model", 1, BEGINNING),
    "before the first step": (training, "first_step", 1, "from step 1."),
    "in a step": (training, "compute_gradient", 2, "from step 2."),
    "between two steps": (RunLog, "step", 3, "from step 3."),
    "saving": (saving, "snapshot_lora", 1, "from step 3."),
    "in the last step": (training, "update", STEPS, TOO_LATE),
    "the last save": (saving, "snapshot_lora", 2, TOO_LATE),
    "after the last step": (training, "announce_best", 1, TOO_LATE),
    "closing": (Run, "close", 1, TOO_LATE),
}


class Killed(BaseException):
    """Ends the training at once, as a kill does."""


def kill() -> None:
    raise Killed


def ask_to_stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def at(place: Any, name: str, number: int, act: Callable[[], None]) -> Iterator[None]:
    """Within it, `act` is called before the function's nth call, or inside the log's line of a step."""
    original, calls = getattr(place, name), 0

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            act()
        return original(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(place, name, counted)
        yield
    assert calls >= number


def judged(queue: JobQueue, job: str, exit_code: int | None) -> Status:
    """What the waiting trainer makes of an attempt that has ended."""
    found = queue.job(job)
    return queue.update(job, judge(found, exit_code, False, "", Left.by(found, queue.path(job, ".result.json"))))


def pause_at(queue: JobQueue, job: str, place: Any, name: str, number: int) -> Status:
    queue.update(job, lambda status: replace(status, asked="pause"))
    with at(place, name, number, ask_to_stop):
        try:
            exit_code = attempt(queue, job)
        except SystemExit as ended:
            exit_code = ended.code
    return judged(queue, job, exit_code)


def lora(name: str) -> dict[str, torch.Tensor]:
    return load_file(Path("models/loras", f"{name}.safetensors"))


def submit(queue: JobQueue, workshop: Workshop, name: str, **more: Any) -> Job:
    return queue.submit("train", settings(workshop, name) | {"save_every_n_steps": 2} | more)


def test_a_training_paused_in_any_phase_goes_on_to_the_same_bits(queue: JobQueue, workshop: Workshop):
    submit(queue, workshop, "whole")
    assert attempt(queue, "whole") == 0
    whole = lora("whole")
    for phase, (place, name, number, says) in PHASES.items():
        job = submit(queue, workshop, phase).id
        status = pause_at(queue, job, place, name, number)
        assert status.message.endswith(says), (phase, status)
        assert status.state == ("finished" if says == TOO_LATE else "paused"), (phase, status)
        if status.state == "paused":
            queue.act(job, "resume")
            assert attempt(queue, job) == 0
            assert judged(queue, job, 0).state == "finished", phase
        made = lora(phase)
        assert whole.keys() == made.keys() and all(torch.equal(whole[key], made[key]) for key in whole), phase


def test_a_killed_training_without_a_state_starts_again_and_writes_its_own_files_once_more(
    queue: JobQueue,
    workshop: Workshop,
):
    for name in ("whole again", "killed"):
        submit(queue, workshop, name)
    assert attempt(queue, "whole again") == 0
    with at(training, "update", 3, kill), pytest.raises(Killed):
        attempt(queue, "killed")
    assert Path("models/loras/killed-step00000002.safetensors").exists()
    status = judged(queue, "killed", -signal.SIGKILL)
    assert (status.state, status.message.endswith(BEGINNING)) == ("interrupted", True)
    queue.act("killed", "resume")
    assert attempt(queue, "killed") == 0
    whole, made = lora("whole again"), lora("killed")
    assert all(torch.equal(whole[key], made[key]) for key in whole)


def test_a_killed_training_never_replaces_a_file_that_is_older_than_it(queue: JobQueue, workshop: Workshop):
    submit(queue, workshop, "hindered")
    with at(training, "update", 3, kill), pytest.raises(Killed):
        attempt(queue, "hindered")
    older = Path("models/loras/hindered-step00000004.safetensors")
    older.write_bytes(b"a user's")
    os.utime(older, (1, 1))
    with pytest.raises(Problems, match="an earlier run with this name"):
        attempt(queue, "hindered")
    assert older.read_bytes() == b"a user's"


def test_a_killed_trainer_s_job_goes_on_by_itself_and_says_from_where(queue: JobQueue, workshop: Workshop):
    job = submit(queue, workshop, "orphan", save_state=True).id
    with at(training, "update", STEPS, kill), pytest.raises(Killed):
        attempt(queue, job)
    status = judged(queue, job, None)
    assert status.state == "waiting" and status.message.endswith("from step 2."), status
    assert attempt(queue, job) == 0
