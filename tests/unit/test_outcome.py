"""What becomes of a job of the queue, in words."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from trainer.cli import serve
from trainer.common.problems import Problems
from trainer.exchange.job_queue import JobQueue
from trainer.exchange.status import Status
from trainer.serving.outcome import Left, judge, saved_state


def test_a_job_whose_process_found_problems_says_how_many(tmp_path: Path):
    queue = JobQueue(tmp_path)
    queue.submit("train", {"output_name": "a"})
    found = ({"where": "--ae", "what": "is damaged", "hint": "get it again"},) * 2
    job = replace(queue.job("a"), status=replace(queue.job("a").status, problems=found))
    status = judge(job, 1, False, "--ae: is damaged\n    -> get it again\n", Left())(job.status)
    assert (status.state, status.message, status.problems) == ("failed", "2 problems were found.", found)


def test_a_job_whose_file_was_moved_away_before_it_began_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Problems, match="There is no job 'gone'"):
        serve.run(["--run_job=gone"])


def ended(tmp_path: Path, exit_code: int | None, left: Left, asked: str | None = None, stops: bool = False) -> Status:
    """The status of a training whose process has ended."""
    queue = JobQueue(tmp_path / str(len([*tmp_path.iterdir()])))
    job = queue.submit("train", {"output_name": "a"})
    job = replace(job, status=replace(job.status, asked=asked))
    return judge(job, exit_code, stops, "the last line\n", left)(job.status)


def test_whatever_ends_a_process_whose_result_is_complete_it_has_finished(tmp_path: Path):
    done = Left(is_done=True, saved="It can continue from step 3.")
    for exit_code in (0, None, 130, 143, -signal.SIGINT, -signal.SIGTERM):
        for asked, message in (
            (None, ""),
            ("pause", "It had finished before it could be paused."),
            ("cancel", "It had finished before it could be cancelled."),
        ):
            for stops in (False, True):
                status = ended(tmp_path, exit_code, done, asked, stops)
                assert (status.state, status.message, status.can) == ("finished", message, ())
    status = ended(tmp_path, -signal.SIGKILL, done)
    assert status.state == "finished" and "SIGKILL" in status.message and "complete" in status.message
    status = ended(tmp_path, 1, done)
    assert status.state == "failed" and status.message.startswith("the last line Its result is complete")


@pytest.mark.parametrize(
    "saved", ["It can continue from step 3.", "No step is saved: it would start from the beginning."]
)
def test_a_job_that_has_not_finished_says_where_it_can_continue(tmp_path: Path, saved: str):
    left = Left(saved=saved)
    for exit_code, asked, stops, state in (
        (143, "pause", False, "paused"),
        (-signal.SIGTERM, "pause", True, "paused"),
        (None, "pause", False, "paused"),
        (143, "cancel", False, "cancelled"),
        (0, None, False, "stopped"),
        (130, None, True, "waiting"),
        (None, None, False, "waiting"),
        (-signal.SIGKILL, "pause", False, "interrupted"),
        (137, None, True, "interrupted"),
    ):
        status = ended(tmp_path, exit_code, left, asked, stops)
        assert (status.state, status.message.endswith(saved)) == (state, True), status
        assert state == "waiting" or "resume" in status.can


def test_where_a_job_can_continue_is_what_it_has_saved_itself(in_tmp: Path):
    job = JobQueue(in_tmp).submit("train", {"output_name": "a"})
    assert saved_state(job) is None
    for step in (2, 12):
        state = in_tmp / f"runs/a/state-step{step:08d}"
        state.mkdir(parents=True)
        (state / "state.json").write_text("{}")
        os.utime(state / "state.json", (step, step))
    assert Left.by(job, in_tmp / "none").saved.startswith("No step is saved"), "the states are older than the job"
    job = replace(job, status=replace(job.status, submitted=1.0))
    assert Left.by(job, in_tmp / "none").saved == "It can continue from step 12."
    for name in ("..", "../a", ""):
        assert saved_state(replace(job, settings={"output_name": name})) is None


def test_a_training_that_stopped_itself_says_why(in_tmp: Path):
    job = JobQueue(in_tmp).submit("train", {"output_name": "a", "stop_when": "overfit"})
    verdict = {"kind": "verdict", "verdict": "overfitting", "holds": True, "text": "overfitting since step 9"}
    Path("runs/a").mkdir(parents=True)
    log = Path("runs/a/log.jsonl")
    log.write_text(f'{{"kind": "step"}}\n{json.dumps(verdict)}\n{{"kind": "checkpoint"}}\n')
    status = judge(job, 0, False, "", Left.by(job, in_tmp / "none"))(job.status)
    assert status.state == "stopped" and "The reason: overfitting since step 9." in status.message
    log.write_text(json.dumps(verdict | {"holds": False}))
    assert not Left.by(job, in_tmp / "none").reason
    log.write_bytes(b"\xff")
    assert not Left.by(job, in_tmp / "none").reason


@pytest.mark.parametrize(
    ("kind", "settings", "result"),
    [
        ("train", {"output_name": "a", "output_dir": "models/loras/mine"}, "models/loras/mine/a.safetensors"),
        ("check", {"output_name": "a"}, "result.json"),
        ("compare", {"run": "a"}, "runs/a/report.html"),
    ],
)
def test_the_file_that_a_job_writes_last_is_the_sign_that_it_is_done(
    in_tmp: Path, kind: str, settings: dict[str, str], result: str
):
    job = JobQueue(in_tmp).submit(kind, settings)
    job = replace(job, status=replace(job.status, started=1000.0))
    path = in_tmp / result
    path.parent.mkdir(parents=True, exist_ok=True)
    assert not Left.by(job, in_tmp / "result.json").is_done
    path.touch()
    assert Left.by(job, in_tmp / "result.json").is_done
    os.utime(path, (900, 900))
    assert not Left.by(job, in_tmp / "result.json").is_done
