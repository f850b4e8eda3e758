"""Swapped blocks compute what they compute without, and never stay on the device all at once."""

from dataclasses import replace
from itertools import pairwise
from typing import cast

import pytest
import torch
import torch._dynamo
from diffusers import FluxTransformer2DModel
from torch._dynamo.testing import CompileCounterWithBackend

from tests.parity.test_transformer import make_transformer
from tests.quantized_layers import Adapted
from tests.unit.test_step import CONFIG, PRESERVES_FIRST, gradient, make_batch
from trainer.config import TrainConfig
from trainer.engine.step import AdaptedModel
from trainer.lora.adapter import add_lora, linear_modules
from trainer.lora.blocks import use_training_blocks
from trainer.models.offload import NUM_SLOTS, block_swap, swap_blocks, swapped_blocks, swapped_names
from trainer.models.quantized import WeightFormat
from trainer.models.transformer import Conditioning, predict_velocity, rotary_table

CPU = torch.device("cpu")


def deep_transformer(num_double=3, num_single=4):
    """Random weights; blocks enough to swap some."""
    small = make_transformer()
    config = {**small.config, "num_layers": num_double, "num_single_layers": num_single}
    transformer = cast(FluxTransformer2DModel, FluxTransformer2DModel.from_config(config))
    generator = torch.Generator().manual_seed(1)
    for parameter in transformer.parameters():
        spread = 0.2 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5
        torch.nn.init.normal_(parameter, 0, spread, generator=generator)
    return transformer.eval().requires_grad_(False)


def make_model(swapped: int, config: TrainConfig = CONFIG, compiled: str = "") -> AdaptedModel:
    transformer = deep_transformer()
    swap_blocks(transformer, swapped, CPU)
    use_training_blocks(transformer)
    add_lora(transformer, dict.fromkeys(linear_modules(transformer), 2), None, seed=0)
    model = AdaptedModel(config, transformer)
    generator = torch.Generator().manual_seed(4)
    for parameter in model.parameters.values():
        torch.nn.init.normal_(parameter, 0, 0.1, generator=generator)
    if compiled:
        transformer.compile_repeated_blocks(fullgraph=True, backend=compiled)
    return model


@pytest.fixture(scope="module")
def plain() -> list[torch.Tensor]:
    model = make_model(0)
    return [gradient(model, [make_batch(2, seed), make_batch(1, seed + 1)])[0] for seed in (0, 5)]


@pytest.mark.parametrize(("swapped", "checkpoint_blocks"), [(1, 0), (2, 0), (3, 0), (5, 0), (3, 2), (4, 7), (5, 4)])
def test_gradients_are_the_same_bits(plain, swapped, checkpoint_blocks):
    """Several passes, so that each starts with what the one before has left in the slots."""
    model = make_model(swapped, replace(CONFIG, checkpoint_blocks=checkpoint_blocks))
    for expected, seed in zip(plain, (0, 5), strict=True):
        found, _ = gradient(model, [make_batch(2, seed), make_batch(1, seed + 1)])
        assert torch.equal(found, expected)


@pytest.mark.parametrize(
    "weight_format",
    [WeightFormat("bf16"), WeightFormat("fp8"), WeightFormat("fp8", both_layouts=True), WeightFormat("int8")],
)
def test_quantised_and_joined_layers_are_swapped_as_they_are(tiny_flux, weight_format):
    plain, swapped = (
        Adapted(tiny_flux.transformer, weight_format),
        Adapted(tiny_flux.transformer, weight_format, swapped=2),
    )
    swap = block_swap(swapped.transformer)
    assert swap and swap.host_bytes > 0
    expected = plain.gradient()
    for _ in range(2):
        assert torch.equal(swapped.gradient(), expected)
    one, other = plain.transformer.state_dict(), swapped.transformer.state_dict()
    assert all(one[name].stride() == other[name].stride() for name in one)


def test_it_begins_again_from_whatever_is_in_the_slots(plain):
    model = make_model(5)
    swap = block_swap(model.transformer)
    assert swap
    for unsettle in (lambda: swap.load(6), swap.invalidate, swap.rewind, lambda: (swap.invalidate(), swap.rewind())):
        unsettle()
        assert torch.equal(gradient(model, [make_batch(2, 0), make_batch(1, 1)])[0], plain[0])
    assert swap.held == [0, 1]
    swap.load(6)
    assert swap.held != [0, 1]
    swap.rewind()
    assert swap.held == [0, 1]


