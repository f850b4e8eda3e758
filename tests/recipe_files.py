"""Small training runs for the recipe tests: their command lines, and what they leave on disk."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import load_file

from benchmarks.random_flux import ModelFiles
from tests.dataset_files import draw_folder
from tests.forked import Forked
from trainer.common.problems import Problems
from trainer.config import TrainConfig, parse_config
from trainer.engine.log import RunLog, accelerator_arguments
from trainer.preflight.check import make_plan
from trainer.train import train

HERE, ROOT = Path(__file__).parents[:2]
Process = subprocess.Popen[str] | Forked
PATIENCE = 600  # seconds after which a process counts as hung, even on a busy machine
ONE_FOLDER = """
[[datasets]]
resolution = 64

[[datasets.subsets]]
image_dir = "{folder}/toy"
class_tokens = "tjtoy toy"
"""
# tensorboard takes as long to start as twenty small steps, so only the tests that look at it have it
SMALL = {
    "t5xxl_max_token_length": 32,
    "mixed_precision": "no",
    "network_dim": 4,
    "learning_rate": 1e-3,
    "output_name": "tj",
    "log_with": "none",
}


@dataclass(frozen=True)
class Workshop:
    """A folder with model files and pictures in which runs are made, each below a folder of its own."""

    folder: Path
    models: ModelFiles

    def dataset(self, text: str = ONE_FOLDER, name: str = "data.toml") -> Path:
        """A dataset file with this text, in which {folder} names the workshop's folder."""
        path = self.folder / name
        path.write_text(text.replace("{folder}", self.folder.as_posix()), encoding="utf-8")
        return path

    def argv(self, place: str, **settings: Any) -> list[str]:
        """The command line of a run that writes below `place`. None leaves a setting out."""
        values = {
            "pretrained_model_name_or_path": self.models.transformer,
            "clip_l": self.models.clip_l,
            "t5xxl": self.models.t5xxl,
            "ae": self.models.ae,
            "tokenizer_dir": self.models.tokenizer_dir,
            "dataset_config": self.folder / "data.toml",
            "output_dir": self.folder / place / "loras",
            "run_dir": self.folder / place / "runs",
            **SMALL,
            **settings,
        }
        return [word for name, value in values.items() for word in _words(name, value)]

    def config(self, place: str, **settings: Any) -> TrainConfig:
        return parse_config(self.argv(place, **settings))[0]

    def train(self, place: str, **settings: Any) -> "Finished":
        """Train in this process."""
        config = self.config(place, **settings)
        accelerator = Accelerator(cpu=True, mixed_precision="no", **accelerator_arguments(config))
        return Finished(config, train(config, accelerator))

    def command(self, place: str, *launcher: str, **settings: Any) -> list[str]:
        """`python -m trainer train …`, to be started as a process of its own."""
        return [*(launcher or (sys.executable, "-m", "trainer")), "train", *self.argv(place, **settings)]


@dataclass(frozen=True)
class Finished:
    """What a run left behind."""

    config: TrainConfig
    status: int = 0

    @property
    def folder(self) -> Path:
        return self.config.run_dir / self.config.output_name

    def loras(self) -> list[str]:
        """The names of all that is in output_dir."""
        return sorted(path.name for path in self.config.output_dir.iterdir())

    def lora(self, name: str = "tj") -> Path:
        return self.config.output_dir / f"{name}.safetensors"

    def tensors(self, name: str = "tj") -> dict[str, torch.Tensor]:
        return load_file(self.lora(name))

    def metadata(self, name: str = "tj") -> dict[str, str]:
        with safe_open(self.lora(name), "pt") as file:
            return file.metadata()

    def state(self, step: int) -> Path:
        return self.folder / f"state-step{step:08d}"

    def log(self, kind: str | None = None) -> list[dict[str, Any]]:
        """The lines of log.jsonl, or those of one kind."""
        return read_log(self.folder / "log.jsonl", kind)

    def files(self) -> list[str]:
        """All files of the run's folder, by their paths in it, times and numbers of processes left out."""
        found = (path.relative_to(self.folder) for path in self.folder.rglob("*") if path.is_file())
        return sorted(re.sub(r"\d+\.\d+/|\.\d{9,}\..*", "", str(path)) for path in found)


