"""The adapter on disk: names, alpha and metadata; written in one layout, read in the usual ones.

Names in the program and in our files are those of diffusers and PEFT:
`transformer.transformer_blocks.0.attn.to_q`, `text_encoder.text_model.encoder.layers.0.mlp.fc1`.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from trainer.common.files import write_safetensors
from trainer.common.problems import Problem, Problems, raise_if_any
from trainer.lora.adapter import file_module, linear_modules
from trainer.lora.metadata import json_value, with_ranks
from trainer.lora.names import Target, layout_of, resolve, split_key
from trainer.models.names import SWAPPED_HALVES, fused_parts
from trainer.models.weights import Header, read_header

MAX_HEADER_BYTES = 1 << 20  # ComfyUI does not show the metadata of a larger one
FIRST_TO_GO = ("ss_tag_frequency", "ss_datasets", "flux_dreambooth", "ss_dataset_dirs")
LEFT_OUT = "flux_dreambooth_left_out"
WHOLE_FILE = "give a LoRA file, *.safetensors, that is wholly downloaded"
ADAPTABLE = ("transformer.transformer_blocks.", "transformer.single_transformer_blocks.", "text_encoder.")
FROM_FILE = "--dim_from_weights takes layers and ranks from the file"


@dataclass(frozen=True)
class LoraModule:
    """One layer's adapter: weight change = alpha / rank * up @ down, for down [r, in] and up [out, r]."""

    down: torch.Tensor
    up: torch.Tensor
    alpha: float

    @property
    def rank(self) -> int:
        """The number of rows of down."""
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        """What the product of up and down is multiplied by."""
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

    Returns the metadata keys that were left out to keep the header under 1 MiB. Raises `Problems`, and
    leaves the file that may be there, when a number is not finite.
    """
    return write_lora(path, snapshot_lora(path, tensors, alphas, dtype), metadata)


def snapshot_lora(
    path: Path, tensors: Mapping[str, torch.Tensor], alphas: Mapping[str, float], dtype: torch.dtype = torch.bfloat16
) -> dict[str, torch.Tensor]:
    """A copy on the host of what the file at `path` will hold, which later training does not change.

    Raises `Problems` when a number is not finite in `dtype`.
    """
    modules = {
        name: LoraModule(tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"], alpha)
        for name, alpha in alphas.items()
    }
    assert len(tensors) == 2 * len(modules)
    kept = {tensor.untyped_storage().data_ptr() for tensor in tensors.values()}
    stored, finite = {}, {}
    for name, tensor in _file_tensors(modules, dtype):
        if not name.endswith(".alpha"):
            finite[name] = _all_finite(tensor)  # on its own device, which is asked once, below
        host = tensor.cpu()
        stored[name] = host.clone() if host.untyped_storage().data_ptr() in kept else host
    are_finite = torch.stack([*finite.values()]).tolist()
    if broken := [name for name, good in zip(finite, are_finite, strict=True) if not good]:
        what = f"not written: {len(broken)} of {len(finite)} tensors hold numbers that are not finite, as {broken[0]}"
        raise Problems([Problem(str(path), what, "lower --learning_rate; fp16 has a smaller range than bf16")])
    return stored


def _all_finite(tensor: torch.Tensor) -> torch.Tensor:
    """Whether every number is, from the smallest and largest (NaN is both): no second tensor of this size."""
    return torch.stack(tensor.aminmax()).isfinite().all()


def write_lora(path: Path, stored: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Write what `snapshot_lora` gave, atomically; returns the metadata keys left out. May run on any thread."""
    ranks = [len(tensor) for name, tensor in stored.items() if name.endswith(".lora_A.weight")]
    return write_tensors(path, stored, with_ranks(metadata, ranks))


def diffusers_tensors(modules: Mapping[str, LoraModule], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The tensors of a file in our layout, every alpha equal to its rank (see `with_unit_scale`)."""
    return {name: tensor.cpu() for name, tensor in _file_tensors(modules, dtype)}


def _file_tensors(modules: Mapping[str, LoraModule], dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    for name, module in modules.items():
        module = with_unit_scale(module)
        yield f"{name}.lora_A.weight", module.down.detach().to(dtype)
        yield f"{name}.lora_B.weight", module.up.detach().to(dtype)
        yield f"{name}.alpha", torch.tensor(module.alpha, dtype=torch.float32)


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
    product. Raises Problems for a file that cannot be read or holds anything but plain LoRA of FLUX.1's
    linear layers or CLIP-L's.
    """
    return _understood(path, *_read(path))


def load_lora_shapes(path: Path) -> LoraFile:
    """As `load_lora`, from the header alone: tensors have a shape and no numbers, and alpha is the rank."""
    header = _header(path)
    tensors = {name: torch.empty(info.shape, device="meta") for name, info in header.tensors.items()}
    return _understood(path, tensors, header.metadata)


def _understood(path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str]) -> LoraFile:
    found, unknown = _by_module(tensors)
    raise_if_any([*_unknown_problems(path, unknown), *_shape_problems(path, found)])
    settings = json_value(metadata.get("lora_adapter_metadata"), dict) or {}
    modules: dict[str, LoraModule] = {}
    for name, roles in found.items():
        target = resolve(name)
        assert target
        alpha = _header_alpha(settings, target.modules[0])
        if "alpha" in roles:
            alpha = None if roles["alpha"].is_meta else roles["alpha"].item()
        module = LoraModule(roles["down"], roles["up"], float(alpha or len(roles["down"])))
        try:
            modules |= _split(target, module)
        except ValueError as error:
            raise Problems([Problem(str(path), str(error))]) from error
    return LoraFile(modules, metadata, layout_of(found))


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    header = _header(path)
    try:
        return load_file(path), header.metadata
    except (OSError, SafetensorError) as error:
        raise Problems([Problem(str(path), f"cannot be read: {error}", WHOLE_FILE)]) from error


