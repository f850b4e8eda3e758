"""The tensors that each of the four modules has, by name and shape, computed from a few sizes.

With them a file can be checked, and its layers listed, without importing diffusers and transformers, which takes
seconds. `trainer.models.load` verifies them against the real modules whenever it builds one. Names are those of the
modules, except for the transformer, whose names are those of the original file.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

TensorShapes = dict[str, tuple[int, ...]]
MLP_RATIO = 4  # width of the transformer's MLPs, in widths of the model
TIME_FEATURES = 256  # sinusoidal features of timestep and guidance
NORM_GROUPS = 32  # of the autoencoder's group norms


def transformer_shapes(
    in_channels: int,
    num_double: int,
    num_single: int,
    width: int,
    head_dim: int,
    txt_width: int,
    pooled_width: int,
    guidance: bool,
) -> TensorShapes:
    """Name -> shape of the tensors of FLUX.1's transformer, in the names of the original file.

    in_channels: features of an image token. num_double, num_single: numbers of blocks. width: of the hidden states.
    head_dim: of one attention head. txt_width: of T5's hidden states. pooled_width: of CLIP's pooled output. guidance:
    whether a guidance value is embedded.
    """
    mlp = MLP_RATIO * width
    shapes = _linear("img_in", in_channels, width) | _linear("txt_in", txt_width, width)
    inputs = {"time_in": TIME_FEATURES, "vector_in": pooled_width}
    if guidance:
        inputs["guidance_in"] = TIME_FEATURES
    for name, features in inputs.items():
        shapes |= _linear(f"{name}.in_layer", features, width) | _linear(f"{name}.out_layer", width, width)
    for index in range(num_double):
        for stream in ("img", "txt"):
            start = f"double_blocks.{index}.{stream}"
            shapes |= _linear(f"{start}_mod.lin", width, 6 * width)
            shapes |= _linear(f"{start}_attn.qkv", width, 3 * width) | _linear(f"{start}_attn.proj", width, width)
            shapes |= _query_key_norms(f"{start}_attn.norm", head_dim)
            shapes |= _linear(f"{start}_mlp.0", width, mlp) | _linear(f"{start}_mlp.2", mlp, width)
    for index in range(num_single):
        start = f"single_blocks.{index}"
        shapes |= _linear(f"{start}.modulation.lin", width, 3 * width)
        shapes |= _linear(f"{start}.linear1", width, 3 * width + mlp) | _linear(f"{start}.linear2", width + mlp, width)
        shapes |= _query_key_norms(f"{start}.norm", head_dim)
    shapes |= _linear("final_layer.adaLN_modulation.1", width, 2 * width)
    return shapes | _linear("final_layer.linear", width, in_channels)


def autoencoder_shapes(
    in_channels: int, out_channels: int, widths: Sequence[int], blocks_per_level: int, latent_channels: int
) -> TensorShapes:
    """Name -> shape of the tensors of `AutoencoderKL`. Raises ValueError if a width is not a multiple of 32.

    widths: channels of each level, from the highest resolution down. blocks_per_level: residual blocks in each level of
    the encoder; the decoder has one more.
    """
    if any(width % NORM_GROUPS for width in widths):
        raise ValueError(f"channels {list(widths)} are not multiples of {NORM_GROUPS}")
    shapes = _conv("encoder.conv_in", in_channels, widths[0])
    for level, (into, out) in enumerate(zip([widths[0], *widths[:-1]], widths, strict=True)):
        start = f"encoder.down_blocks.{level}"
        shapes |= _resnets(f"{start}.resnets", into, out, blocks_per_level)
        if level < len(widths) - 1:
            shapes |= _conv(f"{start}.downsamplers.0.conv", out, out)
    upwards = widths[::-1]
    shapes |= _conv("decoder.conv_in", latent_channels, upwards[0])
    for level, (into, out) in enumerate(zip([upwards[0], *upwards[:-1]], upwards, strict=True)):
        start = f"decoder.up_blocks.{level}"
        shapes |= _resnets(f"{start}.resnets", into, out, blocks_per_level + 1)
        if level < len(upwards) - 1:
            shapes |= _conv(f"{start}.upsamplers.0.conv", out, out)
    for part, last, out in (("encoder", widths[-1], 2 * latent_channels), ("decoder", widths[0], out_channels)):
        middle, width = f"{part}.mid_block", widths[-1]
        shapes |= _resnets(f"{middle}.resnets", width, width, 2) | _norm(f"{middle}.attentions.0.group_norm", width)
        for layer in ("to_q", "to_k", "to_v", "to_out.0"):
            shapes |= _linear(f"{middle}.attentions.0.{layer}", width, width)
        shapes |= _norm(f"{part}.conv_norm_out", last) | _conv(f"{part}.conv_out", last, out)
    return shapes


def clip_shapes(vocabulary: int, positions: int, width: int, mlp: int, layers: int) -> TensorShapes:
    """Name -> shape of the tensors of CLIP's text encoder; names start with `text_model.`, as in the published files.

    vocabulary: number of tokens. positions: the maximum length in tokens. mlp: inner width of the MLPs.
    """
    shapes: TensorShapes = {
        "text_model.embeddings.token_embedding.weight": (vocabulary, width),
        "text_model.embeddings.position_embedding.weight": (positions, width),
    }
    for index in range(layers):
        start = f"text_model.encoder.layers.{index}"
        for layer in ("k_proj", "v_proj", "q_proj", "out_proj"):
            shapes |= _linear(f"{start}.self_attn.{layer}", width, width)
        shapes |= _norm(f"{start}.layer_norm1", width) | _norm(f"{start}.layer_norm2", width)
        shapes |= _linear(f"{start}.mlp.fc1", width, mlp) | _linear(f"{start}.mlp.fc2", mlp, width)
    return shapes | _norm("text_model.final_layer_norm", width)


def t5_shapes(
    vocabulary: int, width: int, head_width: int, heads: int, mlp: int, layers: int, buckets: int
) -> TensorShapes:
    """Name -> shape of the tensors of T5 v1.1's encoder; its token embedding is named `shared.weight`.

    vocabulary: number of tokens. head_width: of one attention head. mlp: inner width of the feed-forward layers.
    buckets: of relative positions.
    """
    inner = heads * head_width
    shapes: TensorShapes = {"shared.weight": (vocabulary, width)}
    for index in range(layers):
        attention, feed_forward = (f"encoder.block.{index}.layer.{part}" for part in (0, 1))
        for layer in "qkv":
            shapes[f"{attention}.SelfAttention.{layer}.weight"] = inner, width
        shapes[f"{attention}.SelfAttention.o.weight"] = width, inner
        if index == 0:
            shapes[f"{attention}.SelfAttention.relative_attention_bias.weight"] = buckets, heads
        for layer in ("wi_0", "wi_1"):
            shapes[f"{feed_forward}.DenseReluDense.{layer}.weight"] = mlp, width
        shapes[f"{feed_forward}.DenseReluDense.wo.weight"] = width, mlp
        shapes |= {f"{part}.layer_norm.weight": (width,) for part in (attention, feed_forward)}
    return shapes | {"encoder.final_layer_norm.weight": (width,)}


def skeleton(shapes: Mapping[str, tuple[int, ...]]) -> nn.Module:
    """A module tree on the meta device with frozen parameters of these names and shapes.

    A matrix with a bias belongs to an `nn.Linear`. The tree cannot compute; memory plans and adapters' ranks are
    computed from its layers.
    """
    root = nn.Module()
    for name, shape in shapes.items():
        owner, _, leaf = name.rpartition(".")
        is_linear = leaf == "weight" and len(shape) == 2 and f"{owner}.bias" in shapes
        module = _descend(root, owner, _EmptyLinear(*shape) if is_linear else None)
        module.register_parameter(leaf, nn.Parameter(torch.empty(shape, device="meta"), requires_grad=False))
    return root


class _EmptyLinear(nn.Linear):
    """Knows its sizes; `skeleton` registers its parameters. nn.Linear's own constructor would initialise them."""

    def __init__(self, out_features: int, in_features: int):
        nn.Module.__init__(self)
        self.in_features, self.out_features = in_features, out_features


