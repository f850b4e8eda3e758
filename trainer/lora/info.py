"""What a LoRA file is, as data and as text. Needs no torch."""

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from trainer.common.problems import Problem, Problems
from trainer.lora_file import description
from trainer.lora_file.description import Description
from trainer.lora_file.foreign import foreign_kind
from trainer.lora_file.metadata import APART, json_value
from trainer.lora_file.module_names import Target
from trainer.lora_file.numbers import block_norms

KNOWN_PREFIXES = ("ss_", "sshs_", "modelspec.", "flux_dreambooth", "lora_adapter_metadata", "format")
GROUPS = {
    "transformer.transformer_blocks.": "double block",
    "transformer.single_transformer_blocks.": "single block",
    "text_encoder.": "CLIP",
    "text_encoder_2.": "T5",
}


def describe(path: Path) -> dict[str, Any]:
    """All that can be said of a LoRA file without its base model, as a dictionary that can be written as JSON.

    path: the file, or a folder that PEFT or diffusers wrote. Raises `Problems` for a file that cannot be read or is not
    a LoRA of FLUX.1.
    """
    try:
        found = description.describe(path)
    except (OSError, ValueError) as error:
        raise Problems([unreadable(path, error)]) from error
    modules = found.file.survey.modules.values()
    if not any(module.target for module in modules):
        what = foreign_kind(found.file.header.tensors) or "a LoRA of a model that is not FLUX.1"
        raise Problems([Problem(str(path), f"it is {what}", "give a LoRA of FLUX.1, a *.safetensors file")])
    metadata = found.file.header.metadata
    norms = _block_norms(found)
    return {
        "file": found.file.path.name,
        "bytes": found.file.header.num_bytes,
        "layout": found.file.survey.layout,
        "title": metadata.get("modelspec.title"),
        "base": metadata.get("modelspec.architecture") or metadata.get("ss_base_model_version"),
        "base_file": _known(metadata.get("ss_sd_model_name")),
        "concepts": _concepts(metadata),
        "adapters": _adapters(metadata),
        "trigger_phrase": metadata.get("modelspec.trigger_phrase"),
        "steps": _number(metadata.get("ss_steps")),
        "epoch": _number(metadata.get("ss_epoch")),
        "date": metadata.get("modelspec.date"),
        "merged_from": metadata.get("modelspec.merged_from"),
        "left_out": metadata.get("flux_dreambooth_left_out"),
        "modules": _module_counts(found),
        "ranks": list(found.ranks),
        "scales": list(found.scales),
        "dtypes": list(found.dtypes),
        "notes": list(found.notes),
        "not_finite": [part for name in found.not_finite for part in _parts(found, name)],
        "block_norms": {block: norm if math.isfinite(norm) else None for block, norm in norms.items()},
        "other_metadata": sorted(key for key in metadata if not key.startswith(KNOWN_PREFIXES)),
    }


def unreadable(path: Path, error: OSError | ValueError) -> Problem:
    """The `Problem` to report about a LoRA file that cannot be read; error: what reading it raised, which is quoted."""
    reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
    again = reason.startswith(("truncated", "damaged"))
    hint = "copy or download it again" if again else "give a LoRA of FLUX.1, a *.safetensors file"
    return Problem(str(path), f"cannot be read: {reason}", hint)


def _parts(found: Description, name: str) -> tuple[str, ...]:
    target = found.file.survey.modules[name].target
    return target.modules if target else (name,)


def _block_norms(found: Description) -> dict[str, float]:
    return block_norms(found.norms, [_block(found.file.survey.modules[name].target) for name in found.norms])


def render(info: Mapping[str, Any]) -> str:
    """Text for a person, several lines, from what `describe` returned."""
    return "\n".join(_lines(info))


