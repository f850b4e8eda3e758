"""The waiting trainer: jobs that are paused, cancelled or killed, and trainers that are. Stand-ins for processes."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.waiting_trainer import DONE, HANGS, Serving, take_lock_in, train, wait_until
from trainer.exchange.job_queue import JobQueue
from trainer.serving import comfyui, server


@pytest.fixture
def queue(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> JobQueue:
    monkeypatch.setattr(server, "POLL", 0.01)
    monkeypatch.setattr(server, "AGAIN", 0.01)
    assert in_tmp == Path.cwd()
    return JobQueue(Path("runs/queue"))


@pytest.mark.parametrize(("asked", "state"), [("pause", "paused"), ("cancel", "cancelled")])
def test_a_running_job_is_asked_once_and_may_save(queue: JobQueue, asked: str, state: str):
    code = "import signal, sys, time\ndef end(*_):\n time.sleep(0.1)\n print('saved')\n sys.exit(143)\n"
    code += "signal.signal(signal.SIGTERM, end)\nprint('at work', flush=True)\nwhile True: time.sleep(0.01)"
    train(queue, "a")
    with Serving(queue, code) as serving:
        wait_until(lambda: queue.log("a", 0, 99)[1])
        queue.act("a", asked)
        job = serving.wait_for("a", state)
        assert queue.log("a", 0, 99)[0] == b"at work\nsaved\n" and job.status.asked is None
        assert "resume" in job.status.can


@pytest.mark.parametrize("asked", ["pause", "cancel"])
def test_a_request_that_comes_after_the_last_step_finds_a_job_that_has_finished(queue: JobQueue, asked: str):
    """Its process ends as SIGTERM ends any process, with its result on the disk."""
    train(queue, "a")
    with Serving(queue, f"{DONE}; {HANGS}") as serving:
        wait_until(lambda: queue.log("a", 0, 99)[1])
        queue.act("a", asked)
        job = serving.wait_for("a", "finished", "paused", "cancelled")
    assert job.status.state == "finished" and "before it could" in job.status.message and job.status.exit_code == -15


@pytest.mark.parametrize(("asked", "state"), [("pause", "paused"), ("cancel", "cancelled")])
def test_a_job_that_is_held_back_while_comfyui_is_asked_does_not_start(
    queue: JobQueue, monkeypatch: pytest.MonkeyPatch, asked: str, state: str
):
    def ask_to_free(_: str) -> str:
        queue.act("a", asked)
        return "asked"

    monkeypatch.setattr(comfyui, "ask_to_free", ask_to_free)
    train(queue, "a")
    with Serving(queue, DONE, comfyui_url="http://127.0.0.1:9") as serving:
        wait_until(lambda: "Waiting for jobs." in serving.said)
    assert (queue.job("a").status.state, queue.job("a").status.attempts) == (state, 0)
    assert not Path("models/loras/a.safetensors").exists()


def test_a_process_that_cannot_be_asked_is_named(queue: JobQueue):
    """The trainer before was killed before it had written down which process it started."""
    train(queue, "a")
    lock = take_lock_in(queue)
    left = {"state": "running", "attempts": 1, "submitted": 1.0, "started": time.time(), "asked": "pause"}
    (queue.folder / "a.status.json").write_text(json.dumps(left))
    try:
        with Serving(queue, DONE) as serving:
            wait_until(lambda: any("may finish" in line for line in serving.said))
            os.close(lock)
            serving.wait_for("a", "paused")
    finally:
        with contextlib.suppress(OSError):
            os.close(lock)


def test_a_killed_job_is_offered_and_says_so(queue: JobQueue):
    train(queue, "a")
    with Serving(queue, HANGS) as serving:
        wait_until(lambda: queue.log("a", 0, 99)[1])
        os.kill(wait_until(lambda: queue.job("a").status.pid), signal.SIGKILL)
        job = serving.wait_for("a", "interrupted")
    assert "SIGKILL" in job.status.message and "memory" in job.status.message and "resume" in job.status.can


def test_a_stopped_trainer_lets_the_job_save_and_the_next_one_goes_on_with_it(queue: JobQueue):
    train(queue, "a", "b")
    with Serving(queue, HANGS):
        wait_until(lambda: queue.log("a", 0, 99)[1])
    assert [job.id for job in queue.jobs()] == ["a", "b"]
    assert (queue.job("a").status.state, queue.job("a").status.attempts) == ("waiting", 1)
    with Serving(queue, DONE) as serving:
        assert serving.wait_for("a", "finished").status.attempts == 2
        serving.wait_for("b", "finished")


def test_after_a_killed_trainer_its_job_is_waited_for_not_started_twice(queue: JobQueue):
    """The job's process is still alive; then it is not: it goes on from its saved state."""
    train(queue, "a")
    lock = take_lock_in(queue)
    process = subprocess.Popen([sys.executable, "-c", HANGS], pass_fds=(lock,), stdout=subprocess.DEVNULL)
    os.close(lock)
    left = {"state": "running", "attempts": 1, "pid": process.pid, "submitted": 1.0, "started": time.time()}
    (queue.folder / "a.status.json").write_text(json.dumps(left))
    try:
        with Serving(queue, DONE) as serving:
            wait_until(lambda: any("is still running" in line for line in serving.said))
            assert queue.job("a").status.attempts == 1
            process.kill()
            process.wait()
            assert serving.wait_for("a", "finished").status.attempts == 2
    finally:
        process.kill()


def test_a_job_that_failed_while_no_trainer_was_there_is_not_started_again(queue: JobQueue):
    train(queue, "a")
    held = {"where": "--ae", "what": "is damaged", "hint": ""}
    left = {"state": "running", "attempts": 1, "submitted": 1.0, "started": 1.0, "problems": [held]}
    (queue.folder / "a.status.json").write_text(json.dumps(left))
    with Serving(queue, DONE) as serving:
        assert serving.wait_for("a", "failed").status.problems == (held,)


def test_exit_status_0_without_a_lora_is_a_run_that_was_stopped(queue: JobQueue):
    train(queue, "a")
    with Serving(queue, "pass") as serving:
        assert "stopped" in serving.wait_for("a", "stopped").status.message
