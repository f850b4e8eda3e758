"""An image file to pixels: decoded completely, upright, in sRGB."""

import re
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from trainer.images.colors import UnreadableProfile, changes_colors, hdr_curve, lab_to_srgb, source_profile, to_srgb
from trainer.images.formats import CONVERT, DECODERS, WRONG, kind_of

BACKGROUND = "white"  # what shows through where an image is transparent
ORIENTATION = 0x0112  # Exif's tag
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = (5, 6, 7, 8)  # orientations that swap width and height
REDUCED, DNG_VERSION = 254, 50706  # TIFF's tags: a thumbnail's NewSubfileType, and a camera's raw file
MAX_MEGAPIXELS = 500  # 1.5 GB of RGB; the largest sensors have 200
LARGE_MEGAPIXELS = 50  # such images are decoded one at a time, so that threads do not add up their memory
DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, KeyError, IndexError, TypeError, AttributeError,
                 ArithmeticError, RuntimeError, NotImplementedError, struct.error, zlib.error)  # fmt: skip

Size = tuple[int, int]  # width, height in pixels

_one_large = threading.Lock()
Image.MAX_IMAGE_PIXELS = None  # `_check_size` refuses what is too large, in words of its own


class NotReadable(ValueError):
    """A file that cannot be read as an image. The text says why; `hint` says what to do about it."""

    def __init__(self, what: str, hint: str = "replace it or take it out of the folder"):
        self.hint = hint
        super().__init__(what)


@dataclass(frozen=True)
class Decoded:
    """A decoded image, not yet turned upright or converted to sRGB; the methods do both.

    raw: the pixels as stored; of several frames the first, or the one that a HEIC file calls primary. size: width and
    height once upright. kind: the format, judged by content, such as "JPEG". frames: how many frames or pages the file
    holds. orientation: Exif's, 1 to 8, where 1 is upright. profile: the ICC profile that the colours are in, None if
    they need no conversion to sRGB. notes: what is odd about the file, in words for the user.
    """

    raw: Image.Image
    size: Size
    kind: str
    frames: int
    orientation: int
    profile: bytes | None
    notes: tuple[str, ...]

    def to_rgb(self, flatten: bool = True) -> Image.Image:
        """The pixels, upright, converted to sRGB, mode RGB.

        flatten: composite transparent pixels onto white; otherwise drop the alpha channel and keep the stored colours.
        """
        image = self._upright()
        image = to_srgb(image, self.profile) if self.profile else image
        return _flatten(image) if flatten else image.convert("RGB")

    def to_alpha(self) -> Image.Image | None:
        """The alpha channel, upright, mode L; None if the image has no transparency."""
        image = self._upright()
        return image.convert("RGBA").getchannel("A") if image.has_transparency_data else None

    def to_mask(self) -> Image.Image:
        """The pixels of a mask file: the red channel, upright, mode L, without conversion by a colour profile."""
        return self._upright().convert("RGB").getchannel("R")

    def _upright(self) -> Image.Image:
        turned = self.raw.transpose(UPRIGHT[self.orientation]) if self.orientation in UPRIGHT else self.raw
        return _eight_bits(turned)


def read_picture(source: Path | bytes, flatten: bool = True) -> Image.Image:
    """Decode an image completely; returns its pixels, upright, in sRGB, mode RGB.

    source: a path or the file's content. flatten: composite transparent pixels onto white; otherwise drop the alpha
    channel and keep the stored colours. Raises `NotReadable`, a ValueError, saying what is wrong with the image, and
    OSError if the path cannot be read.
    """
    image = decode(source.read_bytes(), source.suffix) if isinstance(source, Path) else decode(source)
    return image.to_rgb(flatten)


def decode(data: bytes, ending: str = "") -> Decoded:
    """Decode the content of an image file completely.

    ending: of the file's name, such as ".tga", for the few formats that the content alone does not show. Raises
    `NotReadable` saying what is wrong with the image.
    """
    kind = kind_of(data, ending)
    if kind in WRONG:
        raise NotReadable(*WRONG[kind])
    if kind in CONVERT:
        raise NotReadable(f"is {_article(kind)}, which is not read", CONVERT[kind])
    if kind not in DECODERS:
        raise NotReadable("is not an image in any known format")
    try:
        return _decode(data, kind)
    except NotReadable:
        raise
    except Image.UnidentifiedImageError:
        if kind == "TGA":  # which is only judged by its ending
            raise NotReadable("is not an image in any known format") from None
        raise NotReadable(f"cannot be decoded: it begins like {_article(kind)} and is damaged") from None
    except MemoryError:
        raise NotReadable("needs more memory than there is", "scale it down") from None
    except DECODE_ERRORS as error:
        if "MAX_TEXT_" in str(error):  # Pillow's limit for the text of a PNG, against decompression bombs
            what = "holds many megabytes of compressed text, which only an attack or a faulty program writes"
            raise NotReadable(what, "save it anew without its metadata") from None
        reason = re.sub(r"\bb'([^']*)'", r"\1", str(error))  # Pillow shows the names of chunks as bytes
        raise NotReadable(f"cannot be decoded: {reason or type(error).__name__}") from error


