"""A scene as data: what the renderer needs to draw it, and what the caption and the judge say of it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PLACES = ("datacenter", "desk", "beach", "snow", "forest", "studio", "meadow", "desert", "kitchen", "moon")
INDOORS = ("datacenter", "desk", "studio", "kitchen")  # a wall stands behind the floor, at z = WALL
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
KINDS = ("toy", *TOYS, *GADGETS, *THINGS)  # every bear is a toy too
CONCEPTS = ("tjtoy", "sparkgpu")


@dataclass(frozen=True)
class Labels:
    """What is in a picture. objects: (kind, main colour) of each, kind one of KINDS; a toy that is none of the
    named TOYS has the kind "toy". concepts: those of CONCEPTS that are there, exactly."""

    place: str
    objects: tuple[tuple[str, str], ...]
    concepts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scene:
    """One picture to draw.

    parts: [MAX_PARTS, FIELDS], see `part_table`. camera: [6] yaw, pitch (radians), distance, the point looked at
    (x, y; z is 0), so that right and left edge of a square picture are at `VIEW` times the distance from it.
    light: [4] azimuth, elevation (radians), strength and warmth (0 to 1). phases: [8] numbers in [0, 1) from which
    the place takes its details.
    """

    place: str
    parts: np.ndarray
    camera: np.ndarray
    light: np.ndarray
    phases: np.ndarray
    caption: str
    labels: Labels


VIEW = 0.32  # tangent of half the angle of view


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
    """Scenes that share a place as one batch."""
    (place,) = {scene.place for scene in scenes}
    return SceneBatch(
        place,
        *(np.stack([getattr(scene, name) for scene in scenes]) for name in ("parts", "camera", "light", "phases")),
        captions=tuple(scene.caption for scene in scenes),
        labels=tuple(scene.labels for scene in scenes),
    )
