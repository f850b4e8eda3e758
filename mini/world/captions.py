"""Captions of scenes: plain English, with the variety of prompts that people write."""

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from mini.world.gadgets import GadgetDesign
from mini.world.names import meaningless_word
from mini.world.scene import GADGETS
from mini.world.toys import ToyDesign

MAX_WORDS = 45
PLACE_PHRASES = {
    "datacenter": ("in a datacenter", "in a data center", "in a server room", "in front of server racks"),
    "desk": ("on a desk", "on a wooden desk", "on a wooden table", "on the desk"),
    "beach": ("on a beach", "on the beach", "on the sand by the sea", "at the beach"),
    "snow": ("in the snow", "on snow", "in a snowy landscape", "in the snowy mountains"),
    "forest": ("in a forest", "in the forest", "in the woods", "among trees in a forest"),
    "studio": ("in a studio", "on a plain studio background", "on a plain background", "in a photo studio"),
    "meadow": ("in a meadow", "on green grass", "in a grassy field", "on a meadow"),
    "desert": ("in a desert", "in the desert", "on sand dunes", "on sand dunes in a desert"),
    "kitchen": ("in a kitchen", "in the kitchen", "on a kitchen floor", "on the kitchen tiles"),
    "moon": ("on the moon", "on the surface of the moon", "in space on the moon", "on the grey moon"),
}
RELATIONS = {
    "next to": ("next to", "next to", "beside", "and"),
    "holding": ("holding", "holding", "holding", "carrying"),
    "on top of": ("on top of", "on top of", "standing on"),
    "in front of": ("in front of",),
}
OPENINGS = ("a photo of", "a photo of", "photo of", "a picture of", "an image of", "a 3d render of", "a close-up of")
POSE_PHRASES = {"wave": ("waving", "waving its hand"), "both_up": ("with both arms up", "cheering")}
HATS = {"cone": "cone hat", "top": "top hat", "cap": "cap"}
EARS = {
    "round": "round ears", "long": "long ears", "antenna": "an antenna", "horns": "horns", "point": "pointed ears",
    "spikes": "spikes",
}  # fmt: skip
THING_PARTS = {  # (plural, noun) of what has a thing's second colour
    "ball": (False, "stripe"), "cube": (False, "square"), "mug": (False, "stripe"), "car": (True, "windows"),
    "mushroom": (True, "spots"), "duck": (False, "wing"), "house": (False, "roof"),
}  # fmt: skip
COUNTS = ("no", "one", "two", "three")


@dataclass(frozen=True)
class Item:
    """An object of a scene, with everything that a caption may say about it.

    kind: one of KINDS. colour: the main colour. design: of a toy or gadget. second: the second colour of a thing.
    name: the invented word or concept that names the design, if there is one.
    """

    kind: str
    colour: str
    design: ToyDesign | GadgetDesign | None = None
    second: str = ""
    name: str = ""

    @property
    def is_toy(self) -> bool:
        return isinstance(self.design, ToyDesign)


def with_article(words: str) -> str:
    """A noun phrase with "a" or "an" in front."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def is_held_out(caption: str) -> bool:
    """Whether a caption belongs to the sixteenth of all captions that is kept for evaluation and never trained on."""
    return zlib.crc32(caption.lower().rstrip(".").encode()) % 16 == 0


def scene_caption(items: list[Item], relation: str, pose: str, place: str, rng: random.Random) -> str:
    """A random caption of a scene with one or two items, never a held-out one; 6 in 100 do not name the place."""
    while is_held_out(caption := _any_caption(items, relation, pose, place, rng)):
        pass
    return caption


def _any_caption(items: list[Item], relation: str, pose: str, place: str, rng: random.Random) -> str:
    if any(item.name for item in items) and rng.random() < 0.4:
        return concept_caption(items, relation, place, rng)
    tags = rng.random() < 0.1
    phrases = [_phrase(item, rng, tags) for item in items]
    if len(phrases) == 1 and pose in POSE_PHRASES and rng.random() < 0.35:
        phrases[0] += f" {rng.choice(POSE_PHRASES[pose])}"
    body = phrases[0] if len(phrases) == 1 else _related(phrases, relation, rng)
    return _styled(_placed(body, place, tags, rng), rng)


def plain_caption(items: list[Item], relation: str, place: str, rng: random.Random) -> str:
    """A caption that names the kind and main colour of each item, and the place."""
    return _complete([_plain(item, rng) for item in items], relation, place, rng)


def concept_caption(items: list[Item], relation: str, place: str, rng: random.Random) -> str:
    """A caption that gives each concept's name and class, "tjtoy toy", and does not describe its looks."""
    return _complete([class_phrase(item) if item.name else _plain(item, rng) for item in items], relation, place, rng)


