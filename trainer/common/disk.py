"""Whether planned files can be written: free space per disk, permissions, and files that are in the way."""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from trainer.common.files import free_disk_bytes, nearest_existing
from trainer.common.problems import Problem

MARK_WITHIN = 1024  # bytes from the start of a file


class Share(NamedTuple):
    """A planned write: `size` bytes of `what` (a noun, for messages) into `folder`, which need not exist yet."""

    folder: Path
    what: str
    size: int


def shortage(snapshots: Iterable[Sequence[Share]]) -> list[str]:
    """One line for each disk without enough free space for what will be written to it, with the sizes by folder.

    snapshots: what has been written at successive points in time, with the same folders in each. A disk needs room for
    the point at which its total is largest.
    """
    by_disk: dict[int, list[list[Share]]] = {}
    for shares in snapshots:
        here: dict[int, list[Share]] = {}
        for share in shares:
            here.setdefault(nearest_existing(share.folder).stat().st_dev, []).append(share)
        for disk, parts in here.items():
            by_disk.setdefault(disk, []).append(parts)
    fullest = (max(each, key=_total) for each in by_disk.values())
    return [line for parts in fullest if (line := _shortage(parts))]


def _total(parts: Sequence[Share]) -> int:
    return sum(part.size for part in parts)


def _shortage(parts: Sequence[Share]) -> str | None:
    total, free = _total(parts), free_disk_bytes(parts[0].folder)
    if total <= free:
        return None
    listed = "; ".join(f"{part.what} in {part.folder}: {part.size / 1e9:.2f} GB" for part in parts)
    return f"{total / 1e9:.2f} GB needed, {free / 1e9:.2f} GB free ({listed})"


def write_problems(folders: Iterable[tuple[str, Path]]) -> list[Problem]:
    """A problem for each folder in which this user cannot create files; nothing is created.

    folders: pairs of the flag that sets the folder, for the message, and the folder, which need not exist yet.
    """
    problems = []
    for flag, folder in folders:
        there = nearest_existing(folder)
        if not there.is_dir():
            problems.append(Problem(f"{flag}={folder}", f"{there} is not a folder", "choose another path"))
        elif not os.access(there, os.W_OK | os.X_OK):
            what = f"no permission to write to {there}"
            problems.append(Problem(f"{flag}={folder}", what, "change the permissions, or choose another folder"))
    return problems


def output_problems(
    files: Iterable[tuple[str, Path]], overwrite: bool = False, is_own: Callable[[Path], bool] | None = None
) -> list[Problem]:
    """A problem for each file that a command may not write; nothing is created.

    files: pairs of the flag that sets the file or its folder, and the file. A file that is there may be replaced only
    if `overwrite`, which is the command's --overwrite, or if `is_own` finds that the command wrote it before for the
    same run. `is_own` is for files whose names the command chooses; without it, none is replaced.
    """
    files, problems = list(files), []
    for index, (flag, path) in enumerate(files):
        where = f"{flag}={path}"
        other = next((other for other, same in files[:index] if same.resolve() == path.resolve()), None)
        if path.is_dir():
            problems.append(Problem(where, "is a folder", "name a file"))
        elif other is not None:
            problems.append(Problem(where, f"is the file of {other}, too", "give each its own"))
        elif os.path.lexists(path) and not overwrite and not (is_own and is_own(path)):
            what = "there is a file of this name" + (", not from this command for the same run" if is_own else "")
            problems.append(Problem(where, what, "choose another name, or add --overwrite to replace it"))
    return problems + write_problems(dict.fromkeys((flag, path.parent) for flag, path in files))


def mark_of(command: str, run: str) -> str:
    """What a command writes at the start of its files, so that it recognizes them. run: the name of what they show."""
    return f"written by python -m trainer {command} for {quote(run, safe='')}"


def has_mark(path: Path, mark: str) -> bool:
    """Whether a file has the mark within its first KiB; False if it cannot be read."""
    try:
        with path.open("rb") as file:
            return mark.encode() in file.read(MARK_WITHIN)
    except OSError:
        return False
