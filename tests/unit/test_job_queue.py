"""Jobs as files: what a job may say, their order, and requests from several programs."""

import json
import os
import threading
import time
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import pytest

from trainer.config import TrainConfig
from trainer.exchange import allowed, files
from trainer.exchange.job_file import Unusable, id_for, is_id, job_text, read_job, settings_text
from trainer.exchange.job_queue import JobQueue, NotPossible
from trainer.exchange.status import CAN, RUNNING, WAITING, Status, read_status, write_status

HOSTILE_PATHS = (
    "/etc/passwd", "../x", "models/../../x", "models/loras/../../../x", "~/x", "models\\x", "C:/x", "", "models/a\0b",
    "modelsx/a", "flux_data", 3, None, ["models/a"],
)  # fmt: skip


@pytest.fixture
def queue(tmp_path: Path) -> JobQueue:
    return JobQueue(tmp_path / "queue")


def names(queue: JobQueue) -> list[str]:
    return [job.id for job in queue.jobs()]


def test_every_setting_is_either_allowed_or_left_out_on_purpose():
    ours = {field.name for field in fields(TrainConfig)}
    assert ours >= allowed.VALUES | allowed.PATHS.keys() | allowed.REFUSED.keys()
    assert ours - allowed.VALUES - allowed.PATHS.keys() == {*allowed.REFUSED}
    hints = get_type_hints(TrainConfig)
    paths = {name for name in ours if Path in (hints[name], *getattr(hints[name], "__args__", ()))}
    assert paths - allowed.PATHS.keys() == {"run_dir", "logging_dir"}


@pytest.mark.parametrize("value", HOSTILE_PATHS)
def test_no_path_leads_out(value: object):
    for name in ("ae", "output_dir", "network_weights"):
        assert allowed.refusal(name, value)


def test_what_a_job_may_not_have():
    for name, value in [
        ("overwrite", True), ("run_dir", "runs/queue"), ("run_dir", "/tmp"), ("log_with", "wandb"), ("log_with", "ALL"),
        ("optimizer_type", "os.system"), ("output_name", "../x"), ("output_name", ".x"), ("output_name", "-x"),
        ("output_name", "Queue"), ("output_name", "x" * 101), ("output_name", "a\nb"), ("output_name", 3), ("no", 1),
        ("output_name", " a"), ("output_name", "a\ud800"),
    ]:  # fmt: skip
        assert allowed.refusal(name, value), (name, value)
    for name, value in [("ae", "models/vae/ae.safetensors"), ("output_dir", "models/loras/mine"), ("run_dir", "runs"),
                        ("output_name", "내 강아지"), ("optimizer_type", "Prodigy"), ("seed", 3)]:  # fmt: skip
        assert allowed.refusal(name, value) is None, name


def test_a_job_reads_back_as_it_was_written(tmp_path: Path):
    settings = {"a": 'q"\\\n\x7f\u2028한', "b": True, "c": 3, "d": 1e-4, "e": ["x=1", "y"], "f": -2.5}
    path = tmp_path / "job.toml"
    for kind in ("train", "check", "mask"):
        path.write_text(job_text(kind, settings), encoding="utf-8")
        assert read_job(path) == (kind, settings)
    path.write_text(settings_text(settings) + "[network]\nnetwork_dim = 4\n", encoding="utf-8")
    assert read_job(path) == ("train", settings | {"network_dim": 4})
    path.write_text("[train]\n")
    assert read_job(path) == ("train", {})


@pytest.mark.parametrize("value", [float("nan"), {"a": 1}, None, [[1]], "\ud800", 2**80, object()])
def test_a_value_that_toml_lacks_is_refused(value: object):
    with pytest.raises(ValueError, match="value"):
        job_text("train", {"a": value})
    with pytest.raises(ValueError, match="name"):
        job_text("train", {"a]\nb": 1})


@pytest.mark.parametrize("content", [b"", b"# only this\n", b"a = ", b"\xff\xfe", b"a = " + b"[" * 5000, b"#" * 70_000])
def test_a_file_that_is_no_job_says_why(queue: JobQueue, content: bytes):
    queue.folder.mkdir()
    (queue.folder / "bad.toml").write_bytes(content)
    (job,) = queue.jobs()
    assert job.problem and job.id == "bad"
    (queue.folder / "link.toml").symlink_to("/etc/passwd")
    with pytest.raises(Unusable, match="cannot be read"):
        read_job(queue.folder / "link.toml")


def test_ids_are_plain_names():
    for bad in ("", ".x", "a.b", "a/b", "-a", "_a", "a\n", "a ", "config", "LOG", "..", "a" * 81, "a\0"):
        assert not is_id(bad), bad
    taken: set[str] = set()
    for name in ("dog", "Dog", "v1.5/../x", "...", "config", "내 강아지", "x" * 300, "🙂"):
        found = id_for(name, taken)
        assert is_id(found) and found.casefold() not in {each.casefold() for each in taken}, found
        taken.add(found)


def test_twenty_jobs_keep_their_order_and_can_be_moved(queue: JobQueue):
    for number in range(20):
        queue.submit("train", {"output_name": f"n{number}"})
    assert names(queue) == [f"n{number}" for number in range(20)]
    queue.move("n19", "n0")
    queue.move("n5", None)
    assert names(queue)[:2] == ["n19", "n0"] and names(queue)[-1] == "n5"
    assert names(JobQueue(queue.folder)) == names(queue)
    with pytest.raises(NotPossible):
        queue.move("n1", "n1")
    with pytest.raises(LookupError):
        queue.move("../n1", None)


