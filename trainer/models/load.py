"""Loads the four FLUX.1 files as diffusers and transformers modules: strictly, offline, at any size.

Sizes come from the tensors' shapes and, where these are ambiguous, from the file's metadata. Missing and unexpected
tensors are found in the header, before any weights are read.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, FluxTransformer2DModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from trainer.common.problems import Problem, Problems, raise_if_any
from trainer.models.description import FLUX1, BaseModel
from trainer.models.names import autoencoder_to_diffusers, strip_prefix, transformer_to_diffusers
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

CLIP_HEAD_WIDTH = 64
CLIP_UNUSED = ("position_ids", "text_projection.weight", "logit_scale")  # not part of the text encoder
T5_EMBEDDING, T5_EMBEDDING_AGAIN = "shared.weight", "encoder.embed_tokens.weight"  # one tensor, two names
MAX_NAMES_SHOWN = 8

Convert = Callable[[str, torch.Tensor], Mapping[str, torch.Tensor]]


@dataclass(frozen=True)
class Plan:
    """A module without weights, and how a file's tensors are converted to its own."""

    header: Header
    module: nn.Module
    convert: Convert


def load_transformer(
    path: Path,
    device: torch.device | str,
    dtype: torch.dtype,
    base: WeightFormat | Precision = "bf16",
    waiting: tuple[str, ...] = (),
    joined: Callable[[FluxTransformer2DModel], Sequence[Sequence[nn.Module]]] | None = None,
) -> FluxTransformer2DModel:
    """FLUX.1's transformer, frozen; `config.guidance_embeds` tells FLUX.1-dev's from FLUX.1-schnell's.

    base: the format of the blocks' linear layers, where bf16 means dtype; each layer is quantized on the device as it
    arrives. waiting: prefixes of the tensors that are then kept in host memory. joined: returns the groups of layers
    that share an input and are stored as one in fp8 (`quantized.allocate`). Raises `Problems` that name every tensor
    that is missing, unexpected or of another shape.
    """
    plan = plan_module(_header(path), plan_transformer)
    weight_format = base if isinstance(base, WeightFormat) else WeightFormat.for_device(base, device)
    if weight_format.precision == "bf16":
        return _fill(plan, device, dtype, waiting=waiting)
    log_format(weight_format, device)

    def change(transformer: FluxTransformer2DModel) -> None:
        make_quantized(transformer, weight_format)
        allocate(transformer, weight_format, device, dtype, joined(transformer) if joined else (), waiting)

    return _fill(plan, device, dtype, change, waiting)


def load_autoencoder(path: Path, device: torch.device | str, dtype: torch.dtype) -> AutoencoderKL:
    """FLUX.1's autoencoder, frozen. Raises `Problems`."""
    return _fill(plan_module(_header(path), plan_autoencoder), device, dtype)


def load_clip(path: Path, device: torch.device | str, dtype: torch.dtype, eos_token_id: int) -> CLIPTextModel:
    """CLIP-L's text encoder, frozen; its pooled output is the state at `eos_token_id`. Raises `Problems`."""
    plan = plan_module(_header(path), lambda header: plan_clip(header, eos_token_id))
    return _fill(plan, device, dtype)


def load_t5(path: Path, device: torch.device | str, dtype: torch.dtype) -> T5EncoderModel:
    """T5 v1.1's encoder, frozen. Raises `Problems`."""
    return _fill(plan_module(_header(path), plan_t5), device, dtype)


def base_model_of(path: Path) -> BaseModel:
    """The base model whose transformer a file holds. Raises ValueError and OSError as `read_header`."""
    header = read_header(path)
    return FLUX1.recognise(path, header.tensors, header.metadata)


def plan_module(header: Header, plan: Callable[[Header], Plan]) -> Plan:
    """`plan(header)`. Raises `Problems` if no module can have the file's sizes."""
    try:
        return plan(header)
    except Problems:
        raise
    except (ValueError, TypeError, IndexError, ZeroDivisionError) as error:
        what = f"the sizes of its tensors do not fit together ({error})"
        raise Problems([Problem(str(header.path), what, "download the original file again")]) from error


