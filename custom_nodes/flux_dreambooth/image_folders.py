"""The folders of images in flux_data/ for the browser: listed, shown and added to; nothing is deleted or replaced.

A name from a browser becomes a path only here, and only if it names something directly inside its folder that is no
link. Raises LookupError for others.
"""

import hashlib
import os
import re
import threading
import unicodedata
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .answers import Conflict
from .exchange.caption_record import is_by_model, read_record
from .exchange.files import create_file, locked, read_file, remove_old_parts
from .folder_entries import MAX_CAPTION, Entries, entries, read_caption, same
from .image_check import (
    FORMATS,
    MAX_BYTES,
    MAX_MEGAPIXELS,
    SIDES,
    NotAnImage,
    check,
    look_at,
    preview,
    read_bounded,
    safe_stem,
)
from .training_log import plain_name

NEW_NAME = re.compile(r"[^\W_][\w -]{0,63}")
MAX_IMAGES = 5000  # in one folder
COVER = 4
KEPT_PREVIEWS = 600
HEADER = 2**18  # bytes that are read for an image's size, before the rest


def find_data_dir(environment: Mapping[str, str], base: Path, pack: Path) -> Path:
    """FLUX_DATA_DIR, else flux_data/ in ComfyUI's base directory, else in the repository that contains the nodes."""
    if named := environment.get("FLUX_DATA_DIR"):
        return Path(named)
    repository = pack.resolve().parents[1]
    inside = [repository / "flux_data"] if (repository / "trainer").is_dir() else []
    return next((folder for folder in (base / "flux_data", *inside) if folder.is_dir()), base / "flux_data")