def _header(path: Path) -> Header:
    try:
        return read_header(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise Problems([Problem(str(path), f"cannot be read: {reason}", WHOLE_FILE)]) from error


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


def _unknown_problems(path: Path, unknown: list[str]) -> list[Problem]:
    if not unknown:
        return []
    some = ", ".join(unknown[:5]) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
    hint = "only plain LoRA of FLUX.1's and CLIP-L's linear layers is read: no DoRA, LoKr, LoHa, bias or T5"
    return [Problem(str(path), f"tensors that are not understood: {some}", hint)]


def _shape_problems(path: Path, found: Mapping[str, Mapping[str, torch.Tensor]]) -> Iterator[Problem]:
    if not found:
        yield Problem(str(path), "holds no LoRA", "give a file that a LoRA trainer wrote")
    for name, roles in found.items():
        if not roles.keys() >= {"down", "up"}:
            yield Problem(str(path), f"{name} has {' and '.join(roles)} only", "the file is not complete")
        elif roles["down"].ndim != 2 or roles["up"].ndim != 2 or len(roles["down"]) != roles["up"].shape[1]:
            shapes = f"down {list(roles['down'].shape)} and up {list(roles['up'].shape)}"
            yield Problem(str(path), f"{name}: {shapes} do not fit together")


def _header_alpha(settings: Mapping[str, Any], module: str) -> float | None:
    """The alpha that diffusers keeps in the header only, or None."""
    model, _, rest = module.partition(".")
    own = settings.get(f"{model}.alpha_pattern")
    alpha = own[rest] if isinstance(own, dict) and rest in own else settings.get(f"{model}.lora_alpha")
    return alpha if isinstance(alpha, int | float) else None


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

    The weight change stays the file's, whatever alpha is here. Raises Problems, and changes nothing, when
    the modules or ranks differ; where: the flag or file to name in them.
    """
    raise_if_any(misfits(lora, {name: parameter.shape for name, parameter in parameters.items()}, where))
    for name, alpha in alphas.items():
        module, down = lora.modules[name], parameters[f"{name}.lora_A.weight"]
        down.data.copy_(module.down)
        parameters[f"{name}.lora_B.weight"].data.copy_(module.up.float() * (module.scale * len(down) / alpha))


def misfits(lora: LoraFile, shapes: Mapping[str, tuple[int, ...]], where: str) -> list[Problem]:
    """Why a file cannot start a run of adapter tensors with these names and shapes: one problem of each kind."""
    ours = {name.rsplit(".lora_", 1)[0] for name in shapes}
    problems = []
    for here, there, names in (
        ("the file", "this run", lora.modules.keys() - ours),
        ("this run", "the file", ours - lora.modules.keys()),
    ):
        if names:
            problems.append(
                Problem(where, f"{_first_of(names)} adapted in {here} but not in {there}", _layers_hint(names, here))
            )
    both = [name for name in sorted(lora.modules) if name in ours]
    ranks = {name: (lora.modules[name].rank, shapes[f"{name}.lora_A.weight"][0]) for name in both}
    if other := {name: pair for name, pair in ranks.items() if pair[0] != pair[1]}:
        theirs, mine = (_numbers(pair[side] for pair in other.values()) for side in (0, 1))
        what = f"{_first_of(other)} of rank {theirs} in the file and {mine} in this run"
        problems.append(Problem(where, what, FROM_FILE))
    widths = {
        name: (file, run)
        for name in both
        if (file := _widths(lora.modules[name].down.shape, lora.modules[name].up.shape))
        != (run := _widths(shapes[f"{name}.lora_A.weight"], shapes[f"{name}.lora_B.weight"]))
    }
    if widths:
        (file, run), *_ = widths.values()
        what = f"{_first_of(widths)} of another size: {file} in the file and {run} in this run"
        problems.append(Problem(where, what, "the file belongs to another base model"))
    return problems


def _layers_hint(names: Iterable[str], adapted_in: str) -> str:
    if not all(name.startswith(ADAPTABLE) for name in names):
        return "only layers of the blocks are trained here"
    if all(name.startswith("text_encoder.") for name in names):
        return (
            "--text_encoder_lr above 0 trains CLIP-L's LoRA"
            if adapted_in == "the file"
            else "--text_encoder_lr 0 trains none of CLIP-L"
        )
    return FROM_FILE


def _first_of(names: Collection[str]) -> str:
    return f"{min(names)} and {len(names) - 1} more are" if len(names) > 1 else f"{min(names)} is"


def _numbers(values: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(set(values))))


def _widths(down: tuple[int, ...], up: tuple[int, ...]) -> str:
    return f"{down[1]} to {up[0]}"
