"""The adapter on disk: names, alpha and metadata; written in one layout, read in the usual ones.

Names in the program and in our files are those of diffusers and PEFT:
`transformer.transformer_blocks.0.attn.to_q`, `text_encoder.text_model.encoder.layers.0.mlp.fc1`.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from trainer.faults import Fault, Faults, raise_if_any
from trainer.files import write_safetensors
from trainer.lora.adapter import file_module, linear_modules
from trainer.lora.names import Target, layout_of, resolve, split_key
from trainer.models.layout import SWAPPED_HALVES, fused_parts
from trainer.models.weights import read_header

MAX_HEADER_BYTES = 1 << 20  # ComfyUI does not show the metadata of a larger one
FIRST_TO_GO = ("ss_tag_frequency", "ss_datasets", "flux_dreambooth", "ss_dataset_dirs")
LEFT_OUT = "flux_dreambooth_left_out"


@dataclass(frozen=True)
class LoraModule:
    """One layer's adapter: weight change = alpha / rank * up @ down, for down [r, in] and up [out, r]."""

    down: torch.Tensor
    up: torch.Tensor
    alpha: float

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


@dataclass(frozen=True)
class LoraFile:
    """A LoRA in memory: modules by our names, the file's metadata, and the layout that it was read in."""

    modules: dict[str, LoraModule]
    metadata: dict[str, str]
    layout: str = "diffusers"


