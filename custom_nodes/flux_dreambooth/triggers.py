"""Trigger words that a user wrote for LoRA files, kept in runs/triggers.json.

They hold for all checkpoints of a run, and take the place of those that the files name. The files stay as they are
until a user asks to write the words into one.
"""

import json
import os
import shutil
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .lora_file.concepts import MAX_CONCEPTS, MAX_LENGTH, Concept
from .lora_file.metadata import with_triggers
from .lora_files import run_of, write_file
from .runs import runs_dir
from .safetensors_header import read_header
from .training_log import open_regular

FILE = "triggers.json"  # in the runs folder, which is what a container shares with its host
MAX_FILE = 4 * 2**20
_lock = threading.Lock()


def triggers_file() -> Path:
    """Where ComfyUI keeps them."""
    return runs_dir() / FILE


def edited_concepts(file: Path, lora: str) -> list[Concept] | None:
    """What a user wrote for a LoRA's run, None if nothing. A broken file counts as an empty one."""
    written = _read(file).get(_key(lora))
    if not isinstance(written, list):
        return None
    phrases = [phrase for phrase in written if isinstance(phrase, str) and 0 < len(phrase) <= MAX_LENGTH]
    return [Concept(phrase, phrase) for phrase in phrases[:MAX_CONCEPTS]] or None


def keep_triggers(file: Path, lora: str, triggers: Sequence[str] | None) -> None:
    """Keep a user's words for a LoRA's run; None or none of them: those of the file hold again.

    Raises ValueError for words that cannot be triggers, and OSError.
    """
    phrases = list(dict.fromkeys(" ".join(phrase.split()) for phrase in triggers or ()))
    if len(phrases) > MAX_CONCEPTS or any(not p or len(p) > MAX_LENGTH or not p.isprintable() for p in phrases):
        raise ValueError(f"Triggers are at most {MAX_CONCEPTS} lines of 1 to {MAX_LENGTH} characters.")
    with _lock:
        if file.exists() and not _is_readable(file):
            raise ValueError(f"{file.name} in the runs folder is not what this node pack writes; move it away.")
        kept = _read(file) | {_key(lora): phrases}
        text = json.dumps({name: each for name, each in kept.items() if each}, ensure_ascii=False, indent=2)
        if len(text.encode()) > MAX_FILE:
            raise ValueError(f"{file.name} would be larger than {MAX_FILE:,} bytes.")
        _replace(file, text + "\n")


def write_into_file(path: Path, triggers: Sequence[str]) -> None:
    """Make these the triggers that a LoRA file names. Its tensors stay as they are, byte for byte.

    The file is replaced in one step, so that whoever has it open keeps the old one. Raises ValueError and OSError.
    """
    path = path.resolve()  # a link stays a link
    header = read_header(path)
    with path.open("rb") as source:
        entries = json.loads(source.read(header.data_start)[8:])
        entries["__metadata__"] = with_triggers(header.metadata, triggers)
        text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight bytes, as safetensors writes them

        def write(target: Path) -> None:
            with target.open("wb") as file:
                file.write(len(text).to_bytes(8, "little") + text)
                shutil.copyfileobj(source, file, 2**20)

        write_file(path, write, overwrite=True)


def _key(lora: str) -> str:
    return run_of(lora.replace("\\", "/"))


def _is_readable(file: Path) -> bool:
    return _content(file) is not None


def _read(file: Path) -> dict[str, Any]:
    return _content(file) or {}


def _content(file: Path) -> dict[str, Any] | None:
    try:
        with open_regular(file) as opened:
            found = json.loads(opened.read(MAX_FILE))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _replace(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=".triggers.", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as opened:
            opened.write(text)
        Path(name).chmod(0o644)
        os.replace(name, file)
    finally:
        Path(name).unlink(missing_ok=True)
