"""Whether a run goes on: by its log's age, its last checkpoint, and the lock that its trainer holds."""

import os
import time
from pathlib import Path

import pytest

from custom_nodes.flux_dreambooth.run_state import LOCK, has_trainer
from custom_nodes.flux_dreambooth.runs import NotNow, Runs
from tests.nodes.run_writer import RunWriter
from trainer.common.problems import Problems
from trainer.common.process import run_lock


def set_age(folder: Path, seconds: float) -> None:
    for file in folder.iterdir():
        os.utime(file, (time.time() - seconds,) * 2)


def test_states_of_a_run(tmp_path: Path):
    writer, runs = RunWriter(tmp_path, total=40, per_epoch=10), Runs(tmp_path)

    def state(age: float) -> str:
        set_age(writer.folder, age)
        return runs.overview()["runs"][0]["state"]

    assert (state(1), state(1000), state(5000)) == ("preparing", "preparing", "stopped")
    writer.steps(10)
    assert (state(1), state(1000), state(5000)) == ("running", "quiet", "stopped")
    writer.checkpoint(with_state=True)
    assert (state(1), state(1000)) == ("running", "stopped")
    writer.steps(30)
    writer.checkpoint()
    assert (state(1), state(5000)) == ("finished", "finished")


def test_a_run_whose_trainer_is_gone_has_ended(tmp_path: Path):
    writer, runs = RunWriter(tmp_path, total=40, per_epoch=10), Runs(tmp_path)

    def state(age: float) -> str:
        set_age(writer.folder, age)
        return runs.overview()["runs"][0]["state"]

    with run_lock(writer.folder):
        assert (state(1), state(5000)) == ("preparing", "preparing")
        writer.steps(40)
        assert (state(1), state(30), state(5000)) == ("running", "running", "quiet")
    assert (state(1), state(30), state(5000)) == ("running", "ended", "ended")
    with pytest.raises(NotNow, match="not going on"):
        runs.ask("tj", "save")
    writer.checkpoint(with_state=True)
    assert state(30) == "finished"


def test_a_renamed_run_is_finished_too(tmp_path: Path):
    writer, runs = RunWriter(tmp_path, total=20, per_epoch=10), Runs(tmp_path)
    writer.steps(20)
    writer.checkpoint()
    writer.folder.rename(tmp_path / "tj of May")
    assert [(run["name"], run["state"]) for run in runs.overview()["runs"]] == [("tj of May", "finished")]
    (tmp_path / "tj of May/config.toml").write_text("")
    assert runs.details("tj of May")["state"] == "finished"


def test_looking_at_a_run_takes_no_lock_from_its_trainer(tmp_path: Path):
    writer = RunWriter(tmp_path)
    with run_lock(writer.folder), pytest.raises(Problems, match="another training"), run_lock(writer.folder):
        pass
    assert has_trainer(writer.folder) is False
    with run_lock(writer.folder):
        assert has_trainer(writer.folder)
    (writer.folder / LOCK).unlink()
    (writer.folder / LOCK).symlink_to(tmp_path / "elsewhere")
    assert has_trainer(writer.folder) is None
