"""On a GPU: what a step takes against what was foreseen, and swapped and recomputed blocks against plain ones."""

import gc
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from diffusers import FluxTransformer2DModel

from tests.unit.test_step import make_batch
from trainer.config import TrainConfig
from trainer.data.batches import Batch
from trainer.engine import cuda_graphs
from trainer.engine.cuda_graphs import record_gradient
from trainer.engine.step import AdaptedModel, accumulate_gradients, batch_gradient, clear_gradients
from trainer.lora.adapter import add_lora, linear_modules
from trainer.lora.blocks import use_training_blocks
from trainer.memory.bytes import Choice, Work, blocks_of, step_bytes
from trainer.memory.device import query_device
from trainer.models.offload import block_swap, swap_blocks
from trainer.optim.foreach import gradients_or_zeros

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: run `make test` on one"),
]
GPU = torch.device("cuda")
NUM_DOUBLE, NUM_SINGLE, RANK, TXT, SIDE = 4, 8, 16, 512, 64  # SIDE: of the latents; 1024 image tokens


def make_transformer(hidden: int) -> FluxTransformer2DModel:
    return FluxTransformer2DModel(
        in_channels=64,
        num_layers=NUM_DOUBLE,
        num_single_layers=NUM_SINGLE,
        attention_head_dim=128,
        num_attention_heads=hidden // 128,
        joint_attention_dim=256,
        pooled_projection_dim=128,
        guidance_embeds=True,
    )


def make_model(checkpointed: int = 0, swapped: int = 0, compiled: bool = False, hidden: int = 1024) -> AdaptedModel:
    torch.manual_seed(0)
    transformer = make_transformer(hidden)
    for parameter in transformer.parameters():
        parameter.data = parameter.data.bfloat16()
    for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks) if swapped else ():
        block.requires_grad_(False)
    if swapped:
        swap_blocks(transformer, swapped, GPU)
    transformer.to(device=GPU)  # type: ignore[call-arg]
    transformer.eval().requires_grad_(False)
    use_training_blocks(transformer)
    add_lora(transformer, dict.fromkeys(linear_modules(transformer), RANK), None, seed=0, dtype=torch.bfloat16)
    config = TrainConfig(checkpoint_blocks=checkpointed, torch_compile=compiled)
    model = AdaptedModel(config, transformer)
    generator = torch.Generator().manual_seed(4)
    for parameter in model.parameters.values():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)
    if compiled:
        transformer.compile_repeated_blocks(fullgraph=True)
    return model


def batch() -> Batch:
    generator = torch.Generator().manual_seed(7)
    latents, noise = torch.randn(2, 1, 16, SIDE, SIDE, generator=generator)
    text = {"txt": torch.randn(1, TXT, 256, generator=generator), "pooled": torch.randn(1, 128, generator=generator)}
    return replace(make_batch(1), latents=latents, noise=noise, **text).to(GPU)


def gradient(model: AdaptedModel, on_device: Batch) -> torch.Tensor:
    accumulate_gradients(model, iter([on_device]), 1, 1, step=1)
    found = in_one(model)
    clear_gradients(model.parameters.values())
    return found


