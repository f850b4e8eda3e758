"""Prompts of the base world and with concepts: those that score, and others to choose settings with."""

import random
from collections.abc import Callable
from itertools import combinations

from mini.world import captions
from mini.world.captions import PLACE_PHRASES, Item, triple_phrase, with_article
from mini.world.concepts import DESIGNS, EVERY_CONCEPT
from mini.world.scene import COLOURS, CONCEPTS, PLACES
from mini.world.toys import ToyDesign
from trainer.common.rng import python_random

Counts = tuple[tuple[str, int], ...]
PER_CONCEPT = 32
TOGETHER = (("holding", 16), ("next to", 10), ("in front of", 6))  # prompts of two concepts, by their relation
TRIPLES = (("holding", 8), ("next to", 8))  # prompts of three concepts
TUNING_PER_CONCEPT = 30
TUNING_TOGETHER = (("holding", 20), ("next to", 30), ("in front of", 10))
TUNING_TRIPLES = (("holding", 10), ("next to", 10))
TUNING_OPENINGS = ("an image of ", "a 3d render of ", "photo of ")
COMPANIONS, COMPANION_COLOURS = ("ball", "mug", "cube", "car", "duck", "house"), ("red", "blue", "green")
Prompt = dict  # {"prompt": str, "objects": [[kind, colour], …], "concepts": [str, …], "place": str}


def plain_prompt(items: list[Item], relation: str, place: str, rng: random.Random) -> Prompt:
    """A prompt that names the kind and colour of each item, and the place."""
    words = captions.plain_caption(items, relation, place, rng)
    return _prompt(words, [[item.kind, item.colour] for item in items], [], place)


def concept_prompts(concepts: tuple[str, ...] = CONCEPTS) -> dict[str, list[Prompt]]:
    """32 prompts for each of the concepts and for "both", with places and companions that the training images lack.

    "objects" are the companions; the concepts are in "concepts". With three concepts, "both" has 32 prompts of each two
    of them and 16 of all.
    """
    alone = {name: _one_concept(name) for name in concepts}
    return alone | {"both": _together(concepts, TOGETHER, TRIPLES, _scoring_opening)}


def tuning_prompts(concepts: tuple[str, ...] = CONCEPTS) -> dict[str, list[Prompt]]:
    """As `concept_prompts`, but other prompts: 30 for each of the concepts and 60 of two of them."""
    alone = {name: _one_for_tuning(name) for name in concepts}
    return alone | {"both": _together(concepts, TUNING_TOGETHER, TUNING_TRIPLES, _tuning_opening)}


def _one_concept(name: str) -> list[Prompt]:
    rng = python_random(0, "prompts", name)
    subject, relations = EVERY_CONCEPT[name].class_phrase, _relations_to_things(name)
    found = []
    for number in range(PER_CONCEPT):
        place = PLACES[number % len(PLACES)]
        where = PLACE_PHRASES[place][(number // len(PLACES) + 1) % 4]
        if number < 2 * len(PLACES):  # alone
            opening = "" if number < len(PLACES) else rng.choice(("a photo of ", "a picture of ", "an image of "))
            found.append(_prompt(f"{opening}{subject} {where}", [], [name], place))
            continue
        kind, colour = rng.choice(COMPANIONS), rng.choice(COMPANION_COLOURS)
        found.append(_with_companion("", name, subject, rng.choice(relations), kind, colour, where, place))
    return found


def _one_for_tuning(name: str) -> list[Prompt]:
    """A third alone, the others with a companion, all with an opening that no prompt with a companion has elsewhere."""
    rng = python_random(1, "tuning prompts", name)
    subject, relations = EVERY_CONCEPT[name].class_phrase, _relations_to_things(name)
    found = []
    for number in range(TUNING_PER_CONCEPT):
        place, opening = PLACES[number % len(PLACES)], _tuning_opening(number)
        where = rng.choice(PLACE_PHRASES[place])
        if number < len(PLACES):
            found.append(_prompt(f"a close-up of {subject} {where}", [], [name], place))
            continue
        kind, colour = rng.choice(COMPANIONS), rng.choice(list(COLOURS))
        found.append(_with_companion(opening, name, subject, rng.choice(relations), kind, colour, where, place))
    return found


def _relations_to_things(name: str) -> tuple[str, str]:
    """A toy holds things, a card is on top of cubes."""
    return ("holding", "next to") if isinstance(DESIGNS[name], ToyDesign) else ("next to", "on top of")


def _with_companion(
    opening: str, name: str, subject: str, relation: str, kind: str, colour: str, where: str, place: str
) -> Prompt:
    kind = "cube" if relation == "on top of" else kind
    words = f"{opening}{subject} {relation} {with_article(f'{colour} {kind}')} {where}"
    return _prompt(words, [[kind, colour]], [name], place)


def _together(
    concepts: tuple[str, ...], of_two: Counts, of_three: Counts, opening: Callable[[int], str]
) -> list[Prompt]:
    """Prompts with each two of the concepts, the first of which can hold the other, and with three of them."""
    found = []
    for pair in combinations(concepts, 2):
        found += _related(pair, of_two, opening)
    for triple in combinations(concepts, 3):
        found += _related(triple, of_three, opening)
    return found


def _related(concepts: tuple[str, ...], counts: Counts, opening: Callable[[int], str]) -> list[Prompt]:
    relations = [relation for relation, count in counts for _ in range(count)]
    found = []
    for number, relation in enumerate(relations):
        place = PLACES[number % len(PLACES)]
        where = PLACE_PHRASES[place][number // len(PLACES) % 4]
        phrases = [EVERY_CONCEPT[name].class_phrase for name in concepts]
        if relation == "next to" and number % 2:
            phrases.reverse()
        words = f" {relation} ".join(phrases) if len(phrases) == 2 else triple_phrase(phrases, relation)
        found.append(_prompt(f"{opening(number)}{words} {where}", [], list(concepts), place))
    return found


def _scoring_opening(number: int) -> str:
    return ("", "a photo of ")[number % 16 >= len(PLACES)]


def _tuning_opening(number: int) -> str:
    return TUNING_OPENINGS[number // len(PLACES) % len(TUNING_OPENINGS)]


def _prompt(words: str, objects: list[list[str]], concepts: list[str], place: str) -> Prompt:
    return {"prompt": words, "objects": objects, "concepts": concepts, "place": place}
