"""An image to a tensor: resized, cropped to its bucket, mirrored."""

import numpy as np
import torch
from PIL import Image

from trainer.config.input_settings import ALIASES
from trainer.images.decode import Size

FILTERS = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "box": Image.Resampling.BOX,
    "nearest": Image.Resampling.NEAREST,
}


def default_interpolation(size: Size, resized: Size) -> str:
    """The resize filter that kohya's trainer chooses: "area" if neither side grows, else "lanczos".

    size, resized: (width, height) before and after.
    """
    return "area" if resized[0] <= size[0] and resized[1] <= size[1] else "lanczos"


def fit(image: Image.Image, resized: Size, crop: Size, bucket: Size, interpolation: str | None = None) -> Image.Image:
    """Resize an image to `resized`, then crop a rectangle of size `bucket` whose corner is at `crop` (left, top).

    image: mode RGB or L. All sizes are (width, height) in pixels. interpolation: the name of the resize filter, None
    for the one that `default_interpolation` chooses.
    """
    if image.size != resized:
        name = interpolation or default_interpolation(image.size, resized)
        name = ALIASES.get(name, name)
        image = _area(image, resized) if name == "area" else image.resize(resized, FILTERS[name])
    (left, top), (width, height) = crop, bucket
    assert 0 <= left <= image.width - width and 0 <= top <= image.height - height
    return image.crop((left, top, left + width, top + height))


def to_tensor(image: Image.Image, flip: bool = False) -> torch.Tensor:
    """RGB pixels as float32 [3, H, W] in [-1, 1], mirrored left to right if `flip`."""
    pixels = torch.from_numpy(np.array(image, np.uint8)).permute(2, 0, 1).float()
    pixels = pixels / 127.5 - 1.0
    return (pixels.flip(2) if flip else pixels).contiguous()


def _area(image: Image.Image, size: Size) -> Image.Image:
    """Each new pixel is the mean of the old pixels that it covers, those at its edge weighted by their share."""
    pixels = _area_along(0, np.asarray(image), size[1])
    pixels = _area_along(1, pixels, size[0])
    return Image.fromarray(np.rint(pixels).clip(0, 255).astype(np.uint8))


def _area_along(axis: int, pixels: np.ndarray, count: int) -> np.ndarray:
    length = pixels.shape[axis]
    edges = np.arange(count + 1) * (length / count)
    whole = np.minimum(edges.astype(np.int64), length - 1)
    share = edges - whole
    share[-1] = 0.0  # the last block below runs to the end anyway
    is_block = np.append(np.diff(whole[:-1]) > 0, True)  # False where enlarging puts two edges into one pixel
    column = tuple(-1 if each == axis else 1 for each in range(pixels.ndim))
    exact = np.uint32 if pixels.dtype == np.uint8 else np.float64
    blocks = np.add.reduceat(pixels, whole[:-1], axis, dtype=exact) * is_block.reshape(column)
    at_edges = pixels.take(whole, axis) * share.reshape(column)
    return (blocks + np.diff(at_edges, axis=axis)) * (count / length)
