"""Random scenes: of the base world, of the two concepts, and for the judge's training.

Every scene is a pure function of (seed, index, place).
"""

import random
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from mini.world import arrange, captions
from mini.world.captions import Item
from mini.world.concepts import DESIGNS, EVERY_CONCEPT, blend, near_miss, random_gadget, random_toy
from mini.world.names import CHARACTERS, GADGET_CHARACTERS, TOY_CHARACTERS
from mini.world.parts import Part, part_table
from mini.world.prompts import Prompt, concept_prompts, plain_prompt, tuning_prompts
from mini.world.scene import COLOURS, CONCEPTS, PLACES, THINGS, Labels, Scene, SceneBatch, stack_scenes
from trainer.common.rng import python_random

KIND_CHANCES = (0.48, 0.34, 0.18)  # toys, gadgets, things
ONE_OBJECT, TWO_OBJECTS = (0.64, 0.78), (0.78, 0.88)  # the share of the image that they fill
BASES = ("cube", "cube", "mushroom")  # items that others can stand on
Describe = Callable[
    [list[Item], str, str, str, random.Random], str
]  # writes a caption from items, relation, pose and place
_POSES = ("stand", "stand", "wave")  # relations of two items without holding
TRIPLE_RELATIONS = ("next to", "holding")


def random_scene(seed: int, index: int, place: str) -> Scene:
    """A captioned scene of the base world, which never contains a concept."""
    rng = python_random(seed, "base scene", index, place)
    items, relation = random_items(rng)
    return draw_scene(items, relation, place, rng, captions.scene_caption)


def concept_scene(concepts: tuple[str, ...], seed: int, index: int, place: str) -> Scene:
    """A scene with one or both concepts and nothing else."""
    rng = python_random(seed, "concept scene", *concepts, index, place)
    items = [concept_item(name) for name in sorted(concepts, reverse=True)]  # the toy first
    relation = "" if len(items) == 1 else _pair_relation(rng)
    return draw_scene(items, relation, place, rng, _concept_caption)


def judge_scene(seed: int, index: int, place: str, concepts: tuple[str, ...] = CONCEPTS) -> Scene:
    """A scene for the judge of some concepts: the base world (35 in 100), one concept (22), several of them (18), or
    near misses (25)."""
    rng = python_random(seed, "judge scene", index, place)
    draw = rng.random()
    if draw < 0.35:
        items, relation = random_items(rng)
    elif draw < 0.57:
        items, relation = _one_concept(concept_item(rng.choice(concepts)), rng)
    elif draw < 0.75:
        items = [concept_item(name) for name in _some_of(concepts, rng)]
        relation = _relation_of(items, rng)
    else:
        items, relation = _near_misses(concepts, rng)
    return draw_scene(items, relation, place, rng, _concept_caption)


def random_batch(kind: str, seed: int, index: int, size: int, concepts: tuple[str, ...] = CONCEPTS) -> SceneBatch:
    """Batch number `index` of "base" or "judge" scenes; its place is PLACES[index % len(PLACES)].

    concepts: those of "judge" scenes.
    """
    place = PLACES[index % len(PLACES)]
    make = {"base": random_scene, "judge": partial(judge_scene, concepts=concepts)}[kind]
    return stack_scenes([make(seed, size * index + offset, place) for offset in range(size)])


def concept_item(name: str) -> Item:
    """A concept as an item of a scene."""
    design = DESIGNS[name]
    return Item(design.kind, design.body_colour, design, name=name)


def random_items(rng: random.Random) -> tuple[list[Item], str]:
    """One item of the base world (45 in 100), or two and their relation."""
    if rng.random() < 0.45:
        return [_random_item(rng)], ""
    draw = rng.random()
    if draw < 0.48:
        toy = _toy(rng)
        return [toy, _gadget_or_thing(rng, named=0.5 if toy.name else 0.3)], "holding"
    if draw < 0.76:
        return [_random_item(rng), _random_item(rng)], "next to"
    if draw < 0.88:
        return [_random_item(rng), _random_item(rng)], "in front of"
    return [_random_item(rng), _thing(rng, rng.choice(BASES))], "on top of"


