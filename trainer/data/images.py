"""Pictures from disk to pixels: decoded whole, upright, RGB, fitted to a bucket."""

import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".avif")
BACKGROUND = "white"  # what shows through where a picture is transparent
FILTERS = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "box": Image.Resampling.BOX,
    "nearest": Image.Resampling.NEAREST,
}
ALIASES = {"lanczos4": "lanczos", "linear": "bilinear", "cubic": "bicubic"}
INTERPOLATIONS = ("area", *FILTERS, *ALIASES)
BOMB = Image.DecompressionBombError
DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, BOMB)

Size = tuple[int, int]  # width, height in pixels


def read_picture(source: Path | bytes) -> Image.Image:
    """Decode a picture whole: turned upright by its EXIF tag, transparency flattened on white, RGB.

    Takes a path or the file's content. Raises ValueError saying what is wrong with it.
    """
    try:
        data = source.read_bytes() if isinstance(source, Path) else source
        with Image.open(BytesIO(data)) as check:
            check.verify()  # a PNG's checksums, which decoding alone does not look at
        with Image.open(BytesIO(data)) as picture:
            picture.load()
            return _to_rgb(ImageOps.exif_transpose(picture))
    except Image.UnidentifiedImageError:
        raise ValueError("is empty" if not data else "is not a picture in any known format") from None
    except DECODE_ERRORS as error:
        raise ValueError(f"cannot be decoded: {error}") from error


def default_interpolation(size: Size, resized: Size) -> str:
    """kohya's choice: area when neither side grows, else Lanczos."""
    return "area" if resized[0] <= size[0] and resized[1] <= size[1] else "lanczos"


def fit(picture: Image.Image, resized: Size, crop: Size, bucket: Size, interpolation: str | None = None) -> Image.Image:
    """Resize to `resized`, then cut `bucket` out at `crop` (left, top)."""
    if picture.size != resized:
        name = interpolation or default_interpolation(picture.size, resized)
        name = ALIASES.get(name, name)
        picture = _area(picture, resized) if name == "area" else picture.resize(resized, FILTERS[name])
    (left, top), (width, height) = crop, bucket
    assert 0 <= left <= picture.width - width and 0 <= top <= picture.height - height
    return picture.crop((left, top, left + width, top + height))


def to_tensor(picture: Image.Image, flip: bool = False) -> torch.Tensor:
    """RGB pixels as float32 [3, H, W] in [-1, 1], mirrored left to right if `flip`."""
    pixels = torch.from_numpy(np.array(picture, np.uint8)).permute(2, 0, 1).float()
    pixels = pixels / 127.5 - 1.0
    return (pixels.flip(2) if flip else pixels).contiguous()


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # 16 bit grey; converting it directly would clip
        grey = np.asarray(picture).astype(np.int64)
        if grey.min(initial=0) < 0 or grey.max(initial=0) > 65535:
            raise ValueError("has more than 16 bits for each pixel")
        return Image.fromarray(np.round(grey / 257).astype(np.uint8)).convert("RGB")
    if picture.mode == "F":
        raise ValueError("has floating-point pixels; save it with 8 or 16 bits")
    if picture.has_transparency_data:
        flat = Image.new("RGBA", picture.size, BACKGROUND)
        return Image.alpha_composite(flat, picture.convert("RGBA")).convert("RGB")
    return picture.convert("RGB")


def _area(picture: Image.Image, size: Size) -> Image.Image:
    """Each new pixel is the mean of the old pixels under it, those at its edge counted by their share."""
    pixels = _area_along(0, np.asarray(picture), size[1])
    pixels = _area_along(1, pixels, size[0])
    return Image.fromarray(np.rint(pixels).clip(0, 255).astype(np.uint8))


def _area_along(axis: int, pixels: np.ndarray, count: int) -> np.ndarray:
    length = pixels.shape[axis]
    edges = np.arange(count + 1) * (length / count)
    whole = np.minimum(edges.astype(np.int64), length - 1)
    share = edges - whole
    share[-1] = 0.0  # the last block below runs to the end anyway
    is_block = np.append(np.diff(whole[:-1]) > 0, True)  # False where enlarging puts two edges into one pixel
    column = (-1, 1, 1) if axis == 0 else (1, -1, 1)
    exact = np.uint32 if pixels.dtype == np.uint8 else np.float64
    blocks = np.add.reduceat(pixels, whole[:-1], axis, dtype=exact) * is_block.reshape(column)
    at_edges = pixels.take(whole, axis) * share.reshape(column)
    return (blocks + np.diff(at_edges, axis=axis)) * (count / length)