def _decode(data: bytes, kind: str) -> Decoded:
    if kind == "PNG":
        with _open(data, kind) as check:
            check.verify()  # the chunks' checksums, which decoding alone does not look at
    with _open(data, kind) as image, _checked_size(image):
        frames = getattr(image, "n_frames", 1)
        notes = list(_oddities(image, kind, data))
        image.load()
        _check_depth(image)
        exif = _exif(image)
        if exif is None:
            notes.append("its Exif data is damaged; it is taken as upright")
        orientation = _orientation(exif)
        profile = None if image.mode == "LAB" else source_profile(image, data, kind, exif)
        try:
            profile = profile if profile and changes_colors(image, profile) else None
        except UnreadableProfile as error:
            notes.append(f"its colour profile cannot be used ({error}); its colours are taken as sRGB")
            profile = None
        size = (image.height, image.width) if orientation in SIDEWAYS else image.size
        return Decoded(image, size, kind, frames, orientation, profile, tuple(notes))


def _open(data: bytes, kind: str) -> Image.Image:
    if kind == "HEIC":
        _register_heif()
    try:
        return Image.open(BytesIO(data), formats=[DECODERS[kind]])
    except Image.UnidentifiedImageError:
        if kind != "AVIF":
            raise
        # Pillow refuses an AVIF whose Exif data is damaged; under another name, the decoder passes it over
        end = data.find(b"mdat")
        return Image.open(BytesIO(data[:end].replace(b"Exif", b"none") + data[end:]), formats=["AVIF"])


def _register_heif() -> None:
    try:
        from pi_heif import register_heif_opener
    except ImportError:
        hint = "pip install pi-heif, or convert it to JPEG: heif-convert FILE.heic FILE.jpg"
        raise NotReadable("is a HEIC image, which needs the package pi-heif", hint) from None
    register_heif_opener()


@contextmanager
def _checked_size(image: Image.Image) -> Iterator[None]:
    """Refuse an image whose pixels would fill the memory; let large ones pass one at a time."""
    megapixels = image.width * image.height / 1e6
    if megapixels > MAX_MEGAPIXELS:
        what = f"has {megapixels:,.0f} megapixels ({image.width}x{image.height}); at most {MAX_MEGAPIXELS} are read"
        raise NotReadable(what, "scale it down")
    if not image.width or not image.height:
        raise NotReadable("has no pixels")
    with _one_large if megapixels > LARGE_MEGAPIXELS else nullcontext():
        yield


def _oddities(image: Image.Image, kind: str, data: bytes) -> Iterator[str]:
    if kind == "TIFF":
        tags: Any = getattr(image, "tag_v2", {})
        if DNG_VERSION in tags or tags.get(REDUCED, 0) & 1:
            raise NotReadable("is a camera raw file, which is not read", CONVERT["camera raw"])
    if curve := hdr_curve(data, kind):
        yield f"it is an HDR image ({curve}), whose colours are taken as sRGB; export it as SDR"


def _check_depth(image: Image.Image) -> None:
    if image.mode == "F":
        raise NotReadable("has floating-point pixels", "save it with 8 or 16 bits")
    if image.mode == "I":
        pixels = np.asarray(image)
        if pixels.min() < 0 or pixels.max() > 65535:
            raise NotReadable("has more than 16 bits for each pixel", "save it with 8 or 16 bits")


def _exif(image: Image.Image) -> Image.Exif | None:
    try:
        return image.getexif()
    except Exception:  # Pillow's parser raises many kinds for damaged data
        return None


def _orientation(exif: Image.Exif | None) -> int:
    value = exif.get(ORIENTATION) if exif else None
    return value if isinstance(value, int) and value in UPRIGHT else 1


def _article(kind: str) -> str:
    return f"an {kind} file" if kind[0] in "AIO" or kind in ("HTML", "SVG", "XML") else f"a {kind} file"


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey as 8-bit grey, which Pillow's own conversion would clip, and CIELAB as sRGB."""
    if image.mode == "LAB":
        return lab_to_srgb(image)
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray(np.round(np.asarray(image).astype(np.int64) / 257).astype(np.uint8))


def _flatten(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        flat = Image.new("RGBA", image.size, BACKGROUND)
        return Image.alpha_composite(flat, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")