def save_lora(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    alphas: Mapping[str, float],
    metadata: Mapping[str, str],
    dtype: torch.dtype = torch.bfloat16,
) -> tuple[str, ...]:
    """Write what `adapter_parameters` and `adapter_alphas` give, atomically.

    Returns the metadata keys that were left out to keep the header under 1 MiB.
    """
    modules = {
        name: LoraModule(tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"], alpha)
        for name, alpha in alphas.items()
    }
    assert len(tensors) == 2 * len(modules)
    return write_tensors(path, diffusers_tensors(modules, dtype), metadata)


def diffusers_tensors(modules: Mapping[str, LoraModule], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The tensors of a file in our layout, every alpha equal to its rank (see `with_unit_scale`)."""
    tensors = {}
    for name, module in modules.items():
        module = with_unit_scale(module)
        tensors[f"{name}.lora_A.weight"] = module.down.detach().to(dtype).cpu()
        tensors[f"{name}.lora_B.weight"] = module.up.detach().to(dtype).cpu()
        tensors[f"{name}.alpha"] = torch.tensor(module.alpha, dtype=torch.float32)
    return tensors


def with_unit_scale(module: LoraModule) -> LoraModule:
    """The same weight change with alpha = rank: the scale goes into up, multiplied in float32.

    So a reader that loses alpha, and takes it for the rank, still has the right strength.
    """
    if module.scale == 1:
        return module
    return replace(module, up=module.up.float() * module.scale, alpha=float(module.rank))


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Write a LoRA's tensors with metadata and kohya's hash; returns the metadata keys left out."""
    tensors = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
    kept, left_out = _fitting(tensors, dict(metadata) | {"sshs_model_hash": tensors_hash(tensors)})
    write_safetensors(path, tensors, kept)
    return left_out


def tensors_hash(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of the data part of the safetensors file that holds these tensors on the host."""
    digest = hashlib.sha256()
    # safetensors' own order: wider types first, then by name
    for _, tensor in sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])):
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())  # type: ignore
    return digest.hexdigest()


def _fitting(tensors: Mapping[str, torch.Tensor], metadata: dict[str, str]) -> tuple[dict[str, str], tuple[str, ...]]:
    room = MAX_HEADER_BYTES - sum(len(name) + 120 for name in tensors) - 1024
    by_size = sorted(metadata, key=lambda key: (key not in FIRST_TO_GO, -len(metadata[key])))
    left_out = []
    while _json_size(metadata) > room:
        key = by_size.pop(0)
        left_out.append(f"{key} ({len(metadata.pop(key))} characters)")
        metadata[LEFT_OUT] = ", ".join(left_out)
    return metadata, tuple(left_out)


def _json_size(metadata: Mapping[str, str]) -> int:
    return len(json.dumps(metadata, ensure_ascii=True))


def load_lora(path: Path) -> LoraFile:
    """Read a LoRA in our layout or in that of PEFT, ai-toolkit, kohya, ComfyUI, OneTrainer or SimpleTuner.

    A fused matrix (q, k, v and MLP in one) becomes one module for each part, with exactly the same
    product. Raises Faults for a file that cannot be read or holds anything but plain LoRA of FLUX.1's
    linear layers or CLIP-L's.
    """
    tensors, metadata = _read(path)
    found, unknown = _by_module(tensors)
    raise_if_any([*_unknown_faults(path, unknown), *_shape_faults(path, found)])
    settings = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    modules: dict[str, LoraModule] = {}
    for name, roles in found.items():
        target = resolve(name)
        assert target
        alpha = roles["alpha"].item() if "alpha" in roles else _header_alpha(settings, target.modules[0])
        module = LoraModule(roles["down"], roles["up"], float(alpha or len(roles["down"])))
        try:
            modules |= _split(target, module)
        except ValueError as error:
            raise Faults([Fault(str(path), str(error))]) from error
    return LoraFile(modules, metadata, layout_of(found))


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    try:
        header = read_header(path)
        return load_file(path), header.metadata
    except (OSError, ValueError, SafetensorError) as error:
        hint = "give a LoRA file, *.safetensors, that is wholly downloaded"
        raise Faults([Fault(str(path), f"cannot be read: {error}", hint)]) from error


def _by_module(tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, dict[str, torch.Tensor]], list[str]]:
    found: dict[str, dict[str, torch.Tensor]] = {}
    unknown = []
    for key, tensor in tensors.items():
        name, role = split_key(key)
        if role and resolve(name):
            found.setdefault(name, {})[role] = tensor
        else:
            unknown.append(key)
    return found, unknown


def _unknown_faults(path: Path, unknown: list[str]) -> list[Fault]:
    if not unknown:
        return []
    some = ", ".join(unknown[:5]) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
    hint = "only plain LoRA of FLUX.1's and CLIP-L's linear layers is read: no DoRA, LoKr, LoHa, bias or T5"
    return [Fault(str(path), f"tensors that are not understood: {some}", hint)]


def _shape_faults(path: Path, found: Mapping[str, Mapping[str, torch.Tensor]]) -> Iterator[Fault]:
    if not found:
        yield Fault(str(path), "holds no LoRA", "give a file that a LoRA trainer wrote")
    for name, roles in found.items():
        if not roles.keys() >= {"down", "up"}:
            yield Fault(str(path), f"{name} has {' and '.join(roles)} only", "the file is not complete")
        elif roles["down"].ndim != 2 or roles["up"].ndim != 2 or len(roles["down"]) != roles["up"].shape[1]:
            shapes = f"down {list(roles['down'].shape)} and up {list(roles['up'].shape)}"
            yield Fault(str(path), f"{name}: {shapes} do not fit together")


def _header_alpha(settings: Mapping, module: str) -> float | None:
    """The alpha that diffusers keeps in the header only, or None."""
    model, _, rest = module.partition(".")
    own = settings.get(f"{model}.alpha_pattern") or {}
    return own.get(rest, settings.get(f"{model}.lora_alpha"))


def _split(target: Target, module: LoraModule) -> dict[str, LoraModule]:
    if target.bfl == SWAPPED_HALVES:
        module = replace(module, up=torch.cat(module.up.chunk(2)[::-1]))
    if len(target.modules) == 1:
        return {target.modules[0]: module}
    assert target.bfl
    parts = fused_parts(target.bfl, rows=len(module.up), hidden=module.down.shape[1])
    return {
        f"transformer.{part.module}": replace(module, down=module.down.clone(), up=module.up[part.rows].clone())
        for part in parts
    }


def ranks_from(lora: LoraFile, model: nn.Module) -> dict[str, int]:
    """The rank of each linear layer of a transformer or CLIP in a file, 0 for those it does not have."""
    names = {name: file_module(model, name) for name in linear_modules(model)}
    return {name: lora.modules[full].rank if full in lora.modules else 0 for name, full in names.items()}


def copy_into(lora: LoraFile, parameters: Mapping[str, nn.Parameter], alphas: Mapping[str, float], where: str) -> None:
    """Start training from a file: fill what `adapter_parameters` and `adapter_alphas` name.

    The weight change stays the file's, whatever alpha is here. Raises Faults, and changes nothing, when
    the modules or ranks differ; where: the flag or file to name in them.
    """
    raise_if_any(_mismatches(lora, parameters, alphas, where))
    for name, alpha in alphas.items():
        module, down = lora.modules[name], parameters[f"{name}.lora_A.weight"]
        down.data.copy_(module.down)
        parameters[f"{name}.lora_B.weight"].data.copy_(module.up.float() * (module.scale * len(down) / alpha))


def _mismatches(
    lora: LoraFile, parameters: Mapping[str, nn.Parameter], alphas: Mapping[str, float], where: str
) -> Iterator[Fault]:
    hint = "--dim_from_weights takes modules and ranks from the file"
    for name in sorted(lora.modules.keys() ^ alphas.keys()):
        has, lacks = ("the file", "this run") if name in lora.modules else ("this run", "the file")
        yield Fault(where, f"{name} is adapted in {has} but not in {lacks}", hint)
    for name in sorted(lora.modules.keys() & alphas.keys()):
        for key, theirs in (("lora_A", lora.modules[name].down), ("lora_B", lora.modules[name].up)):
            ours = parameters[f"{name}.{key}.weight"]
            if theirs.shape != ours.shape:
                what = f"{name}.{key} is {list(theirs.shape)} in the file and {list(ours.shape)} in this run"
                yield Fault(where, what, hint)
