"""The folder of a state: put in place as a whole, verified by checksums, deleted only if everything in it is ours."""

import itertools
import logging
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from trainer.common.files import sha256_file
from trainer.common.problems import Problem

log = logging.getLogger(__name__)
MANIFEST = "state.json"
HASH_THREADS = 4
_PREVIOUS = ".previous"
CHOOSE_ANOTHER = "choose another state with --resume, or start a new run without it"
_OWN_FILE = re.compile(
    r"\.?(state\.json|(adapter|optimizer|ema)-\d{5}\.safetensors)(\..*)?|\.tmp\w+"
)  # .tmp…: safetensors' own


def begin(folder: Path) -> Path:
    """Create an empty temporary folder next to `folder`, to be filled and then renamed by `put_in_place`.

    Before that, leftovers of killed saves and deletions are removed from the parent folder.
    """
    recover(folder.parent)
    _remove_leftovers(folder.parent)
    temporary = folder.with_name(f".{folder.name}.saving")
    temporary.mkdir(parents=True)
    return temporary


def put_in_place(temporary: Path, folder: Path) -> None:
    """Rename the filled folder `temporary` to `folder`, and flush that to disk.

    A state already at `folder` is replaced. A folder with any other files is kept: it is renamed to NAME.kept1 or the
    next free number, with a warning.
    """
    previous = folder.with_name(f".{folder.name}{_PREVIOUS}")
    if folder.exists() and not _is_ours(folder):
        _keep_aside(folder)
    if folder.exists():
        folder.rename(previous)  # `recover` undoes this after a kill
    temporary.rename(folder)
    handle = os.open(folder.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    if previous.exists():
        shutil.rmtree(previous)


def _keep_aside(folder: Path) -> None:
    """Rename a folder that has other files than a state's, so that they are not lost."""
    names = (folder.with_name(f"{folder.name}.kept{number}") for number in itertools.count(1))
    kept = next(name for name in names if not name.exists())
    folder.rename(kept)
    log.warning("%s has files that are not of a state; it is now %s", folder, kept.name)


def recover(parent: Path) -> None:
    """In the folder `parent`, put back each state that a killed save had moved aside (.NAME.previous to NAME)."""
    for previous in parent.glob(f".*{_PREVIOUS}"):
        folder = parent / previous.name[1 : -len(_PREVIOUS)]
        if not folder.exists() and (previous / MANIFEST).is_file():
            previous.rename(folder)


def list_states(parent: Path) -> list[Path]:
    """The complete states in the folder `parent`, sorted by name; for states of one run that is the order of steps.

    States that a killed save had moved aside are put back first.
    """
    recover(parent)
    return sorted(path.parent for path in parent.glob(f"*/{MANIFEST}") if not path.parent.name.startswith("."))


def latest_state(folder: Path) -> Path | None:
    """The state in a run's folder that was written last, or the folder itself if it is a state; None without one.

    A state that a killed save had moved aside is put back first.
    """
    recover(folder.parent)
    if (folder / MANIFEST).is_file():
        return folder
    return max(list_states(folder), key=lambda state: (state / MANIFEST).stat().st_mtime, default=None)


def delete_state(folder: Path) -> None:
    """Delete the folder of a saved state.

    Raises ValueError, and deletes nothing, if it is not one or holds files not ours. It is renamed first, so that a
    partly deleted state never looks like a state.
    """
    if not (folder / MANIFEST).is_file() or not _is_ours(folder):
        raise ValueError(f"{folder} is not a state's folder, or has other files in it; it is left alone")
    condemned = folder.with_name(f".{folder.name}.deleting")
    folder.rename(condemned)
    shutil.rmtree(condemned)


def file_entry(path: Path) -> dict[str, Any]:
    """What state.json records of a file: its size in "bytes" and its "sha256"."""
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}


def file_problems(folder: Path, entries: dict[str, dict[str, Any]]) -> list[Problem]:
    """A problem for each file in a state's folder that is missing or differs from what was saved.

    entries: the "bytes" and "sha256" of each file, by its name, as in state.json.
    """
    with ThreadPoolExecutor(HASH_THREADS) as pool:
        problems = pool.map(lambda name: _file_problem(folder / name, entries[name]), entries)
        return [problem for problem in problems if problem]


def _file_problem(path: Path, entry: dict[str, Any]) -> Problem | None:
    if not path.is_file():
        return Problem(str(path), "missing from the state", CHOOSE_ANOTHER)
    if path.stat().st_size != entry["bytes"]:
        what = f"corrupt: {path.stat().st_size:,} bytes instead of {entry['bytes']:,}"
        return Problem(str(path), what, CHOOSE_ANOTHER)
    if sha256_file(path) != entry["sha256"]:
        return Problem(str(path), "corrupt: its SHA-256 differs from that of the saved file", CHOOSE_ANOTHER)
    return None


def _remove_leftovers(parent: Path) -> None:
    """Remove leftovers of saves and deletions that were killed."""
    for suffix in (".saving", ".deleting", _PREVIOUS):
        for folder in parent.glob(f".*{suffix}"):
            if folder.is_dir() and _is_ours(folder):
                shutil.rmtree(folder)


def _is_ours(folder: Path) -> bool:
    return all(_OWN_FILE.fullmatch(path.name) for path in folder.iterdir())
