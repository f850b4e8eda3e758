"""One forward pass of diffusers' FLUX transformer, written out for training.

It differs from `FluxTransformer2DModel.forward` in five ways. Timestep and guidance stay in float32 until they are
embedded (the original rounds them to bfloat16, in steps of 4 in 1000). The rotary table is computed once per shape. The
backward pass ends at the first block that has something to train: blocks before it run without autograd and keep
nothing. The first blocks that it reaches can be checkpointed, that is recomputed (see `trainer.memory.bytes`). Any
block can be swapped (see `trainer.models.offload`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import FluxTransformer2DModel
from torch import nn
from torch.utils.checkpoint import checkpoint

from trainer.models.offload import block_swap

RotaryTable = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Conditioning:
    """What a batch of B prompts conditions the transformer on.

    txt: T5's hidden states [B, L, D]. pooled: CLIP's pooled output [B, P]. txt_mask: [B, L], True for tokens that may
    be attended to; None for all.
    """

    txt: torch.Tensor
    pooled: torch.Tensor
    txt_mask: torch.Tensor | None = None

    @staticmethod
    def joined(texts: "Sequence[Conditioning]") -> "Conditioning":
        """The conditioning of a batch from those of its images, of which all have a mask or none."""
        masks = [text.txt_mask for text in texts if text.txt_mask is not None]
        assert len(masks) in (0, len(texts)), "masked and unmasked texts in one batch"
        txt, pooled = torch.cat([text.txt for text in texts]), torch.cat([text.pooled for text in texts])
        return Conditioning(txt, pooled, torch.cat(masks) if masks else None)

    def to(self, device: torch.device, dtype: torch.dtype) -> "Conditioning":
        mask = None if self.txt_mask is None else self.txt_mask.to(device)
        return Conditioning(self.txt.to(device, dtype), self.pooled.to(device, dtype), mask)

    def at(self, rows: torch.Tensor | slice) -> "Conditioning":
        """The conditioning of some images of the batch. rows: their indices or a slice."""
        mask = None if self.txt_mask is None else self.txt_mask[rows]
        return Conditioning(self.txt[rows], self.pooled[rows], mask)


def takes_guidance(transformer: nn.Module) -> bool:
    """Whether a transformer embeds a guidance value; FLUX.1-schnell's does not."""
    return hasattr(transformer.time_text_embed, "guidance_embedder")


