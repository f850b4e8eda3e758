"""Two training processes that init.py started: a clean stop of both, and a failure in one line."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from tests.recipe_files import PATIENCE, ROOT, Finished, make_workshop, started, wait_for

INIT = [sys.executable, str(ROOT / "containers/init.py"), "--num_processes=2"]
PROGRAM = [sys.executable, "-m", "trainer"]


def pretended(folder: Path, program: str) -> tuple[int, str]:
    """Status and output of two processes of a `trainer` that is this program."""
    (folder / "trainer.py").write_text(f"import os, signal, sys, time\nrank = int(os.environ['RANK'])\n{program}")
    with started([*INIT, *PROGRAM, "train", "a b"], folder) as process:
        output, _ = process.communicate(timeout=PATIENCE)
    assert "Traceback" not in output, output
    return process.returncode, output


def test_a_stop_is_not_a_failure(tmp_path: Path):
    """Nobody is ended while still writing, and the status is that of the stopped program."""
    program = "time.sleep(3 * rank)\nopen(f'{rank}.txt', 'w').close()\nprint(*sys.argv[1:])\nsys.exit(143 - 13 * rank)"
    status, output = pretended(tmp_path, program)
    assert status == 143 and output.count("train a b") == 2
    assert (tmp_path / "0.txt").exists() and (tmp_path / "1.txt").exists()


@pytest.mark.parametrize(
    ("end", "status", "line"),
    [
        ("print('the reason') or sys.exit(7)", 7, "Training process 1 exited with status 7."),
        ("os.kill(os.getpid(), signal.SIGKILL)", 137, "Training process 1 was killed by SIGKILL."),
    ],
    ids=["status", "signal"],
)
def test_a_failure_is_one_line_beside_its_reason(tmp_path: Path, end: str, status: int, line: str):
    found, output = pretended(tmp_path, f"{end} if rank else time.sleep(1000)")
    assert found == status and output.splitlines()[-1].startswith(line)


def test_a_good_end_is_quiet(tmp_path: Path):
    assert pretended(tmp_path, "sys.exit(0)") == (0, "")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_training_has_the_last_word(tmp_path: Path, tiny_flux, number: int, status: int):
    workshop = make_workshop(tmp_path, tiny_flux)
    settings = {"max_train_steps": 1000}
    run = Finished(workshop.config("two", **settings))
    command = workshop.command("two", *INIT, *PROGRAM, **settings)
    with started(command) as process:
        wait_for(lambda: (run.folder / "log.jsonl").exists() and len(steps(run)) >= 2, process)
        os.kill(process.pid, number)
        output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == status, output
    assert "Traceback" not in output, output
    last = run.log("step")[-1]["step"]
    assert output.splitlines()[-1] == f"To continue, repeat the command with --resume={run.state(last)}"
    assert run.loras() == [f"tj-step{last:08d}.safetensors"] and run.state(last).is_dir()


def steps(run: Finished) -> list[dict]:
    """The whole lines that say a step so far."""
    whole = (run.folder / "log.jsonl").read_text().rpartition("\n")[0].splitlines()
    return [line for line in map(json.loads, whole) if line["kind"] == "step"]