def _lines(info: Mapping[str, Any]) -> Iterator[str]:
    yield f"{info['file']}  {info['bytes'] / 1e9:.3f} GB, {'/'.join(info['dtypes'])}, {info['layout']} layout"
    for label, key in (
        ("title", "title"),
        ("base", "base"),
        ("base file", "base_file"),
        ("trigger phrase", "trigger_phrase"),
        ("steps", "steps"),
        ("epoch", "epoch"),
        ("date", "date"),
        ("merged from", "merged_from"),
        ("left out", "left_out"),
    ):
        if info[key] is not None:
            yield f"  {label:<15}{info[key]}"
    for concept in info["concepts"]:
        kind = "regularisation" if concept["is_reg"] else "concept"
        yield (
            f"  {kind:<15}{concept['trigger'] or concept['folder']}  "
            f"({concept['pictures']} pictures x {concept['num_repeats']})"
        )
    for adapter in info["adapters"]:
        called = " or ".join(map(repr, adapter["triggers"]))
        yield f"  {'kept apart':<15}{adapter['title']}, called by {called}, rank {adapter['rank']}"
    counts = ", ".join(f"{count} {part}" for part, count in info["modules"].items())
    yield f"  {'modules':<15}{counts}"
    if info["ranks"]:
        yield f"  {'rank':<15}{_several(info['ranks'])}  (alpha / rank {_several(info['scales'])})"
    for note in info["notes"]:
        yield f"  {'note':<15}{note}"
    if info["not_finite"]:
        yield f"  NOT FINITE     {len(info['not_finite'])} modules, first {info['not_finite'][0]}"
    if info["other_metadata"]:
        yield f"  {'other keys':<15}{', '.join(info['other_metadata'])}"
    if not info["block_norms"]:
        yield "  norms of the weight change are shown for LoRA only"
        return
    yield "  norm of the weight change, by block"
    norms = {block: norm or 0.0 for block, norm in info["block_norms"].items()}
    largest = max(norms.values(), default=0.0) or 1.0
    for block, norm in norms.items():
        shown = "not finite" if info["block_norms"][block] is None else f"{norm:.4g}"
        yield f"    {block:<40}{shown:>12}  {'█' * round(24 * norm / largest)}".rstrip()


def _several(values: Iterable[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _block(target: Target | None) -> str:
    """A module's block by its canonical name, like `single_transformer_blocks.3`."""
    parts = target.modules[0].split(".") if target else []
    numbers = [index for index, part in enumerate(parts) if part.isdecimal()]
    if not numbers:
        return "outside the blocks"
    return ".".join(parts[1 if parts[0] == "transformer" else 0 : numbers[0] + 1])


def _module_counts(found: Description) -> dict[str, int]:
    counts = dict.fromkeys([*GROUPS.values(), "other"], 0)
    for name in found.file.survey.modules:
        for part in _parts(found, name):
            counts[next((group for start, group in GROUPS.items() if part.startswith(start)), "other")] += 1
    return {group: count for group, count in counts.items() if count}


def _concepts(metadata: Mapping[str, str]) -> list[dict[str, Any]]:
    """Concepts from ss_datasets, which kohya's files have too; a folder in several datasets once."""
    found: dict[tuple, dict[str, Any]] = {}
    for subset in _subsets(metadata):
        concept = {
            "trigger": subset.get("class_tokens"),
            "folder": subset.get("image_dir"),
            "is_reg": bool(subset.get("is_reg")),
            "pictures": subset.get("img_count"),
            "num_repeats": subset.get("num_repeats"),
        }
        found.setdefault((str(concept["trigger"]), str(concept["folder"]), concept["is_reg"]), concept)
    return list(found.values())


def _adapters(metadata: Mapping[str, str]) -> list[dict[str, Any]]:
    """The adapters of a file that keeps several apart; rank: of most of the layers."""
    entries = json_value(metadata.get(APART), list) or []
    return [
        {
            "title": entry.get("title"),
            "triggers": [str(each.get("trigger")) for each in entry.get("concepts") or [] if isinstance(each, dict)],
            "rank": entry.get("rank"),
        }
        for entry in entries
        if isinstance(entry, dict)
    ]


def _subsets(metadata: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    for dataset in json_value(metadata.get("ss_datasets"), list) or []:
        subsets = dataset.get("subsets") if isinstance(dataset, dict) else None
        if isinstance(subsets, list):
            yield from (subset for subset in subsets if isinstance(subset, dict))


def _known(value: str | None) -> str | None:
    return None if value == "None" else value


def _number(value: str | None) -> int | None:
    return int(value) if value and value.isdecimal() and len(value) < 16 else None
