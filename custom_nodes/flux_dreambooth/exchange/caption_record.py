"""Who wrote a caption: a record of the captions that a model wrote, which count as its own until somebody edits them.

The record of flux_data/NAME is flux_data/.captions/NAME.json, outside the folder of images. If it is lost, every
caption counts as a person's, and is left alone.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from .files import read_file, replace_file

FOLDER = ".captions"
MAX_RECORD = 8 * 2**20  # bytes


def record_folder(images: Path) -> Path:
    """The folder of the records of a folder of images; it is locked while one of the captions changes."""
    return images.parent / FOLDER


def read_record(images: Path) -> dict[str, str]:
    """The digest of each caption that a model wrote, by the caption file's name; empty if there is no valid record."""
    try:
        held = json.loads(read_file(_path(images), MAX_RECORD))
    except (OSError, ValueError, RecursionError):
        return {}
    return {name: value for name, value in held.items() if isinstance(value, str)} if isinstance(held, dict) else {}


def write_record(images: Path, record: Mapping[str, str]) -> None:
    """Replace a folder's record atomically. Raises OSError."""
    _path(images).parent.mkdir(exist_ok=True)
    replace_file(_path(images), json.dumps(record, ensure_ascii=False, indent=0, sort_keys=True).encode())


def digest(text: str) -> str:
    """What the record holds of a caption; white space around it does not count."""
    return hashlib.sha256(text.strip().encode("utf-8", "surrogatepass")).hexdigest()


def is_by_model(record: Mapping[str, str], name: str, text: str) -> bool:
    """Whether a model wrote this text into the caption file of this name, and nobody has edited it since."""
    return record.get(name) == digest(text)


def _path(images: Path) -> Path:
    return record_folder(images) / f"{images.name}.json"
