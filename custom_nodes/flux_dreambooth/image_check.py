"""Images from a browser: decoded completely before they are kept, and shown as JPEG that the server itself encodes."""

import io
import re
import threading
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps, features

MAX_BYTES = 64 * 2**20
MAX_MEGAPIXELS = 64
ENDINGS = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "WEBP": ".webp", "BMP": ".bmp", "TIFF": ".tif"}
if features.check("avif"):
    ENDINGS["AVIF"] = ".avif"
FORMATS = tuple(name for name in ENDINGS if name != "MPO")
SIDES = (256, 1024)  # of images for the page, in pixels
QUALITY = 85
ORIENTATION = 0x0112  # Exif's tag
SIDEWAYS = (5, 6, 7, 8)  # orientations that swap width and height
OUTSIDE = 0.35  # brightness of what a mask leaves out
MAX_STEM = 80  # characters of a file's name
MASK_NAME = re.compile(r"(.+)[-_.](?:mask|masklabel|condlabel)", re.IGNORECASE)
_UNSAFE = re.compile(r'[\x00-\x1f\x7f-\x9f\ud800-\udfff/\\:*?"<>|]+')
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # names that Windows keeps
_large = threading.BoundedSemaphore(2)  # decoded at the same time: pixels take far more memory than files


class NotAnImage(ValueError):
    """A file that is not kept; the text says why."""


@dataclass(frozen=True)
class Seen:
    """What an image's content says. width, height: in pixels, once upright; ending: of its format, such as ".jpg"."""

    width: int
    height: int
    ending: str


def check(data: bytes) -> Seen:
    """Decode an image completely. Raises `NotAnImage`."""
    with _large:
        try:
            seen = look_at(data)
            if seen.ending == ".png":
                with _open(data) as image:
                    image.verify()  # the chunks' checksums, which decoding does not look at
            with _open(data) as image:
                image.load()
        except NotAnImage:
            raise
        except Exception as error:  # Pillow's decoders raise many kinds for damaged files
            raise NotAnImage(f"It cannot be decoded: {error or type(error).__name__}") from None
    return seen


def look_at(data: bytes) -> Seen:
    """The size of an image, from its header. Raises `NotAnImage`."""
    try:
        with _open(data) as image:
            width, height, kind = image.width, image.height, image.format or ""
            # Pillow turns a TIFF itself
            sideways = kind != "TIFF" and image.getexif().get(ORIENTATION) in SIDEWAYS
    except NotAnImage:
        raise
    except Exception:
        raise NotAnImage(f"It is no image in a format that is taken ({', '.join(FORMATS)}).") from None
    if not width or not height or width * height > MAX_MEGAPIXELS * 1e6:
        raise NotAnImage(f"It has {width} x {height} pixels; at most {MAX_MEGAPIXELS} megapixels are taken.")
    return Seen(height, width, ENDINGS[kind]) if sideways else Seen(width, height, ENDINGS[kind])


def _open(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data), formats=FORMATS)


def preview(data: bytes, side: int, mask: bytes | None = None) -> bytes:
    """A JPEG of an image, upright, at most `side` pixels; what a mask leaves out is dark. Raises `NotAnImage`."""
    look_at(data)
    try:
        with _large, _open(data) as image:
            image.draft("RGB", (side, side))  # JPEG only: decoded at the size that is needed
            small = _upright(image, side)
            if mask:
                with _open(mask) as drawn:
                    inside = _upright(drawn, side).convert("L").resize(small.size)
                small = Image.composite(small, small.point(lambda value: value * OUTSIDE), inside)
    except Exception as error:
        raise NotAnImage(f"It cannot be decoded: {error or type(error).__name__}") from None
    target = io.BytesIO()
    small.save(target, "JPEG", quality=QUALITY)
    return target.getvalue()


def _upright(image: Image.Image, side: int) -> Image.Image:
    """RGB on white, turned as Exif says, at most `side` pixels."""
    turned = ImageOps.exif_transpose(image)
    if turned.has_transparency_data:
        white = Image.new("RGBA", turned.size, "white")
        turned = Image.alpha_composite(white, turned.convert("RGBA"))
    small = turned.convert("RGB")
    small.thumbnail((side, side))
    return small


def safe_stem(name: str) -> str:
    """A file name without its folder and ending, made safe for every file system; "image" if nothing is left."""
    last = re.split(r"[/\\]", unicodedata.normalize("NFC", name))[-1]
    stem = last.rpartition(".")[0] or last
    stem = _UNSAFE.sub("-", stem).replace(".", "-").strip(" -_")[:MAX_STEM]
    while len(stem.encode()) > 2 * MAX_STEM:
        stem = stem[:-1]
    stem = stem.strip(" -_") or "image"
    return f"{stem}-1" if MASK_NAME.fullmatch(stem) or _RESERVED.fullmatch(stem) else stem


def read_bounded(path: Path, limit: int = MAX_BYTES) -> bytes:
    """An image's file. Raises OSError, also for links, and `NotAnImage` if it is too large."""
    from .exchange.files import read_file

    data = read_file(path, limit + 1)
    if len(data) > limit:
        raise NotAnImage(f"{path.name} has more than {limit:,} bytes.")
    return data
