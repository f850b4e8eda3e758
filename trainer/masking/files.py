"""Mask files that carry a mark, so that a later run can tell its own masks from those that a person made or edited."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, PngImagePlugin

from trainer.common.files import atomic_write

MARK = "flux-dreambooth-mask"  # the keyword of the PNG text chunk


@dataclass(frozen=True)
class Mark:
    """What a mask file records about its creation: the word that was looked for, and why the mask may be wrong."""

    class_word: str
    doubts: tuple[str, ...]


def write_mask(path: Path, mask: Image.Image, class_word: str, doubts: Sequence[str]) -> None:
    """Write a mask (mode L) as PNG, atomically, replacing any file at `path`. Raises OSError.

    A text chunk records class_word (what was looked for), doubts (why the mask may be wrong) and a digest of the
    pixels, by which `read_mark` can tell that nobody has edited the mask since.
    """
    assert mask.mode == "L"
    chunk = PngImagePlugin.PngInfo()
    held = {"sha256": _digest(mask), "class_word": class_word, "doubts": list(doubts)}
    chunk.add_itxt(MARK, json.dumps(held, ensure_ascii=False))
    atomic_write(path, lambda target: mask.save(target, format="PNG", pnginfo=chunk))


def read_mark(path: Path) -> Mark | None:
    """What `write_mask` recorded in the file; None if it did not write the file or the pixels were edited since."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.load()
            held = json.loads(getattr(image, "text", {})[MARK])
            if image.mode != "L" or held["sha256"] != _digest(image):
                return None
            return Mark(str(held["class_word"]), tuple(map(str, held["doubts"])))
    except (OSError, SyntaxError, ValueError, KeyError, TypeError):
        return None  # not ours, or damaged: either way not ours to replace


def _digest(mask: Image.Image) -> str:
    return hashlib.sha256(f"{mask.width}x{mask.height} ".encode() + mask.tobytes()).hexdigest()
