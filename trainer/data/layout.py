"""Where the concepts of a composite go. All lengths are shares of the image's height; y grows downwards.

Every function takes the concepts' aspect ratios (width / height) in the order of the caption and returns a box for
each. Sizes and places vary with the random number generator; every box is inside the image.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

from trainer.data.relations import Relation

FLOOR = (0.76, 0.92)  # where concepts stand
JITTER = 0.02  # by which one stands higher or lower than another
MARGIN = 0.02


@dataclass(frozen=True)
class Box:
    """Where a concept is in a composite. All lengths are shares of the image's height, from its top left corner.

    layer: a box with a higher layer is drawn over one with a lower layer.
    """

    left: float
    top: float
    width: float
    height: float
    layer: int = 0

    @property
    def bottom(self) -> float:
        return self.top + self.height

    @property
    def right(self) -> float:
        return self.left + self.width


def arrange(rng: Random, relation: Relation, aspects: Sequence[float], image_aspect: float) -> list[Box]:
    """Place two concepts as a relation says, or more than two in a row; returns a box for each, in their order.

    aspects: width / height of each concept, in the order of the caption ("A holding B"). image_aspect: that of the
    image. Sizes and positions vary with rng. All boxes are inside the image.
    """
    if len(aspects) > 2 or relation.layout == "row":
        return _row(rng, aspects, image_aspect)
    if relation.layout == "front":
        order = (0, 1) if relation.name != "behind" else (1, 0)
        front, back = _front(rng, aspects[order[0]], aspects[order[1]], image_aspect)
        return [front, back] if order == (0, 1) else [back, front]
    return _attached(rng, relation, aspects, image_aspect)


def _row(rng: Random, aspects: Sequence[float], image_aspect: float) -> list[Box]:
    """Side by side, each in its own part of the width."""
    part, floor, boxes = image_aspect / len(aspects), rng.uniform(*FLOOR), []
    for index, aspect in enumerate(aspects):
        height = min(0.65, 0.92 * part / aspect) * rng.uniform(0.68, 1)
        spare = part - height * aspect
        left = index * part + spare / 2 + spare * rng.uniform(-0.35, 0.35)
        bottom = floor + rng.uniform(-JITTER, JITTER)
        boxes.append(Box(left, bottom - height, height * aspect, height, layer=index))
    return boxes


def _front(rng: Random, front_aspect: float, back_aspect: float, image_aspect: float) -> tuple[Box, Box]:
    """One at a side, the other behind it, further up and more in the middle."""
    floor = rng.uniform(*FLOOR)
    near_height = min(0.66, 0.48 * image_aspect / front_aspect) * rng.uniform(0.75, 1)
    far_height = min(0.5, 0.66 * image_aspect / back_aspect) * rng.uniform(0.72, 1)
    near_centre, far_centre = rng.uniform(0.26, 0.36) * image_aspect, rng.uniform(0.58, 0.66) * image_aspect
    near = _standing(near_centre, floor, near_height, front_aspect, image_aspect, layer=1)
    far = _standing(far_centre, floor - rng.uniform(0.03, 0.08), far_height, back_aspect, image_aspect, layer=0)
    if rng.random() < 0.5:
        near, far = (replace(box, left=image_aspect - box.right) for box in (near, far))
    return near, far


def _standing(centre: float, floor: float, height: float, aspect: float, image_aspect: float, layer: int) -> Box:
    width = height * aspect
    left = min(max(centre - width / 2, MARGIN), image_aspect - MARGIN - width)
    return Box(left, floor - height, width, height, layer)


def _attached(rng: Random, relation: Relation, aspects: Sequence[float], image_aspect: float) -> list[Box]:
    """One concept put on the other at a place of the other's box."""
    moved = 0 if relation.attached == "first" else 1
    anchor = Box(0, 0, aspects[1 - moved], 1, layer=0)
    height = relation.size * rng.uniform(0.88, 1.12)
    height *= min(1, max(0.95, relation.size) * anchor.width / (height * aspects[moved]))  # no wider than the anchor
    width = height * aspects[moved]
    x = relation.at[0] * anchor.width - width / 2
    concept = Box(x, relation.at[1] - height, width, height, layer=1 if relation.over else -1)
    left, top = min(anchor.left, concept.left), min(anchor.top, concept.top)
    whole = Box(left, top, max(anchor.right, concept.right) - left, max(anchor.bottom, concept.bottom) - top)
    scale = min(0.78 / whole.height, 0.8 * image_aspect / whole.width) * rng.uniform(0.75, 1)
    shift_x = (image_aspect - whole.width * scale) * rng.uniform(0.3, 0.7) - whole.left * scale
    shift_y = max(MARGIN + whole.height * scale, rng.uniform(*FLOOR)) - whole.bottom * scale
    boxes = [
        replace(
            box,
            left=box.left * scale + shift_x,
            top=box.top * scale + shift_y,
            width=box.width * scale,
            height=box.height * scale,
        )
        for box in (anchor, concept)
    ]
    return boxes[::-1] if moved == 0 else boxes