def test_a_job_dropped_by_hand_waits_its_turn(queue: JobQueue):
    queue.submit("train", {"output_name": "first"})
    (queue.folder / "by hand.toml").write_text('output_name = "second"\n')
    (queue.folder / "v1.5.toml").write_text('output_name = "third"\n')
    assert names(queue) == ["first", "by hand"] and queue.left_out() == ["v1.5.toml"]
    assert queue.job("by hand").status.state == WAITING and queue.job("by hand").name == "second"


def test_a_name_that_an_unfinished_job_makes_is_taken(queue: JobQueue):
    queue.submit("train", {"output_name": "dog"})
    with pytest.raises(NotPossible, match="already makes"):
        queue.submit("train", {"output_name": "DOG"})
    queue.submit("check", {"output_name": "dog"})
    queue.act("dog", "cancel")
    assert queue.submit("train", {"output_name": "dog"}).id == "dog-2"


def test_what_can_be_asked_follows_from_the_state(queue: JobQueue):
    queue.submit("train", {"output_name": "dog"})
    with pytest.raises(NotPossible):
        queue.act("dog", "resume")
    assert queue.act("dog", "pause").status.state == "paused"
    assert queue.act("dog", "resume").status.state == WAITING
    queue.update("dog", lambda status: Status(state=RUNNING, submitted=status.submitted))
    assert queue.act("dog", "pause").status.asked == "pause" and queue.job("dog").status.state == RUNNING
    assert queue.act("dog", "cancel").status.can == ()
    for bad in ("delete", "", "move", "start"):
        with pytest.raises(NotPossible):
            queue.act("dog", bad)
    assert {action for can in CAN.values() for action in can} == {"pause", "resume", "cancel", "move"}


def test_several_pages_submit_at_once(queue: JobQueue):
    def submit(page: int) -> None:
        own = JobQueue(queue.folder)
        for number in range(5):
            own.submit("train", {"output_name": f"p{page} {number}"})

    threads = [threading.Thread(target=submit, args=(page,)) for page in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(names(queue)) == 20
    state = json.loads((queue.folder / "queue.json").read_text())
    assert sorted(state["order"]) == sorted(names(queue))


def test_a_full_queue_takes_no_more(queue: JobQueue, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("trainer.exchange.job_queue.MAX_WAITING", 2)
    queue.submit("train", {"output_name": "a"})
    queue.submit("train", {"output_name": "b"})
    with pytest.raises(NotPossible, match="full"):
        queue.submit("train", {"output_name": "c"})
    assert names(queue) == ["a", "b"]


@pytest.mark.parametrize("fails", ["write", "replace", "link"])
def test_a_full_disk_leaves_the_queue_as_it_was(queue: JobQueue, monkeypatch: pytest.MonkeyPatch, fails: str):
    queue.submit("train", {"output_name": "a"})
    before = {path.name: path.read_bytes() for path in queue.folder.iterdir()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files.os, {"write": "fsync", "replace": "replace", "link": "replace"}[fails], full)
        for request in (lambda: queue.act("a", "pause"), lambda: queue.submit("train", {"output_name": "b"})):
            with pytest.raises(OSError, match="No space"):
                request()
    assert {path.name: path.read_bytes() for path in queue.folder.iterdir()} == before


@pytest.mark.parametrize(
    "held", ["", "[]", "{", '{"state": 3}', '{"state": "gone", "problems": 3, "started": true}', "[" * 9999]
)
def test_a_damaged_status_is_that_of_a_job_that_waits(tmp_path: Path, held: str):
    (tmp_path / "s").write_text(held)
    assert read_status(tmp_path / "s", 5.0) == Status(submitted=5.0)


def test_a_status_reads_back(tmp_path: Path):
    status = Status(
        "failed", None, 2, True, 1.5, 2.5, 3.5, 7, 1, "why", ({"where": "a", "what": "b", "hint": "\ud800"},)
    )
    write_status(tmp_path / "s", status)
    found = read_status(tmp_path / "s", 0)
    assert found.problems == ({"where": "a", "what": "b", "hint": "?"},)
    assert (found.state, found.attempts, found.pid, found.ended) == ("failed", 2, 7, 3.5)


def test_creating_replaces_nothing_and_cleans_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "a"
    assert files.create_file(path, b"1") and not files.create_file(path, b"2") and path.read_bytes() == b"1"
    (tmp_path / "dangling").symlink_to("nowhere")
    assert not files.create_file(tmp_path / "dangling", b"3")
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "link", lambda *_: (_ for _ in ()).throw(OSError(1, "no links here")))
        assert files.create_file(tmp_path / "b", b"4") and (tmp_path / "b").read_bytes() == b"4"
    assert {each.name for each in tmp_path.iterdir()} == {"a", "b", "dangling"}


def test_what_a_killed_program_left_half_written_goes_after_an_hour(tmp_path: Path):
    for name, age in ((".part-old.tmp", 7200), (".part-new.tmp", 0), ("mine.tmp", 7200)):
        (tmp_path / name).write_text("x")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    files.remove_old_parts(tmp_path)
    assert {each.name for each in tmp_path.iterdir()} == {".part-new.tmp", "mine.tmp"}


def test_a_lock_is_held_by_one(tmp_path: Path):
    first = files.take_lock(tmp_path / "l")
    assert first is not None and files.take_lock(tmp_path / "l") is None and files.is_locked(tmp_path / "l")
    os.close(first)
    assert not files.is_locked(tmp_path / "l") and not files.is_locked(tmp_path / "none")
