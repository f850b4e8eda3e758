"""Smaller LoRAs and sums of LoRAs, on the two factors alone; the full weight change is never formed."""

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .layouts import SWAPPED_HALVES, Survey, fused_rows

OURS = "flux_dreambooth"  # our trainer's JSON
OUTDATED = ("lora_adapter_metadata", "sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256")
Progress = Callable[[], object]


@dataclass(frozen=True)
class Factors:
    """One layer's weight change: scale * up @ down, for down [r, in] and up [out, r]."""

    down: Any
    up: Any
    scale: float

    @property
    def rank(self) -> int:
        """The number of rows of down."""
        return self.down.shape[0]


def factors(tensors: Mapping[str, Any], survey: Survey, name: str) -> dict[str, Factors]:
    """A file's layers by their names in it. Raises ValueError for any that is no plain LoRA of a linear layer."""
    if survey.unknown:
        raise ValueError(f"{name} holds more than a LoRA: {', '.join(survey.unknown[:3])} …")
    found = {}
    for module in survey.modules.values():
        if module.kind != "LoRA" or not module.keys.keys() <= {"down", "up", "alpha"}:
            raise ValueError(f"{name} is not plain LoRA: {module.name} is {module.kind} with {', '.join(module.keys)}")
        if not module.keys.keys() >= {"down", "up"}:
            raise ValueError(f"{name} is not complete: {module.name} has {' and '.join(module.keys)} only")
        down, up = tensors[module.keys["down"]], tensors[module.keys["up"]]
        if down.dim() != 2 or up.dim() != 2 or down.shape[0] != up.shape[1]:
            raise ValueError(f"{name}: {module.name} has down {list(down.shape)} and up {list(up.shape)}")
        alpha = float(tensors[module.keys["alpha"]]) if "alpha" in module.keys else float(down.shape[0])
        found[module.name] = Factors(down, up, alpha / down.shape[0])
    return found


def change_norm(layer: Factors) -> float:
    """|scale * up @ down|, by the trace of two r x r matrices."""
    up, down = layer.up.float(), layer.down.float()
    square = float(((up.T @ up) * (down @ down.T)).sum())
    return abs(layer.scale) * max(square, 0.0) ** 0.5 if square == square else square


def resize(
    layers: Mapping[str, Factors],
    rank: int | None,
    energy: float | None = None,
    device: Any = "cpu",
    progress: Progress = lambda: None,
) -> tuple[dict[str, Factors], float]:
    """Each layer's best approximation of lower rank (Eckart-Young), from QR of the factors and an SVD.

    rank: the largest new rank, None for any; energy: the share of each layer's squared norm to keep,
    with as few ranks as that takes. Returns float32 factors of scale 1 and the share of the whole
    squared norm that was kept. Raises ValueError for numbers that are not finite.
    """
    smaller, kept, total = {}, 0.0, 0.0
    for name, layer in layers.items():
        progress()
        smaller[name], squares = _truncated(name, layer, rank, energy, device)
        kept += sum(squares[: smaller[name].rank])
        total += sum(squares)
    return smaller, kept / (total or 1.0)


def _truncated(
    name: str, layer: Factors, rank: int | None, energy: float | None, device: Any
) -> tuple[Factors, list[float]]:
    import torch

    up = layer.up.to(device, torch.float32) * layer.scale
    down = layer.down.to(device, torch.float32)
    if not bool(up.isfinite().all() and down.isfinite().all()):
        raise ValueError(f"{name} holds numbers that are not finite")
    q_up, r_up = torch.linalg.qr(up)
    q_down, r_down = torch.linalg.qr(down.T)
    left, singular, right = torch.linalg.svd(r_up @ r_down.T)
    squares = singular.double().square().tolist()
    new_rank = chosen_rank(squares, rank, energy)
    root = singular[:new_rank].sqrt()
    new_up = (q_up @ (left[:, :new_rank] * root)).cpu()
    new_down = ((right[:new_rank] * root[:, None]) @ q_down.T).cpu()
    return Factors(new_down, new_up, 1.0), squares


def chosen_rank(squares: Sequence[float], rank: int | None, energy: float | None) -> int:
    """How many of these squared singular values, sorted downwards, to keep: at least one."""
    most = min(rank or len(squares), len(squares))
    if energy is None:
        return most
    wanted, found = energy * sum(squares) * (1 - 1e-12), 0.0
    for count, square in enumerate(squares[:most], start=1):
        found += square
        if found >= wanted:
            return count
    return most


def canonical(layers: Mapping[str, Factors], survey: Survey, name: str) -> dict[str, Factors]:
    """The same change by canonical names: a fused matrix (q, k, v and MLP in one) as one layer for each part.

    Raises ValueError for a layer that FLUX.1 does not have.
    """
    parts: dict[str, Factors] = {}
    for module, layer in layers.items():
        target = survey.modules[module].target
        if target is None:
            raise ValueError(f"{name} is no LoRA of FLUX.1: {module} is not one of its layers")
        up = _swapped(layer.up) if target.bfl == SWAPPED_HALVES else layer.up
        for part, rows in fused_rows(target, rows=up.shape[0], hidden=layer.down.shape[1]).items():
            if part in parts:
                raise ValueError(f"{name} has {part} twice")
            parts[part] = replace(layer, up=up[rows])
    return parts


