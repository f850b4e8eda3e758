"""The concepts that the metadata of a LoRA file says it was taught. Pure: strings in, strings out.

A concept's trigger is the phrase of its captions (kohya's class_tokens): only the very same words call it.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

MAX_CONCEPTS = 64
MAX_LENGTH = 200  # characters of a name or a trigger; whatever is longer is a caption, not a trigger


@dataclass(frozen=True)
class Concept:
    """Something that a LoRA was taught, such as a person or a style.

    name: that of the image folder, or what the trainer called it; trigger: its words in a prompt; pictures: the number
    of training images, None if unknown.
    """

    name: str
    trigger: str
    pictures: int | None = None


def read_concepts(metadata: Mapping[str, str]) -> list[Concept]:
    """The concepts that the metadata of a LoRA file names: each trigger once, at most 64.

    metadata: the file's `__metadata__`. The first of these keys that names any is used: `flux_dreambooth` (our
    trainer), `ss_datasets` (kohya), `modelspec.trigger_phrase`, `ss_tag_frequency`. A value that is broken or of
    another kind counts as absent.
    """
    for read in (_from_trainer, _from_datasets, _from_modelspec, _from_tags):
        if concepts := _unique(read(metadata)):
            return concepts
    return []


def _from_trainer(metadata: Mapping[str, str]) -> Iterable[Concept]:
    for entry in _dicts(_dict(_json(metadata, "flux_dreambooth")).get("concepts")):
        if not entry.get("is_reg"):
            yield Concept(_text(entry.get("concept")), _text(entry.get("trigger")), _count(entry.get("pictures")))


def _from_datasets(metadata: Mapping[str, str]) -> Iterable[Concept]:
    for section in _dicts(_json(metadata, "ss_datasets")):
        for subset in _dicts(section.get("subsets")):
            if not subset.get("is_reg"):
                name = _folder_name(_text(subset.get("image_dir")))
                yield Concept(name, _text(subset.get("class_tokens")), _count(subset.get("img_count")))


def _from_modelspec(metadata: Mapping[str, str]) -> Iterable[Concept]:
    for phrase in str(metadata.get("modelspec.trigger_phrase", "")).split(","):
        yield Concept("", _text(phrase))


def _from_tags(metadata: Mapping[str, str]) -> Iterable[Concept]:
    """What kohya's tags tell where no class tokens are known: a trigger only if every picture of the folder has it.

    A folder called "10_tjtoy toy" says its trigger itself, unless such a tag contains those words.
    """
    counts = _picture_counts(metadata)
    for folder, tags in _dict(_json(metadata, "ss_tag_frequency")).items():
        name, pictures = _folder_name(folder), counts.get(folder)
        common = [_text(tag) for tag, count in _dict(tags).items() if pictures and _count(count) == pictures]
        if re.match(r"\d+_", _last_part(folder)):
            trigger = next((tag for tag in common if name.casefold() in tag.casefold()), _text(name))
        else:
            trigger = next((tag for tag in common if tag), "") if pictures and pictures > 1 else ""
        yield Concept(name, trigger, pictures)


def _picture_counts(metadata: Mapping[str, str]) -> dict[str, int]:
    """How many pictures each folder has, as far as kohya's keys tell."""
    counts: dict[str, int] = {}
    for section in _dicts(_json(metadata, "ss_datasets")):
        for subset in _dicts(section.get("subsets")):
            if isinstance(subset.get("image_dir"), str) and _count(subset.get("img_count")):
                counts[subset["image_dir"]] = subset["img_count"]
    for folder, entry in _dict(_json(metadata, "ss_dataset_dirs")).items():
        if count := _count(_dict(entry).get("img_count")):
            counts[folder] = count
    return counts


def _unique(concepts: Iterable[Concept]) -> list[Concept]:
    """Each trigger once, in order; a concept without a name is called as its trigger."""
    found: dict[str, Concept] = {}
    for concept in concepts:
        if concept.trigger and len(found) < MAX_CONCEPTS:
            named = Concept(concept.name or concept.trigger, concept.trigger, concept.pictures)
            found.setdefault(concept.trigger, named)
    return list(found.values())


def _folder_name(folder: str) -> str:
    """kohya's folders are called "10_tjtoy toy": repeats, then the name."""
    return re.sub(r"^\d+_", "", _last_part(folder))


def _last_part(folder: str) -> str:
    return re.split(r"[\\/]", folder.rstrip("\\/"))[-1]


def _json(metadata: Mapping[str, str], key: str) -> Any:
    try:
        return json.loads(metadata.get(key) or "null")
    except (ValueError, TypeError, RecursionError):
        return None


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _dicts(value: Any) -> Iterable[dict[str, Any]]:
    return (entry for entry in value if isinstance(entry, dict)) if isinstance(value, list) else ()


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _text(value: Any) -> str:
    """One line without control characters; empty if it is no text, or too long for a name."""
    line = " ".join("".join(c if c.isprintable() else " " for c in value).split()) if isinstance(value, str) else ""
    return line if len(line) <= MAX_LENGTH else ""
