"""The trainer's runs/ folder for the browser: its content is not trusted; only `save` and `stop` are written there.

A name from a browser becomes a path only here, and only if it names something directly inside its folder
that is no link. Raises LookupError (there is none), `NotNow`, and OSError.
"""

import contextlib
import json
import os
import re
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from . import findings
from .run_state import LISTENING, state_of
from .training_log import (
    Checkpoint,
    TrainingLog,
    count,
    curve,
    open_regular,
    plain_name,
    steps_per_epoch,
)

try:
    import tomllib
except ImportError:  # Python 3.10: the length of a run stays unknown
    tomllib = None

WISHES = ("save", "stop")
MOST_RUNS = 100
MOST_ENTRIES = 10_000  # read from one folder
MAX_CONFIG = 256 * 2**10
MAX_SAMPLE = 64 * 2**20
MOST_SAMPLES = 120
MOST_EXAMPLES = 4
MOST_SERIES = 500
SHOWN = ("average", "learning_rate", "seconds_per_picture", "peak_gib")  # of the last step
LAST_STEPS = 20  # from which the remaining time is estimated
_SAMPLE = re.compile(r"[^/\\\x00-\x1f]+-step(\d{8})-(\d{2,6})\.png")
PICTURE_STARTS = (b"\x89PNG\r\n\x1a\n",)


class NotNow(Exception):
    """A request that is not possible at the moment; the message says why."""


def find_runs_dir(environment: Mapping[str, str], base: Path, pack: Path) -> Path:
    """FLUX_RUNS_DIR, else runs/ in ComfyUI's base directory, else in the repository that contains the nodes."""
    if named := environment.get("FLUX_RUNS_DIR"):
        return Path(named)
    repository = pack.resolve().parents[1]
    inside = [repository / "runs"] if (repository / "trainer").is_dir() else []
    return next((folder for folder in (base / "runs", *inside) if folder.is_dir()), base / "runs")


def runs_dir() -> Path:
    """The runs folder of the ComfyUI that runs here."""
    import folder_paths

    return find_runs_dir(os.environ, Path(folder_paths.base_path), Path(__file__).parent)


class Runs:
    """All runs of a folder. Its methods may be called from several threads; each answers with plain JSON values."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._logs: dict[str, TrainingLog] = {}
        self._lock = threading.Lock()

    def overview(self) -> dict[str, Any]:
        """Every run, the most recently active first. A missing folder is no error: there is no run yet."""
        with self._lock:
            folders = self._run_folders()
            self._logs = {name: log for name, log in self._logs.items() if name in folders}
            runs = [self._brief(folder) for folder in folders.values()]
        runs.sort(key=lambda run: (run["age"], run["name"]))
        return {"found": self.folder.is_dir(), "runs": runs[:MOST_RUNS]}

    def details(self, name: str, loras: Iterable[str] = ()) -> dict[str, Any]:
        """One run with its curve, images and checkpoints. loras: ComfyUI's list, where checkpoints are found."""
        folder = self._run_folder(name)
        with self._lock:
            run, log = self._brief(folder), self._logs[name]
            return run | {
                "curve": curve(log.steps),
                "validation": log.validation[-500:],
                "checkpoints": _checkpoints(log.checkpoints.values(), loras),
                "samples": _samples(folder / "samples", log.prompts),
                "settings": _plain(_config(folder / "config.toml")),
                "asked": [wish for wish in WISHES if (folder / wish).is_file()],
                "broken_lines": log.num_broken,
                "findings": findings.as_json(log, folder),
            }

    def sample(self, name: str, file: str) -> bytes:
        """The bytes of one image of samples/. Raises LookupError if it does not exist or is no image."""
        folder = self._run_folder(name) / "samples"
        if folder.is_symlink() or not _SAMPLE.fullmatch(file):
            raise LookupError(f"There is no image {file!r}.")
        try:
            with open_regular(folder / file) as opened:
                data = opened.read(MAX_SAMPLE + 1)
        except (OSError, ValueError):  # ValueError: a name that no file system accepts
            raise LookupError(f"There is no image {file!r}.") from None
        if len(data) > MAX_SAMPLE or not data.startswith(PICTURE_STARTS):
            raise LookupError(f"{file!r} is not an image.")
        return data

    def series(self, name: str, prompt: str) -> dict[str, Any]:
        """The images of one prompt at all steps, the first one first. prompt: its number in the files' names."""
        folder = self._run_folder(name)
        if not re.fullmatch(r"[0-9]{2,6}", prompt):
            raise LookupError(f"There is no prompt {prompt!r}.")
        with self._lock:
            self._brief(folder)
            prompts = dict(self._logs[name].prompts)
        ending = f"-{prompt}.png"
        found = [each for each in _samples(folder / "samples", prompts, MOST_ENTRIES) if each["file"].endswith(ending)]
        return {"samples": found[:MOST_SERIES][::-1]}

    def examples(self, lora: str) -> dict[str, Any] | None:
        """The run that wrote a LoRA file, and images that it generated at that step or before: {run, samples}."""
        file = re.split(r"[\\/]", lora)[-1]
        with self._lock:
            for folder in self._run_folders().values():
                self._brief(folder)
                log = self._logs[folder.name]
                if written := log.checkpoints.get(file):
                    samples = _samples(folder / "samples", log.prompts)
                    step = max((each["step"] for each in samples if each["step"] <= written.step), default=None)
                    return {"run": folder.name, "samples": [s for s in samples if s["step"] == step][:MOST_EXAMPLES]}
        return None

    def ask(self, name: str, wish: str) -> None:
        """Touch runs/NAME/save or runs/NAME/stop, which the trainer looks for after each step."""
        folder = self._run_folder(name)
        if wish not in WISHES:
            raise LookupError(f"A run cannot be asked to {wish!r}.")
        with self._lock:
            state = self._brief(folder)["state"]
        if state not in LISTENING:
            raise NotNow(f"The run {name} is not going on; it would be asked at its next start.")
        try:
            _touch(folder / wish)
        except PermissionError:
            raise NotNow("The runs folder cannot be written to from here.") from None
        except OSError as error:
            raise NotNow(f"The runs folder cannot be written to from here: {error.strerror}.") from None

    def _run_folders(self) -> dict[str, Path]:
        try:
            with os.scandir(self.folder) as entries:
                names = [entry.name for entry, _ in zip(entries, range(MOST_ENTRIES), strict=False)]
        except OSError:
            return {}
        found = [folder for name in names if (folder := self._folder_of(name)) and _is_run(folder)]
        found.sort(key=_last_news, reverse=True)
        return {folder.name: folder for folder in found[:MOST_RUNS]}

    def _folder_of(self, name: str) -> Path | None:
        """The folder directly inside runs/ that has this name and is no link."""
        if plain_name(name) is None:
            return None
        try:
            folder = self.folder / name
            return folder if folder.is_dir() and not folder.is_symlink() else None
        except (OSError, ValueError):
            return None

    def _run_folder(self, name: str) -> Path:
        folder = self._folder_of(name)
        if folder is None or not _is_run(folder):
            raise LookupError(f"There is no run {name!r}.")
        return folder

    def _brief(self, folder: Path) -> dict[str, Any]:
        log = self._logs.setdefault(folder.name, TrainingLog())
        try:
            log.update(folder / "log.jsonl")
        except OSError:  # no step is finished yet, or the log cannot be read
            log = self._logs[folder.name] = TrainingLog()
        step = log.steps[-1] if log.steps else None
        config = _config(folder / "config.toml")
        total, epochs = _length(log, config)
        age = max(0.0, time.time() - _last_news(folder))
        newest = max(log.checkpoints.values(), key=lambda checkpoint: checkpoint.step, default=None)
        return {
            "name": folder.name,
            "state": state_of(folder, plain_name(config.get("output_name")) or folder.name, log, age),
            "age": round(age, 1),
            "step": log.step,
            "total": total,
            "epoch": step.epoch if step else None,
            "epochs": epochs,
            "seconds_left": _seconds_left(log, total),
            **{key: getattr(step, key, None) for key in SHOWN},
            "newest_checkpoint": newest and {"file": newest.file, "step": newest.step},
        }


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("log.jsonl", "config.toml"))