def merge(weighted: Iterable[tuple[Mapping[str, Factors], float]]) -> dict[str, Factors]:
    """The weighted sum of LoRAs by canonical names, exact: factors are joined, so ranks add up.

    Raises ValueError when two have different shapes for a layer.
    """
    import torch

    merged: dict[str, Factors] = {}
    for layers, weight in weighted:
        for name, layer in layers.items():
            scaled = Factors(layer.down.float(), layer.up.float() * (layer.scale * weight), 1.0)
            other = merged.get(name)
            if other is None:
                merged[name] = scaled
                continue
            if (len(other.up), other.down.shape[1]) != (len(scaled.up), scaled.down.shape[1]):
                raise ValueError(f"the LoRAs are of different base models: {name} has two sizes")
            merged[name] = Factors(torch.cat([other.down, scaled.down]), torch.cat([other.up, scaled.up], dim=1), 1.0)
    return merged


def tensors_of(layers: Mapping[str, Factors], dtype: Any, survey: Survey | None = None) -> dict[str, Any]:
    """The tensors of a file: alpha equal to rank; keys as in `survey`'s file, else in our trainer's layout."""
    import torch

    tensors = {}
    for name, layer in layers.items():
        keys = survey.modules[name].keys if survey else {}
        up = layer.up if layer.scale == 1 else layer.up.float() * layer.scale
        tensors[keys.get("down", f"{name}.lora_A.weight")] = layer.down.to(dtype).contiguous()
        tensors[keys.get("up", f"{name}.lora_B.weight")] = up.to(dtype).contiguous()
        tensors[keys.get("alpha", f"{name}.alpha")] = torch.tensor(float(layer.rank))
    if broken := [key for key, tensor in tensors.items() if not bool(tensor.isfinite().all())]:
        raise ValueError(f"numbers of {broken[0]} do not fit into {dtype}; take bf16 or fp32")
    return tensors


def tensors_hash(tensors: Mapping[str, Any]) -> str:
    """kohya's sshs_model_hash: SHA-256 of the data part of the file that holds these tensors."""
    import torch

    digest = hashlib.sha256()
    # safetensors' own order: wider types first, then by name
    for _, tensor in sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])):
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def new_metadata(metadata: Mapping[str, str], ranks: Collection[int], notes: Mapping[str, str]) -> dict[str, str]:
    """A file's metadata as it is true for new ranks; keys that tell of the old tensors are left out."""
    kept = {key: value for key, value in metadata.items() if key not in OUTDATED}
    rank: int | str = next(iter(set(ranks))) if len(set(ranks)) == 1 else "Dynamic"
    kept |= {key: str(rank) for key in ("ss_network_dim", "ss_network_alpha") if key in kept}
    ours = _json(kept.get(OURS), dict)
    if ours:
        config = ours.get("config") if isinstance(ours.get("config"), dict) else {}
        before = ours.get("converted") if isinstance(ours.get("converted"), dict) else {}
        trained = {f"trained_{key}": config.pop(key) for key in ("network_dim", "network_alpha") if key in config}
        ours["converted"] = before | {"network_dim": rank, "network_alpha": rank} | trained
        kept[OURS] = json.dumps(ours, ensure_ascii=False)
    return kept | dict(notes)


def merged_metadata(sources: Sequence[tuple[str, Mapping[str, str], float]], ranks: Collection[int]) -> dict[str, str]:
    """The first source's metadata with the concepts of all; sources: name, metadata and weight of each."""
    metadata = dict(sources[0][1])
    every = [each for _, each, _ in sources]
    if phrases := [each["modelspec.trigger_phrase"] for each in every if "modelspec.trigger_phrase" in each]:
        metadata["modelspec.trigger_phrase"] = ", ".join(dict.fromkeys(phrases))
    for key, kind in (("ss_datasets", list), ("ss_tag_frequency", dict)):
        values = [value for each in every if (value := _json(each.get(key), kind))]
        if values and kind is list:
            metadata[key] = json.dumps([one for value in values for one in value])
        elif values:
            metadata[key] = json.dumps({name: one for value in values for name, one in value.items()})
    if ours := [value for each in every if (value := _json(each.get(OURS), dict))]:
        concepts = [one for value in ours if isinstance(value.get("concepts"), list) for one in value["concepts"]]
        metadata[OURS] = json.dumps(ours[0] | {"concepts": concepts}, ensure_ascii=False)
    merged_from = ", ".join(f"{name} x {weight:g}" for name, _, weight in sources)
    return new_metadata(metadata, ranks, {"modelspec.merged_from": merged_from})


def _json(text: str | None, kind: type) -> Any:
    try:
        value = json.loads(text or "null")
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, kind) else None


def _swapped(up: Any) -> Any:
    import torch

    return torch.cat(up.chunk(2)[::-1])
