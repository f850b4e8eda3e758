"""Whether planned files can be written: free space per disk, and write permissions."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from trainer.common.files import free_disk_bytes, nearest_existing
from trainer.common.problems import Problem


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
