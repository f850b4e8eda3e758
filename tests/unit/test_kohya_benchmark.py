"""benchmarks/kohya.py with a stand-in for sd-scripts: what is timed, and what is written when it fails."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.recipe_files import PATIENCE

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kohya.py"
STAND_IN = """
import sys, time, torch
from own import PAUSE
now = time.time()
time.time = lambda: now  # a clock that only the steps move
weight = torch.nn.Parameter(torch.ones(2))
optimizer = torch.optim.SGD([weight], lr=0.1)
for step in range(int(sys.argv[1])):
    now += PAUSE
    weight.grad = torch.ones(2)
    optimizer.step()
if sys.argv[2:] == ["--break"]:
    raise RuntimeError("broken")
"""
PAUSE = 0.1


@pytest.fixture
def sd_scripts(tmp_path) -> Path:
    folder = tmp_path / "sd scripts"
    folder.mkdir()
    (folder / "flux_train_network.py").write_text(STAND_IN, encoding="utf-8")
    (folder / "own.py").write_text(f"PAUSE = {PAUSE}\n", encoding="utf-8")
    return folder


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)


def test_steps_after_the_warm_up_are_timed_by_picture(sd_scripts, tmp_path):
    output = tmp_path / "kohya.json"
    done = run(sd_scripts, "--output", output, "--pictures_per_step", 4, "--", "8")
    assert done.returncode == 0, done.stderr
    found = json.loads(output.read_text())
    assert found["pictures_timed"] == 5 * 4
    each = [found[name] for name in ("lowest", "seconds_per_picture", "highest")]
    assert each == pytest.approx([PAUSE / 4] * 3, abs=1e-6)
    assert found["first_step"] >= PAUSE
    assert found["flags"] == ["8"]


def test_a_failure_stays_one_and_what_was_seen_is_written(sd_scripts, tmp_path):
    output = tmp_path / "kohya.json"
    done = run(sd_scripts, "--output", output, "--", "2", "--break")
    assert done.returncode == 1
    assert "RuntimeError: broken" in done.stderr
    found = json.loads(output.read_text())
    assert (found["pictures_timed"], found["seconds_per_picture"]) == (0, None)
    assert found["first_step"] > 0


def test_a_wrong_folder_is_said(tmp_path):
    done = run(tmp_path, "--output", tmp_path / "kohya.json", "--", "2")
    assert done.returncode == 2
    assert f"there is no {tmp_path / 'flux_train_network.py'}" in done.stderr
