"""LoRA files made from LoRA files: another layout, a smaller rank, several in one.

All of it works on the two factors; the full weight change is never formed.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from trainer.common.files import FULL_DISK_ERRORS
from trainer.common.problems import Problem, Problems, raise_if_any
from trainer.lora.file import LoraFile, LoraModule, diffusers_tensors, load_lora, with_unit_scale, write_tensors
from trainer.lora.metadata import json_value, with_new_ranks
from trainer.lora.names import kohya_clip_name
from trainer.models.names import SWAPPED_HALVES, bfl_module, diffusers_modules, kohya_name

LAYOUTS = ("diffusers", "kohya")
MLP_RATIO = 4  # of every FLUX.1


@dataclass(frozen=True)
class Source:
    """A file to convert, or one of several to merge, and the weight it is to have."""

    path: Path
    weight: float = 1.0


def convert(
    sources: Sequence[Source],
    output: Path,
    layout: str = "diffusers",
    rank: int | None = None,
    energy: float | None = None,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
) -> list[str]:
    """Merge the sources if there are several, resize if a rank or an energy is given, and write.

    dtype: of the new file, the first source's when None; device: where SVDs are computed. Returns
    lines that say what was done; raises Problems.
    """
    raise_if_any(_argument_problems(sources, layout, rank, energy) + _output_problems(output))
    loras = [load_lora(source.path) for source in sources]
    dtype = dtype or next(iter(loras[0].modules.values())).down.dtype
    lines = [f"{source.path}: {describe_ranks(lora)}" for source, lora in zip(sources, loras, strict=True)]
    lora = loras[0]
    if len(sources) > 1 or sources[0].weight != 1:
        lora = merge([(s.path.stem, each, s.weight) for s, each in zip(sources, loras, strict=True)])
        lines.append(f"merged: {describe_ranks(lora)}")
    if rank or energy:
        lora, kept = resize(lora, rank, energy, device)
        lines.append(f"resized: {describe_ranks(lora)}, {kept:.2%} of the squared norm kept")
    try:
        write_lora(output, lora, layout, dtype)
    except FULL_DISK_ERRORS as error:
        raise Problems([_unwritable(output, error)]) from error
    return [*lines, f"{output}: {layout} layout, {output.stat().st_size / 1e9:.3f} GB"]


def _argument_problems(sources: Sequence[Source], layout: str, rank: int | None, energy: float | None) -> list[Problem]:
    problems = [] if sources else [Problem("convert", "no file given")]
    if layout not in LAYOUTS:
        problems.append(Problem("--format", f"{layout!r} is not known", f"one of {', '.join(LAYOUTS)}"))
    if rank is not None and rank < 1:
        problems.append(Problem("--rank", f"{rank} is not a rank", "1 or more"))
    if energy is not None and not 0 < energy <= 1:
        problems.append(Problem("--energy", f"{energy} is not a share", "above 0, at most 1; 0.99 is usual"))
    return problems


def _output_problems(output: Path) -> list[Problem]:
    """What is known to be in the way before minutes of SVD."""
    try:
        folder = next(folder for folder in output.parents if folder.exists())
        if output.is_dir():
            return [_unwritable(output, "it is a folder")]
    except OSError as error:
        return [_unwritable(output, error)]
    if not folder.is_dir():
        return [_unwritable(output, f"{folder} is a file, not a folder")]
    return [] if os.access(folder, os.W_OK | os.X_OK) else [_unwritable(output, f"{folder} is closed to you")]


def _unwritable(output: Path, why: object) -> Problem:
    hint = "name a file, *.safetensors, in a folder that you may write to"
    return Problem(f"--output={output}", f"cannot be written: {why}", hint)


def describe_ranks(lora: LoraFile) -> str:
    """Like "494 modules, rank 16"; the lowest and the highest rank where they differ."""
    ranks = sorted({module.rank for module in lora.modules.values()})
    text = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]}-{ranks[-1]}"
    return f"{len(lora.modules)} modules, rank {text}"


def write_lora(path: Path, lora: LoraFile, layout: str, dtype: torch.dtype) -> tuple[str, ...]:
    """Write in a layout of LAYOUTS; returns the metadata keys that did not fit into the header."""
    as_tensors = diffusers_tensors if layout == "diffusers" else kohya_tensors
    return write_tensors(path, as_tensors(lora.modules, dtype), lora.metadata)


def kohya_tensors(modules: Mapping[str, LoraModule], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The tensors of a kohya file: q, k, v (and MLP) of a block as one module, without any SVD.

    Parts that share their down projection keep their rank; others become one block-diagonal module
    whose rank is the sum. The product, and so the effect, is exactly the same.
    """
    tensors = {}
    for name, module in _kohya_modules(modules).items():
        tensors[f"{name}.lora_down.weight"] = module.down.to(dtype)
        tensors[f"{name}.lora_up.weight"] = module.up.to(dtype)
        tensors[f"{name}.alpha"] = torch.tensor(module.alpha, dtype=torch.float32)
    return tensors


def _kohya_modules(modules: Mapping[str, LoraModule]) -> dict[str, LoraModule]:
    result: dict[str, LoraModule] = {}
    for name, module in modules.items():
        if name.startswith("text_encoder."):
            result[kohya_clip_name(name)] = module
            continue
        bfl, _ = bfl_module(name.removeprefix("transformer."))
        if kohya_name(bfl) in result:
            continue  # came with the first of its parts
        parts = [modules.get(f"transformer.{part}") for part in diffusers_modules(bfl)]
        fused = _fuse(parts) if len(parts) > 1 else module
        if bfl == SWAPPED_HALVES:
            fused = replace(fused, up=torch.cat(fused.up.chunk(2)[::-1]))
        result[kohya_name(bfl)] = fused
    return result


