"""[[datasets.preservation]] of the dataset file: images that the base model generates and that training preserves."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from trainer.common.problems import Problem
from trainer.config.fields import Given, Invalid, Schema, Spec, path_of, shown
from trainer.config.values import sides
from trainer.data.composition_file import GUIDE, texts
from trainer.data.preserved_words import COLORS, OBJECTS, PLACES, SCENES, STYLES
from trainer.data.sampler_keys import SAMPLER_SPECS, Sampler

PRESERVATION = "[[datasets.preservation]]"
PROMPT_FILE = ".txt"
PATH = re.compile(r"\S*[/\\]\S*|\S+\.\w+")  # a text that is meant as one, even if there is nothing of that name


@dataclass(frozen=True, kw_only=True)
class PreservationConfig:
    """One [[datasets.preservation]]: images that the base model generates, and whose prediction training keeps.

    prompts: what they show, in turn, or a text file with a prompt a line; None for built-in prompts, with and without
    the concepts' class words. num_images: how many there are. images_per_epoch: how many of them each epoch trains,
    going on where the last one stopped; None for as many as the dataset has photographs. resolution: None for the
    dataset's. sampler: how they are generated.

    For built-in prompts: concepts, by their class_tokens, empty for all; places, relations, colors, objects (things
    next to a concept) and styles of images with class words, where relations are None for those of the dataset's
    composites; scenes, the prompts without class words.

    where: the place in the file, for messages.
    """

    where: str = ""
    prompts: tuple[str, ...] | Path | None = None
    num_images: int = 120
    images_per_epoch: int | None = None
    resolution: tuple[int, int] | None = None
    concepts: tuple[str, ...] = ()
    places: tuple[str, ...] = PLACES
    relations: tuple[str, ...] | None = None
    colors: tuple[str, ...] = COLORS
    objects: tuple[str, ...] = OBJECTS
    styles: tuple[str, ...] = STYLES
    scenes: tuple[str, ...] = SCENES
    sampler: Sampler = field(default_factory=Sampler)


def _any_texts(value: Any) -> tuple[str, ...]:
    return () if value == [] else texts(value)


def _prompts(value: Any) -> tuple[str, ...] | Path:
    if isinstance(value, str) and value.lower().endswith(PROMPT_FILE):
        return path_of(value)
    if isinstance(value, str) and PATH.fullmatch(value.strip()):
        hint = f'a file of prompts ends in {PROMPT_FILE}; a prompt that looks like a path goes into a list: ["a/b"]'
        raise Invalid(f"is {shown(value)}, a path", hint)
    return texts(value)


def _size(value: Any) -> tuple[int, int]:
    if isinstance(value, str):
        raise Invalid(f"is {shown(value)}", "it must be a side or [width, height]")
    found = sides(value)
    return found[0], found[-1]


_OWN = {
    "prompts": Spec(parse=_prompts),
    "num_images": Spec(type=int, ge=1, le=100_000),
    "images_per_epoch": Spec(type=int, ge=1),
    "resolution": Spec(parse=_size),
    "concepts": Spec(parse=texts),
    "places": Spec(parse=texts),
    "relations": Spec(parse=texts),
    "colors": Spec(parse=_any_texts),
    "objects": Spec(parse=_any_texts),
    "styles": Spec(parse=_any_texts),
    "scenes": Spec(parse=_any_texts),
}
SCHEMA = Schema(
    specs={**_OWN, **SAMPLER_SPECS},
    noun=f"a key of {PRESERVATION}",
    elsewhere={
        "count": "use num_images",
        "num_repeats": "use images_per_epoch",
        "colours": "use colors",
        "prompt": "use prompts",
        "image_dir": f"images of a folder are preserved in a subset with {{ diff_output_preservation = true }}; "
        f"those of {PRESERVATION} are generated",
    },
    listing=f"{GUIDE} lists the keys",
)


def read_preservation(written: Iterable[Given], where: str) -> tuple[PreservationConfig, list[Problem]]:
    """Read one [[datasets.preservation]] table; returns it without its faulty keys, and a problem for each of those.

    written: the keys of the table. where: the table's place in the file, for messages.
    """
    written = list(written)
    read = SCHEMA.read(written)
    problems = list(read.problems)
    if "prompts" in read.values:
        idle = ("concepts", "places", "relations", "colors", "objects", "styles", "scenes")
        problems += [
            given.problem("has no effect with prompts", "remove one of the two")
            for given in written
            if given.name in idle
        ]
    sampler = Sampler(**{name: read.values.pop(name) for name in SAMPLER_SPECS if name in read.values})
    return PreservationConfig(where=where, **read.values, sampler=sampler), problems


def preservation_settings(preservation: PreservationConfig) -> str:
    """All settings of a table as one line of text, without its place in the file, for a run's manifest.

    A file of prompts is left out too: what it says is in the images' own entries.
    """
    values = {each.name: getattr(preservation, each.name) for each in fields(preservation) if each.name != "where"}
    return " ".join(f"{name}={value!r}" for name, value in values.items() if not isinstance(value, Path))