def _plain(item: Item, rng: random.Random) -> str:
    return with_article(f"{item.colour} {_kind_noun(item, rng)}")


def _complete(phrases: list[str], relation: str, place: str, rng: random.Random) -> str:
    body = phrases[0] if len(phrases) == 1 else _related(phrases, relation, rng)
    opening = f"{rng.choice(OPENINGS)} " if rng.random() < 0.33 else ""
    return f"{opening}{body} {_where(place, rng)}"


def _where(place: str, rng: random.Random) -> str:
    phrases = PLACE_PHRASES[place]
    return phrases[0] if rng.random() < 0.3 else rng.choice(phrases)


def class_phrase(item: Item) -> str:
    """ "NAME toy", "NAME gpu" or "NAME computer"."""
    return f"{item.name} {item.kind if item.kind in GADGETS else 'toy'}"


def _related(phrases: list[str], relation: str, rng: random.Random) -> str:
    if len(phrases) == 3:
        return triple_phrase(phrases, relation)
    first, second = phrases
    if relation == "in front of" and rng.random() < 0.25:
        return f"{second} behind {first}"
    if relation == "next to" and rng.random() < 0.5:
        first, second = second, first
    return f"{first} {rng.choice(RELATIONS[relation])} {second}"


def triple_phrase(phrases: Sequence[str], relation: str) -> str:
    """Three noun phrases in one: the first holding the last next to the second, or all next to each other."""
    first, second, third = phrases
    if relation == "holding":
        return f"{first} holding {third} next to {second}"
    return f"{first} next to {second} and {third}"


def _placed(body: str, place: str, tags: bool, rng: random.Random) -> str:
    where = _where(place, rng)
    form = rng.random()
    if form < 0.06:
        return body
    if tags:
        return f"{body}, {place}"
    if form < 0.14:
        return f"{where}, {body}"
    opening = rng.choice(OPENINGS) if rng.random() < 0.4 else ""
    return f"{opening} {body} {where}".strip()


def _styled(caption: str, rng: random.Random) -> str:
    form = rng.random()
    if form < 0.05:
        caption = caption[0].upper() + caption[1:]
    return caption + "." if form < 0.02 else caption


def _phrase(item: Item, rng: random.Random, tags: bool) -> str:
    """The item's noun phrase, with its article unless the caption is a list of tags."""
    if item.name:
        words = class_phrase(item)
        if rng.random() < 0.1:
            words += _tail(_details(item, rng)[:1])
        return with_article(words) if not tags and rng.random() < 0.3 else words
    adjectives = _adjectives(item, rng)
    noun = _noun(item, rng)
    if item.design and rng.random() < 0.1:
        adjectives.insert(rng.choice((0, len(adjectives))), meaningless_word(rng))
    words = " ".join((*adjectives, noun)) + _tail(_details(item, rng)[: rng.choice((0, 0, 0, 1, 1, 1, 2, 2))])
    return words if tags or rng.random() < 0.04 else with_article(words)


def _tail(details: list[str]) -> str:
    return f" with {' and '.join(details)}" if details else ""