class ImageFolders:
    """All folders of images. Its methods may be called from several threads; each answers with plain JSON values."""

    def __init__(self, root: Path):
        self.root = root
        self._facts: dict[tuple[str, int, int], dict[str, Any]] = {}
        self._digests: dict[tuple[str, int, int], str] = {}
        self._previews: OrderedDict[tuple[Any, ...], bytes] = OrderedDict()
        self._lock = threading.Lock()

    def overview(self) -> dict[str, Any]:
        """Every concept, and what is left out and why. A missing folder is no error."""
        concepts, left_out = [], []
        for path in _listed(self.root):
            if path.name.startswith(".") or not (path.is_dir() or path.is_symlink()):
                continue
            if (why := _why_not(path)) is not None:
                left_out.append({"name": path.name, "why": why})
                continue
            try:
                found = entries(path)
            except OSError as error:
                left_out.append({"name": path.name, "why": error.strerror or "it cannot be read"})
                continue
            counts = {"images": len(found.images), "captions": len(found.captions), "masks": len(found.masks)}
            concepts.append({"name": path.name, **counts, "cover": found.images[:COVER]})
        limits = {"image_bytes": MAX_BYTES, "image_megapixels": MAX_MEGAPIXELS, "formats": FORMATS}
        return {
            "found": self.root.is_dir(),
            "writable": self.root.is_dir() and os.access(self.root, os.W_OK | os.X_OK),
            "concepts": concepts,
            "left_out": left_out,
            "limits": limits | {"caption_characters": MAX_CAPTION, "images": MAX_IMAGES},
        }

    def create(self, name: str) -> dict[str, Any]:
        """A new, empty concept. Raises ValueError for a name that is not plain, and `Conflict` if it is taken."""
        name = unicodedata.normalize("NFC", name)
        if not NEW_NAME.fullmatch(name) or name != name.strip() or len(name.encode()) > 128:
            raise ValueError(
                "A name has at most 64 letters, digits, spaces, - and _, and begins with a letter or digit."
            )
        if any(same(name) == same(path.name) for path in _listed(self.root)):
            raise Conflict(f"{name} exists already.")
        try:
            (self.root / name).mkdir(parents=True)
        except FileExistsError:
            raise Conflict(f"{name} exists already.") from None
        return {"name": name}

    def folder(self, name: str) -> Path:
        """The folder of a concept. Raises LookupError."""
        if plain_name(name) is not None and not name.startswith((".", "-")):
            path = self.root / name
            try:
                if path.is_dir() and not path.is_symlink():
                    return path
            except (OSError, ValueError):
                pass
        raise LookupError(f"There is no concept {name!r}.")

    def image(self, name: str, file: str) -> Path:
        """An image of a concept. Raises LookupError."""
        folder = self.folder(name)
        if plain_name(file) is None or file not in entries(folder).images:
            raise LookupError(f"There is no image {file!r}.")
        return folder / file

    def details(self, name: str) -> dict[str, Any]:
        """A concept's images, with their captions and what is odd about them."""
        folder = self.folder(name)
        found, record = entries(folder), read_record(folder)
        images = [self._image(folder, file, found, record) for file in found.images]
        _mark_copies(images, {file: self._digest_of(folder / file) for file in _same_size(images)})
        return {"name": name, "images": images, "left_out": list(found.left_out)}

    def add(self, name: str, file: str, data: bytes) -> dict[str, Any]:
        """Keep an image under a safe name. Raises `NotAnImage`, LookupError, `Conflict` and OSError.

        An image with the same content that is already there is named instead, so that an upload can be repeated.
        """
        folder, seen = self.folder(name), check(data)
        remove_old_parts(folder)
        size = {"width": seen.width, "height": seen.height}
        with locked(self.root / ".captions"):  # two browsers choose names one after the other
            found = entries(folder)
            for other in found.images:
                if _is_same(folder / other, data):
                    return {"file": other, **size, "existing": True}
            if len(found.images) >= MAX_IMAGES:
                raise Conflict(f"{name} has {MAX_IMAGES} images, and no more are taken.")
            stem, count = safe_stem(file), 1
            taken = {same(Path(each).stem) for each in (*found.images, *found.masks.values())}
            while same(own := stem if count == 1 else f"{stem}-{count}") in taken or not create_file(
                folder / f"{own}{seen.ending}", data
            ):
                count += 1
        return {"file": f"{own}{seen.ending}", **size, "existing": False}

    def add_mask(self, name: str, file: str, data: bytes) -> dict[str, Any]:
        """Keep a mask of an image next to it. Raises `NotAnImage`, ValueError, LookupError, `Conflict` and OSError."""
        path, seen = self.image(name, file), check(data)
        image = self._facts_of(path)
        size = (image["width"], image["height"])
        if (seen.width, seen.height) != size:
            raise ValueError(f"The mask has {seen.width} x {seen.height} pixels, but {file} {size[0]} x {size[1]}.")
        with locked(self.root / ".captions"):
            if former := entries(path.parent).masks.get(file):
                if _is_same(path.with_name(former), data):
                    return {"file": former, "existing": True}
                raise Conflict(f"{file} has a mask already.")
            mask = path.with_name(f"{path.stem}.mask{seen.ending}")
            if not create_file(mask, data):
                raise Conflict(f"{mask.name} exists already.")
        return {"file": mask.name, "existing": False}

    def mark(self, names: Iterable[str]) -> str:
        """Changes when a file in one of these folders does, or when one comes or goes."""
        found = [[_mark(path) for path in _listed(self.root / name)] for name in names if plain_name(name)]
        return hashlib.sha256(repr(found).encode(errors="replace")).hexdigest()

    def preview(self, name: str, file: str, side: int, masked: bool) -> bytes:
        """A JPEG of an image. Raises LookupError, and `NotAnImage` if it cannot be decoded."""
        if side not in SIDES:
            raise ValueError(f"side must be one of {', '.join(map(str, SIDES))}.")
        path = self.image(name, file)
        mask = entries(path.parent).masks.get(file) if masked else None
        marks = [_mark(each) for each in (path, *([path.with_name(mask)] if mask else []))]
        key = (*marks, side)
        with self._lock:
            if key in self._previews:
                self._previews.move_to_end(key)
                return self._previews[key]
        drawn = preview(read_bounded(path), side, read_bounded(path.with_name(mask)) if mask else None)
        if side == SIDES[0]:
            with self._lock:
                self._previews[key] = drawn
                while len(self._previews) > KEPT_PREVIEWS:
                    self._previews.popitem(last=False)
        return drawn

    def _image(self, folder: Path, file: str, found: Entries, record: Mapping[str, str]) -> dict[str, Any]:
        facts = self._facts_of(folder / file)
        messages = list(facts["messages"])
        caption, caption_file = None, found.captions.get(file)
        if caption_file:
            try:
                caption = read_caption(folder / caption_file)
            except ValueError as error:
                messages.append({"level": "problem", "text": str(error)})
        else:
            messages.append({"level": "note", "text": "It has no caption."})
        by = None
        if caption is not None and caption_file:
            by = "model" if is_by_model(record, caption_file, caption) else "person"
        return {
            "file": file,
            **{key: facts[key] for key in ("width", "height", "bytes", "version")},
            "caption": caption,
            "by": by,
            "mask": file in found.masks,
            "messages": messages,
        }

    def _facts_of(self, path: Path) -> dict[str, Any]:
        """Size and version of an image, read once for each version of the file."""
        mark = _mark(path)
        if (held := self._facts.get(mark)) is not None:
            return held
        facts = {"width": 0, "height": 0, "bytes": mark[2], "version": f"{mark[1]:x}-{mark[2]:x}", "messages": []}
        try:
            try:
                seen = look_at(read_file(path, HEADER))
            except NotAnImage:
                seen = look_at(read_bounded(path))
            facts |= {"width": seen.width, "height": seen.height}
        except (NotAnImage, OSError) as error:
            text = getattr(error, "strerror", None) or str(error)
            facts["messages"] = [
                {"level": "problem", "text": f"{text} `trainer check` says whether it can be trained."}
            ]
        with self._lock:
            if len(self._facts) > 4 * MAX_IMAGES:
                self._facts.clear()
            self._facts[mark] = facts
        return facts

    def _digest_of(self, path: Path) -> str:
        mark = _mark(path)
        if (held := self._digests.get(mark)) is None:
            try:
                held = hashlib.sha256(read_bounded(path)).hexdigest()
            except (NotAnImage, OSError):
                held = f"unreadable {path.name}"
            with self._lock:
                if len(self._digests) > 4 * MAX_IMAGES:
                    self._digests.clear()
                self._digests[mark] = held
        return held


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir(), key=lambda path: path.name)
    except OSError:
        return []