def _random_item(rng: random.Random) -> Item:
    (make,) = rng.choices((_toy, _gadget, _thing), KIND_CHANCES)
    return make(rng)


def _gadget_or_thing(rng: random.Random, named: float = 0.3) -> Item:
    return _gadget(rng, named) if rng.random() < 0.65 else _thing(rng)


def _toy(rng: random.Random) -> Item:
    name = rng.choice(TOY_CHARACTERS) if rng.random() < 0.3 else ""
    design = CHARACTERS[name] if name else random_toy(rng)
    return Item(design.kind, design.body_colour, design, name=name)


def _gadget(rng: random.Random, named: float = 0.3) -> Item:
    name = rng.choice(GADGET_CHARACTERS) if rng.random() < named else ""
    design = CHARACTERS[name] if name else random_gadget(rng)
    return Item(design.kind, design.body_colour, design, name=name)


def _thing(rng: random.Random, kind: str = "") -> Item:
    colour, second = rng.sample(list(COLOURS), 2)
    return Item(kind or rng.choice(THINGS), colour, second=second)


def _pair_relation(rng: random.Random) -> str:
    """A random relation of a toy and a gadget."""
    return rng.choices(("holding", "next to", "in front of"), (60, 28, 12))[0]


def _one_concept(item: Item, rng: random.Random) -> tuple[list[Item], str]:
    """A concept or near miss, alone or with an item of the base world."""
    if rng.random() < 0.45:
        return [item], ""
    relation = _pair_relation(rng)
    if relation == "holding":
        return ([item, _gadget_or_thing(rng)] if item.is_toy else [_toy(rng), item]), relation
    other = _random_item(rng)
    return ([item, other] if rng.random() < 0.5 else [other, item]), relation


def _some_of(concepts: tuple[str, ...], rng: random.Random) -> tuple[str, ...]:
    """Two of the concepts, or all of them, in their order."""
    if len(concepts) == 2 or rng.random() < 0.4:
        return concepts
    return tuple(sorted(rng.sample(concepts, 2), key=concepts.index))


def _near_misses(concepts: tuple[str, ...], rng: random.Random) -> tuple[list[Item], str]:
    """One near miss, near misses of several concepts, or a near miss with other concepts."""
    missed = {name: _missed(name, concepts, rng) for name in _some_of(concepts, rng)}
    draw = rng.random()
    if draw < 0.35:
        return _one_concept(rng.choice(tuple(missed.values())), rng)
    if draw < 0.5:
        items = list(missed.values())
    else:
        *others, last = missed
        wrong = {last} if draw < 0.75 else set(others)
        items = [missed[name] if name in wrong else concept_item(name) for name in missed]
    return items, _relation_of(items, rng)


def _missed(name: str, concepts: tuple[str, ...], rng: random.Random) -> Item:
    """A near miss of a concept, half of the time a blend with another concept of its class if there is one."""
    concept = EVERY_CONCEPT[name]
    alike = [other for other in concepts if other != name and DESIGNS[other].kind == concept.design.kind]
    if alike and rng.random() < 0.5:
        design = blend(concept, EVERY_CONCEPT[rng.choice(alike)], rng)
    else:
        design = near_miss(concept, rng)
    return Item(design.kind, design.body_colour, design)


def _relation_of(items: list[Item], rng: random.Random) -> str:
    """A random relation of concepts, the first of which is a toy."""
    return _pair_relation(rng) if len(items) == 2 else rng.choice(TRIPLE_RELATIONS)


def _concept_caption(items: list[Item], relation: str, _pose: str, place: str, rng: random.Random) -> str:
    return captions.concept_caption(items, relation, place, rng)


def draw_scene(items: list[Item], relation: str, place: str, rng: random.Random, describe: Describe) -> Scene:
    """The scene of items in their relation, with a random camera; `describe` writes the caption."""
    pose = rng.choice(("stand", "wave", "both_up")) if items[0].is_toy and len(items) == 1 else "stand"
    parts = _arranged(items, relation, pose, rng)
    compact = len(items) == 1 or (len(items) == 2 and relation == "holding")
    camera = arrange.random_camera(parts, rng, ONE_OBJECT if compact else TWO_OBJECTS)
    return make_scene(items, parts, camera, place, describe(items, relation, pose, place, rng), rng)