def read_log(path: Path, kind: str | None = None) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if kind in (None, line["kind"])]


def make_workshop(folder: Path, models: ModelFiles, pictures: int = 5) -> Workshop:
    """A workshop with one folder of pictures, `toy`, and a data.toml for it."""
    draw_folder(folder / "toy", [(64, 64)] * pictures, shade=0)
    workshop = Workshop(folder, models)
    workshop.dataset()
    return workshop


def check_report(config: TrainConfig, processes: int = 1) -> list[str]:
    """The problems that a check finds, as the user reads them."""
    with pytest.raises(Problems) as found:
        make_plan(config, processes)
    return [str(problem) for problem in found.value.problems]


def has(problems: list[str], *words: str) -> bool:
    """Whether one problem has all the words."""
    return any(all(word in problem for word in words) for problem in problems)


def _words(name: str, value: Any) -> list[str]:
    if value is None or value is False:
        return []
    if value is True:
        return [f"--{name}"]
    if isinstance(value, (list, tuple)):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}={value}"]


@contextmanager
def touching(name: str, step: int) -> Iterator[None]:
    """Within it, `touch runs/NAME/<name>` while that step of a run in this process is being logged."""
    log_step = RunLog.step

    def logged(self: RunLog, number: int, values: dict[str, float], *rest: Any) -> None:
        log_step(self, number, values, *rest)
        if number == step:
            (Path(self.file.name).parent / name).touch()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunLog, "step", logged)
        yield


def environment(**changes: str) -> dict[str, str]:
    """For processes that a test starts: this checkout, the CPU, no network, the same date in every file."""
    fixed = {
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
        "ACCELERATE_USE_CPU": "true",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "SOURCE_DATE_EPOCH": "1700000000",
        "OMP_NUM_THREADS": "1",
    }
    return {**os.environ, **fixed, **changes}


def can_be_forked(command: list[str]) -> bool:
    """Whether this interpreter runs the trainer itself, or a program next to this file."""
    return command[0] == sys.executable and (command[1:3] == ["-m", "trainer"] or Path(command[1]).parent == HERE)


@contextmanager
def started(command: list[str], folder: Path | None = None, fresh: bool = False, **variables: str) -> Iterator[Process]:
    """Run a command in `folder` with these in its environment; whatever it has started is ended with the block.

    fresh: in a new interpreter, also where a fork of one that has imported the trainer would do.
    """
    process: Process
    if not fresh and can_be_forked(command):
        process = Forked(command, environment(**variables), folder)
    else:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        process = subprocess.Popen(command, env=environment(**variables), cwd=folder, start_new_session=True, **pipes)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdout:
            process.stdout.close()


def wait_for(seen: Callable[[], bool], process: Process, seconds: float = PATIENCE) -> None:
    """Wait until it is seen; fail with what the process has said when it ends first or takes too long."""
    deadline = time.monotonic() + seconds
    while not seen():
        assert process.poll() is None, process.communicate()[0]
        if time.monotonic() > deadline:
            os.killpg(process.pid, signal.SIGKILL)
            pytest.fail(f"after {seconds} s it had come no further than this:\n{process.communicate()[0]}")
        time.sleep(0.01)


def read_until(words: str, process: Process) -> str:
    """Read what the process says up to the line with these words; fail if it ends without saying them."""
    assert process.stdout
    said = []
    while not said or words not in said[-1]:
        said.append(process.stdout.readline())
        assert said[-1], "".join(said)
    return "".join(said)


def finish(command: list[str], folder: Path | None = None, seconds: float = PATIENCE, fresh: bool = False) -> str:
    """Run a command to its good end, as `started` does; returns what it said."""
    with started(command, folder, fresh) as process:
        output, _ = process.communicate(timeout=seconds)
        assert process.returncode == 0, output
        return output


def largest_difference(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> float:
    """The largest difference of any tensor pair, as a share of the tensor's own norm."""
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).norm() / b[name].norm().clamp_min(1e-12)) for name in a)