def _fuse(parts: Sequence[LoraModule | None]) -> LoraModule:
    present = [part for part in parts if part]
    first = present[0]
    if len(present) == len(parts) and all(_share_down(first, part) for part in present):
        return replace(first, up=torch.cat([part.up for part in present]))
    if len({part.scale for part in present}) > 1:
        present = [with_unit_scale(part) for part in present]
    hidden, rank = first.down.shape[1], sum(part.rank for part in present)
    rows = [len(part.up) if part else _rows_of_absent(index, hidden) for index, part in enumerate(parts)]
    up = torch.zeros(sum(rows), rank, dtype=present[0].up.dtype)
    column, rest = 0, iter(present)
    for index, part in enumerate(parts):
        if part:
            scaled = next(rest)
            start = sum(rows[:index])
            up[start : start + rows[index], column : column + scaled.rank] = scaled.up
            column += scaled.rank
    return LoraModule(torch.cat([part.down for part in present]), up, alpha=present[0].scale * rank)


def _share_down(one: LoraModule, other: LoraModule) -> bool:
    return one.alpha == other.alpha and torch.equal(one.down, other.down)


def _rows_of_absent(index: int, hidden: int) -> int:
    return hidden if index < 3 else MLP_RATIO * hidden  # q, k, v, MLP


def resize(
    lora: LoraFile, rank: int | None = None, energy: float | None = None, device: str = "cpu"
) -> tuple[LoraFile, float]:
    """Each module's best approximation of lower rank (Eckart-Young), from QR of the factors and an SVD.

    rank: the largest new rank; energy: the share of each module's squared norm to keep, with as few
    ranks as that takes. Returns the new LoRA and the share of the whole squared norm that was kept.
    """
    modules, kept, total = {}, 0.0, 0.0
    for name, module in lora.modules.items():
        modules[name], singular = _truncate(module, rank, energy, device)
        squares = singular.double().square()
        kept += squares[: modules[name].rank].sum().item()
        total += squares.sum().item()
    return replace(lora, modules=modules, metadata=_with_rank(lora.metadata, modules)), kept / (total or 1.0)


def _truncate(
    module: LoraModule, rank: int | None, energy: float | None, device: str
) -> tuple[LoraModule, torch.Tensor]:
    q_up, r_up = torch.linalg.qr(module.up.to(device, torch.float32) * module.scale)
    q_down, r_down = torch.linalg.qr(module.down.to(device, torch.float32).T)
    left, singular, right = torch.linalg.svd(r_up @ r_down.T)
    new_rank = _chosen_rank(singular, rank, energy)
    root = singular[:new_rank].sqrt()
    up = q_up @ (left[:, :new_rank] * root)
    down = (right[:new_rank] * root[:, None]) @ q_down.T
    return LoraModule(down.cpu(), up.cpu(), float(new_rank)), singular


def _chosen_rank(singular: torch.Tensor, rank: int | None, energy: float | None) -> int:
    chosen = min(rank or len(singular), len(singular))
    if energy is not None:
        squares = singular.double().square()
        enough = squares.cumsum(0) >= energy * squares.sum() * (1 - 1e-12)
        chosen = min(chosen, int(enough.int().argmax()) + 1)
    return chosen


def merge(weighted: Sequence[tuple[str, LoraFile, float]]) -> LoraFile:
    """The weighted sum of several LoRAs, exact: factors are joined, so ranks add up.

    weighted: title, LoRA and weight of each. Concepts of all of them are kept in the metadata.
    """
    modules: dict[str, LoraModule] = {}
    for _, lora, weight in weighted:
        for name, module in lora.modules.items():
            module = with_unit_scale(module)
            module = module if weight == 1 else replace(module, up=module.up.float() * weight)
            modules[name] = _joined(modules[name], module) if name in modules else module
    return LoraFile(modules, _merged_metadata(weighted, modules))


def _joined(one: LoraModule, other: LoraModule) -> LoraModule:
    down, up = torch.cat([one.down, other.down]), torch.cat([one.up, other.up], dim=1)
    return LoraModule(down, up, alpha=float(len(down)))


def _merged_metadata(
    weighted: Sequence[tuple[str, LoraFile, float]], modules: Mapping[str, LoraModule]
) -> dict[str, str]:
    all_metadata = [lora.metadata for _, lora, _ in weighted]
    metadata = dict(all_metadata[0])
    metadata["modelspec.merged_from"] = ", ".join(f"{title} x {weight:g}" for title, _, weight in weighted)
    phrases = [m["modelspec.trigger_phrase"] for m in all_metadata if "modelspec.trigger_phrase" in m]
    if phrases:
        metadata["modelspec.trigger_phrase"] = ", ".join(dict.fromkeys(phrases))
    frequencies = [json_value(m.get("ss_tag_frequency"), dict) or {} for m in all_metadata]
    if any(frequencies):
        metadata["ss_tag_frequency"] = json.dumps({k: v for one in frequencies for k, v in one.items()})
    datasets = [one for m in all_metadata for one in json_value(m.get("ss_datasets"), list) or []]
    if datasets:
        metadata["ss_datasets"] = json.dumps(datasets)
    return _with_rank(metadata, modules)


def _with_rank(metadata: Mapping[str, str], modules: Mapping[str, LoraModule]) -> dict[str, str]:
    return with_new_ranks(metadata, [module.rank for module in modules.values()])