def test_a_forgotten_copy_would_be_seen(plain):
    """The other side of the test above: with weights of the wrong blocks the gradient is another."""
    model = make_model(5)
    swap = block_swap(model.transformer)
    assert swap
    swap.load_in_backward = lambda _index, txt, img, _last: (txt, img)  # type: ignore[method-assign]
    assert not torch.equal(gradient(model, [make_batch(2, 0), make_batch(1, 1)])[0], plain[0])


def test_forward_alone_is_the_same_too_and_in_any_order_with_training(plain):
    model, unswapped = make_model(5), make_model(0)
    batch = make_batch(2, 3)
    text = Conditioning(batch.txt, batch.pooled)

    @torch.inference_mode()
    def velocity(transformer) -> torch.Tensor:
        rotary = rotary_table(transformer, 4, 6, 5, CPU)
        return predict_velocity(transformer, batch.noise, batch.sigmas, text, 1.0, rotary)

    expected = velocity(unswapped.transformer)
    assert torch.equal(velocity(model.transformer), expected)
    assert torch.equal(gradient(model, [make_batch(2, 0), make_batch(1, 1)])[0], plain[0])
    assert torch.equal(velocity(model.transformer), expected)
    preserved = make_batch(2, **PRESERVES_FIRST)
    assert torch.equal(gradient(model, [preserved])[0], gradient(unswapped, [preserved])[0])


@pytest.mark.parametrize(("checkpoint_blocks", "backend"), [(0, "eager"), (4, "aot_eager")])
def test_compiled_blocks_are_not_compiled_again(checkpoint_blocks, backend):
    """As many graphs as without swapping: no guard sees where a block's weights are."""
    counts, gradients = [], []
    for swapped in (0, 5):
        torch._dynamo.reset()
        counter = CompileCounterWithBackend(backend)
        model = make_model(swapped, replace(CONFIG, checkpoint_blocks=checkpoint_blocks), compiled=counter)  # type: ignore[arg-type]
        gradients.append([gradient(model, [make_batch(1, seed)])[0] for seed in (0, 5)])
        counts.append(counter.frame_count)
    assert counts[0] == counts[1] > 0
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


def test_the_device_holds_a_bounded_number_of_swapped_blocks():
    transformer = deep_transformer()
    before = sum(p.numel() * p.element_size() for p in transformer.parameters())
    swap_blocks(transformer, 3, CPU)
    swap = block_swap(transformer)
    assert swap and len(swap.slots) == NUM_SLOTS and swap.host_bytes > 0
    stored = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in transformer.parameters()}
    singles = [transformer.single_transformer_blocks[index - 3] for index in swap.positions]
    moved = sum(p.numel() * p.element_size() for block in singles for p in block.parameters())
    assert sum(stored.values()) == before - moved + NUM_SLOTS * len(swap.slots[0])


def test_each_copy_is_made_once_and_ahead():
    """Forward and backward copy a block once each, but for those that are still there at the turn."""
    model = make_model(5)
    swap = block_swap(model.transformer)
    assert swap
    fetched: list[int] = []
    fetch = swap._fetch

    def counted(position: int) -> None:
        if swap.held[position % NUM_SLOTS] != position:
            fetched.append(position)
        fetch(position)

    swap._fetch = counted  # type: ignore[method-assign]
    gradient(model, [make_batch(1)])
    assert fetched == [0, 1, 2, 3, 4, 2, 1, 0]
    fetched.clear()
    gradient(model, [make_batch(1)])
    assert fetched == [2, 3, 4, 2, 1, 0]


@pytest.mark.parametrize("count", range(0, 70, 3))
def test_swapped_blocks_are_far_apart_and_the_first_of_each_kind_stays(count):
    chosen = swapped_blocks(19, 38, count)
    assert len(chosen) == len(set(chosen)) == min(count, 55) and chosen == sorted(chosen)
    assert not {0, 19} & set(chosen)
    assert sum(index >= 19 for index in chosen) == min(count, 37)
    if 1 < count <= 18:
        assert min(b - a for a, b in pairwise(chosen)) >= 37 // count
    assert len(swapped_names(19, 38, count)) == len(chosen)


def test_names_of_swapped_blocks():
    assert swapped_names(2, 3, 3) == (
        "transformer_blocks.1.",
        "single_transformer_blocks.1.",
        "single_transformer_blocks.2.",
    )
