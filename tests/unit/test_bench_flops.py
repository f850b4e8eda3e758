"""The arithmetic of a step: against torch's own counter on a real model, and at full size."""

import pytest
import torch
from accelerate import init_empty_weights
from diffusers import FluxTransformer2DModel
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from benchmarks.flops import Tokens, blocks, linear_sizes, pass_flops
from tests.parity.test_transformer import make_transformer
from trainer.lora.adapter import add_lora, linear_modules
from trainer.models.transformer import Conditioning, predict_velocity, rotary_table


def forward_on_cpu(query, key, value, *_, **__):
    return sdpa_flop_count(query, key, value)


def backward_on_cpu(grad, query, key, value, *_, **__):
    return sdpa_backward_flop_count(grad, query, key, value)


# the CPU's attention, which torch's counter passes over
CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: forward_on_cpu,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: backward_on_cpu,
}


def counted(transformer, side: int, txt: int, batch: int, checkpointed: bool) -> int:
    """What torch counts in one forward and backward pass."""
    config = transformer.config
    noisy = torch.randn(batch, config.in_channels // 4, side, side)
    text = Conditioning(
        torch.randn(batch, txt, config.joint_attention_dim), torch.randn(batch, config.pooled_projection_dim)
    )
    rotary = rotary_table(transformer, side, side, txt, torch.device("cpu"))
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        predict_velocity(transformer, noisy, torch.rand(batch), text, 1.0, rotary, checkpointed).sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize(("side", "txt", "batch", "rank"), [(16, 32, 1, 4), (8, 8, 3, 16)])
def test_it_is_what_torch_counts(side, txt, batch, rank, checkpointed):
    transformer = make_transformer()
    sizes = linear_sizes(transformer)
    ranks = dict.fromkeys(linear_modules(transformer), rank)
    add_lora(transformer, ranks, None, seed=0)
    tokens = Tokens(side * side // 4, txt, batch)
    ours = pass_flops(sizes, ranks, tokens, blocks(sizes) if checkpointed else ())
    assert ours.done == pytest.approx(counted(transformer, side, txt, batch, checkpointed), rel=0.01)


@pytest.fixture(scope="module")
def full() -> FluxTransformer2DModel:
    """FLUX.1-dev without weights."""
    with init_empty_weights():
        return FluxTransformer2DModel(guidance_embeds=True)


def test_the_full_size_at_1024_pixels(full):
    """171 TFLOP a picture, 245 with checkpointing, adapters apart."""
    sizes, tokens = linear_sizes(full), Tokens(img=64 * 64, txt=512)
    tiny_rank = dict.fromkeys(linear_modules(full), 1)
    plain = pass_flops(sizes, tiny_rank, tokens)
    again = pass_flops(sizes, tiny_rank, tokens, blocks(sizes))
    without_adapters = plain.done - plain.adapter_forward - plain.adapter_backward
    assert without_adapters / 1e12 == pytest.approx(171, abs=0.6)
    assert (without_adapters + again.recomputed) / 1e12 == pytest.approx(245, abs=1.0)
    assert again.needed == plain.done


def test_part_of_the_blocks_is_recomputed_in_proportion(full):
    sizes, tokens = linear_sizes(full), Tokens(img=1024, txt=512)
    ranks = dict.fromkeys(linear_modules(full), 16)
    order = blocks(sizes)
    assert len(order) == 57 and order[0] == "transformer_blocks.0" and order[-1] == "single_transformer_blocks.37"
    half = pass_flops(sizes, ranks, tokens, order[19:38]).recomputed
    assert half == pytest.approx(pass_flops(sizes, ranks, tokens, order[19:]).recomputed / 2)
    assert pass_flops(sizes, ranks, tokens).recomputed == 0


def test_blocks_before_the_first_adapted_one_run_forward_only(full):
    sizes, tokens = linear_sizes(full), Tokens(img=1024, txt=512)
    single = {name: 16 for name in linear_modules(full) if name.startswith("single")}
    late, all_of_it = (pass_flops(sizes, ranks, tokens) for ranks in (single, dict.fromkeys(linear_modules(full), 16)))
    assert late.base_forward == all_of_it.base_forward and late.base_backward < all_of_it.base_backward
