"""LoRA files in ComfyUI's folders: which checkpoints belong to one run, and new files written safely."""

import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Collection, Iterable
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

THIS_FILE, NEWEST = "this file", "newest of its run"
DEMO = "demo.safetensors"  # what `make demo` writes, and the workflow mini_finetuned loads
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


class Names:
    """The names of ComfyUI's list of LoRA files, found as workflows and loaders write them."""

    def __init__(self, listed: Iterable[str]):
        self.listed = tuple(listed)

    @cached_property
    def _by_path(self) -> dict[str, str]:
        return {_slashes(name): name for name in self.listed}

    @cached_property
    def _by_part(self) -> dict[str, str | None]:
        """By the name without folder, without ending, or without both; None where two files share it."""
        found: dict[str, str | None] = {}
        for name in self.listed:
            path = PurePosixPath(_slashes(name))
            for part in {path.name, path.stem, str(path.with_suffix(""))} - {str(path)}:
                found[part] = None if part in found else name
        return found

    def find(self, written: Any, loosely: bool = False) -> str | None:
        """The listed name for a path of either system's slashes; loosely: also without its folder or ending."""
        if not isinstance(written, str):
            return None
        path = _slashes(written)
        return self._by_path.get(path) or (self._by_part.get(path) if loosely else None)


def _slashes(name: str) -> str:
    return name.replace("\\", "/")


def lora_names() -> list[str]:
    """What a user can choose from: every file below models/loras that ComfyUI lists now."""
    import folder_paths

    return by_run(folder_paths.get_filename_list("loras"))


class NoSuchLora(ValueError, LookupError):
    """A LoRA's name that is not in ComfyUI's list."""


def lora_path(name: str, checkpoint: str = THIS_FILE) -> Path:
    """The file of a listed name, or the newest one of its run; no other file is ever opened.

    The name may have either system's slashes, as workflows from elsewhere do. Raises NoSuchLora.
    """
    import folder_paths

    listed = folder_paths.get_filename_list("loras")
    found = Names(listed).find(name)
    if found is None and checkpoint == NEWEST:  # its run may go on without it
        found = next((other for other in listed if run_of(_slashes(other)) == run_of(_slashes(name))), None)
    if found is not None and checkpoint == NEWEST:
        found = newest_name(found, listed)
    path = folder_paths.get_full_path("loras", found) if found is not None else None
    if path is None:
        raise NoSuchLora(absent(name))
    return Path(path)


def absent(name: str) -> str:
    """Why a LoRA cannot be used that is not in the list, and what to do."""
    if _slashes(name) == DEMO:
        return f"{name} is not in models/loras yet: run `make demo` first, which trains it in some ten minutes on a CPU"
    return f"{name} is not in models/loras (any more): choose another, or copy it there and press R"


def valid_names(*names: str | None, checkpoint: str = THIS_FILE) -> bool | str:
    """What ComfyUI's VALIDATE_INPUTS wants of LoRAs' names: True, or why one cannot be used.

    A name that another node gives is None here, and is checked when it is there.
    """
    try:
        for name in names:
            if name is not None:
                lora_path(str(name), checkpoint)  # a graph of another program may hold anything
    except NoSuchLora as error:
        return str(error)
    return True


def newest_name(name: str, listed: Collection[str]) -> str:
    """The file of a LoRA's run that was written last, by its name in ComfyUI's list."""
    import folder_paths

    run = [other for other in listed if run_of(other) == run_of(name)]
    paths = {other: folder_paths.get_full_path("loras", other) for other in run}
    return max((other for other in run if paths[other]), key=lambda other: _changed(Path(paths[other])), default=name)


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