def pack_latents(latents: torch.Tensor) -> torch.Tensor:
    """Latents [B, C, H, W] as tokens [B, H/2 * W/2, C * 4], one per 2x2 patch."""
    batch, channels, height, width = latents.shape
    patches = latents.view(batch, channels, height // 2, 2, width // 2, 2)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, (height // 2) * (width // 2), channels * 4)


def unpack_latents(tokens: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Tokens [B, H/2 * W/2, C * 4] as latents [B, C, H, W], as `pack_latents` packed them. height, width: H and W."""
    batch, _, features = tokens.shape
    patches = tokens.view(batch, height // 2, width // 2, features // 4, 2, 2)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(batch, features // 4, height, width)


def rotary_table(
    transformer: FluxTransformer2DModel, height: int, width: int, txt_length: int, device: torch.device
) -> RotaryTable:
    """Cosines and sines, each [text and image tokens, head width] in float32, for text followed by one image.

    Text is at position (0, 0, 0), an image token at (0, row, column). height, width: of the latents, twice the number
    of rows and columns of tokens.
    """
    rows, columns = torch.meshgrid(torch.arange(height // 2), torch.arange(width // 2), indexing="ij")
    img_ids = torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).reshape(-1, 3)
    ids = torch.cat([img_ids.new_zeros(txt_length, 3), img_ids])
    cosines, sines = transformer.pos_embed(ids)  # on the host, in float64: the same on every device
    return cosines.float().to(device), sines.float().to(device)


def predict_velocity(
    transformer: FluxTransformer2DModel,
    noisy: torch.Tensor,
    sigmas: torch.Tensor,
    conditioning: Conditioning,
    guidance: float | torch.Tensor,
    rotary: RotaryTable,
    checkpointed: int | bool = 0,
) -> torch.Tensor:
    """The velocity that the transformer predicts at x_sigma, [B, C, H, W].

    noisy: x_sigma, [B, C, H, W] in the compute dtype. sigmas: [B] in float32. guidance: the value to embed, one for all
    or float32 [B]; ignored by a transformer without guidance. checkpointed: how many blocks are recomputed in the
    backward pass, from the first one that it reaches on; True for all.
    """
    height, width = noisy.shape[-2:]
    img = transformer.x_embedder(pack_latents(noisy))
    txt = transformer.context_embedder(conditioning.txt)
    temb = _time_embedding(transformer, sigmas, guidance, conditioning.pooled)
    attention = _attention_arguments(conditioning.txt_mask, img.shape[1])
    blocks = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
    first = first_in_backward(blocks, (img, txt, temb))
    recomputed = range(first, len(blocks) if checkpointed is True else first + checkpointed)
    swap, txt_length = block_swap(transformer), txt.shape[1]
    for index, block in enumerate(blocks):
        if txt is not None and takes_joint_sequence(block):
            txt, img = None, torch.cat([txt, img], dim=1)
        if index == first and _is_compiled(block):
            txt, img = None if txt is None else _like_later_inputs(txt), _like_later_inputs(img)
        if swap:
            swap.load(index)
        with torch.set_grad_enabled(index >= first and torch.is_grad_enabled()):
            txt, img = _run_block(block, img, txt, temb, rotary, attention, index in recomputed)
        if swap:
            txt, img = swap.load_in_backward(index, txt, img, first)
    img = img if txt is not None else img[:, txt_length:]
    tokens = transformer.proj_out(transformer.norm_out(img, temb))
    return unpack_latents(tokens, height, width)


def first_in_backward(blocks: Sequence[nn.Module], inputs: Sequence[torch.Tensor]) -> int:
    """The index of the first block that the backward pass has to reach; the number of blocks if it reaches none.

    It is the first block with a parameter to train, or 0 if an input needs a gradient itself, as the time embedding
    does while CLIP is trained. inputs: what the blocks read apart from each other's outputs.
    """
    if not torch.is_grad_enabled():
        return len(blocks)
    if any(each.requires_grad for each in inputs):
        return 0
    trained = (any(parameter.requires_grad for parameter in block.parameters()) for block in blocks)
    return next((index for index, is_trained in enumerate(trained) if is_trained), len(blocks))


def takes_joint_sequence(block: nn.Module) -> bool:
    """Whether a block takes text and image tokens as one sequence, `hidden_states`, text first.

    `encoder_hidden_states` is then None, and the block returns both in this form, so that nothing is concatenated and
    split between blocks.
    """
    return getattr(block, "joint_sequence", False)


def _is_compiled(module: nn.Module) -> bool:
    return getattr(module, "_compiled_call_impl", None) is not None


def _like_later_inputs(tokens: torch.Tensor) -> torch.Tensor:
    """A copy that requires a gradient, like the tensors between the blocks that backward reaches.

    Without it the first of these blocks would be compiled separately, which takes longer than the unused gradient.
    """
    return tokens.clone().requires_grad_(torch.is_grad_enabled())


def _time_embedding(
    transformer: FluxTransformer2DModel, sigmas: torch.Tensor, guidance: float | torch.Tensor, pooled: torch.Tensor
) -> torch.Tensor:
    if not takes_guidance(transformer):
        return transformer.time_text_embed(sigmas * 1000, pooled)
    scaled = guidance * 1000
    values = scaled if isinstance(scaled, torch.Tensor) else torch.full_like(sigmas, scaled)
    return transformer.time_text_embed(sigmas * 1000, values, pooled)


def _attention_arguments(txt_mask: torch.Tensor | None, num_img_tokens: int) -> dict[str, torch.Tensor] | None:
    if txt_mask is None:
        return None
    img_mask = txt_mask.new_ones(txt_mask.shape[0], num_img_tokens)
    return {"attention_mask": torch.cat([txt_mask, img_mask], dim=1)[:, None, None, :]}


def _run_block(
    block: nn.Module,
    img: torch.Tensor,
    txt: torch.Tensor | None,
    temb: torch.Tensor,
    rotary: RotaryTable,
    attention: dict[str, torch.Tensor] | None,
    checkpointed: bool,
) -> tuple[torch.Tensor | None, torch.Tensor]:
    if checkpointed and torch.is_grad_enabled():
        # a step is only captured if it draws no random numbers, and the generator's state cannot be read during capture
        keeps_state = not (img.is_cuda and torch.cuda.is_current_stream_capturing())
        options = {"use_reentrant": False, "preserve_rng_state": keeps_state}
        return checkpoint(block, img, txt, temb, rotary, attention, **options)  # type: ignore
    return block(img, txt, temb, rotary, attention)
