"""Backward ends at the first adapted block: earlier blocks keep nothing, get no gradient and are not planned."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch._dynamo
from torch import nn

import trainer.models.transformer
from tests.full_size import GPU, full_size, full_work
from tests.parity.test_transformer import make_transformer
from tests.unit.test_offload import deep_transformer
from tests.unit.test_step import CONFIG, gradient, make_batch
from trainer.config import TrainConfig
from trainer.engine.step import AdaptedModel
from trainer.lora.adapter import add_lora, linear_modules
from trainer.lora.blocks import use_training_blocks
from trainer.memory.bytes import GIB, Choice, Work, blocks_of, copied_bytes, kept_bytes, step_bytes, step_flops
from trainer.memory.choose import Allowed, expected_seconds, fastest, in_words, smallest
from trainer.models.offload import block_swap, copied_positions, swap_blocks
from trainer.models.transformer import first_in_backward

CPU = torch.device("cpu")
DOUBLE, SINGLE = 3, 4
LAST_DOUBLES, SINGLES, LAST_SINGLES = ("transformer_blocks.2.",), ("single_transformer_blocks.",), (
    "single_transformer_blocks.2.",
    "single_transformer_blocks.3.",
)  # fmt: skip
FIRST = {LAST_DOUBLES: 2, SINGLES: 3, LAST_SINGLES: 5}


def make_model(
    parts: tuple[str, ...], config: TrainConfig = CONFIG, swapped: int = 0, compiled: str = ""
) -> AdaptedModel:
    """Three double and four single blocks; those whose names start with `parts` are adapted."""
    transformer = deep_transformer(DOUBLE, SINGLE)
    swap_blocks(transformer, swapped, CPU)
    use_training_blocks(transformer)
    add_lora(transformer, {name: 2 for name in linear_modules(transformer) if name.startswith(parts)}, None, seed=0)
    model = AdaptedModel(config, transformer)
    generator = torch.Generator().manual_seed(4)
    for parameter in model.parameters.values():
        nn.init.normal_(parameter, 0, 0.1, generator=generator)
    if compiled:
        transformer.compile_repeated_blocks(fullgraph=True, backend=compiled)
    return model


def blocks_in(model: AdaptedModel) -> list[nn.Module]:
    return [*model.transformer.transformer_blocks, *model.transformer.single_transformer_blocks]


def through_all(_blocks, _inputs) -> int:
    return 0


@pytest.mark.parametrize("checkpoint_blocks", [0, 1, 7])
@pytest.mark.parametrize("parts", FIRST)
def test_earlier_blocks_keep_nothing_and_need_no_gradient(parts, checkpoint_blocks):
    model = make_model(parts, replace(CONFIG, checkpoint_blocks=checkpoint_blocks))
    kept: Counter[int] = Counter()
    entered: list[int] = []
    reached: set[int] = set()

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[entered[-1]] += tensor.untyped_storage().nbytes()
        return tensor

    for index, block in enumerate(blocks_in(model)):

        def enter(_block, _inputs, index=index) -> None:
            entered.append(index)

        def leave(_block, _inputs, outputs, index=index) -> None:
            if outputs[1].requires_grad:
                reached.add(index)

        block.register_forward_pre_hook(enter)
        block.register_forward_hook(leave)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        gradient(model, [make_batch(2)])
    assert reached == set(range(FIRST[parts], 7))
    # a recomputed block keeps its input, which is saved before the block is entered
    assert min(kept) == FIRST[parts] - bool(checkpoint_blocks), (
        "tensors were kept for backward before the first adapted block"
    )


@pytest.mark.parametrize(
    ("parts", "checkpoint_blocks", "swapped", "compiled"),
    [
        (LAST_DOUBLES, 0, 0, ""),
        (SINGLES, 1, 0, ""),
        (SINGLES, 0, 5, ""),
        (LAST_SINGLES, 2, 5, ""),
        (LAST_SINGLES, 1, 5, "eager"),
    ],
)
def test_gradients_are_those_of_a_pass_through_all_blocks(parts, checkpoint_blocks, swapped, compiled, monkeypatch):
    """To the bit, over two steps, the second of which starts with what the first left in the slots."""
    torch._dynamo.reset()
    ending = make_model(parts, replace(CONFIG, checkpoint_blocks=checkpoint_blocks), swapped, compiled)
    found = [gradient(ending, [make_batch(2, seed), make_batch(1, seed)])[0] for seed in (0, 5)]
    monkeypatch.setattr(trainer.models.transformer, "first_in_backward", through_all)
    complete = make_model(parts, compiled=compiled)
    for seed, each in zip((0, 5), found, strict=True):
        assert torch.equal(each, gradient(complete, [make_batch(2, seed), make_batch(1, seed)])[0])


def test_compiled_blocks_before_it_run_without_gradient(monkeypatch):
    """What is compiled for them is a forward pass alone; the first that is reached gets inputs like those after it."""
    model = make_model(LAST_SINGLES, compiled="eager")
    run, seen = trainer.models.transformer._run_block, []

    def watched(block, img, *others):
        seen.append((img.requires_grad, torch.is_grad_enabled()))
        return run(block, img, *others)

    monkeypatch.setattr(trainer.models.transformer, "_run_block", watched)
    gradient(model, [make_batch(1)])
    assert seen == [(False, False)] * 5 + [(True, True)] * 2


def test_gradients_go_through_all_blocks_if_an_input_needs_one():
    """The time embedding while CLIP is trained."""
    model = make_model(LAST_SINGLES)
    blocks, temb = blocks_in(model), torch.ones(1, requires_grad=True)
    assert first_in_backward(blocks, (torch.ones(1),)) == 5
    assert first_in_backward(blocks, (torch.ones(1), temb)) == 0
    with torch.no_grad():
        assert first_in_backward(blocks, (temb,)) == len(blocks)


@pytest.mark.parametrize("first", [0, 2, 4, 6])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_swapped_blocks_are_copied_as_often_as_planned(count, first):
    """A step's copies, by position, with what is needed first already there when the next step starts."""
    model = make_model(
        (f"single_transformer_blocks.{first - 3}.",) if first >= 3 else (f"transformer_blocks.{first}.",)
    )
    swap_blocks(model.transformer, count, CPU)
    swap = block_swap(model.transformer)
    assert swap
    fetched, fetch = [], swap._fetch

    def counted(position: int) -> None:
        if swap.held[position % len(swap.slots)] != position:
            fetched.append(position)
        fetch(position)

    swap.rewind()
    swap._fetch = counted  # type: ignore[method-assign]
    for _ in range(2):
        fetched.clear()
        gradient(model, [make_batch(1)])
        swap.rewind()
        reached = sum(index < first for index in swap.positions)
        assert Counter(fetched) == Counter(copied_positions(count, reached))


