"""Creates one mask after the other, writes each at once, and says which ones to look at."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image

from trainer.images.decode import NotReadable, read_picture
from trainer.masking.files import read_mark, write_mask
from trainer.masking.plan import Due

FILLS = 0.9  # a mask with this share of the image leaves hardly any background
TINY = 0.01  # a mask with less than this share is an object of a tenth of the image's side
SAME = 0.7  # boxes that share this part of the smaller one are of the same object
RIVAL = 0.5  # another object counts if its score is at least this share of the best one's
SCORES_SHOWN = 4

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels of the upright image


@dataclass(frozen=True)
class Detection:
    """A box that the detector found, in pixels of the image, and the detector's confidence in it, from 0 to 1."""

    box: Box
    score: float


class Detector(Protocol):
    """Finds what a phrase such as "toy" names in an RGB image.

    Returns every candidate box, in any order and however low its score: the caller applies the threshold.
    """

    def __call__(self, image: Image.Image, phrase: str, /) -> Sequence[Detection]: ...


class Segmenter(Protocol):
    """Segments the objects in the boxes of an RGB image.

    Returns one mask for all of them: mode L, the size of the image, 255 inside the objects and 0 elsewhere.
    """

    def __call__(self, image: Image.Image, boxes: Sequence[Box], /) -> Image.Image: ...


@dataclass(frozen=True)
class Models:
    """The detector and the segmenter, and how to use them.

    threshold: boxes with a lower score are ignored. all_objects: whether to mask every object that is found, not only
    the one with the highest score.
    """

    detect: Detector
    segment: Segmenter
    threshold: float
    all_objects: bool = False


@dataclass(frozen=True)
class Outcome:
    """The result for one image.

    share: the fraction of the image that is inside the mask, None if no mask was written. doubts: in words for the
    user, why the mask should be checked, or why none was written.
    """

    share: float | None
    doubts: tuple[str, ...]


def create_mask(models: Models, due: Due, class_word: str) -> Outcome:
    """Create the mask of one image and write it to `due.target`. Raises OSError if it cannot be written.

    class_word: what to look for, such as "toy". Without a mask, the result says why: the image cannot be read, nothing
    was found, or the file at `due.target` was created or changed since the plan was made and is not replaced.
    """
    try:
        image = read_picture(due.image)
    except (NotReadable, OSError) as error:
        return Outcome(None, (f"the image {error}",))
    objects = distinct([found for found in models.detect(image, class_word) if found.score >= models.threshold])
    if not objects:
        return Outcome(None, (f"nothing found that looks like {class_word!r}",))
    boxes = [found.box for found in (objects if models.all_objects else objects[:1])]
    mask = models.segment(image, boxes)
    assert mask.mode == "L" and mask.size == image.size
    if mask.getextrema()[1] == 0:
        return Outcome(None, (f"something looks like {class_word!r}, but no outline was found",))
    doubts = (*_rival_doubts(objects, class_word, models.all_objects), *shape_doubts(mask))
    if os.path.lexists(due.target) and (due.former is None or read_mark(due.target) != due.former):
        return Outcome(None, (f"{due.target.name} was created or changed meanwhile, and is left as it is",))
    write_mask(due.target, mask, class_word, doubts)
    return Outcome(share_of(mask), doubts)


def distinct(found: Sequence[Detection]) -> list[Detection]:
    """One detection for each object, the highest score first.

    Of boxes that share at least 70 % of the smaller one's area, only the best is kept. Objects with less than half of
    the best score are left out.
    """
    objects: list[Detection] = []
    for each in sorted(found, key=lambda detection: -detection.score):
        if all(_overlap(each.box, other.box) < SAME for other in objects):
            objects.append(each)
    return [each for each in objects if each.score >= RIVAL * objects[0].score]


def _overlap(one: Box, other: Box) -> float:
    """The area that two boxes share, of the smaller one's."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return max(width, 0.0) * max(height, 0.0) / max(smaller, 1e-9)


def _rival_doubts(objects: Sequence[Detection], class_word: str, all_masked: bool) -> list[str]:
    if len(objects) == 1:
        return []
    scores = ", ".join(f"{each.score:.2f}" for each in objects[:SCORES_SHOWN])
    scores += ", …" if len(objects) > SCORES_SHOWN else ""
    masked = "all are masked" if all_masked else "the surest is masked"
    return [f"{len(objects)} objects look like {class_word!r} (scores {scores}): {masked}"]


def shape_doubts(mask: Image.Image) -> list[str]:
    """Why a mask (mode L) looks wrong, judged by its pixels alone, in words for the user; empty if it looks right."""
    inside = np.asarray(mask) >= 128
    share, doubts = share_of(mask), []
    if share >= FILLS:
        doubts.append(f"covers almost all of the image ({share:.0%})")
    if share < TINY:
        doubts.append(f"is tiny ({share:.2%} of the image)")
    if all(side.any() for side in (inside[0], inside[-1], inside[:, 0], inside[:, -1])):
        doubts.append("touches all four borders")
    return doubts


def share_of(mask: Image.Image) -> float:
    """The fraction of a mask's pixels (mode L) that are inside: 128 or brighter."""
    return float((np.asarray(mask) >= 128).mean())


def create_masks(
    models: Models, due: Sequence[Due], class_word: str, report: Callable[[Due, Outcome], object]
) -> list[Outcome]:
    """Create and write the masks of one concept, in the order of `due`; the results are in the same order.

    class_word: what to look for. report: called after each image with its entry of `due` and its result. Raises
    OSError if a mask cannot be written.
    """
    outcomes = []
    for each in due:
        outcomes.append(create_mask(models, each, class_word))
        report(each, outcomes[-1])
    return outcomes
