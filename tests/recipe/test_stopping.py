"""Runs that are told to save or to stop, by files and by signals, and runs that are killed."""

import signal
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.held_run import HELD
from tests.recipe_files import PATIENCE, ROOT, Finished, Workshop, finish, read_until, started, touching, wait_for

HELD_RUN = str(ROOT / "tests" / "held_run.py")
LONG = {"max_train_steps": 400, "gradient_accumulation_steps": 3}


def lines_of(kind: str, folder: Path) -> int:
    path = folder / "log.jsonl"
    text = path.read_text() if path.exists() else ""
    return text.count(f'"kind": "{kind}"')


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_finishes_the_step_saves_and_says_how_to_go_on(workshop, number, status):
    place = f"signal {int(number)}"
    run = Finished(workshop.config(place, **LONG))
    with started(workshop.command(place, **LONG)) as process:
        wait_for(lambda: lines_of("step", run.folder) >= 2, process)
        process.send_signal(number)
        output, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == status, output

    step = run.log("step")[-1]["step"]
    assert run.loras() == [f"tj-step{step:08d}.safetensors"]
    assert run.tensors(f"tj-step{step:08d}")
    (line,) = [line for line in output.splitlines() if "--resume=" in line]
    resume = Path(line.partition("--resume=")[2])
    assert resume == run.state(step)

    with touching("stop", step + 1):
        again = workshop.train(place, **LONG, resume=resume)
    assert [line["step"] for line in again.log("step")] == list(range(1, step + 2))


def test_a_second_signal_ends_at_once(workshop):
    """A step takes minutes here; both signals come in the first one."""
    slow = {
        "max_train_steps": 2,
        "gradient_accumulation_steps": 10_000,
        "dataset_config": workshop.dataset(REPEATED.replace("100", "4000"), "endless.toml"),
    }
    run = Finished(workshop.config("twice", **slow))
    with started(workshop.command("twice", **slow)) as process:
        wait_for(lambda: lines_of("start", run.folder) == 1, process)
        process.send_signal(signal.SIGTERM)
        read_until("Repeat to quit without saving", process)
        time.sleep(0.2)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=PATIENCE) == -signal.SIGTERM
    assert lines_of("step", run.folder) == 0
    assert not list(run.config.output_dir.glob("*"))


def test_a_bench_takes_its_training_with_it(tmp_path):
    """Told to stop, it leaves no process behind that holds on to the device."""
    argv = ["bench", "--size=tiny", f"--work={tmp_path}", "--pictures=5000", "--peak_seconds=0.1", "--preset=rank16"]
    log = tmp_path / "runs" / "rank16" / "run" / "log.jsonl"
    with started([sys.executable, "-m", "trainer", *argv]) as process:
        wait_for(lambda: log.exists() and '"kind": "step"' in log.read_text(encoding="utf-8"), process)
        (worker,) = psutil.Process(process.pid).children()
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 143 and "together with the training that was being measured" in output, output
        assert not worker.is_running()


REPEATED = """
[[datasets]]
resolution = 64
[[datasets.subsets]]
image_dir = "{folder}/toy"
class_tokens = "tjtoy toy"
num_repeats = 100
"""


def test_save_writes_a_lora_and_a_state_and_goes_on(workshop):
    with touching("save", 2):
        run = workshop.train("save", max_train_steps=4)
    assert run.loras() == ["tj-step00000002.safetensors", "tj.safetensors"]
    assert run.state(2).is_dir() and not run.state(4).exists()
    assert not (run.folder / "save").exists()
    assert len(run.log("step")) == 4


def test_killed_within_a_step_and_resumed_is_bitwise_the_straight_run(workshop: Workshop):
    """kill -9 comes when a state is there and the gradients of a later step are partly added up."""
    settings = {
        "max_train_steps": 7,
        "gradient_accumulation_steps": 3,
        "dataset_config": workshop.dataset(REPEATED, "many.toml"),
        "optimizer_type": "Prodigy",
        "learning_rate": 1.0,
        "ema_decay": 0.9,
        "network_dropout": 0.1,
        "save_every_n_steps": 3,
        "save_state": True,
        "save_state_on_train_end": True,
    }
    killed = Finished(workshop.config("killed", **settings))
    passes = 4 * 3 + 2  # two of the three of step 5
    with started(workshop.command("killed", sys.executable, HELD_RUN, str(passes), **settings)) as process:
        read_until(HELD, process)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert lines_of("step", killed.folder) == 4
    assert killed.state(3).is_dir() and not killed.state(6).exists()

    finish(workshop.command("killed", **settings, resume=killed.folder))
    straight = workshop.train("not killed", **settings)
    assert straight.lora().read_bytes() == killed.lora().read_bytes()
    for part in ("adapter", "optimizer", "ema"):
        name = f"{part}-00000.safetensors"
        assert (straight.state(7) / name).read_bytes() == (killed.state(7) / name).read_bytes()
