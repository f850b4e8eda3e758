"""How each of the four FLUX.1 files fills a module, planned from its header before any weights are read.

Sizes come from the tensors' shapes and, where these are ambiguous, from the file's metadata. diffusers and
transformers are imported only when a module is built.
"""

import importlib.metadata
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from trainer.common.problems import Problem, Problems
from trainer.models.description import FLUX1
from trainer.models.names import autoencoder_to_diffusers, strip_prefix, transformer_to_diffusers
from trainer.models.shapes import TensorShapes, autoencoder_shapes, clip_shapes, t5_shapes, transformer_shapes
from trainer.models.weights import Header, weight_names

CLIP_HEAD_WIDTH = 64
CLIP_LEVEL = "text_model."  # in every file
CLIP_UNUSED = ("position_ids", "text_projection.weight", "logit_scale")  # not part of the text encoder
T5_EMBEDDING, T5_EMBEDDING_AGAIN = "shared.weight", "encoder.embed_tokens.weight"  # one tensor, two names
MAX_NAMES_SHOWN = 8

Convert = Callable[[str, torch.Tensor], Mapping[str, torch.Tensor]]


@dataclass(frozen=True)
class ModulePlan:
    """How a model file fills a module.

    kind: the module's class, by name. tensors: name -> shape of each of the module's tensors. convert: called with the
    name and tensor of a file's weight, returns the module's tensors that it contains, {} if it is not used. build:
    constructs the module, importing diffusers or transformers.
    """

    header: Header
    kind: str
    tensors: Mapping[str, tuple[int, ...]]
    convert: Convert
    build: Callable[[], Any]

    @cached_property
    def module(self) -> nn.Module:
        """The module with its parameters on the meta device, built at the first access."""
        from accelerate import init_empty_weights

        with init_empty_weights(include_buffers=False):
            module = self.build()
        found = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
        found.pop(T5_EMBEDDING_AGAIN, None)
        assert found == self.tensors, f"{self.kind} has other tensors: {found.items() ^ self.tensors.items()}"
        return module


def plan_module(header: Header, plan: Callable[[Header], ModulePlan]) -> ModulePlan:
    """Return `plan(header)`. Raises `Problems` if a tensor is missing or sizes do not fit together.

    plan: one of `plan_transformer`, `plan_autoencoder`, `plan_clip` and `plan_t5`.
    """
    try:
        return plan(header)
    except Problems:
        raise
    except (ValueError, TypeError, IndexError, ZeroDivisionError) as error:
        what = f"the sizes of its tensors do not fit together ({error})"
        raise Problems([Problem(str(header.path), what, "download the original file again")]) from error


