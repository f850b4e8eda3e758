"""What a LoRA file is, as data and as text."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from trainer.lora.file import LoraFile, LoraModule, load_lora
from trainer.lora.metadata import json_value

KNOWN_PREFIXES = ("ss_", "sshs_", "modelspec.", "flux_dreambooth", "lora_adapter_metadata", "format")


def describe(path: Path) -> dict[str, Any]:
    """All that can be said of a LoRA file without its base model; plain JSON. Raises Problems."""
    lora = load_lora(path)
    metadata = lora.metadata
    return {
        "file": path.name,
        "bytes": path.stat().st_size,
        "layout": lora.layout,
        "title": metadata.get("modelspec.title"),
        "base": metadata.get("modelspec.architecture") or metadata.get("ss_base_model_version"),
        "base_file": _known(metadata.get("ss_sd_model_name")),
        "concepts": _concepts(metadata),
        "trigger_phrase": metadata.get("modelspec.trigger_phrase"),
        "steps": _number(metadata.get("ss_steps")),
        "epoch": _number(metadata.get("ss_epoch")),
        "date": metadata.get("modelspec.date"),
        "merged_from": metadata.get("modelspec.merged_from"),
        "left_out": metadata.get("flux_dreambooth_left_out"),
        "modules": _module_counts(lora),
        "ranks": sorted({module.rank for module in lora.modules.values()}),
        "scales": sorted({round(module.scale, 6) for module in lora.modules.values()}),
        "dtypes": sorted({str(module.down.dtype).removeprefix("torch.") for module in lora.modules.values()}),
        "not_finite": [name for name, module in lora.modules.items() if not _is_finite(module)],
        "block_norms": {b: norm if math.isfinite(norm) else None for b, norm in block_norms(lora).items()},
        "other_metadata": sorted(key for key in metadata if not key.startswith(KNOWN_PREFIXES)),
    }


def block_norms(lora: LoraFile) -> dict[str, float]:
    """The Frobenius norm of each block's whole weight change, from the factors alone."""
    squares: dict[str, float] = defaultdict(float)
    for name, module in lora.modules.items():
        squares[_block(name)] += change_norm(module) ** 2
    return {block: math.sqrt(square) for block, square in squares.items()}


def change_norm(module: LoraModule) -> float:
    """|scale * up @ down|, by the trace of two r x r matrices; float32."""
    up, down = module.up.float(), module.down.float()
    square = ((up.T @ up) * (down @ down.T)).sum().clamp_min(0)
    return abs(module.scale) * math.sqrt(square.item())


def render(info: Mapping[str, Any]) -> str:
    """`describe`'s answer for a person."""
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
    counts = ", ".join(f"{count} {part}" for part, count in info["modules"].items())
    yield f"  {'modules':<15}{counts}"
    yield f"  {'rank':<15}{_several(info['ranks'])}  (alpha / rank {_several(info['scales'])})"
    if info["not_finite"]:
        yield f"  NOT FINITE     {len(info['not_finite'])} modules, first {info['not_finite'][0]}"
    if info["other_metadata"]:
        yield f"  {'other keys':<15}{', '.join(info['other_metadata'])}"
    yield "  norm of the weight change, by block"
    norms = {block: norm or 0.0 for block, norm in info["block_norms"].items()}
    largest = max(norms.values(), default=0.0) or 1.0
    for block, norm in norms.items():
        shown = "not finite" if info["block_norms"][block] is None else f"{norm:.4g}"
        yield f"    {block:<40}{shown:>12}  {'█' * round(24 * norm / largest)}".rstrip()


def _several(values: Iterable[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _block(module: str) -> str:
    parts = module.split(".")
    numbers = [index for index, part in enumerate(parts) if part.isdecimal()]
    if not numbers:
        return "outside the blocks"
    return ".".join(parts[1 if parts[0] == "transformer" else 0 : numbers[0] + 1])


def _module_counts(lora: LoraFile) -> dict[str, int]:
    counts = {"double block": 0, "single block": 0, "CLIP": 0, "other": 0}
    starts = {
        "transformer.transformer_blocks.": "double block",
        "transformer.single_transformer_blocks.": "single block",
        "text_encoder.": "CLIP",
    }
    for name in lora.modules:
        counts[next((part for start, part in starts.items() if name.startswith(start)), "other")] += 1
    return {part: count for part, count in counts.items() if count}


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


def _subsets(metadata: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    for dataset in json_value(metadata.get("ss_datasets"), list) or []:
        subsets = dataset.get("subsets") if isinstance(dataset, dict) else None
        if isinstance(subsets, list):
            yield from (subset for subset in subsets if isinstance(subset, dict))


def _is_finite(module: LoraModule) -> bool:
    return bool(torch.isfinite(module.down).all() and torch.isfinite(module.up).all())


def _known(value: str | None) -> str | None:
    return None if value == "None" else value


def _number(value: str | None) -> int | None:
    return int(value) if value and value.isdecimal() else None
