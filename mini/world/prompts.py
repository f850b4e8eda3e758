"""Evaluation prompts: of the base world, and with the concepts."""

import random

from mini.world import captions
from mini.world.captions import PLACE_PHRASES, RELATIONS, Item, with_article
from mini.world.concepts import DESIGNS
from mini.world.scene import CONCEPTS, PLACES
from trainer.common.rng import python_random

CLASS_PHRASES = {name: f"{name} {design.kind}" for name, design in DESIGNS.items()}  # "tjtoy toy"
PER_CONCEPT = 32
Prompt = dict  # {"prompt": str, "objects": [[kind, colour], …], "concepts": [str, …], "place": str}


def plain_prompt(items: list[Item], relation: str, place: str, rng: random.Random) -> Prompt:
    """A prompt that names the kind and colour of each item, and the place."""
    words = captions.plain_caption(items, relation, place, rng)
    return _prompt(words, [[item.kind, item.colour] for item in items], [], place)


def concept_prompts() -> dict[str, list[Prompt]]:
    """32 prompts for each of "tjtoy", "sparkgpu" and "both", with places and companions that the training images lack.

    "objects" are the companions; the concepts are in "concepts".
    """
    return {**{name: _one_concept(name) for name in CONCEPTS}, "both": _both()}


def _one_concept(name: str) -> list[Prompt]:
    rng = python_random(0, "prompts", name)
    subject = CLASS_PHRASES[name]
    found = []
    for number in range(PER_CONCEPT):
        place = PLACES[number % len(PLACES)]
        where = PLACE_PHRASES[place][(number // len(PLACES) + 1) % 4]
        if number < 2 * len(PLACES):  # alone
            opening = "" if number < len(PLACES) else rng.choice(("a photo of ", "a picture of ", "an image of "))
            found.append(_prompt(f"{opening}{subject} {where}", [], [name], place))
            continue
        kind, colour = rng.choice(("ball", "mug", "cube", "car", "duck", "house")), rng.choice(("red", "blue", "green"))
        relation = rng.choice(("holding", "next to") if name == "tjtoy" else ("next to", "on top of"))
        company = with_article(f"{colour} {'cube' if relation == 'on top of' else kind}")
        shown = [["cube" if relation == "on top of" else kind, colour]]
        found.append(_prompt(f"{subject} {relation} {company} {where}", shown, [name], place))
    return found


def _both() -> list[Prompt]:
    """The prompts with both concepts: in sixteen the toy holds the card, in the others they are next to each other."""
    toy, card = (CLASS_PHRASES[name] for name in CONCEPTS)
    relations = ("holding",) * 16 + ("next to",) * 10 + ("in front of",) * 6
    found = []
    for number, relation in enumerate(relations):
        place = PLACES[number % len(PLACES)]
        where = PLACE_PHRASES[place][number // len(PLACES)]
        opening = ("", "a photo of ")[number % 16 >= len(PLACES)]
        first, second = (card, toy) if relation == "next to" and number % 2 else (toy, card)
        found.append(_prompt(f"{opening}{first} {RELATIONS[relation][0]} {second} {where}", [], list(CONCEPTS), place))
    return found


def _prompt(words: str, objects: list[list[str]], concepts: list[str], place: str) -> Prompt:
    return {"prompt": words, "objects": objects, "concepts": concepts, "place": place}
