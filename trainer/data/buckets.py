"""The shape that an image is trained in, and the part of it that is used: exactly kohya's arithmetic."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from trainer.data.dataset_config import DatasetSection
from trainer.images.decode import Size


class Placement(NamedTuple):
    """The image is resized to `resized`, then cropped to `bucket` at `crop` (left, top). Width first, in pixels."""

    bucket: Size
    resized: Size
    crop: Size


def place(size: Size, section: DatasetSection, buckets: Sequence[Size]) -> Placement:
    """How a dataset's image of this size (width, height) is resized, then cropped centrally to a bucket.

    buckets: the dataset's shapes, from `section_buckets`. Raises ValueError if the image is too small or too narrow for
    any bucket.
    """
    if section.enable_bucket and section.bucket_no_upscale:
        bucket, resized = select_bucket_no_upscale(size, section.resolution, section.bucket_reso_steps)
    else:
        bucket, resized = select_bucket(size, buckets)
    return Placement(bucket, resized, ((resized[0] - bucket[0]) // 2, (resized[1] - bucket[1]) // 2))


def section_buckets(section: DatasetSection) -> list[Size]:
    """The shapes (width, height) that a dataset's images may be trained in.

    Without enable_bucket, this is the resolution alone; with bucket_no_upscale it is empty, because each image's own
    size gives its bucket.
    """
    if not section.enable_bucket:
        return [section.resolution]
    if section.bucket_no_upscale:
        return []
    return make_bucket_resolutions(
        section.resolution, section.min_bucket_reso, section.max_bucket_reso, section.bucket_reso_steps
    )


def make_bucket_resolutions(resolution: Size, min_size: int, max_size: int, steps: int) -> list[Size]:
    """All bucket shapes (width, height) for a resolution, sorted: kohya's rule.

    They are every width from min_size to max_size in steps with the largest height that keeps the area within the
    resolution's, the same shapes transposed, and the square. min_size, max_size, steps: in pixels.
    """
    area = resolution[0] * resolution[1]
    square = int(math.sqrt(area) // steps) * steps
    shapes = {(square, square)}
    for width in range(min_size, max_size + 1, steps):
        height = min(max_size, area // width // steps * steps)
        if height >= min_size:
            shapes |= {(width, height), (height, width)}
    return sorted(shapes)


def select_bucket(size: Size, buckets: Sequence[Size]) -> tuple[Size, Size]:
    """Choose a bucket for an image of this size; returns (bucket, resized), each (width, height).

    The bucket is the one of exactly this size, else the one of the nearest aspect ratio. `resized` is the image scaled
    to cover it, before the crop.
    """
    width, height = size
    aspect = width / height
    bucket = size if size in buckets else min(buckets, key=lambda shape: abs(shape[0] / shape[1] - aspect))
    is_wider = aspect > bucket[0] / bucket[1]
    scale = bucket[1] / height if is_wider else bucket[0] / width
    return bucket, (int(width * scale + 0.5), int(height * scale + 0.5))


def select_bucket_no_upscale(size: Size, resolution: Size, steps: int) -> tuple[Size, Size]:
    """Make a bucket for an image that must not be enlarged; returns (bucket, resized), each (width, height).

    `resized` is the image, shrunk only if its area exceeds the resolution's; the bucket is that size rounded down to
    multiples of `steps` pixels. Raises ValueError if a side would be 0.
    """
    area = resolution[0] * resolution[1]
    resized = size if size[0] * size[1] <= area else _shrink(size[0] / size[1], area, steps)
    bucket = (resized[0] - resized[0] % steps, resized[1] - resized[1] % steps)
    if min(bucket) == 0:
        raise ValueError(f"is too small or too narrow: a bucket needs {steps} pixels on each side")
    return bucket, resized


def _shrink(aspect: float, area: int, steps: int) -> Size:
    """Round the width or the height to steps, whichever changes the aspect ratio less."""

    def to_steps(length: float) -> int:
        return int(length + 0.5) // steps * steps

    ideal_width = math.sqrt(area * aspect)
    width, height = to_steps(ideal_width), to_steps(area / ideal_width)
    width_for_height, height_for_width = to_steps(height * aspect), to_steps(width / aspect) if width else 0
    if 0 in (width, height, width_for_height, height_for_width):
        raise ValueError("is too narrow for any bucket of this resolution")
    if abs(width / height_for_width - aspect) < abs(width_for_height / height - aspect):
        return width, int(width / aspect + 0.5)
    return int(height * aspect + 0.5), height
