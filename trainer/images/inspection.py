"""Every image of a folder decoded and hashed, in parallel threads, with what is odd about it."""

import hashlib
import os
import re
import threading
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from trainer.common.problems import Problem, Problems
from trainer.images.decode import NotReadable, Size, decode
from trainer.images.folder import Folder

ONE_OF_MANY = {"TIFF": "first of {} pages", "JPEG": "first of {} images", "HEIC": "primary one of {} images"}


@dataclass(frozen=True)
class Picture:
    """An image file that was decoded and found good. The pixels are not kept: `read` decodes them again.

    sha256: of the file's content. width, height: in pixels, once upright. converted: whether reading converts the
    colours from another colour space to sRGB.
    """

    path: Path
    sha256: str
    width: int
    height: int
    converted: bool = False

    @property
    def size(self) -> Size:
        """Width and height in pixels."""
        return self.width, self.height

    def read(self, flatten: bool = True) -> Image.Image:
        """Decode the file again; returns its pixels, upright, in sRGB, mode RGB.

        flatten: composite transparent pixels onto white; otherwise drop the alpha channel and keep the stored colours.
        Raises `Problems` if the file has changed since it was checked, or cannot be read.
        """
        try:
            data = self.path.read_bytes()
            if hashlib.sha256(data).hexdigest() != self.sha256:
                raise Problems([Problem(str(self.path), "was replaced since it was checked", "start again")])
            return decode(data, self.path.suffix).to_rgb(flatten)
        except (NotReadable, OSError) as error:
            raise Problems([Problem(str(self.path), f"cannot be read any more: {error}", "start again")]) from error


@dataclass(frozen=True)
class Inspected:
    """An image that was decoded and checked.

    kind: its format, judged by content, such as "TIFF". frames: how many frames or pages the file holds. remarks: what
    is odd about it, in words for the user.
    """

    picture: Picture
    kind: str
    frames: int
    remarks: tuple[str, ...]


_heard = threading.local()  # what Python's warnings said in this thread while an image was decoded


def inspect_images(folder: Folder) -> list[Inspected | Problem]:
    """Decode and hash every image of a folder, in parallel threads.

    Returns one result for each of `folder.images`, in their order: a `Problem` if the image cannot be used.
    """
    with _warnings_by_thread(), ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(_inspect, folder.images))


def _inspect(path: Path) -> Inspected | Problem:
    _heard.messages = []
    if os.fsencode(path).decode("utf-8", "ignore") != str(path):
        return Problem(str(path), "its name is not valid UTF-8", "rename it")
    try:
        data = path.read_bytes()
        image = decode(data, path.suffix)
    except NotReadable as error:
        return Problem(str(path), str(error), error.hint)
    except OSError as error:
        return Problem(str(path), f"cannot be read: {error.strerror}", "let this user read it")
    picture = Picture(path, hashlib.sha256(data).hexdigest(), *image.size, converted=image.profile is not None)
    return Inspected(picture, image.kind, image.frames, (*image.notes, *dict.fromkeys(_heard.messages)))


@contextmanager
def _warnings_by_thread() -> Iterator[None]:
    """Collect Python's warnings with the image that caused them, so that they can name it."""
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *_, **__: getattr(_heard, "messages", []).append(_remark(str(message)))
        yield


def _remark(message: str) -> str:
    """A Python warning of a decoder, in words for the user."""
    if re.search("exif", message, re.IGNORECASE):
        return "its Exif data is damaged; what can be read of it is used"
    return f"its decoder warns: {' '.join(message.split())}"


def remarks(where: str, inspected: Sequence[Inspected]) -> Iterator[Problem]:
    """Warnings about odd images: files with several frames, damaged Exif data, unusable profiles and the like.

    where: the place in the dataset file of the subset that the images are from.
    """
    several = [found for found in inspected if found.frames > 1]
    if several:
        used = (
            f"{found.picture.path.name} (the {ONE_OF_MANY.get(found.kind, 'first of {} frames').format(found.frames)})"
            for found in several
        )
        what = f"one frame is used of each image that holds several: {', '.join(used)}"
        yield Problem(where, what, "save the frame that you want as an image of its own, if it is another")
    for found in inspected:
        for remark in found.remarks:
            yield Problem(str(found.picture.path), remark, "save it anew if that is wrong")
