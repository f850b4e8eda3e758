"""Several adapters in one LoRA file, kept apart.

The file holds their sum, as a merge does: the factors of a layer are joined, so that its rank is the sum of the
adapters' ranks, and every loader applies it as one LoRA. The metadata key `flux_dreambooth_adapters` says which ranks
belong to which adapter, and what calls it. Pure: numbers are only sliced.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .concepts import read_concepts
from .metadata import APART, json_value
from .modules import LoraModule


@dataclass(frozen=True)
class Part:
    """One adapter of a LoRA file.

    title: for messages; triggers: the phrases that call it, each with the words for which the base model draws its kind
    of thing, "" where they are not stated; modules: by canonical names.
    """

    title: str
    triggers: Mapping[str, str]
    modules: Mapping[str, LoraModule]


def parts_of(title: str, modules: Mapping[str, LoraModule], metadata: Mapping[str, str]) -> list[Part]:
    """The adapters of a LoRA file: those that it keeps apart, or the complete file as one.

    title: of the file; modules: by canonical names; metadata: the file's. Raises ValueError if the metadata describes
    other ranks than the file has, as after a change by a program that does not know the key.
    """
    if APART not in metadata:
        return [Part(title, {each.trigger: "" for each in read_concepts(metadata)}, modules)]
    entries = json_value(metadata[APART], list) or []
    starts = dict.fromkeys(modules, 0)
    parts = []
    for entry in entries:
        try:
            part, starts = _part(entry, modules, starts)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"its {APART} cannot be read: {error!r}") from None
        parts.append(part)
    if not parts or any(starts[name] != module.rank for name, module in modules.items()):
        raise ValueError(f"its {APART} describes adapters of other ranks; write it again from their own files")
    return parts


def _part(entry: Any, modules: Mapping[str, LoraModule], starts: Mapping[str, int]) -> tuple[Part, dict[str, int]]:
    """One entry of the metadata as an adapter; starts: its first rank in each module; also returns the next one's."""
    usual, others = int(entry["rank"]), {str(name): int(rank) for name, rank in entry["ranks"].items()}
    if min(usual, *others.values(), 0) < 0 or not others.keys() <= modules.keys():
        raise ValueError("ranks of modules that the file does not have")
    own, ends = {}, {}
    for name, module in modules.items():
        rank = others.get(name, usual)
        ends[name] = starts[name] + rank
        if rank:
            down, up = module.down[starts[name] : ends[name]], module.up[:, starts[name] : ends[name]]
            own[name] = replace(module, down=down, up=up, alpha=module.scale * rank)
    triggers = {str(each["trigger"]): str(each.get("class_words", "")) for each in entry["concepts"]}
    return Part(str(entry["title"]), triggers, own), ends


def apart_json(parts: Sequence[Part]) -> str:
    """The value of the metadata key for a file that joins these adapters in this order, as `algebra.merge` does.

    Ranks are written as the usual one and those that differ; 0 is a module that the adapter does not have.
    """
    every = dict.fromkeys(name for part in parts for name in part.modules)
    entries = []
    for part in parts:
        ranks = {name: part.modules[name].rank if name in part.modules else 0 for name in every}
        usual = Counter(ranks.values()).most_common(1)[0][0]
        concepts = [
            {"trigger": trigger} | ({"class_words": words} if words else {}) for trigger, words in part.triggers.items()
        ]
        others = {name: rank for name, rank in ranks.items() if rank != usual}
        entries.append({"title": part.title, "concepts": concepts, "rank": usual, "ranks": others})
    return json.dumps(entries, ensure_ascii=False)
