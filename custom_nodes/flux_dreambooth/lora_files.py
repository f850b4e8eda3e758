"""LoRA files in ComfyUI's folders: which checkpoints belong to one run, and new files written safely."""

import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

THIS_FILE, NEWEST = "this file", "newest of its run"
CHECKPOINTS = (THIS_FILE, NEWEST)
_CHECKPOINT = re.compile(r"(?P<run>.+?)(?:-(?P<epoch>\d{6})|-step(?P<step>\d{8}))?\.(?:safetensors|sft)", re.IGNORECASE)


def run_of(name: str) -> str:
    """The run that a file belongs to: its path without the number of an epoch or step, and without the ending."""
    match = _CHECKPOINT.fullmatch(name)
    return match["run"] if match else name


def label_of(name: str) -> str:
    """What a checkpoint is called within its run: `epoch 25`, `step 500` or `final`."""
    match = _CHECKPOINT.fullmatch(name)
    if match and match["epoch"]:
        return f"epoch {int(match['epoch'])}"
    return f"step {int(match['step'])}" if match and match["step"] else "final"


def by_run(names: Iterable[str]) -> list[str]:
    """Names sorted so that a run's files are together, the final one first, then by epoch or step."""
    return sorted(names, key=lambda name: (run_of(name).lower(), label_of(name) != "final", name))


def lora_names() -> list[str]:
    """What a user can choose from: every file below models/loras that ComfyUI lists now."""
    import folder_paths

    return by_run(folder_paths.get_filename_list("loras"))


def lora_path(name: str, checkpoint: str = THIS_FILE) -> Path:
    """The file of a listed name, or the newest one of its run. Raises ValueError."""
    import folder_paths

    names = [name]
    if checkpoint == NEWEST:
        names = [other for other in folder_paths.get_filename_list("loras") if run_of(other) == run_of(name)] or names
    paths = [Path(path) for each in names if (path := folder_paths.get_full_path("loras", each))]
    if not paths:
        raise ValueError(f"{name} is not in models/loras (any more); press R to refresh the list")
    return max(paths, key=_changed)


def _changed(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def output_path(name: str, folder: Path) -> Path:
    """Where a new file of this name goes below `folder`; `.safetensors` is added. Raises ValueError."""
    name = name.strip().removesuffix(".safetensors")
    parts = PurePosixPath(name.replace("\\", "/")).parts
    bad = not parts or any(part in ("..", "/") or part.startswith(".") or ":" in part or "\0" in part for part in parts)
    if bad or len(name) > 200:
        raise ValueError(f"{name!r} is no name for a file below models/loras; letters, digits, - and / are fine")
    path = folder.joinpath(*parts[:-1], f"{parts[-1]}.safetensors")
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{name!r} leads out of {folder}")
    return path


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Raises ValueError if the file exists and may not be replaced."""
    if path.exists() and not overwrite:
        raise ValueError(f"{path.name} exists already: give another name or turn on overwrite")


def write_file(path: Path, write: Callable[[Path], object], overwrite: bool) -> None:
    """Let `write` fill a file next to `path`, then move it there atomically, with mode 0644.

    Raises ValueError when the file exists and `overwrite` is not set, also when it appeared meanwhile.
    """
    refuse_existing(path, overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem[:60]}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        if overwrite:
            os.replace(temporary, path)
        else:
            _move_to_new(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _move_to_new(temporary: Path, path: Path) -> None:
    with contextlib.suppress(OSError):
        os.link(temporary, path)  # unlike a rename, never replaces a file
        return
    refuse_existing(path, overwrite=False)
    os.replace(temporary, path)  # a file system without links
