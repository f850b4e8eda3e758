"""The prompts of an evaluation: read from a JSON file, in sets, each with what its image must show."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from trainer.common.problems import Problem, Problems
from trainer.sampling.judge import Classes

BASE, BOTH = "base", "both"
RELATIONS = ("holding", "next to", "in front of")
OTHER_RELATION = "another relation"
Entry = TypeVar("Entry")


@dataclass(frozen=True)
class ScenePrompt:
    """A prompt and what its image must show; all names are those of the judge's classes.

    objects: (kind, colour) of everything that is not a concept. place: "" if the image's place is not scored.
    concepts: those that must be in the image together, only for prompts of the set `PromptSets.both`.
    """

    prompt: str
    objects: tuple[tuple[str, str], ...] = ()
    place: str = ""
    concepts: tuple[str, ...] = ()

    @property
    def relation(self) -> str:
        """How the prompt relates two concepts: the first of RELATIONS that is between their names, or OTHER_RELATION.

        With more than two concepts it is their number, "3 concepts".
        """
        if len(self.concepts) != 2:
            return f"{len(self.concepts)} concepts"
        first, second = sorted(self.prompt.find(name) for name in self.concepts)
        between = self.prompt[max(first, 0) : second if first >= 0 else None]  # everything, if a name is missing
        return next((words for words in RELATIONS if f" {words} " in between), OTHER_RELATION)


@dataclass(frozen=True)
class PromptSets:
    """The prompts of an evaluation.

    base: what the base model must still be able to show; concepts: for each concept, by its name; both: of two or more
    concepts in one image.
    """

    base: tuple[ScenePrompt, ...]
    concepts: Mapping[str, tuple[ScenePrompt, ...]]
    both: tuple[ScenePrompt, ...]

    def sets(self) -> dict[str, tuple[ScenePrompt, ...]]:
        """Every set that is not empty, by its name: "base", each concept's name, "both"."""
        every = {BASE: self.base, **self.concepts, BOTH: self.both}
        return {name: scenes for name, scenes in every.items() if scenes}

    def texts(self) -> dict[str, tuple[str, ...]]:
        """The texts of every set that is not empty, by the set's name."""
        return {name: tuple(scene.prompt for scene in scenes) for name, scenes in self.sets().items()}

    def some(self, limit: int | None = None, base: bool = True, concepts: bool = True) -> "PromptSets":
        """A copy with at most `limit` prompts of each set (None: all), evenly spaced from the first one on.

        Evenly spaced, because a set begins with its easiest prompts. base: whether to keep that set; concepts: whether
        to keep the sets of concepts, and with them `both`.
        """
        of_concepts = limit if concepts else 0
        return PromptSets(
            base=evenly_spaced(self.base, limit if base else 0),
            concepts={name: evenly_spaced(scenes, of_concepts) for name, scenes in self.concepts.items()},
            both=evenly_spaced(self.both, of_concepts),
        )


def evenly_spaced(entries: tuple[Entry, ...], limit: int | None) -> tuple[Entry, ...]:
    """At most `limit` of the entries (None: all), at equal distances from the first one on."""
    if limit is None or limit >= len(entries):
        return entries
    return tuple(entries[number * len(entries) // limit] for number in range(limit))


def load_prompts(path: Path, classes: Classes) -> PromptSets:
    """Read a file of prompts: {"base": [ENTRY, …], CONCEPT: [ENTRY, …] for each of the judge's concepts, "both":
    [ENTRY, …]}.

    An ENTRY is {"prompt": text, "objects": [[kind, colour], …], "place": name, "concepts": [name, …]}, and may be a
    text alone in the sets of concepts. "objects" and "place" are required in "base". "concepts" is read in "both"; if
    it is missing, the judge's concepts that the text names are meant, or all if it does not name two.

    classes: the judge's. Raises `Problems` if the file cannot be read or names something that the judge does not know.
    """
    try:
        sets = json.loads(path.read_text(encoding="utf-8"))
        base = tuple(_base_prompt(entry) for entry in sets[BASE])
        concepts = {name: tuple(_concept_prompt(entry, ()) for entry in sets[name]) for name in classes.concepts}
        both = tuple(_concept_prompt(entry, classes.concepts) for entry in sets[BOTH])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Problems([Problem(str(path), f"cannot be read as prompts of an evaluation: {error!r}")]) from error
    prompts = PromptSets(base, concepts, both)
    if unknown := _unknown_names([scene for scenes in prompts.sets().values() for scene in scenes], classes):
        raise Problems([Problem(str(path), f"names what the judge does not know: {', '.join(unknown)}")])
    return prompts


def _base_prompt(entry: Mapping[str, Any]) -> ScenePrompt:
    objects = _objects(entry["objects"])
    if not objects:
        raise ValueError(f"{entry['prompt']!r} names no object")
    return ScenePrompt(str(entry["prompt"]), objects, str(entry["place"]))


def _concept_prompt(entry: Mapping[str, Any] | str, concepts: tuple[str, ...]) -> ScenePrompt:
    """A prompt of one concept's set (`concepts` is empty), or of several of the judge's `concepts`."""
    fields = entry if isinstance(entry, Mapping) else {"prompt": entry}
    text = fields["prompt"]
    if not isinstance(text, str):
        raise TypeError("a concept's prompts are not texts")
    if not concepts:
        return ScenePrompt(text, _objects(fields.get("objects", ())))
    named = [name for name in concepts if name in text]
    together = fields.get("concepts") or (named if len(named) > 1 else concepts)
    return ScenePrompt(text, _objects(fields.get("objects", ())), concepts=tuple(map(str, together)))


def _objects(pairs: Sequence[Sequence[Any]]) -> tuple[tuple[str, str], ...]:
    return tuple((str(kind), str(colour)) for kind, colour in pairs)


def _unknown_names(scenes: Sequence[ScenePrompt], classes: Classes) -> list[str]:
    unknown = {kind for scene in scenes for kind, _ in scene.objects} - set(classes.kinds)
    unknown |= {colour for scene in scenes for _, colour in scene.objects} - set(classes.colours)
    unknown |= {scene.place for scene in scenes} - {*classes.places, ""}
    unknown |= {name for scene in scenes for name in scene.concepts} - set(classes.concepts)
    return sorted(unknown)
