"""Small files that are written completely or not at all, bounded reading, and locks between programs."""

import contextlib
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: no lock between programs
    fcntl = None

PART, PART_END = ".part-", ".tmp"  # of the names of files that are being written
OLD_PART = 3600.0  # seconds after which such a file was left by a program that was killed
LOCK = ".lock"


def replace_file(path: Path, data: bytes) -> None:
    """Write a file atomically: a kill or a full disk leaves the old file or the new one. Raises OSError."""
    part = _part(path.parent, data)
    try:
        os.replace(part, path)
    except OSError:
        part.unlink(missing_ok=True)
        raise
    _flush(path.parent)


def create_file(path: Path, data: bytes) -> bool:
    """Write a new file atomically; returns False, with nothing changed, if there is anything of that name.

    Raises OSError if it cannot be written.
    """
    if os.path.lexists(path):
        return False
    part = _part(path.parent, data)
    try:
        os.link(part, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links
        return _create_in_place(path, data)
    finally:
        part.unlink(missing_ok=True)
    _flush(path.parent)
    return True


def _create_in_place(path: Path, data: bytes) -> bool:
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0), 0o644)
    except FileExistsError:
        return False
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        path.unlink(missing_ok=True)  # ours: O_EXCL has just created it
        raise
    return True


def _part(folder: Path, data: bytes) -> Path:
    """A temporary file with this content in the folder, flushed to disk; nothing is left if that fails."""
    handle, name = tempfile.mkstemp(dir=folder, prefix=PART, suffix=PART_END)
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.chmod(0o644)
    except OSError:
        part.unlink(missing_ok=True)
        raise
    return part


def remove_old_parts(folder: Path) -> None:
    """Remove what a killed program left half written in a folder: files named as `_part` names them, an hour old."""
    for part in folder.glob(f"{PART}*{PART_END}"):
        with contextlib.suppress(OSError):
            if time.time() - part.lstat().st_mtime > OLD_PART:
                part.unlink()


def read_file(path: Path, limit: int, start: int = 0) -> bytes:
    """At most `limit` bytes of a regular file, from byte `start`. Raises OSError, also for links, pipes and devices."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    handle = os.open(path, flags)
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(f"{path.name} is not a file")
        file.seek(start)
        return file.read(limit)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """While the block runs, no other program that calls this changes the folder. Creates the folder if needed."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("ab") as file:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def take_lock(path: Path) -> int | None:
    """Lock a file until the returned handle is closed in every process that has it; None if another one holds it.

    The file is created if needed. The handle is not passed on to programs unless they are given it.
    """
    assert fcntl, "only on systems with flock"
    handle = os.open(path, os.O_CREAT | os.O_RDWR | getattr(os, "O_NOFOLLOW", 0), 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock of `take_lock`; it is shared for an instant to find out."""
    if fcntl is None:
        return False
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(handle)
    return False


def _flush(folder: Path) -> None:
    with contextlib.suppress(OSError):  # Windows opens no folders
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
