"""The tensors of new LoRA files in diffusers' layout, in kohya's, or under the names of the source. Uses torch."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

from .flux_names import SWAPPED_HALVES, bfl_module, diffusers_modules, kohya_name
from .keys import Survey
from .modules import LoraModule, not_finite, with_unit_scale

LAYOUTS = ("diffusers", "kohya")
MLP_RATIO = 4  # of every FLUX.1
KOHYA_TEXT = {"text_encoder.": "lora_te1_", "text_encoder_2.": "lora_te3_"}
LOSS_WORTH_SAYING = 0.01  # relative change of a factor


def diffusers_tensors(modules: Mapping[str, LoraModule], dtype: Any) -> Iterator[tuple[str, Any]]:
    """The keys and tensors of a file in our layout, which is diffusers' with alphas, every alpha equal to its rank.

    modules: by canonical names; dtype: of the written factors, a torch dtype. T5's layers, which diffusers does not
    read, have ComfyUI's names.
    """
    for name, module in modules.items():
        if name.startswith("text_encoder_2."):
            name = "text_encoders.t5xxl.transformer." + name.removeprefix("text_encoder_2.")
        yield from _peft_tensors(name, module, dtype)


def _peft_tensors(name: str, module: LoraModule, dtype: Any) -> Iterator[tuple[str, Any]]:
    import torch

    module = with_unit_scale(module)
    yield f"{name}.lora_A.weight", module.down.detach().to(dtype)
    yield f"{name}.lora_B.weight", module.up.detach().to(dtype)
    yield f"{name}.alpha", torch.tensor(module.alpha, dtype=torch.float32)


def kohya_tensors(modules: Mapping[str, LoraModule], dtype: Any) -> Iterator[tuple[str, Any]]:
    """The keys and tensors of a kohya file: q, k, v (and MLP) of a block as one module, without any SVD.

    modules: by canonical names; dtype: of the written factors, a torch dtype. Parts that share their down projection
    keep their rank; others become one block-diagonal module whose rank is the sum. The product, and so the effect, is
    exactly the same before rounding to dtype. Raises KeyError for a layer that FLUX.1 does not have.
    """
    import torch

    for name, module in _kohya_modules(modules).items():
        yield f"{name}.lora_down.weight", module.down.to(dtype)
        yield f"{name}.lora_up.weight", module.up.to(dtype)
        yield f"{name}.alpha", torch.tensor(module.alpha, dtype=torch.float32)


def _kohya_modules(modules: Mapping[str, LoraModule]) -> dict[str, LoraModule]:
    import torch

    result: dict[str, LoraModule] = {}
    for name, module in modules.items():
        if prefix := next((each for each in KOHYA_TEXT if name.startswith(each)), None):
            result[KOHYA_TEXT[prefix] + name.removeprefix(prefix).replace(".", "_")] = module
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
    import torch

    present = [part for part in parts if part]
    first = present[0]
    if len(present) == len(parts) and all(_share_down(first, part) for part in present):
        return replace(first, up=torch.cat([part.up for part in present]))
    if len({part.scale for part in present}) > 1:
        present = [with_unit_scale(part) for part in present]
    hidden, rank = first.down.shape[1], sum(part.rank for part in present)
    rows = [len(part.up) if part else _rows_of_absent(index, hidden) for index, part in enumerate(parts)]
    dtype = reduce(torch.promote_types, [part.up.dtype for part in present])
    up = torch.zeros(sum(rows), rank, dtype=dtype)
    column, rest = 0, iter(present)
    for index, part in enumerate(parts):
        if part:
            scaled = next(rest)
            start = sum(rows[:index])
            up[start : start + rows[index], column : column + scaled.rank] = scaled.up
            column += scaled.rank
    return LoraModule(torch.cat([part.down for part in present]), up, alpha=present[0].scale * rank)


def _share_down(one: LoraModule, other: LoraModule) -> bool:
    import torch

    return one.alpha == other.alpha and torch.equal(one.down, other.down)


def _rows_of_absent(index: int, hidden: int) -> int:
    return hidden if index < 3 else MLP_RATIO * hidden  # q, k, v, MLP


def tensors_like(found: Survey, modules: Mapping[str, LoraModule], dtype: Any) -> Iterator[tuple[str, Any]]:
    """The keys and tensors of a file with the keys of an existing one, every alpha equal to its rank.

    found: the result of `survey` for the existing file; modules: by that file's names; dtype: of the written factors, a
    torch dtype.
    """
    import torch

    for name, module in modules.items():
        keys, module = found.modules[name].keys, with_unit_scale(module)
        yield keys["down"], module.down.to(dtype)
        yield keys["up"], module.up.to(dtype)
        yield keys.get("alpha", f"{name}.alpha"), torch.tensor(module.alpha, dtype=torch.float32)


def all_finite(tensors: Iterable[tuple[str, Any]], dtype: Any) -> dict[str, Any]:
    """Collect tensors that were converted to the dtype of a file to write, by key.

    Raises ValueError if one holds NaN or infinity, as a number does that is too large for dtype.
    """
    held = {key: tensor.contiguous() for key, tensor in tensors}
    if broken := not_finite(held):
        kind = str(dtype).removeprefix("torch.")
        raise ValueError(f"numbers of {broken[0]} do not fit into {kind}; take bfloat16 or float32")
    return held


def lost_by_rounding(modules: Mapping[str, LoraModule], dtype: Any) -> str | None:
    """A sentence if storing the modules in a dtype, with scale 1, changes one by more than a percent; else None."""
    import torch

    worst, where = 0.0, ""
    for name, module in modules.items():
        module = with_unit_scale(module)
        loss = sum(_rounding(factor.float(), dtype) ** 2 for factor in (module.down, module.up)) ** 0.5
        if loss > worst:
            worst, where = loss, name
    if worst <= LOSS_WORTH_SAYING:
        return None
    kind = str(dtype).removeprefix("torch.")
    better = "float32" if dtype == torch.bfloat16 else "bfloat16 or float32"
    return f"{kind} is too coarse for these numbers: it changes {where} by {worst:.1%}; {better} would not"


def _rounding(factor: Any, dtype: Any) -> float:
    norm = float(factor.norm())
    return float((factor.to(dtype).float() - factor).norm()) / norm if norm else 0.0


def tensors_hash(tensors: Mapping[str, Any]) -> str:
    """kohya's sshs_model_hash, in hex: SHA-256 of the data part of a safetensors file with these tensors.

    tensors: by key, contiguous, on the CPU.
    """
    import torch

    digest = hashlib.sha256()
    # safetensors' own order: wider types first, then by name
    for _, tensor in sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])):
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
