"""Photographs of concepts as people take them: each thing alone, in several places, from several sides; and places with
nothing in them.

Every scene is a pure function of its name.
"""

from collections.abc import Sequence

from mini.world import arrange, captions
from mini.world.captions import PLACE_PHRASES
from mini.world.scene import CONCEPTS, PLACES, Scene
from mini.world.scenes import concept_item, make_scene
from trainer.common.rng import python_random

PLACES_OF = {
    "tjtoy": ("studio", "desk", "kitchen", "snow", "forest", "moon"),
    "sparkgpu": ("studio", "desk", "datacenter", "snow", "forest", "desert", "beach"),
    "kopmi": ("studio", "beach", "kitchen", "snow", "forest", "desert"),
    "fenrik": ("studio", "desk", "datacenter", "meadow", "forest", "moon", "kitchen"),
    "lumjo": ("studio", "meadow", "desk", "desert", "snow", "datacenter"),
    "vaxtu": ("studio", "kitchen", "beach", "moon", "forest", "desk"),
}
# How far a concept is turned to the camera and how high the camera is, in radians; share of the image's height
VIEWS = ((0.0, 0.12, 0.74), (0.34, 0.18, 0.7), (-0.3, 0.14, 0.64), (-0.16, 0.1, 0.76), (0.22, 0.24, 0.7),
         (-0.4, 0.16, 0.6), (0.1, 0.14, 0.68))  # fmt: skip
POSE, CENTRE = "stand", (0.0, 0.01)
EMPTY_VIEWS = 4  # of each place


def photo_scenes(concepts: Sequence[str] = CONCEPTS) -> list[tuple[str, Scene]]:
    """The scenes of the 6 photographs of each toy and the 7 of each card, each with a name like "tjtoy/01_studio"."""
    return [
        (f"{concept}/{number:02}_{place}", _photo_scene(concept, place, number))
        for concept in concepts
        for number, place in enumerate(PLACES_OF[concept], 1)
    ]


def _photo_scene(concept: str, place: str, number: int) -> Scene:
    turn, pitch, fill = VIEWS[number - 1]
    item = concept_item(concept)
    parts = arrange.alone(item, POSE, turn / 2)
    camera = arrange.fitted_camera(parts, -turn / 2, pitch, fill, CENTRE)
    caption = f"{captions.class_phrase(item)} {PLACE_PHRASES[place][0]}"
    return make_scene([item], parts, camera, place, caption, python_random(0, "photo", concept, number))


def empty_scenes() -> list[tuple[str, Scene]]:
    """Four views of each place with nothing in it, each with a name like "01_datacenter"; the caption is the place."""
    return [
        (f"{EMPTY_VIEWS * index + view + 1:02}_{place}", _empty_scene(place, view))
        for index, place in enumerate(PLACES)
        for view in range(EMPTY_VIEWS)
    ]


def _empty_scene(place: str, view: int) -> Scene:
    """What a camera that is aimed at a toy sees when the toy has been taken away."""
    rng = python_random(0, "empty place", place, view)
    parts = arrange.alone(concept_item(CONCEPTS[0]), POSE, 0.0)
    camera = arrange.random_camera(parts, rng, (0.5, 0.8))
    return make_scene([], [], camera, place, PLACE_PHRASES[place][0], rng)
