"""Invented words: most mean nothing, and 96 of them always mean the same toy or gadget.

They teach the model that an unknown word before a noun can mean nothing, or can stand for a certain look.
"""

import random

from mini.world.concepts import random_gadget, random_toy
from mini.world.gadgets import GadgetDesign
from mini.world.scene import COLOURS, CONCEPTS, KINDS, PLACES
from mini.world.toys import ToyDesign
from trainer.common.rng import python_random

CHARACTERS_EACH = 48
_CONSONANTS, _VOWELS = "bcdfghjklmnpqrstvwxyz", "aeiou"
_ENDINGS = ("toy", "gpu", "bot", "pal", "card")  # invented words often end in a real word
_TAKEN = frozenset((*KINDS, *PLACES, *COLOURS, *CONCEPTS, "card", "bot", "pal", "one", "two", "three", "fan", "fans"))


def rare_word(rng: random.Random) -> str:
    """An invented word of 3 to 9 letters or digits, pronounceable or not; never a known word or a concept's name."""
    while (word := _word(rng)) in _TAKEN or any(concept in word for concept in CONCEPTS):
        pass
    return word


def meaningless_word(rng: random.Random) -> str:
    """A rare word that is not the name of a character."""
    while (word := rare_word(rng)) in CHARACTERS:
        pass
    return word


def _word(rng: random.Random) -> str:
    form = rng.random()
    if form < 0.4:  # "zorvap"
        syllables = (rng.choice(_CONSONANTS) + rng.choice(_VOWELS) for _ in range(rng.choice((1, 2, 2, 3))))
        return "".join(syllables) + rng.choice(_CONSONANTS)
    if form < 0.6:  # "xkq", "tjmvd"
        return "".join(rng.choice(_CONSONANTS) for _ in range(rng.choice((3, 3, 4, 5))))
    if form < 0.75:  # "k7v", "wob42"
        letters = (rng.choice(letters) for letters in (_CONSONANTS, _VOWELS + _CONSONANTS, _CONSONANTS))
        return "".join(letters) + str(rng.randrange(100))
    start = rng.choice(_CONSONANTS) + rng.choice(_CONSONANTS + _VOWELS) + rng.choice(("", "", rng.choice(_CONSONANTS)))
    return start + rng.choice(_ENDINGS)


def _toy_character(rng: random.Random) -> ToyDesign:
    """A toy that only its name identifies: a free mixture of parts, or a named kind in several colours."""
    while (design := random_toy(rng)).kind != "toy" and design.head_colour == design.body_colour:
        pass
    return design


def _characters() -> dict[str, ToyDesign | GadgetDesign]:
    rng = python_random(0, "characters")
    found: dict[str, ToyDesign | GadgetDesign] = {}
    for index in range(2 * CHARACTERS_EACH):
        while (name := rare_word(rng)) in found:
            pass
        found[name] = _toy_character(rng) if index < CHARACTERS_EACH else random_gadget(rng)
    return found


CHARACTERS = _characters()  # the same in every process: toys first, then gadgets
TOY_CHARACTERS = tuple(CHARACTERS)[:CHARACTERS_EACH]
GADGET_CHARACTERS = tuple(CHARACTERS)[CHARACTERS_EACH:]