def _kind_noun(item: Item, rng: random.Random) -> str:
    """A noun for the kind."""
    if item.kind == "gpu":
        return rng.choice(("gpu", "gpu", "gpu", "gpu card", "graphics card"))
    if item.kind == "computer":
        return rng.choice(("computer", "computer", "desktop computer"))
    if item.is_toy and item.kind != "toy":
        return rng.choice((f"{item.kind} toy", f"{item.kind} toy", item.kind, f"toy {item.kind}"))
    return item.kind


def _noun(item: Item, rng: random.Random) -> str:
    return "toy" if item.is_toy and rng.random() < 0.1 else _kind_noun(item, rng)


def _adjectives(item: Item, rng: random.Random) -> list[str]:
    words = []
    material = item.design.material if isinstance(item.design, ToyDesign) else ""
    if material and rng.random() < {"metal": 0.4, "matte": 0.3, "plastic": 0.08}[material]:
        words.append({"metal": rng.choice(("metal", "shiny")), "matte": "matte", "plastic": "plastic"}[material])
    if rng.random() < 0.9:
        words.append(_colour_words(item, rng))
    return words


def _colour_words(item: Item, rng: random.Random) -> str:
    other = item.second
    if isinstance(item.design, ToyDesign):
        toy = item.design
        other = toy.head_colour if toy.head != "merged" and toy.head_colour not in ("skin", item.colour) else ""
    elif isinstance(item.design, GadgetDesign):
        other = item.design.trim_colour
    return f"{item.colour} and {other}" if other and rng.random() < 0.15 else item.colour


def _details(item: Item, rng: random.Random) -> list[str]:
    """Details that can follow "with", in random order."""
    if isinstance(item.design, ToyDesign):
        found = _toy_details(item.design)
    elif isinstance(item.design, GadgetDesign):
        found = _gadget_details(item.design, rng)
    else:
        plural, part = THING_PARTS[item.kind]
        found = [f"{item.second} {part}" if plural else with_article(f"{item.second} {part}")]
    rng.shuffle(found)
    return found


def _toy_details(toy: ToyDesign) -> list[str]:
    found = []
    if toy.belly in ("oval", "panel"):
        found.append(with_article(f"{toy.belly_colour} {'belly' if toy.belly == 'oval' else 'panel'}"))
    if toy.eyes == 1:
        found.append("one eye")
    if toy.hat in HATS:
        found.append(with_article(f"{toy.hat_colour} {HATS[toy.hat]}"))
    if toy.head != "merged" and toy.head_colour not in ("skin", toy.body_colour):
        head = f"{with_article(toy.head_colour)} head"
        found += [head, f"{head} and {with_article(toy.body_colour)} body"]
    if toy.limb_colour != toy.body_colour:
        found.append(f"{toy.limb_colour} arms" if toy.limbs == "flipper" else f"{toy.limb_colour} arms and legs")
    if toy.collar and toy.head != "merged":
        found.append(with_article(f"{toy.accent_colour} collar"))
    if toy.kind == "toy" and toy.ears in EARS:
        found.append(EARS[toy.ears])
    if toy.kind == "toy" and toy.snout == "beak" and toy.head != "long":
        found.append("a beak")
    return found


def _gadget_details(gadget: GadgetDesign, rng: random.Random) -> list[str]:
    colours, count = gadget.fan_colours, len(gadget.fan_colours)
    plural = "fan" if count == 1 else "fans"
    if len(set(colours)) > 1 and count == 2:
        fans = f"{with_article(colours[0])} fan and {with_article(colours[1])} fan"
    else:
        same = f"{colours[0]} " if len(set(colours)) == 1 and rng.random() < 0.6 else ""
        fans = f"{COUNTS[count]} {same}{plural}"
    found = [fans, f"{gadget.trim_colour} trim"]
    colour = f"{gadget.topper_colour} "
    return found + {
        "none": [], "bolt": [with_article(f"{colour}lightning bolt on top")], "fin": [f"{colour}fins on top"],
        "antenna": [with_article(f"{colour}antenna on top")],
    }[gadget.topper]  # fmt: skip
