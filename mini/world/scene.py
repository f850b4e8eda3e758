"""A scene as data: the renderer's input, the caption, and the labels for the judge."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PLACES = ("datacenter", "desk", "beach", "snow", "forest", "studio", "meadow", "desert", "kitchen", "moon")
INDOORS = ("datacenter", "desk", "studio", "kitchen")  # places with a wall behind the floor, at z = WALL
WALL = -3.2
COLOURS = {  # linear RGB
    "red": (0.62, 0.02, 0.02), "orange": (0.90, 0.17, 0.01), "yellow": (0.92, 0.60, 0.03), "green": (0.04, 0.30, 0.05),
    "teal": (0.01, 0.27, 0.27), "blue": (0.03, 0.09, 0.68), "purple": (0.20, 0.03, 0.50), "pink": (0.90, 0.20, 0.38),
    "white": (0.85, 0.85, 0.85), "black": (0.02, 0.02, 0.02), "gray": (0.15, 0.155, 0.165),
    "brown": (0.13, 0.045, 0.012),
}  # fmt: skip
TOYS = ("bear", "bunny", "robot", "penguin", "monster", "cat", "soldier", "dinosaur")
GADGETS = ("gpu", "computer")
THINGS = ("ball", "cube", "mug", "car", "mushroom", "duck", "house")
KINDS = ("toy", *TOYS, *GADGETS, *THINGS)  # every bear is also a toy
CONCEPTS = ("tjtoy", "sparkgpu")  # of the demo; mini/world/concepts.py defines more


@dataclass(frozen=True)
class Labels:
    """What is in an image.

    objects: kind (one of KINDS) and main colour of each; a toy that is none of the named TOYS has the kind "toy".
    concepts: those that are in the image, with exactly their design.
    """

    place: str
    objects: tuple[tuple[str, str], ...]
    concepts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scene:
    """One image to render.

    parts: [MAX_PARTS, FIELDS], see `part_table`. camera: [6], yaw and pitch in radians, distance, and the point that it
    looks at (x, y, and z = 0). The left and right edges of the square image are at `VIEW` times the distance from that
    point. light: [4], azimuth and elevation in radians, strength and warmth from 0 to 1. phases: [8], numbers in [0, 1)
    that determine the details of the place.
    """

    place: str
    parts: np.ndarray
    camera: np.ndarray
    light: np.ndarray
    phases: np.ndarray
    caption: str
    labels: Labels


VIEW = 0.32  # tangent of half the field of view


@dataclass(frozen=True)
class SceneBatch:
    """Scenes of one place, stacked: parts [B, MAX_PARTS, FIELDS], camera [B, 6], light [B, 4], phases [B, 8]."""

    place: str
    parts: np.ndarray
    camera: np.ndarray
    light: np.ndarray
    phases: np.ndarray
    captions: tuple[str, ...]
    labels: tuple[Labels, ...]


def stack_scenes(scenes: Sequence[Scene]) -> SceneBatch:
    """Stack scenes of one place into a batch."""
    (place,) = {scene.place for scene in scenes}
    return SceneBatch(
        place,
        *(np.stack([getattr(scene, name) for scene in scenes]) for name in ("parts", "camera", "light", "phases")),
        captions=tuple(scene.caption for scene in scenes),
        labels=tuple(scene.labels for scene in scenes),
    )
