"""Loads the four FLUX.1 files as diffusers and transformers modules: strictly, offline, at any size."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from trainer.common.problems import Problem, Problems, raise_if_any
from trainer.models.description import FLUX1, BaseModel
from trainer.models.module_plan import (
    ModulePlan,
    missing_or_unexpected,
    plan_autoencoder,
    plan_clip,
    plan_module,
    plan_t5,
    plan_transformer,
)
from trainer.models.quantized import (
    Precision,
    QuantizedLinear,
    WeightFormat,
    allocate,
    fill,
    log_format,
    make_quantized,
)
from trainer.models.weights import Header, read_header, stream_tensors, weight_names

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, FluxTransformer2DModel
    from transformers import CLIPTextModel, T5EncoderModel


def load_transformer(
    path: Path,
    device: torch.device | str,
    dtype: torch.dtype,
    base: WeightFormat | Precision = "bf16",
    waiting: tuple[str, ...] = (),
    joined: "Callable[[FluxTransformer2DModel], Sequence[Sequence[nn.Module]]] | None" = None,
) -> "FluxTransformer2DModel":
    """Load FLUX.1's transformer, frozen; `config.guidance_embeds` is True for FLUX.1-dev, False for FLUX.1-schnell.

    path: a file in the original layout. dtype: of everything that is not quantized. base: the format of the blocks'
    linear layers, where bf16 means dtype; each layer is quantized on the device as it arrives. waiting: prefixes of
    diffusers' names of the tensors that are moved to host memory as soon as they are loaded. joined: returns the groups
    of layers that share an input and are stored as one in fp8. Raises `Problems` if the file cannot be read, and for
    every tensor that is missing, unexpected or of another shape.
    """
    plan = plan_module(_header(path), plan_transformer)
    weight_format = base if isinstance(base, WeightFormat) else WeightFormat.for_device(base, device)
    if weight_format.precision == "bf16":
        return _fill(plan, device, dtype, waiting=waiting)
    log_format(weight_format, device)

    def change(transformer: "FluxTransformer2DModel") -> None:
        make_quantized(transformer, weight_format)
        allocate(transformer, weight_format, device, dtype, joined(transformer) if joined else (), waiting)

    return _fill(plan, device, dtype, change, waiting)


def load_autoencoder(path: Path, device: torch.device | str, dtype: torch.dtype) -> "AutoencoderKL":
    """Load FLUX.1's autoencoder, frozen, from a file in the original layout.

    Raises `Problems` if the file cannot be read, and for every tensor that is missing, unexpected or of another shape.
    """
    return _fill(plan_module(_header(path), plan_autoencoder), device, dtype)


def load_clip(path: Path, device: torch.device | str, dtype: torch.dtype, eos_token_id: int) -> "CLIPTextModel":
    """Load CLIP-L's text encoder, frozen; its pooled output is the hidden state of the token `eos_token_id`.

    Raises `Problems` if the file cannot be read, and for every tensor that is missing, unexpected or of another shape.
    """
    plan = plan_module(_header(path), lambda header: plan_clip(header, eos_token_id))
    return _fill(plan, device, dtype)


def load_t5(path: Path, device: torch.device | str, dtype: torch.dtype) -> "T5EncoderModel":
    """Load T5 v1.1's encoder, frozen.

    Raises `Problems` if the file cannot be read, and for every tensor that is missing, unexpected or of another shape.
    """
    return _fill(plan_module(_header(path), plan_t5), device, dtype)


def base_model_of(path: Path) -> BaseModel:
    """The base model whose transformer a file holds, from its name and header.

    Raises OSError, and ValueError if it is not a complete safetensors file.
    """
    header = read_header(path)
    return FLUX1.recognise(path, header.tensors, header.metadata)


def _fill(
    plan: ModulePlan,
    device: torch.device | str,
    dtype: torch.dtype,
    change: Callable[[Any], None] | None = None,
    waiting: tuple[str, ...] = (),
) -> Any:
    """The module with the file's weights.

    change: called with the module while it is still empty. waiting: prefixes of the tensors that move from the device
    to host memory as soon as they have arrived.
    """
    raise_if_any(missing_or_unexpected(plan))
    if change:
        change(plan.module)
    needed = [
        name
        for name in weight_names(plan.header)
        if plan.convert(name, torch.empty(plan.header.shape(name), device="meta"))
    ]
    for name, tensor in stream_tensors(plan.header.path, device, dtype, needed):
        for new, part in plan.convert(name, tensor).items():
            owner, _, leaf = new.rpartition(".")
            module = plan.module.get_submodule(owner)
            if leaf == "weight" and isinstance(module, QuantizedLinear):
                module.store(part)
            else:
                fill(module, leaf, part)
            if waiting and new.startswith(waiting):
                _to_host(module)
    module = plan.module if waiting else plan.module.to(device)
    return module.eval().requires_grad_(False)


def _to_host(module: nn.Module) -> None:
    for parameter in module.parameters(recurse=False):
        if not parameter.is_meta:
            parameter.data = parameter.data.cpu()


def _header(path: Path) -> Header:
    try:
        return read_header(path)
    except (ValueError, OSError) as error:
        raise Problems([Problem(str(path), str(error), "download the file again")]) from error
