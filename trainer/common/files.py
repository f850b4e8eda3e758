"""Files that are written completely or not at all, their checksums, and free space."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

if TYPE_CHECKING:
    import torch

FULL_DISK_ERRORS = (OSError, SafetensorError)  # safetensors reports a full disk as its own error
RANDOM_LENGTH = 8  # characters that tempfile puts into the name of a temporary file


def atomic_write(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with the path of a temporary file in the folder of `path`, then rename that file to `path`.

    The file is flushed to disk before it is renamed, and the folder afterwards, so that a kill or a full disk
    at any moment leaves either the old file or the new one. Missing folders are created. The mode is 0644, so that a
    program of another user (ComfyUI in a container) can read the file. Raises one of FULL_DISK_ERRORS, with a note that
    names `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix, suffix = _temporary_affixes(path.name)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=prefix, suffix=suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        _flush(temporary)
        temporary.chmod(0o644)
        os.replace(temporary, path)
        _flush(path.parent)
    except FULL_DISK_ERRORS as error:
        error.add_note(f"while writing {path}")
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _temporary_affixes(name: str) -> tuple[str, str]:
    return f".{name}.", ".tmp"


def temporary_name_bytes(name: str) -> int:
    """Length in bytes of the temporary file name that `atomic_write` uses for a file called `name`."""
    return sum(len(os.fsencode(part)) for part in _temporary_affixes(name)) + RANDOM_LENGTH


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8 atomically: a failure leaves an existing file unchanged."""
    atomic_write(path, lambda target: target.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: object) -> None:
    """Write a value to a JSON file atomically: a failure leaves an existing file unchanged. Keys keep their order."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_safetensors(
    path: Path, tensors: "Mapping[str, torch.Tensor]", metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file atomically: a failure leaves an existing file unchanged.

    tensors: by name, on any device. The same tensors and metadata give the same bytes.
    """
    from safetensors.torch import save_file

    on_host = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}

    def write(target: Path) -> None:
        save_file(on_host, target, metadata=dict(metadata or {}))
        _sort_metadata(target)

    atomic_write(path, write)


def _sort_metadata(path: Path) -> None:
    """Sort the metadata within the header; safetensors writes it in random order."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        if "__metadata__" in header:
            header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
            text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(length)
            assert len(text) == length
            file.seek(8)
            file.write(text)


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def free_disk_bytes(path: Path) -> int:
    """Free space in bytes on the disk of `path`, which need not exist yet."""
    return shutil.disk_usage(nearest_existing(path)).free


def nearest_existing(path: Path) -> Path:
    """`path` itself, or the nearest folder above it that exists and that this user may access."""
    while out_of_reach(path) or not path.exists():
        path = path.parent
    return path


def out_of_reach(path: Path) -> str | None:
    """Why this user may not access a path, e.g. "Permission denied"; None if they may or if nothing is there."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    except OSError as error:
        return error.strerror or str(error)
    return None


def in_container() -> bool:
    """Whether this process runs in a docker or podman container, which sees only the folders mounted into it."""
    return any(Path(mark).exists() for mark in ("/.dockerenv", "/run/.containerenv"))


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
