"""[[datasets.compositions]] of the dataset file: what composites a dataset has, typed and validated."""

import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from trainer.common.problems import Problem
from trainer.config.fields import Given, Invalid, Schema, Spec, path_of, shown
from trainer.config.values import SPECS
from trainer.data.class_words import with_article
from trainer.data.relations import USUAL, Relation, parse_relations
from trainer.data.sampler_keys import SAMPLER_SPECS, Sampler

COMPOSITIONS = "[[datasets.compositions]]"
GUIDE = "docs/guide/concepts.md"
PLAIN, BASE = "plain", "base"
EMPTY_PLACES = {  # what shows a place and nothing else, by the place that a caption names
    "on a desk": "an empty desk",
    "in a kitchen": "an empty kitchen",
    "on a beach": "an empty beach",
    "in the snow": "an empty landscape in the snow",
    "in a forest": "an empty forest",
    "in a meadow": "an empty meadow",
    "in a desert": "an empty desert",
    "in a studio": "an empty studio",
    "in a datacenter": "an empty datacenter",
    "on the moon": "the empty surface of the moon",
}
PARTS = ("concepts", "first", "second", "relation", "place")
USUAL_CAPTION = "{concepts} {place}"


@dataclass(frozen=True)
class BaseBackgrounds:
    """Backgrounds that the base model generates.

    prompts: (place, prompt), in turn: what the composite's caption calls the place, and what is generated. num_images:
    how many there are. sampler: how they are generated.
    """

    prompts: tuple[tuple[str, str], ...] = tuple(EMPTY_PLACES.items())
    num_images: int = 40
    sampler: Sampler = field(default_factory=Sampler)


@dataclass(frozen=True)
class Companions:
    """Other things next to a concept: the base model generates each alone, and it is cut out.

    words: what they are, such as "red ball". num_images: how many different composites of a concept and a companion
    there are. images_per_epoch: how many of them each epoch trains; None for half as many as photographs of the
    concepts. candidates: how many images of each are generated. prompt: what generates one, with {thing} for its words
    after "a" or "an". sampler: how they are generated.
    """

    words: tuple[str, ...] = ()
    num_images: int = 80
    images_per_epoch: int | None = None
    candidates: int = 4
    prompt: str = "{thing} on a plain background"
    sampler: Sampler = field(default_factory=Sampler)

    def prompt_of(self, word: str) -> str:
        """The prompt that generates the thing alone. word: such as "red ball"."""
        return self.prompt.replace("{thing}", with_article(word))


@dataclass(frozen=True, kw_only=True)
class CompositionConfig:
    """One [[datasets.compositions]]: composites of concepts that are cut out of the dataset's images.

    concepts: their class_tokens, the first of a relation first; empty for all that have masks. together: how many
    concepts one image shows; of several numbers, each in turn; (1,) for none but those with a companion, which show
    one concept. num_images: how many different composites there are, in addition to those with companions.
    images_per_epoch: how many of them each epoch trains, going on where the last one stopped; None for as many as it
    trains images of these concepts. captions: templates, from which one is chosen at random. backgrounds: "plain",
    folders of images, or what the base model generates. mask_background, mask_dilation: as in `SubsetConfig`.
    companions: other things, each next to one concept. where: the place in the file, for messages.
    """

    where: str = ""
    concepts: tuple[str, ...] = ()
    together: tuple[int, ...] = (2,)
    num_images: int = 160
    images_per_epoch: int | None = None
    relations: tuple[Relation, ...] = USUAL
    captions: tuple[str, ...] = (USUAL_CAPTION,)
    backgrounds: tuple[str | BaseBackgrounds, ...] = (PLAIN,)
    mask_background: str = "0.3"
    mask_dilation: int = 0
    companions: Companions | None = None


def texts(value: Any) -> tuple[str, ...]:
    """The texts of a key that takes one or several. Raises `Invalid` if there are none, or an empty one."""
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not found or not all(isinstance(text, str) and text.strip() for text in found):
        raise Invalid(f"is {shown(value)}", "it must be a text, or a list of texts")
    return tuple(found)


def _templates(value: Any) -> tuple[str, ...]:
    for text in (templates := texts(value)):
        try:
            parts = [part for part in string.Formatter().parse(text) if part[1] is not None]
        except ValueError as error:
            raise Invalid(f"has {shown(text)}: {error}", "write { as {{ where it is meant") from None
        names = [name for _, name, _, _ in parts]
        if formatted := [name for _, name, spec, conversion in parts if spec or conversion]:
            raise Invalid(f"formats {{{formatted[0]}}}", f"write {{{formatted[0]}}}, without : or !")
        if unknown := [name for name in names if name not in PARTS]:
            hint = f"known are {', '.join(f'{{{part}}}' for part in PARTS)}"
            raise Invalid(f"has {{{unknown[0]}}}, which is not known", hint)
        if "concepts" not in names and not {"first", "second"} <= set(names):
            raise Invalid(
                f"has {shown(text)}, which does not name the concepts", "use {concepts}, or {first} and {second}"
            )
    return templates


def _counts(value: Any) -> tuple[int, ...]:
    counts = value if isinstance(value, list) else [value]
    if not counts or not all(isinstance(n, int) and not isinstance(n, bool) and 1 <= n <= 6 for n in counts):
        raise Invalid(f"is {shown(value)}", "it must be a number from 1 to 6, or a list of such numbers")
    return tuple(dict.fromkeys(counts))


def _backgrounds(value: Any) -> tuple[str | BaseBackgrounds, ...]:
    named = value if isinstance(value, list) else [value]
    if not named:
        raise Invalid("is empty", f'it must be "{PLAIN}", "{BASE}", a folder, a table, or a list of these')
    return tuple(_background(each) for each in named)


