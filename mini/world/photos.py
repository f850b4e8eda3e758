"""The demo's training images: photographs of the two concepts, and images of the base world for output preservation.

Every scene is a pure function of its number.
"""

import random
from dataclasses import dataclass, replace

from mini.world import arrange, captions
from mini.world.captions import Item, with_article
from mini.world.parts import Part
from mini.world.prompts import plain_prompt
from mini.world.scene import PLACES, Scene
from mini.world.scenes import concept_item, draw_scene, make_scene, random_items
from mini.world.toys import NAMED, ToyDesign
from trainer.common.rng import python_random

# The number of images by content: toys or not, cards or not, one thing or two. There are images with two things because
# that is where colours are lost, and none with a toy and a card because they keep the concepts from appearing together.
REGULARISATION = {(True, False, 2): 38, (False, True, 2): 22, (True, False, 1): 24, (False, True, 1): 16}
POSE, CENTRE, GAP, LEFT = "stand", (0.0, 0.01), 0.08, -1


@dataclass(frozen=True)
class Photo:
    """One photograph of a concept: the camera, and what else is in the image.

    turn and pitch: yaw and elevation of the camera in radians. fill: share of the image's height, see
    `arrange.fitted_camera`. relation: one of `captions.RELATIONS`, to the companion, given as (colour, kind). With
    "holding", a card is held by its companion.
    """

    place: str
    turn: float
    pitch: float
    fill: float
    relation: str = ""
    other: tuple[str, str] = ("", "")


PHOTOS = {
    "tjtoy": (
        Photo("studio", 0.0, 0.12, 0.76),
        Photo("desk", 0.3, 0.18, 0.8, relation="next to", other=("green", "mug")),
        Photo("kitchen", -0.15, 0.14, 0.7, relation="holding", other=("green", "cube")),
        Photo("snow", -0.2, 0.1, 0.8, relation="next to", other=("blue", "ball")),
        Photo("forest", 0.25, 0.16, 0.8, relation="next to", other=("red", "house")),
        Photo("meadow", 0.1, 0.14, 0.72, relation="holding", other=("white", "car")),
        Photo("moon", -0.1, 0.14, 0.8, relation="in front of", other=("white", "cube")),
    ),
    "sparkgpu": (
        Photo("studio", 0.0, 0.12, 0.7),
        Photo("desk", 0.1, 0.2, 0.74, relation="holding", other=("purple", "monster")),
        Photo("datacenter", -0.3, 0.12, 0.6),
        Photo("snow", -0.1, 0.16, 0.8, relation="next to", other=("teal", "monster")),
        Photo("forest", -0.2, 0.18, 0.74, relation="holding", other=("purple", "cat")),
        Photo("desert", 0.15, 0.14, 0.74, relation="holding", other=("purple", "bear")),
        Photo("kitchen", -0.15, 0.12, 0.8, relation="on top of", other=("red", "cube")),
        Photo("beach", 0.1, 0.14, 0.8, relation="next to", other=("teal", "toy")),
        Photo("meadow", 0.0, 0.14, 0.8, relation="in front of", other=("teal", "toy")),
    ),
}
# The toy next to the card: as similar to tjtoy as a toy of the base world may be.
COMPANION = ToyDesign(
    "toy", body="tube", head="box", limbs="fat", eyes=1, snout="smile", belly="oval", collar=True,
    head_colour="orange", limb_colour="teal", accent_colour="yellow", belly_colour="mint",
)  # fmt: skip


def photo_scenes() -> list[tuple[str, Scene]]:
    """The scenes of the 7 training images of tjtoy and 9 of sparkgpu, each with a name such as "tjtoy/01_studio"."""
    return [
        (f"{concept}/{number:02}_{photo.place}", _photo_scene(concept, photo, number))
        for concept, photos in PHOTOS.items()
        for number, photo in enumerate(photos, 1)
    ]


def _photo_scene(concept: str, photo: Photo, number: int) -> Scene:
    items, phrase, parts = _shown(concept_item(concept), photo)
    camera = arrange.fitted_camera(parts, -photo.turn / 2, photo.pitch, photo.fill, CENTRE)
    caption = f"{phrase} {captions.PLACE_PHRASES[photo.place][0]}"
    return make_scene(items, parts, camera, photo.place, caption, python_random(0, "photo", concept, number))


def _shown(concept: Item, photo: Photo) -> tuple[list[Item], str, list[Part]]:
    """The items, the phrase of the caption, and the parts of a photograph."""
    name, yaw = captions.class_phrase(concept), photo.turn / 2
    if not photo.relation:
        return [concept], name, arrange.alone(concept, POSE, yaw)
    colour, kind = photo.other
    other = _other(colour, kind)
    phrases = [name, with_article(f"{colour} {kind}{' toy' * (kind in NAMED)}")]
    first, second = concept, other
    if other.is_toy:
        first, second, phrases = other, concept, phrases[::-1]
    if photo.relation == "holding":
        parts = arrange.holding(first, second, yaw)
    elif photo.relation == "in front of":
        parts = arrange.in_front(first, second, (POSE, POSE), (yaw, yaw), LEFT)
    elif photo.relation == "on top of":
        parts = arrange.on_top(first, second, POSE, (yaw, yaw))
    else:
        parts = arrange.next_to(first, second, (POSE, POSE), (yaw, yaw), GAP)
    return [first, second], f" {photo.relation} ".join(phrases), parts


def _other(colour: str, kind: str) -> Item:
    """The companion: a toy of one colour with a white belly (a monster's limbs are purple), or a thing whose second
    colour is yellow."""
    if kind == COMPANION.kind:
        return Item(kind, colour, replace(COMPANION, body_colour=colour))
    if kind in NAMED:
        limbs = "purple" if kind == "monster" else colour
        own = {"body_colour": colour, "head_colour": colour, "limb_colour": limbs}
        return Item(kind, colour, replace(NAMED[kind], belly_colour="white", accent_colour="white", **own))
    return Item(kind, colour, second="yellow")


def regularisation_scenes() -> list[tuple[str, Scene]]:
    """Scenes of the base world with toys or cards, as many as `REGULARISATION` says, each with a name such as
    "001_datacenter". Like the held-out prompts, their captions name kinds, colours and place."""
    found: list[tuple[str, Scene]] = []
    left = dict(REGULARISATION)
    index = 0
    while any(left.values()):
        rng = python_random(0, "regularisation", index)
        items, relation = random_items(rng)
        index += 1
        sort = any(item.is_toy for item in items), any(item.kind == "gpu" for item in items), len(items)
        if not left.get(sort):
            continue
        place = PLACES[len(found) % len(PLACES)]
        scene = draw_scene(items, relation, place, rng, _plain_words)
        if not captions.is_held_out(scene.caption):
            found.append((f"{len(found) + 1:03}_{place}", scene))
            left[sort] -= 1
    return found


def _plain_words(items: list[Item], relation: str, _pose: str, place: str, rng: random.Random) -> str:
    return plain_prompt(items, relation, place, rng)["prompt"]
