"""FLUX's two kinds of block as training runs them: the numbers of diffusers' blocks, with fewer bytes moved.

Layers that read the same input are computed together if they are adapted alike (`project`), and a single block's last
layer reads the outputs of attention and MLP without concatenating them. The gradient of an attention's output is made
contiguous, which cuDNN's attention assumes (`trainer.models.attention`).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from diffusers import FluxTransformer2DModel
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux import (
    FluxAttention,
    FluxSingleTransformerBlock,
    FluxTransformerBlock,
)
from torch import Tensor, nn

from trainer.kernels.qk_norm_rope import can_norm_and_rotate, norm_and_rotate
from trainer.lora.low_rank import place_together
from trainer.lora.projection import adapters_of, are_alike, can_go_together, project

Rotary = tuple[Tensor, Tensor]


def use_training_blocks(transformer: FluxTransformer2DModel) -> None:
    """Switch the transformer's blocks, in place, to `DoubleBlock` and `SingleBlock`.

    They give the same results with less memory traffic. Weights, names and all other parts stay the same.
    """
    for block in transformer.transformer_blocks:
        block.__class__ = DoubleBlock
    for block in transformer.single_transformer_blocks:
        block.__class__ = SingleBlock
    transformer._repeated_blocks = [DoubleBlock.__name__, SingleBlock.__name__]  # what is compiled
    for attn in (module for module in transformer.modules() if isinstance(module, FluxAttention)):
        norms = [module for name, module in attn.named_children() if name.startswith("norm_")]
        attn.can_norm_and_rotate = can_norm_and_rotate(transformer.device, norms, attn.head_dim)  # type: ignore[assignment]


@contextmanager
def training_blocks(transformer: FluxTransformer2DModel) -> Iterator[None]:
    """While the block runs, the transformer's blocks are `DoubleBlock` and `SingleBlock`; then they are as before."""
    before, repeated = [(block, type(block)) for block in _blocks(transformer)], transformer._repeated_blocks
    use_training_blocks(transformer)
    try:
        yield
    finally:
        for block, kind in before:
            block.__class__ = kind
        transformer._repeated_blocks = repeated


def _blocks(transformer: FluxTransformer2DModel) -> list[nn.Module]:
    return [*transformer.transformer_blocks, *transformer.single_transformer_blocks]


def place_adapters_together(transformer: FluxTransformer2DModel) -> None:
    """Make the adapters of layers that are computed together adjacent in memory, so that one kernel can cast them all.

    Layers that read the same input are computed together if `can_go_together`; others are left as they are. The
    parameters stay the same objects with the same values, only their storage changes.
    """
    modulation = [_modulation_of_double(block) for block in transformer.transformer_blocks]
    modulation += [_modulation_of_single(block) for block in transformer.single_transformer_blocks]
    for group in [*layers_on_one_input(transformer), *modulation]:
        if can_go_together(group):
            place_together(*adapters_of(group))


def layers_on_one_input(transformer: FluxTransformer2DModel) -> list[tuple[nn.Module, ...]]:
    """The linear layers of all blocks except modulation, in groups of those that read the same input.

    A layer that shares its input with no other is a group of one.
    """
    groups = [group for block in transformer.transformer_blocks for group in _groups_of_double(block)]
    return groups + [group for block in transformer.single_transformer_blocks for group in _groups_of_single(block)]


def _groups_of_double(block: Any) -> list[tuple[nn.Module, ...]]:
    attn, mlps = block.attn, (block.ff.net, block.ff_context.net)
    alone = [attn.to_out[0], attn.to_add_out, *(layer for up, _, down in mlps for layer in (up.proj, down))]
    return [_qkv(attn), _added_qkv(attn), *((layer,) for layer in alone)]


def _groups_of_single(block: Any) -> list[tuple[nn.Module, ...]]:
    return [_firsts(block), (block.proj_out,)]


def _modulation_of_double(block: Any) -> tuple[nn.Module, ...]:
    return block.norm1.linear, block.norm1_context.linear


def _modulation_of_single(block: Any) -> tuple[nn.Module, ...]:
    return (block.norm.linear,)


def _qkv(attn: Any) -> tuple[nn.Module, ...]:
    return attn.to_q, attn.to_k, attn.to_v


def _added_qkv(attn: Any) -> tuple[nn.Module, ...]:
    return attn.add_q_proj, attn.add_k_proj, attn.add_v_proj


def _firsts(block: Any) -> tuple[nn.Module, ...]:
    return block.proj_mlp, *_qkv(block.attn)