def missing_or_unexpected(plan: Plan) -> list[Problem]:
    """Tensors that are missing, unexpected or of another shape than the module's; reads no weights."""
    found: dict[str, tuple[int, ...]] = {}
    unexpected = []
    for name in weight_names(plan.header):
        try:
            made = plan.convert(name, torch.empty(plan.header.shape(name), device="meta"))
        except (KeyError, ValueError):
            unexpected.append(name)
        else:
            found |= {new: tuple(tensor.shape) for new, tensor in made.items()}
    expected = {name: tuple(tensor.shape) for name, tensor in plan.module.state_dict().items()}
    expected.pop(T5_EMBEDDING_AGAIN, None)
    unexpected += [name for name in found if name not in expected]
    missing = [name for name in expected if name not in found]
    misshapen = [
        f"{name} {list(found[name])}, not {list(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    where = str(plan.header.path)
    kind = type(plan.module).__name__
    found_wrong = (("lacks", missing), ("has unexpected", unexpected), ("has tensors of another shape", misshapen))
    return [
        Problem(where, f"as {kind} it {what}: {_some(names)}", "download the original file again")
        for what, names in found_wrong
        if names
    ]


def plan_transformer(header: Header) -> Plan:
    """The transformer, sized by its file; heads that are not 128 wide need metadata `axes_dims_rope`."""
    shapes = _Shapes(header)
    hidden, in_channels = shapes["img_in.weight"]
    (head_dim,) = shapes["double_blocks.0.img_attn.norm.query_norm.scale"]
    module = _on_meta(
        lambda: FluxTransformer2DModel(
            in_channels=in_channels,
            num_layers=shapes.count(r"double_blocks\.(\d+)\."),
            num_single_layers=shapes.count(r"single_blocks\.(\d+)\."),
            attention_head_dim=head_dim,
            num_attention_heads=hidden // head_dim,
            joint_attention_dim=shapes["txt_in.weight"][1],
            pooled_projection_dim=shapes["vector_in.in_layer.weight"][1],
            guidance_embeds="guidance_in.in_layer.weight" in shapes,
            axes_dims_rope=_rotary_axes(header, head_dim),
        )
    )
    return Plan(header, module, lambda name, tensor: transformer_to_diffusers(name, tensor, hidden))


def plan_autoencoder(header: Header) -> Plan:
    """The autoencoder, sized by its file, with FLUX.1's scale and shift."""
    shapes = _Shapes(header)
    levels = shapes.count(r"encoder\.down\.(\d+)\.")
    config: dict[str, Any] = {
        "in_channels": shapes["encoder.conv_in.weight"][1],
        "out_channels": shapes["decoder.conv_out.weight"][0],
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "block_out_channels": tuple(shapes[f"encoder.down.{level}.block.0.conv1.weight"][0] for level in range(levels)),
        "layers_per_block": shapes.count(r"encoder\.down\.0\.block\.(\d+)\."),
        "latent_channels": shapes["decoder.conv_in.weight"][1],
        "norm_num_groups": 32,
        "sample_size": 1024,
        "scaling_factor": FLUX1.latents.scale,
        "shift_factor": FLUX1.latents.shift,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "mid_block_add_attention": True,
    }
    module = _on_meta(lambda: AutoencoderKL(**config))
    return Plan(header, module, lambda name, tensor: dict([autoencoder_to_diffusers(name, tensor, levels)]))


def plan_clip(header: Header, eos_token_id: int) -> Plan:
    """CLIP's text encoder, sized by its file; heads are 64 wide unless metadata `num_attention_heads` is there."""
    shapes = _Shapes(header)
    level = "text_model." if any(name.startswith("text_model.") for name in shapes) else ""
    vocabulary, width = shapes[f"{level}embeddings.token_embedding.weight"]
    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=shapes[f"{level}encoder.layers.0.mlp.fc1.weight"][0],
        num_hidden_layers=shapes.count(r".*encoder\.layers\.(\d+)\."),
        num_attention_heads=_metadata_int(header, "num_attention_heads", width // CLIP_HEAD_WIDTH),
        max_position_embeddings=shapes[f"{level}embeddings.position_embedding.weight"][0],
        hidden_act="quick_gelu",
        layer_norm_eps=1e-5,
        eos_token_id=eos_token_id,
        bos_token_id=None,
        pad_token_id=None,
    )
    module = _on_meta(lambda: CLIPTextModel(config))
    own_level = "text_model." if hasattr(module, "text_model") else ""  # which transformers 5 dropped

    def convert(name: str, tensor: torch.Tensor) -> Mapping[str, torch.Tensor]:
        return {} if name.endswith(CLIP_UNUSED) else {own_level + name.removeprefix("text_model."): tensor}

    return Plan(header, module, convert)


def plan_t5(header: Header) -> Plan:
    """T5's encoder, sized by its file, which has the embedding under one of its names or under both."""
    shapes = _Shapes(header)
    embedding = T5_EMBEDDING if T5_EMBEDDING in shapes else T5_EMBEDDING_AGAIN
    buckets, heads = shapes["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
    config = T5Config(
        vocab_size=shapes[embedding][0],
        d_model=shapes[embedding][1],
        d_kv=shapes["encoder.block.0.layer.0.SelfAttention.q.weight"][0] // heads,
        d_ff=shapes["encoder.block.0.layer.1.DenseReluDense.wo.weight"][1],
        num_layers=shapes.count(r"encoder\.block\.(\d+)\."),
        num_heads=heads,
        relative_attention_num_buckets=buckets,
        relative_attention_max_distance=128,
        layer_norm_epsilon=1e-6,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        is_encoder_decoder=False,
        use_cache=False,
    )

    def convert(name: str, tensor: torch.Tensor) -> Mapping[str, torch.Tensor]:
        if name == embedding:
            return {T5_EMBEDDING: tensor}
        return {} if name == T5_EMBEDDING_AGAIN else {name: tensor}

    module = _on_meta(lambda: T5EncoderModel(config))
    module.encoder.set_input_embeddings(module.shared)  # one module under both names
    return Plan(header, module, convert)


def _fill(
    plan: Plan,
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


def _on_meta(build: Callable[[], nn.Module]) -> Any:
    with init_empty_weights(include_buffers=False):
        return build()


class _Shapes(dict[str, tuple[int, ...]]):
    """The shapes of a file's tensors by unprefixed name. Raises `Problems` for a name that is not there."""

    def __init__(self, header: Header):
        super().__init__({strip_prefix(name): info.shape for name, info in header.tensors.items()})
        self.path = header.path

    def __missing__(self, name: str) -> tuple[int, ...]:
        raise Problems(
            [Problem(str(self.path), f"has no tensor {name}", "check that this is the file that the flag needs")]
        )

    def count(self, pattern: str) -> int:
        """One more than the largest number that the pattern matches at the start of a name."""
        return 1 + max((int(match[1]) for name in self if (match := re.match(pattern, name))), default=-1)


def _rotary_axes(header: Header, head_dim: int) -> tuple[int, int, int]:
    stated = header.metadata.get("axes_dims_rope")
    if stated is None and head_dim == FLUX1.blocks.head_width:
        return FLUX1.blocks.axes
    try:
        axes = tuple(int(axis) for axis in json.loads(stated or ""))
    except (ValueError, TypeError):
        axes = ()
    if len(axes) != 3 or sum(axes) != head_dim:
        what = f"heads are {head_dim} wide and metadata axes_dims_rope is {stated!r}"
        raise Problems(
            [Problem(str(header.path), what, f'write three numbers that add up to {head_dim}, such as "[16, 56, 56]"')]
        )
    return axes[0], axes[1], axes[2]


def _metadata_int(header: Header, key: str, default: int) -> int:
    stated = header.metadata.get(key, str(default))
    if not stated.isdecimal() or int(stated) < 1:
        raise Problems([Problem(str(header.path), f"metadata {key} is {stated!r}", "write a positive integer")])
    return int(stated)


def _header(path: Path) -> Header:
    try:
        return read_header(path)
    except (ValueError, OSError) as error:
        raise Problems([Problem(str(path), str(error), "download the file again")]) from error


def _some(names: Iterable[str]) -> str:
    names = list(names)
    rest = len(names) - MAX_NAMES_SHOWN
    return ", ".join(names[:MAX_NAMES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
