"""Arrange items in an image: in a pose, next to, on or in front of each other, with a camera that frames them."""

import math
import random
from collections.abc import Sequence

import numpy as np

from mini.world.captions import Item
from mini.world.gadgets import GadgetDesign, build_gadget
from mini.world.parts import Part
from mini.world.scene import VIEW
from mini.world.shapes import bounds, moved, turn_y
from mini.world.things import build_thing
from mini.world.toys import ToyDesign, build_toy

HELD_SIZE, HELD_WIDTH, HELD_HEIGHT = 0.58, 1.2, 0.64  # the first is the item's own; the others are maximum values
HELD_TOPPER = 0.24  # how much higher a topper may reach, in front of the chin
HELD_FOOT, HELD_DEPTH = 0.2, 0.56  # how high and how far forward a toy holds things
SIZES = {"ball": 0.95, "cube": 0.95, "mug": 1.1, "car": 1.15, "mushroom": 1.05, "duck": 1.0, "house": 0.95, "gpu": 1.1}


def build(item: Item, pose: str = "stand", reach: float = 0.36) -> list[Part]:
    """The parts of an item at its usual size; only toys have a pose."""
    if isinstance(item.design, ToyDesign):
        return build_toy(item.design, pose, reach)
    if isinstance(item.design, GadgetDesign):
        parts = build_gadget(item.design)
    else:
        parts = build_thing(item.kind, item.colour, item.second)
    return moved(parts, SIZES.get(item.kind, 1.0), turn_y(0), (0, 0, 0))


def alone(item: Item, pose: str, yaw: float) -> list[Part]:
    """The parts of an item at the origin, rotated by `yaw`."""
    return moved(build(item, pose), 1, turn_y(yaw), (0, 0, 0))


def holding(toy: Item, held: Item, yaw: float) -> list[Part]:
    """A toy that holds the other item in front of its belly, with its hands at the item's sides."""
    parts = build(held)
    low, high = bounds(parts)
    topped = isinstance(held.design, GadgetDesign) and held.design.topper != "none"
    tallest = HELD_HEIGHT + HELD_TOPPER * topped
    size = min(HELD_SIZE, HELD_WIDTH / (high[0] - low[0]), tallest / (high[1] - low[1]))
    width = size * (high[0] - low[0])
    middle = (low + high) / 2
    front = max(HELD_DEPTH, 0.36 + size * (high[2] - middle[2]))  # keeps clear of the belly
    position = np.array([-size * middle[0], HELD_FOOT, front - size * middle[2]])
    together = build(toy, "hold", reach=float(np.clip(width / 2, 0.26, 0.56))) + moved(parts, size, turn_y(0), position)
    return moved(together, 1, turn_y(yaw), (0, 0, 0))


def next_to(first: Item, second: Item, poses: tuple[str, str], yaws: tuple[float, float], gap: float) -> list[Part]:
    """Two items, the first on the left, their nearest sides `gap` apart."""
    left, right = alone(first, poses[0], yaws[0]), alone(second, poses[1], yaws[1])
    return _shifted(left, -gap / 2 - bounds(left)[1][0]) + _shifted(right, gap / 2 - bounds(right)[0][0])


def in_a_row(groups: Sequence[list[Part]], gap: float) -> list[Part]:
    """Groups of parts from left to right, their nearest sides `gap` apart, the middle of the row at the origin."""
    row: list[Part] = []
    right = 0.0
    for group in groups:
        low, high = bounds(group)
        row += _shifted(group, right - low[0])
        right += high[0] - low[0] + gap
    return _shifted(row, -(right - gap) / 2)


def on_top(first: Item, base: Item, pose: str, yaws: tuple[float, float]) -> list[Part]:
    """The first item, slightly smaller, on the flat or round top of the second."""
    below = alone(base, "stand", yaws[1])
    top = bounds(below)[1][1] - (0.03 if base.kind == "mushroom" else 0.0)
    above = moved(build(first, pose), 0.85, turn_y(yaws[0]), (0, top, 0))
    return below + above


def in_front(first: Item, second: Item, poses: tuple[str, str], yaws: tuple[float, float], side: int) -> list[Part]:
    """The first item nearer and to one side (-1: left), so that it hides the second only in part."""
    near, far = alone(first, poses[0], yaws[0]), alone(second, poses[1], yaws[1])
    width_near, width_far = (bounds(parts)[1][0] - bounds(parts)[0][0] for parts in (near, far))
    apart = 0.36 * (width_near + width_far)
    shift = side * apart / 2
    return moved(near, 0.9, turn_y(0), (shift, 0, 0.55)) + moved(far, 1.1, turn_y(0), (-shift, 0, -0.5))


def _shifted(parts: list[Part], x: float) -> list[Part]:
    return moved(parts, 1, turn_y(0), (x, 0, 0))


def fitted_camera(parts: list[Part], yaw: float, pitch: float, fill: float, off: tuple[float, float]) -> np.ndarray:
    """The camera [6] from which the parts fill the share `fill` of the image's height, or slightly more of its width.

    off: how far they are from the centre of the image, as shares of its size.
    """
    right = np.array([math.cos(yaw), 0, -math.sin(yaw)])
    toward = np.array([math.cos(pitch) * math.sin(yaw), math.sin(pitch), math.cos(pitch) * math.cos(yaw)])
    axes = np.stack([right, np.cross(toward, right), toward], 1)
    low, high = bounds(parts, axes)
    across, upward, deep = (low + high) / 2
    width, height, _ = high - low
    size = max(height / fill, width / min(fill + 0.1, 0.92))
    x = (across - off[0] * size) / axes[0, 0]
    y = (upward - off[1] * size - x * axes[0, 1]) / axes[1, 1]
    nearer = 0.6 * high[2] + 0.4 * deep - x * toward[0] - y * toward[1]  # nearer parts look larger
    return np.array([yaw, pitch, size / (2 * VIEW) + nearer, x, y, 0], np.float32)


def random_camera(parts: list[Part], rng: random.Random, fill: tuple[float, float]) -> np.ndarray:
    """A camera slightly to the left or right of the front, and slightly above."""
    off = (rng.uniform(-0.04, 0.04), rng.uniform(-0.03, 0.05))
    return fitted_camera(parts, rng.uniform(-0.25, 0.25), rng.uniform(0.05, 0.3), rng.uniform(*fill), off)