class DoubleBlock(FluxTransformerBlock):
    """FLUX's double block: image and text attend to each other, each with its own weights."""

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        image_rotary_emb: Rotary,
        joint_attention_kwargs: dict[str, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Returns the new text tokens [B, L, D] and image tokens [B, I, D].

        hidden_states: the image tokens; encoder_hidden_states: the text tokens; temb: embedding of timestep, guidance
        and pooled text, [B, D]; image_rotary_emb: cosines and sines, each [L + I, head width], text first;
        joint_attention_kwargs: None, or `attention_mask`, [B, 1, 1, L + I], True for tokens to attend to.
        """
        img, txt, attn = hidden_states, encoder_hidden_states, self.attn
        of_img, of_txt = project((F.silu(temb),), _modulation_of_double(self))
        shift_img, scale_img, gate_img, *mlp_img = _by_token(of_img).chunk(6, dim=-1)
        shift_txt, scale_txt, gate_txt, *mlp_txt = _by_token(of_txt).chunk(6, dim=-1)
        normed_img = _modulated(self.norm1.norm, img, shift_img, scale_img)
        normed_txt = _modulated(self.norm1_context.norm, txt, shift_txt, scale_txt)
        qkv_img = project((normed_img,), _qkv(attn))
        qkv_txt = project((normed_txt,), _added_qkv(attn))
        norms = (attn.norm_added_q, attn.norm_q), (attn.norm_added_k, attn.norm_k)
        attended = _attend(attn, (qkv_txt, qkv_img), norms, image_rotary_emb, joint_attention_kwargs)
        for_txt, for_img = attended.split((txt.shape[1], img.shape[1]), dim=1)
        (out_img,) = project((for_img.contiguous(),), (attn.to_out[0],))
        (out_txt,) = project((for_txt.contiguous(),), (attn.to_add_out,))
        img, txt = img + gate_img * out_img, txt + gate_txt * out_txt
        return _mlp(self.norm2_context, self.ff_context, txt, mlp_txt), _mlp(self.norm2, self.ff, img, mlp_img)


class SingleBlock(FluxSingleTransformerBlock):
    """FLUX's single block: text and image in one sequence, attention parallel to the MLP."""

    joint_sequence = True  # see `trainer.models.transformer.takes_joint_sequence`

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None,
        temb: Tensor,
        image_rotary_emb: Rotary,
        joint_attention_kwargs: dict[str, Tensor] | None = None,
    ) -> tuple[Tensor | None, Tensor]:
        """Takes the tokens as one sequence or as two, and returns them in the same form, the text first.

        One sequence: hidden_states holds text and image tokens, [B, L + I, D], and encoder_hidden_states is None;
        returns None and all tokens. Two: hidden_states holds the image tokens, [B, I, D], and encoder_hidden_states the
        text tokens, [B, L, D]; returns text and image tokens. temb: embedding of timestep, guidance and pooled text,
        [B, D]; image_rotary_emb: cosines and sines, each [L + I, head width]; joint_attention_kwargs: None, or
        `attention_mask`, [B, 1, 1, L + I], True for tokens to attend to.
        """
        txt, tokens, attn = encoder_hidden_states, hidden_states, self.attn
        if txt is not None:
            tokens = torch.cat([txt, tokens], dim=1)
        (modulation,) = project((F.silu(temb),), _modulation_of_single(self))
        shift, scale, gate = _by_token(modulation).chunk(3, dim=-1)
        normed = _modulated(self.norm.norm, tokens, shift, scale)
        up, *qkv = project((normed,), _firsts(self))
        norms = (attn.norm_q,), (attn.norm_k,)
        attended = _attend(attn, (qkv,), norms, image_rotary_emb, joint_attention_kwargs)
        if not are_alike((self.proj_out,)):  # then the inputs are concatenated, and the gradient is a slice
            attended = _DenseGradient.apply(attended)
        (out,) = project((attended, up), (self.proj_out,), activated=(False, True))
        tokens = tokens + gate * out
        return (None, tokens) if txt is None else (tokens[:, : txt.shape[1]], tokens[:, txt.shape[1] :])


class _DenseGradient(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, tensor: Tensor) -> Tensor:  # type: ignore[override]
        return tensor.view_as(tensor)

    @staticmethod
    def backward(_ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient.contiguous()


def _by_token(modulation: Tensor) -> Tensor:
    """A modulation layer's output, [B, N] for all tokens, as [B, 1, N]; [B, tokens, N] stays as it is.

    `trainer.routing.adapters` makes it differ between tokens.
    """
    return modulation if modulation.ndim == 3 else modulation[:, None]


def _modulated(norm: nn.Module, tokens: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return norm(tokens) * (1 + scale) + shift


def _attend(
    attn: FluxAttention,
    streams: Sequence[Sequence[Tensor]],
    norms: Sequence[Sequence[nn.Module]],
    rotary: Rotary,
    arguments: dict[str, Tensor] | None,
) -> Tensor:
    """Attention, [B, tokens, D]. streams: query, key and value of text and of image, or of both as one sequence; norms:
    those of all queries, and those of all keys."""
    apart = [[each.unflatten(-1, (-1, attn.head_dim)) for each in qkv] for qkv in streams]
    queries, keys, values = zip(*apart, strict=True)
    rotate = norm_and_rotate if attn.can_norm_and_rotate else _norm_and_rotate
    query, key = (rotate(heads, own, *rotary) for heads, own in zip((queries, keys), norms, strict=True))
    mask = arguments["attention_mask"] if arguments else None
    backend = cast(Any, attn.processor)._attention_backend
    attended = dispatch_attention_fn(query, key, _concatenated(values), attn_mask=mask, backend=backend)
    return attended.flatten(2, 3)


def _norm_and_rotate(parts: Sequence[Tensor], norms: Sequence[nn.Module], cosines: Tensor, sines: Tensor) -> Tensor:
    """`norm_and_rotate` in plain operations."""
    normed = _concatenated([norm(part) for norm, part in zip(norms, parts, strict=True)])
    return cast(Tensor, apply_rotary_emb(normed, cast(Any, (cosines, sines)), sequence_dim=1))


def _concatenated(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=1)


def _mlp(norm: nn.Module, mlp: nn.Module, tokens: Tensor, modulation: Sequence[Tensor]) -> Tensor:
    """The tokens plus the gated MLP. modulation: shift, scale and gate."""
    shift, scale, gate = modulation
    up, _, down = cast(Any, mlp).net
    (hidden,) = project((_modulated(norm, tokens, shift, scale),), (up.proj,))
    (out,) = project((hidden,), (down,), activated=(True,))
    return tokens + gate * out