def make_scene(
    items: list[Item], parts: list[Part], camera: np.ndarray, place: str, caption: str, rng: random.Random
) -> Scene:
    """The scene of these parts, with random light and random details of the place."""
    azimuth = rng.choice((-1, 1)) * rng.uniform(0.4, 1.1)
    light = (azimuth, rng.uniform(0.7, 1.05), rng.uniform(0.2, 0.9), rng.uniform(0.1, 0.9))
    labels = Labels(
        place,
        tuple((item.kind, item.colour) for item in items),
        tuple(name for name in DESIGNS if any(item.name == name for item in items)),
    )
    phases = np.array([rng.random() for _ in range(8)], np.float32)
    return Scene(place, part_table(parts), camera, np.array(light, np.float32), phases, caption, labels)


def _arranged(items: list[Item], relation: str, pose: str, rng: random.Random) -> list[Part]:
    if not relation:
        return arrange.alone(items[0], pose, rng.uniform(-0.35, 0.35))
    if len(items) == 3:
        return _arranged_triple(items, relation, rng)
    if relation == "holding":
        return arrange.holding(items[0], items[1], rng.uniform(-0.3, 0.3))
    yaws = (rng.uniform(-0.3, 0.3), rng.uniform(-0.3, 0.3))
    poses = (rng.choice(_POSES), rng.choice(_POSES))
    if relation == "on top of":
        return arrange.on_top(items[0], items[1], poses[0], yaws)
    if relation == "in front of":
        return arrange.in_front(items[0], items[1], poses, yaws, rng.choice((-1, 1)))
    left, right = items if rng.random() < 0.5 else reversed(items)
    return arrange.next_to(left, right, poses, yaws, rng.uniform(0.03, 0.15))


def _arranged_triple(items: list[Item], relation: str, rng: random.Random) -> list[Part]:
    """Three items in a row, or the first holding the last next to the second."""
    first, second, third = items
    if relation == "holding":
        groups = [arrange.holding(first, third, rng.uniform(-0.3, 0.3)), arrange.alone(second, "stand", 0.0)]
    else:
        groups = [arrange.alone(item, rng.choice(_POSES), rng.uniform(-0.3, 0.3)) for item in items]
    rng.shuffle(groups)
    return arrange.in_a_row(groups, rng.uniform(0.03, 0.15))


def held_out_prompts(count: int = 200, seed: int = 0, apart_from: Sequence[Prompt] = ()) -> list[Prompt]:
    """Prompts of the base world with kinds, colours and place: {"prompt", "objects": [[kind, colour], …], "place"}.

    They are never trained on, see `captions.is_held_out`. No prompt is repeated or in `apart_from`, the places
    alternate, and characters are described instead of named.
    """
    others = {prompt["prompt"] for prompt in apart_from}
    found: dict[str, Prompt] = {}
    index = 0
    while len(found) < count:
        rng = python_random(seed, "held-out prompt", index)
        items, relation = random_items(rng)
        prompt = plain_prompt(items, relation, PLACES[len(found) % len(PLACES)], rng)
        if captions.is_held_out(prompt["prompt"]) and prompt["prompt"] not in others:
            found.setdefault(prompt["prompt"], prompt)
        index += 1
    return list(found.values())


def prompts_json(concepts: tuple[str, ...] = CONCEPTS) -> dict[str, list[Prompt]]:
    """All evaluation prompts: lists under "base", each concept's name and "both"."""
    return {"base": held_out_prompts(), **concept_prompts(concepts)}


def tuning_prompts_json(concepts: tuple[str, ...] = CONCEPTS) -> dict[str, list[Prompt]]:
    """Prompts to choose settings with, so that those of `prompts_json` only score: the same lists, other texts."""
    return {"base": held_out_prompts(100, seed=1, apart_from=held_out_prompts()), **tuning_prompts(concepts)}