# --- plans


def work_of(first_single: int, **changes) -> Work:
    """FLUX.1-dev with rank 16 on its single blocks, from this one on."""
    names = [f"single_transformer_blocks.{index}." for index in range(first_single, 38)]
    ranks = {name: 16 for name in linear_modules(full_size()) if name.startswith(tuple(names))}
    blocks, outside = blocks_of(full_size(), ranks)
    return replace(
        full_work(), blocks=blocks, outside=outside, trained=sum(block.adapter for block in blocks), **changes
    )


def test_a_plan_counts_only_blocks_that_backward_reaches():
    singles, late = work_of(0), work_of(19)
    assert (singles.first_in_backward, late.first_in_backward) == (19, 38)
    assert replace(late, through_all=True).first_in_backward == 0
    for work in (singles, late):
        reached = work.blocks[work.first_in_backward :]
        kept = sum(kept_bytes(block, work) for block in reached)
        assert kept < step_bytes(work, Choice()).activations < kept + 1.5 * GIB
        assert step_bytes(replace(work, through_all=True), Choice()).peak > step_bytes(work, Choice()).peak + 5 * GIB


@pytest.mark.parametrize(("first_single", "measured"), [(0, 36.42), (19, 29.50)])
def test_full_size_is_foreseen(first_single, measured):
    """The most that tensors took: rank 16, AdamW, one H200, torch 2.11+cu130, 2026-11-30."""
    work = work_of(first_single, trained_itemsize=4, recorded=True)
    found = step_bytes(replace(work, optimizer=8 * work.trained), Choice()).peak / GIB
    assert found == pytest.approx(measured, rel=0.01)


def test_arithmetic_of_later_blocks_alone():
    """FLUX.1-dev at 1024 px: 140 TFLOP for all single blocks, 107 for the second half of them."""
    assert step_flops(work_of(0), 0) == pytest.approx(140e12, rel=0.01)
    assert step_flops(work_of(19), 0) == pytest.approx(107e12, rel=0.01)
    for work in (work_of(0), work_of(19)):
        assert step_flops(work, 57) == step_flops(work, work.num_in_backward)
        assert step_flops(replace(work, through_all=True), 0) == pytest.approx(171e12, rel=0.01)


def test_blocks_are_recomputed_from_the_first_that_backward_reaches():
    work = work_of(19)
    peaks = [step_bytes(work, Choice(checkpointed=count)).peak for count in range(19)]
    assert peaks == sorted(peaks, reverse=True) and peaks[0] > peaks[10] > peaks[18]
    least = smallest(work, replace(GPU, free=0), Allowed())
    assert least.checkpointed == 18
    tight = replace(GPU, free=int(step_bytes(work, Choice()).peak), unified=True)
    chosen = fastest(work, tight, Allowed())
    assert chosen and 0 < chosen.checkpointed < 19
    assert in_words(work, chosen) == f"{chosen.checkpointed} of 19 blocks recomputed in backward"
    assert in_words(work, Choice(checkpointed=57)) == "19 of 19 blocks recomputed in backward"


def test_less_is_copied_and_expected_to_take_less_time():
    swapped = Choice(swapped=40)
    for late in (work_of(0), work_of(19)):
        complete = replace(late, through_all=True)
        assert copied_bytes(late, swapped) < copied_bytes(complete, swapped)
        assert expected_seconds(late, GPU, Choice()) < expected_seconds(complete, GPU, Choice())


def test_a_tiny_transformer_is_planned_to_the_byte():
    """What autograd keeps of all blocks together is what their plan says."""
    parts = ("single_transformer_blocks.",)
    transformer = make_transformer()
    blocks, outside = blocks_of(transformer, {n: 2 for n in linear_modules(transformer) if n.startswith(parts)})
    work = Work(blocks, outside, 24, 5, 1, 4, 0, 4, 0, False, False)
    assert [bool(each) for each in work.kept["bf16"]] == [not block.is_double for block in blocks]