def in_one(model: AdaptedModel) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters.values() if p.grad is not None]).double()


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    """The same kernels on the same numbers; only the order of atomic additions may differ."""
    assert float(torch.nn.functional.cosine_similarity(found, expected, dim=0)) > 0.99999
    torch.testing.assert_close(found.norm(), expected.norm(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("checkpointed", "swapped"), [(0, 0), (6, 0), (11, 0), (11, 5)])
def test_a_step_takes_what_was_foreseen(checkpointed, swapped, compiled):
    gc.collect()  # a compiled model holds itself, so that of the test before is still there
    model, on_device = make_model(checkpointed, swapped, compiled, hidden=2048), batch()
    gradient(model, on_device)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    gradient(model, on_device)
    with torch.device("meta"):
        bare = make_transformer(2048)
    blocks, outside = blocks_of(bare, dict.fromkeys(linear_modules(bare), RANK))
    trained = sum(block.adapter for block in blocks)
    work = Work(blocks, outside, SIDE * SIDE // 4, TXT, 1, 2, trained, 2, 0, False, compiled)
    planned = step_bytes(work, Choice(checkpointed=checkpointed, swapped=swapped))
    assert torch.cuda.max_memory_allocated() == pytest.approx(planned.peak, rel=0.1)
    assert before == pytest.approx(planned.base + planned.trained, rel=0.1)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("checkpointed", "swapped"), [(3, 0), (12, 0), (0, 5), (4, 5), (12, 10)])
def test_recomputed_and_swapped_blocks_give_the_plain_gradient(checkpointed, swapped, compiled):
    on_device = batch()
    expected = gradient(make_model(compiled=compiled), on_device)
    model = make_model(checkpointed, swapped, compiled)
    for _ in range(3):  # each pass starts with what the one before has left in the slots
        assert_same(gradient(model, on_device), expected)


@pytest.mark.parametrize(("checkpointed", "swapped"), [(0, 5), (12, 10), (4, 1)])
def test_copies_are_recorded_beside_the_computation(checkpointed, swapped):
    """Whatever the slots hold when a replay begins: what another replay, a step or a forward alone has left there."""
    on_device = batch()
    expected = gradient(make_model(), on_device)
    model = make_model(checkpointed, swapped)
    gradient(model, on_device)
    gradients_or_zeros(model.parameters.values())
    recorded = record_gradient(model, on_device, torch.cuda.graph_pool_handle())

    def replayed() -> torch.Tensor:
        clear_gradients(model.parameters.values(), in_place=True)
        recorded(on_device)
        return in_one(model)

    for _ in range(3):
        assert_same(replayed(), expected)
    with torch.no_grad():
        model.losses(on_device)
    assert_same(replayed(), expected)
    clear_gradients(model.parameters.values(), in_place=True)
    accumulate_gradients(model, iter([on_device]), 1, 1, step=1)
    assert_same(replayed(), expected)


def test_a_recording_that_fails_leaves_swapped_blocks_as_they_were(monkeypatch):
    on_device = batch()
    expected = gradient(make_model(), on_device)
    model = make_model(swapped=7)
    gradient(model, on_device)

    def refused(model: AdaptedModel, on_device: Batch) -> torch.Tensor:
        batch_gradient(model, on_device)
        raise RuntimeError("refused")

    monkeypatch.setattr(cuda_graphs, "batch_gradient", refused)
    with pytest.raises(RuntimeError, match="refused"):
        record_gradient(model, on_device, torch.cuda.graph_pool_handle())
    clear_gradients(model.parameters.values())
    assert_same(gradient(model, on_device), expected)


def test_swapping_never_waits_for_the_device():
    model, on_device = make_model(checkpointed=6, swapped=5), batch()
    for _ in range(2):
        gradient(model, on_device)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        accumulate_gradients(model, iter([on_device]), 1, 1, step=1)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_swapped_weights_are_page_locked_and_off_the_device():
    model = make_model(swapped=5)
    swap = block_swap(model.transformer)
    assert swap and all(host.is_pinned() and host.device.type == "cpu" for host in swap.hosts)
    assert all(slot.device.type == "cuda" for slot in swap.slots)
    assert all(parameter.device.type == "cuda" for parameter in model.transformer.parameters())
    assert all(b > a for a, b in pairwise(swap.positions))


def test_the_device_is_looked_at_and_measured():
    gpu = query_device(GPU)
    assert gpu and gpu.free > 0 and gpu.host_free > 0 and gpu.name
    measured = gpu.measured_on(GPU)
    assert 1e12 < measured.flops < 1e16 and 1e9 < measured.link < 1e12