def _why_not(path: Path) -> str | None:
    if path.is_symlink():
        return "a link, which is not followed here"
    if plain_name(path.name) is None or path.name.startswith("-"):
        return "its name is not plain"
    return None


def _mark(path: Path) -> tuple[str, int, int]:
    """What changes when a file does."""
    try:
        found = path.lstat()
    except OSError:
        return str(path), 0, 0
    return str(path), found.st_mtime_ns, found.st_size


def _is_same(path: Path, data: bytes) -> bool:
    try:
        return path.lstat().st_size == len(data) and read_bounded(path) == data
    except (OSError, NotAnImage):
        return False


def _same_size(images: Iterable[Mapping[str, Any]]) -> list[str]:
    """The images whose files are as large as another one's: only these can be copies."""
    counts: dict[int, int] = {}
    for image in images:
        counts[image["bytes"]] = counts.get(image["bytes"], 0) + 1
    return [image["file"] for image in images if counts[image["bytes"]] > 1]


def _mark_copies(images: Iterable[Mapping[str, Any]], digests: Mapping[str, str]) -> None:
    first: dict[str, str] = {}
    for image in images:
        digest = digests.get(image["file"])
        if digest and (other := first.setdefault(digest, image["file"])) != image["file"]:
            image["messages"].append({"level": "note", "text": f"It is a copy of {other}."})