def _background(value: Any) -> str | BaseBackgrounds:
    if isinstance(value, dict):
        return _base_backgrounds(value)
    if not isinstance(value, str) or not value.strip():
        hint = f'it must be "{PLAIN}", "{BASE}", a folder, or {{ prompts = {{ "on a desk" = "an empty desk" }} }}'
        raise Invalid(f"is {shown(value)}", hint)
    return BaseBackgrounds() if value == BASE else str(path_of(value))


def _base_backgrounds(table: Mapping[str, Any]) -> BaseBackgrounds:
    read = BASE_SCHEMA.read(Given(name, value, "", subject=name) for name, value in table.items())
    for problem in read.problems:
        raise Invalid(f"has a table in which {problem.what}", problem.hint)
    sampler = Sampler(**{name: read.values.pop(name) for name in SAMPLER_SPECS if name in read.values})
    return BaseBackgrounds(**read.values, sampler=sampler)


def _companions(value: Any) -> Companions:
    if not isinstance(value, dict):
        return Companions(words=_things(value))
    read = COMPANION_SCHEMA.read(Given(name, each, "", subject=name) for name, each in value.items())
    for problem in read.problems:
        raise Invalid(f"has a table in which {problem.what}", problem.hint)
    if "words" not in read.values:
        raise Invalid("has a table without words", 'name the things, as in words = ["red ball", "blue mug"]')
    sampler = Sampler(**{name: read.values.pop(name) for name in SAMPLER_SPECS if name in read.values})
    return Companions(**read.values, sampler=sampler)


def _things(value: Any) -> tuple[str, ...]:
    """What companions are, each once and without its article, which captions and prompts add."""
    things = tuple(dict.fromkeys(" ".join(text.split()) for text in texts(value)))
    for thing in things:
        article, _, rest = thing.partition(" ")
        if article.lower() in ("a", "an", "the") and rest:
            raise Invalid(f"has {shown(thing)}", f"leave out {shown(article)}: write {shown(rest)}")
    return things


def _thing_prompt(value: Any) -> str:
    if not isinstance(value, str) or "{thing}" not in value:
        raise Invalid(f"is {shown(value)}", 'it must have {thing}, as in "a photo of {thing} on a white background"')
    return value


def _place_prompts(value: Any) -> tuple[tuple[str, str], ...]:
    """A table of prompts by place, or a list of texts that serve as both."""
    pairs = list(value.items()) if isinstance(value, dict) else [(text, text) for text in texts(value)]
    if not pairs or not all(isinstance(prompt, str) and prompt.strip() for _, prompt in pairs):
        raise Invalid(f"is {shown(value)}", 'it must be like { "on a desk" = "an empty desk" }, or a list of places')
    return tuple((place.strip(), prompt.strip()) for place, prompt in pairs)


BASE_SCHEMA = Schema(
    specs={
        "prompts": Spec(parse=_place_prompts),
        "num_images": Spec(type=int, ge=1, le=100_000),
        **SAMPLER_SPECS,
    },
    noun="a key of generated backgrounds",
    elsewhere={"places": "use prompts", "count": "use num_images"},
    listing=f"{GUIDE} lists the keys",
)
COMPANION_SCHEMA = Schema(
    specs={
        "words": Spec(parse=_things),
        "num_images": Spec(type=int, ge=1, le=100_000),
        "images_per_epoch": Spec(type=int, ge=1),
        "candidates": Spec(type=int, ge=1, le=100),
        "prompt": Spec(parse=_thing_prompt),
        **SAMPLER_SPECS,
    },
    noun="a key of companions",
    elsewhere={"prompts": "use prompt", "things": "use words", "names": "use words"},
    listing=f"{GUIDE} lists the keys",
)
SCHEMA = Schema(
    specs={
        "concepts": Spec(parse=texts),
        "together": Spec(parse=_counts),
        "num_images": Spec(type=int, ge=1, le=100_000),
        "images_per_epoch": Spec(type=int, ge=1),
        "relations": Spec(parse=parse_relations),
        "captions": Spec(parse=_templates),
        "backgrounds": Spec(parse=_backgrounds),
        "companions": Spec(parse=_companions),
        "mask_background": SPECS["mask_background"],
        "mask_dilation": Spec(type=int, ge=0, le=256),
    },
    noun=f"a key of {COMPOSITIONS}",
    elsewhere={"count": "use num_images", "num_repeats": "use images_per_epoch", "background": "use backgrounds"},
    listing=f"{GUIDE} lists the keys",
)


def read_composition(written: Iterable[Given], where: str) -> tuple[CompositionConfig, list[Problem]]:
    """Read one [[datasets.compositions]] table; returns it without its faulty keys, and a problem for each of those.

    written: the keys of the table. where: the table's place in the file, for messages.
    """
    given = {each.name: each for each in written}
    read = SCHEMA.read(given.values())
    composition = CompositionConfig(where=where, **read.values)
    problems = list(read.problems)
    if 1 in composition.together:
        if composition.together != (1,):
            hint = "1 stands alone: write together = 1, or numbers from 2; companions come in addition to these"
            problems.append(given["together"].problem("has 1 among other numbers", hint))
        elif "companions" not in given:
            hint = '1 stands alone, and needs other things: add companions = ["red ball", "blue mug"]'
            problems.append(given["together"].problem("is 1, and there are no companions", hint))
    return composition, problems


def composition_settings(composition: CompositionConfig) -> str:
    """All settings of a composition as one line of text, without its place in the file, for a run's manifest."""
    values = {each.name: getattr(composition, each.name) for each in fields(composition)}
    return " ".join(
        f"{name}={value!r}"
        for name, value in values.items()
        if (name != "where" and value is not None) or name == "images_per_epoch"
    )