def missing_or_unexpected(plan: ModulePlan) -> list[Problem]:
    """One problem each for missing tensors, unexpected ones and those of another shape than the module's; else [].

    Each names up to eight tensors. No weights are read.
    """
    found: dict[str, tuple[int, ...]] = {}
    unexpected = []
    for name in weight_names(plan.header):
        try:
            made = plan.convert(name, torch.empty(plan.header.shape(name), device="meta"))
        except (KeyError, ValueError):
            unexpected.append(name)
        else:
            found |= {new: tuple(tensor.shape) for new, tensor in made.items()}
    expected = plan.tensors
    unexpected += [name for name in found if name not in expected]
    missing = [name for name in expected if name not in found]
    misshapen = [
        f"{name} {list(found[name])}, not {list(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    where = str(plan.header.path)
    found_wrong = (("lacks", missing), ("has unexpected", unexpected), ("has tensors of another shape", misshapen))
    return [
        Problem(where, f"as {plan.kind} it {what}: {_some(names)}", "download the original file again")
        for what, names in found_wrong
        if names
    ]


def plan_transformer(header: Header) -> ModulePlan:
    """The plan for FLUX.1's transformer, sized by the shapes in its file's header.

    If attention heads are not 128 wide, the metadata needs `axes_dims_rope`, such as "[16, 56, 56]". Raises `Problems`
    if it is wrong or a tensor is missing.
    """
    shapes = _Shapes(header)
    hidden, in_channels = shapes["img_in.weight"]
    (head_dim,) = shapes["double_blocks.0.img_attn.norm.query_norm.scale"]
    heads = hidden // head_dim
    num_double, num_single = (shapes.count(rf"{kind}_blocks\.(\d+)\.") for kind in ("double", "single"))
    txt_width, pooled_width = shapes["txt_in.weight"][1], shapes["vector_in.in_layer.weight"][1]
    guidance, axes = "guidance_in.in_layer.weight" in shapes, _rotary_axes(header, head_dim)

    def convert(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        return transformer_to_diffusers(name, tensor, hidden)

    def build() -> nn.Module:
        from diffusers import FluxTransformer2DModel

        return FluxTransformer2DModel(
            in_channels=in_channels,
            num_layers=num_double,
            num_single_layers=num_single,
            attention_head_dim=head_dim,
            num_attention_heads=heads,
            joint_attention_dim=txt_width,
            pooled_projection_dim=pooled_width,
            guidance_embeds=guidance,
            axes_dims_rope=axes,
        )

    of_file = transformer_shapes(
        in_channels, num_double, num_single, heads * head_dim, head_dim, txt_width, pooled_width, guidance
    )
    tensors: TensorShapes = {}
    for name, shape in of_file.items():
        made = transformer_to_diffusers(name, torch.empty(shape, device="meta"), heads * head_dim)
        tensors |= {new: tuple(tensor.shape) for new, tensor in made.items()}
    return ModulePlan(header, "FluxTransformer2DModel", tensors, convert, build)


def plan_autoencoder(header: Header) -> ModulePlan:
    """The plan for the autoencoder, sized by the shapes in its file's header, with FLUX.1's scale and shift.

    Raises `Problems` if a tensor is missing, and ValueError if sizes do not fit together.
    """
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
    tensors = autoencoder_shapes(
        config["in_channels"],
        config["out_channels"],
        config["block_out_channels"],
        config["layers_per_block"],
        config["latent_channels"],
    )

    def convert(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        return dict([autoencoder_to_diffusers(name, tensor, levels)])

    def build() -> nn.Module:
        from diffusers import AutoencoderKL

        return AutoencoderKL(**config)

    return ModulePlan(header, "AutoencoderKL", tensors, convert, build)


def plan_clip(header: Header, eos_token_id: int) -> ModulePlan:
    """The plan for CLIP's text encoder, sized by the shapes in its file's header.

    Attention heads are 64 wide unless the metadata has `num_attention_heads`. eos_token_id: the token whose hidden
    state is the pooled output. Raises `Problems` if a tensor is missing, and ValueError if sizes do not fit together.
    """
    shapes = _Shapes(header)
    level = "text_model." if any(name.startswith("text_model.") for name in shapes) else ""
    vocabulary, width = shapes[f"{level}embeddings.token_embedding.weight"]
    mlp, positions = (
        shapes[f"{level}{name}.weight"][0] for name in ("encoder.layers.0.mlp.fc1", "embeddings.position_embedding")
    )
    layers = shapes.count(r".*encoder\.layers\.(\d+)\.")
    heads = _metadata_int(header, "num_attention_heads", width // CLIP_HEAD_WIDTH)
    if width % heads:
        raise ValueError(f"a width of {width} in {heads} heads")
    own_level = clip_level()

    def build() -> nn.Module:
        from transformers import CLIPTextConfig, CLIPTextModel

        config = CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=mlp,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            max_position_embeddings=positions,
            hidden_act="quick_gelu",
            layer_norm_eps=1e-5,
            eos_token_id=eos_token_id,
            bos_token_id=None,
            pad_token_id=None,
        )
        return CLIPTextModel(config)

    def convert(name: str, tensor: torch.Tensor) -> Mapping[str, torch.Tensor]:
        return {} if name.endswith(CLIP_UNUSED) else {own_level + name.removeprefix(CLIP_LEVEL): tensor}

    of_file = clip_shapes(vocabulary, positions, width, mlp, layers)
    tensors = {own_level + name.removeprefix(CLIP_LEVEL): shape for name, shape in of_file.items()}
    return ModulePlan(header, "CLIPTextModel", tensors, convert, build)


def clip_level() -> str:
    """The prefix of the names of `CLIPTextModel`'s tensors: "text_model." before transformers 5, "" from then on."""
    major = int(importlib.metadata.version("transformers").partition(".")[0])
    return CLIP_LEVEL if major < 5 else ""


def plan_t5(header: Header) -> ModulePlan:
    """The plan for T5's encoder, sized by the shapes in its file's header. Raises `Problems` if a tensor is missing.

    The file may have the token embedding as `shared.weight`, as `encoder.embed_tokens.weight` or as both.
    """
    shapes = _Shapes(header)
    embedding = T5_EMBEDDING if T5_EMBEDDING in shapes else T5_EMBEDDING_AGAIN
    buckets, heads = shapes["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
    vocabulary, width = shapes[embedding]
    head_width = shapes["encoder.block.0.layer.0.SelfAttention.q.weight"][0] // heads
    mlp = shapes["encoder.block.0.layer.1.DenseReluDense.wo.weight"][1]
    layers = shapes.count(r"encoder\.block\.(\d+)\.")

    def build() -> nn.Module:
        from transformers import T5Config, T5EncoderModel

        config = T5Config(
            vocab_size=vocabulary,
            d_model=width,
            d_kv=head_width,
            d_ff=mlp,
            num_layers=layers,
            num_heads=heads,
            relative_attention_num_buckets=buckets,
            relative_attention_max_distance=128,
            layer_norm_epsilon=1e-6,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
            is_encoder_decoder=False,
            use_cache=False,
        )
        module = T5EncoderModel(config)
        module.encoder.set_input_embeddings(module.shared)  # one module under both names
        return module

    def convert(name: str, tensor: torch.Tensor) -> Mapping[str, torch.Tensor]:
        if name == embedding:
            return {T5_EMBEDDING: tensor}
        return {} if name == T5_EMBEDDING_AGAIN else {name: tensor}

    tensors = t5_shapes(vocabulary, width, head_width, heads, mlp, layers, buckets)
    return ModulePlan(header, "T5EncoderModel", tensors, convert, build)


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


def _some(names: Iterable[str]) -> str:
    names = list(names)
    rest = len(names) - MAX_NAMES_SHOWN
    return ", ".join(names[:MAX_NAMES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