def _descend(root: nn.Module, name: str, leaf: nn.Module | None) -> nn.Module:
    *parents, last = name.split(".")
    module = root
    for part in parents:
        if part not in module._modules:
            module.add_module(part, nn.Module())
        module = module.get_submodule(part)
    if last not in module._modules:
        module.add_module(last, leaf or nn.Module())
    return module.get_submodule(last)


def _linear(name: str, in_features: int, out_features: int) -> TensorShapes:
    return {f"{name}.weight": (out_features, in_features), f"{name}.bias": (out_features,)}


def _conv(name: str, into: int, out: int, side: int = 3) -> TensorShapes:
    return {f"{name}.weight": (out, into, side, side), f"{name}.bias": (out,)}


def _norm(name: str, width: int) -> TensorShapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _query_key_norms(name: str, head_dim: int) -> TensorShapes:
    return {f"{name}.query_norm.scale": (head_dim,), f"{name}.key_norm.scale": (head_dim,)}


def _resnets(name: str, into: int, out: int, count: int) -> TensorShapes:
    shapes: TensorShapes = {}
    for index in range(count):
        start, first = f"{name}.{index}", into if index == 0 else out
        shapes |= _norm(f"{start}.norm1", first) | _conv(f"{start}.conv1", first, out)
        shapes |= _norm(f"{start}.norm2", out) | _conv(f"{start}.conv2", out, out)
        if first != out:
            shapes |= _conv(f"{start}.conv_shortcut", first, out, side=1)
    return shapes