def _last_news(folder: Path) -> float:
    """The time at which the run last wrote something, in seconds since 1970."""
    times = [(folder / name).lstat().st_mtime for name in ("log.jsonl", "config.toml") if (folder / name).is_file()]
    return max(times, default=0.0)


def _config(file: Path) -> dict[str, Any]:
    if tomllib is None:
        return {}
    try:
        with open_regular(file) as opened:
            sections = tomllib.loads(opened.read(MAX_CONFIG).decode())
    except (OSError, ValueError, RecursionError):
        return {}
    tables = [section for section in sections.values() if isinstance(section, dict)]
    return {key: value for table in (sections, *tables) for key, value in table.items()}


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """Those settings that JSON can hold as they are."""
    plain = {}
    for key, value in config.items():
        if not isinstance(value, dict):  # the name of a section
            with contextlib.suppress(TypeError, ValueError):  # a date, or not a finite number
                json.dumps(value, allow_nan=False)
                plain[key] = value
    return plain


def _length(log: TrainingLog, config: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Total steps and epochs of the run; before its first step, what its settings say."""
    if log.start:
        return log.start.total, log.start.epochs
    per_epoch = steps_per_epoch(log.steps)
    total, epochs = count(config.get("max_train_steps")), count(config.get("max_train_epochs"))
    if epochs:  # wins over max_train_steps
        return (epochs * per_epoch if per_epoch else None), epochs
    return total or None, (-(-total // per_epoch) if total and per_epoch else None)


def _seconds_left(log: TrainingLog, total: int | None) -> float | None:
    times = [step.seconds for step in log.steps[-LAST_STEPS:] if step.seconds]
    if not total or not times:
        return None
    return max(0, total - log.step) * sum(times) / len(times)


def _checkpoints(written: Iterable[Checkpoint], loras: Iterable[str]) -> list[dict[str, Any]]:
    """Newest first. lora: the file's name in ComfyUI's list, None if it is not there."""
    listed = {re.split(r"[\\/]", name)[-1]: name for name in sorted(loras, reverse=True)}
    newest = sorted(written, key=lambda checkpoint: checkpoint.step, reverse=True)
    return [
        {"file": c.file, "step": c.step, "with_state": c.with_state, "lora": listed.get(c.file)} for c in newest[:200]
    ]


def _samples(folder: Path, prompts: Mapping[str, str], most: int = MOST_SAMPLES) -> list[dict[str, Any]]:
    """Newest first; images of the same step in the order of their prompts."""
    if folder.is_symlink():
        return []
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry, _ in zip(entries, range(MOST_ENTRIES), strict=False) if entry.is_file()]
    except OSError:
        return []
    found = [match for name in names if (match := _SAMPLE.fullmatch(name))]
    found.sort(key=lambda match: (-int(match[1]), int(match[2])))
    return [{"file": m[0], "step": int(m[1]), "prompt": prompts.get(m[0], "")} for m in found[:most]]


def _touch(file: Path) -> None:
    """Create an empty file; one that already exists means the same."""
    try:
        os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0), 0o644))
    except FileExistsError:
        if file.is_symlink() or not file.is_file():
            raise
