"""A kill or a full disk at any moment of a save leaves every state whole that was whole before."""

import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.small_run import Run, assert_identical
from trainer.checkpoint.state import load_state
from trainer.common.files import FULL_DISK_ERRORS

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a system with fork")
CHANGES = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod"}


def in_child(act: Callable[[], None]) -> int:
    """Run `act` in a forked process; its wait status. 0: finished, 9: killed, 256: raised."""
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)  # thread pools do not survive a fork
            act()
            os._exit(0)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            os._exit(1)
    return os.waitpid(child, 0)[1]


def kill_at_change(number: int, folder: Path) -> None:
    """Kill this process at its n-th change to the file system below `folder`."""
    seen = 0

    def watch(event: str, arguments: tuple) -> None:
        nonlocal seen
        if event in CHANGES and str(arguments[0]).startswith(str(folder)):
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def assert_whole(folder: Path, *accepted: Run) -> None:
    """The state restores to one of the accepted runs, bit for bit."""
    step = load_state(folder).progress["step"]
    (expected,) = [run for run in accepted if run.step == step]
    restored = Run("Prodigy", learning_rate=1.0).restore(folder)
    assert_identical(restored.everything(), expected.everything())


def runs() -> tuple[Run, Run]:
    """One run at steps 3 and 5."""
    return tuple(Run("Prodigy", learning_rate=1.0).train(0, step) for step in (3, 5))


@pytest.mark.parametrize("name", ["state-step00000003", "state-step00000005"], ids=["same name", "new name"])
def test_killed_at_every_change_to_the_disk(tmp_path, name):
    before, after = runs()
    first = tmp_path / "state-step00000003"
    before.save(first)

    for number in range(1, 200):

        def act(number=number):
            kill_at_change(number, tmp_path)
            after.save(tmp_path / name)

        status = in_child(act)
        assert status in (0, signal.SIGKILL)
        if (tmp_path / name).exists() and name != first.name:
            assert_whole(tmp_path / name, after)
        assert_whole(first, before, after)
        if status == 0:
            break
        before.save(first)
    assert number > 20, "too few moments were tried"
    assert {path.name for path in tmp_path.iterdir()} == {first.name, name}, "leftovers"


def test_killed_at_any_time(tmp_path):
    before, after = runs()
    chance = random.Random(0)
    folder = tmp_path / "state-step00000003"
    before.save(folder)
    for _ in range(12):

        def act() -> None:
            while True:
                after.save(folder)

        child = os.fork()
        if child == 0:
            torch.set_num_threads(1)
            act()
        time.sleep(chance.uniform(0.0, 0.1))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert_whole(folder, before, after)


@pytest.mark.parametrize("limit", [0, 500, 1500, 4000])
def test_a_full_disk_leaves_the_previous_state_and_no_rubbish(tmp_path, limit):
    before, after = runs()
    folder = tmp_path / "state-step00000003"
    before.save(folder)
    largest = max(path.stat().st_size for path in folder.iterdir())
    assert limit < largest

    def act() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        with pytest.raises(FULL_DISK_ERRORS):
            after.save(folder)
        with pytest.raises(FULL_DISK_ERRORS):
            after.save(tmp_path / "state-step00000005")

    assert in_child(act) == 0
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    assert_whole(folder, before)
