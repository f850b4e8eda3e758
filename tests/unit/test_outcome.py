"""What becomes of a job of the queue, in words."""

from dataclasses import replace
from pathlib import Path

import pytest

from trainer.cli import serve
from trainer.common.problems import Problems
from trainer.exchange.job_queue import JobQueue
from trainer.serving.outcome import judge


def test_a_job_whose_process_found_problems_says_how_many(tmp_path: Path):
    queue = JobQueue(tmp_path)
    queue.submit("train", {"output_name": "a"})
    found = ({"where": "--ae", "what": "is damaged", "hint": "get it again"},) * 2
    job = replace(queue.job("a"), status=replace(queue.job("a").status, problems=found))
    status = judge(job, 1, False, "--ae: is damaged\n    -> get it again\n")(job.status)
    assert (status.state, status.message, status.problems) == ("failed", "2 problems were found.", found)


def test_a_job_whose_file_was_moved_away_before_it_began_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Problems, match="There is no job 'gone'"):
        serve.run(["--run_job=gone"])
