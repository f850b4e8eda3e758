"""The metadata of files made from LoRA files: true for the new tensors, with the concepts of every source."""

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeVar

from .concepts import read_concepts

OURS = "flux_dreambooth"  # our trainer's JSON: concepts and settings
APART = "flux_dreambooth_adapters"  # JSON: which ranks belong to which adapter (see `apart`)
RANKS = ("network_dim", "network_alpha")
# Keys about the tensors of the source. diffusers refuses a file that has both `lora_adapter_metadata` and alphas.
OUTDATED = (
    "lora_adapter_metadata", "lora_alpha", "lora_rank", "use_rslora",
    "sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256", APART,
)  # fmt: skip

T = TypeVar("T")


def json_value(text: str | None, kind: type[T]) -> T | None:
    """The value in a JSON text, if it is of the given type; else None, also for a text that is not JSON."""
    try:
        value = json.loads(text or "null")
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, kind) else None


def with_ranks(metadata: Mapping[str, str], ranks: Collection[int]) -> dict[str, str]:
    """A copy of the metadata in which kohya's keys for rank and alpha, where they are there, match a file's ranks.

    ranks: of the file's modules, whose alphas equal their ranks; differing ones are written as "Dynamic".
    """
    rank = str(_common(ranks))
    return dict(metadata) | {f"ss_{name}": rank for name in RANKS if f"ss_{name}" in metadata}


def without_outdated(metadata: Mapping[str, str]) -> dict[str, str]:
    """A copy of the metadata for a file with other tensors: alphas and hashes of the source are left out."""
    return {
        key: value
        for key, value in metadata.items()
        if key not in OUTDATED and not ('"lora_alpha"' in value and "lora_alpha" in (json_value(value, dict) or {}))
    }


def with_new_ranks(metadata: Mapping[str, str], ranks: Collection[int]) -> dict[str, str]:
    """A copy of the metadata for a file with other tensors and the given ranks, whose alphas equal them.

    ranks: of the new file's modules. Alphas and hashes of the source are left out. In our trainer's JSON, the ranks of
    the training move from "config" to "converted", as `trained_network_dim` and `trained_network_alpha`.
    """
    rank = _common(ranks)
    changed = with_ranks(without_outdated(metadata), ranks)
    ours = json_value(metadata.get(OURS), dict)
    if ours is not None:
        config, before = ours.get("config"), ours.get("converted")
        trained = {name: config.pop(name) for name in RANKS if name in config} if isinstance(config, dict) else {}
        now = dict.fromkeys(RANKS, rank) | {f"trained_{name}": value for name, value in trained.items()}
        ours["converted"] = (before if isinstance(before, dict) else {}) | now
        changed[OURS] = json.dumps(ours, ensure_ascii=False)
    return changed


def with_triggers(metadata: Mapping[str, str], triggers: Sequence[str]) -> dict[str, str]:
    """A copy of the metadata that names these triggers and no others.

    They go into our trainer's JSON, which `read_concepts` reads first, and into `modelspec.trigger_phrase`, which other
    programs read. A concept whose trigger stays keeps what is known of it; images for regularization stay, too.
    """
    ours = json_value(metadata.get(OURS), dict) or {}
    before = [each for each in _concepts(metadata, ours) if isinstance(each, dict)]
    known = {each.get("trigger"): each for each in before if not each.get("is_reg")}
    concepts = [known.get(trigger) or {"concept": trigger, "trigger": trigger} for trigger in triggers]
    concepts += [each for each in before if each.get("is_reg")]
    text = json.dumps(ours | {"concepts": concepts}, ensure_ascii=False)
    return dict(metadata) | {OURS: text, "modelspec.trigger_phrase": ", ".join(triggers)}


def merged_metadata(sources: Sequence[tuple[str, Mapping[str, str], float]], ranks: Collection[int]) -> dict[str, str]:
    """The metadata for a weighted sum of LoRAs: that of the first source, with the concepts of all of them.

    sources: title, metadata and weight of each LoRA; ranks: of the sum's modules, whose alphas equal them.
    """
    every = [each for _, each, _ in sources]
    metadata = dict(every[0])
    metadata["modelspec.merged_from"] = ", ".join(f"{title} x {weight:g}" for title, _, weight in sources)
    if phrases := [each["modelspec.trigger_phrase"] for each in every if "modelspec.trigger_phrase" in each]:
        metadata["modelspec.trigger_phrase"] = ", ".join(dict.fromkeys(phrases))
    if datasets := [one for each in every for one in json_value(each.get("ss_datasets"), list) or []]:
        metadata["ss_datasets"] = json.dumps(datasets, ensure_ascii=False)
    for key in ("ss_tag_frequency", "ss_dataset_dirs"):
        if found := [value for each in every if (value := json_value(each.get(key), dict))]:
            metadata[key] = json.dumps(_joined(found), ensure_ascii=False)
    ours = [json_value(each.get(OURS), dict) or {} for each in every]
    concepts = [one for each, mine in zip(every, ours, strict=True) for one in _concepts(each, mine)]
    triggers = {concept.trigger for each in every for concept in read_concepts(each)}
    if any(ours) or not triggers <= {concept.trigger for concept in read_concepts(metadata)}:
        metadata[OURS] = json.dumps(next(filter(None, ours), {}) | {"concepts": concepts}, ensure_ascii=False)
    return with_new_ranks(metadata, ranks)


def _concepts(metadata: Mapping[str, str], ours: Mapping[str, Any]) -> list[Any]:
    """A source's concepts as our trainer writes them, read from other tools' keys where it has none of ours."""
    if isinstance(ours.get("concepts"), list):
        return ours["concepts"]
    found = read_concepts(metadata)
    return [{"concept": each.name, "trigger": each.trigger, "pictures": each.pictures} for each in found]


def _joined(values: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One object with the entries of all; an entry whose name is taken already gets a number behind it."""
    joined: dict[str, Any] = {}
    for value in values:
        for name, entry in value.items():
            numbered = (f"{name} ({number})" if number > 1 else name for number in range(1, len(values) + 1))
            joined[next(each for each in numbered if each not in joined or joined[each] == entry)] = entry
    return joined


def _common(ranks: Collection[int]) -> int | str:
    """The one rank, or kohya's word for differing ones."""
    found = set(ranks)
    return found.pop() if len(found) == 1 else "Dynamic"
