"""A folder of state on disk: put in place whole, checked byte by byte, deleted only when it is ours."""

import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from trainer.common.files import sha256_file
from trainer.common.problems import Problem

MANIFEST = "state.json"
HASH_THREADS = 4
_PREVIOUS = ".previous"
CHOOSE_ANOTHER = "choose another state with --resume, or start anew without it"
_OWN_FILE = re.compile(
    r"\.?(state\.json|(adapter|optimizer|ema)-\d{5}\.safetensors)(\..*)?|\.tmp\w+"
)  # .tmp…: safetensors' own


def begin(folder: Path) -> Path:
    """An empty temporary folder beside `folder`; what killed saves and deletions left there is removed."""
    recover(folder.parent)
    _remove_leftovers(folder.parent)
    temporary = folder.with_name(f".{folder.name}.saving")
    temporary.mkdir(parents=True)
    return temporary


def put_in_place(temporary: Path, folder: Path) -> None:
    """Make the written `temporary` the state at `folder`, in place of the one that may be there."""
    previous = folder.with_name(f".{folder.name}{_PREVIOUS}")
    if folder.exists():
        folder.rename(previous)  # a kill here is mended by recover
    temporary.rename(folder)
    handle = os.open(folder.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    if previous.exists():
        shutil.rmtree(previous)


def recover(parent: Path) -> None:
    """Bring back what a killed `put_in_place` had moved aside."""
    for previous in parent.glob(f".*{_PREVIOUS}"):
        folder = parent / previous.name[1 : -len(_PREVIOUS)]
        if not folder.exists() and (previous / MANIFEST).is_file():
            previous.rename(folder)


def list_states(parent: Path) -> list[Path]:
    """The whole states in a folder, by name; states of one run are named so that this is their order."""
    recover(parent)
    return sorted(path.parent for path in parent.glob(f"*/{MANIFEST}") if not path.parent.name.startswith("."))


def delete_state(folder: Path) -> None:
    """Delete a state folder of ours, and refuse (ValueError) a folder that holds anything else.

    It is renamed first, so that a half-deleted state never looks like one.
    """
    if not (folder / MANIFEST).is_file() or not _is_ours(folder):
        raise ValueError(f"{folder} is not a state folder, or holds other files; it is left alone")
    condemned = folder.with_name(f".{folder.name}.deleting")
    folder.rename(condemned)
    shutil.rmtree(condemned)


def file_entry(path: Path) -> dict[str, Any]:
    """Size and SHA-256 for the manifest."""
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}


def file_problems(folder: Path, entries: dict[str, dict[str, Any]]) -> list[Problem]:
    """Every file of the manifest that is missing or not as it was saved."""
    with ThreadPoolExecutor(HASH_THREADS) as pool:
        problems = pool.map(lambda name: _file_problem(folder / name, entries[name]), entries)
        return [problem for problem in problems if problem]


def _file_problem(path: Path, entry: dict[str, Any]) -> Problem | None:
    if not path.is_file():
        return Problem(str(path), "missing from the state", CHOOSE_ANOTHER)
    if path.stat().st_size != entry["bytes"]:
        what = f"damaged: {path.stat().st_size:,} bytes instead of {entry['bytes']:,}"
        return Problem(str(path), what, CHOOSE_ANOTHER)
    if sha256_file(path) != entry["sha256"]:
        return Problem(str(path), "damaged: its content is not what was saved (SHA-256 differs)", CHOOSE_ANOTHER)
    return None


def _remove_leftovers(parent: Path) -> None:
    """What killed saves and deletions left beside the states."""
    for suffix in (".saving", ".deleting", _PREVIOUS):
        for folder in parent.glob(f".*{suffix}"):
            if folder.is_dir() and _is_ours(folder):
                shutil.rmtree(folder)


def _is_ours(folder: Path) -> bool:
    return all(_OWN_FILE.fullmatch(path.name) for path in folder.iterdir())
