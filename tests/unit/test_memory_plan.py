"""The fastest way to train that fits is chosen from what a GPU has, and is said."""

from dataclasses import replace

import pytest
import torch

from tests.full_size import GPU, full_work
from trainer.config import TrainConfig
from trainer.memory.bytes import GIB, GRAPH_RESERVE, Choice, Work
from trainer.memory.choose import (
    Allowed,
    MemoryPlan,
    allowed_by,
    expected_seconds,
    fastest,
    make_memory_plan,
    needed_bytes,
    with_faster,
)
from trainer.memory.record import Measured
from trainer.models.quantized import WeightFormat

CPU = torch.device("cpu")


def plan_for(work: Work, gib: float, allowed: Allowed | None = None, **device) -> MemoryPlan:
    gpu = replace(GPU, **{"free": int(gib * GIB), **device})
    return make_memory_plan(work, gpu, allowed or Allowed(), CPU)


@pytest.mark.parametrize("gib", [79, 46, 44, 38, 31.5, 23.5, 15.5, 11.5])
def test_what_is_chosen_fits_and_nothing_larger_would(gib):
    work = full_work()
    plan = plan_for(work, gib)
    assert needed_bytes(work, plan.choice) <= gib * GIB
    if plan.choice.checkpointed:
        less = replace(plan.choice, checkpointed=plan.choice.checkpointed - 1)
        assert needed_bytes(work, less) > gib * GIB
    if gib == 79:
        assert plan.choice == Choice()
    if gib < 20:
        assert plan.choice.swapped and plan.choice.checkpointed


def test_swapping_is_chosen_only_where_copies_are_fast_enough():
    work = full_work()
    assert plan_for(work, 38, link=50e9, flops=100e12).choice.checkpointed == 0
    assert plan_for(work, 38, link=2e9, flops=400e12).choice.swapped == 0


def test_a_gpu_that_outruns_its_host_is_waited_for_unless_batches_are_recorded():
    work, fast = full_work(), replace(GPU, flops=650e12, link=50e9)
    for choice in (Choice(), Choice(checkpointed=20), Choice(swapped=5)):
        launched, recorded = (expected_seconds(replace(work, recorded=each), fast, choice) for each in (False, True))
        assert launched > 1.2 * recorded


def test_recorded_blocks_are_swapped_too():
    work = full_work(recorded=True)
    assert plan_for(work, 38, link=50e9, flops=100e12).choice.swapped > 0
    assert plan_for(work, 15.5).choice.swapped > 0


def test_recorded_batches_leave_room_for_the_optimizer():
    """Without it they are launched kernel by kernel after all: on one H100 at rank 256, 0.9 GiB were left of 78.7."""
    work = full_work(rank=256)
    for gib in (34, 42, 47):
        plain, recorded = (plan_for(replace(work, recorded=each), gib, Allowed(swapped=0)) for each in (False, True))
        assert recorded.bytes.peak < plain.bytes.peak
        assert needed_bytes(recorded.work, recorded.choice) <= gib * GIB
        assert gib * GIB - recorded.bytes.peak >= 0.03 * recorded.bytes.peak + GRAPH_RESERVE


def test_shared_memory_is_never_swapped():
    for gib in (40, 24, 12):
        assert plan_for(full_work(), gib, unified=True).choice.swapped == 0


def test_a_lower_precision_comes_before_swapping_and_only_when_allowed():
    work = full_work()
    allowed = Allowed(formats=(WeightFormat("bf16"), WeightFormat("fp8"), WeightFormat("nf4")))
    assert plan_for(work, 30, allowed).choice.precision == "bf16"
    assert plan_for(work, 20, allowed).choice.precision == "fp8" and plan_for(work, 20, allowed).choice.swapped == 0
    assert plan_for(work, 11, allowed).choice.precision == "nf4"
    assert plan_for(work, 11).choice.precision == "bf16"


def test_where_all_must_swap_the_first_of_equals_is_taken():
    work = full_work()
    allowed = Allowed(
        formats=(WeightFormat("bf16"), WeightFormat("fp8", True), WeightFormat("fp8"), WeightFormat("int8"))
    )
    for gib in (14, 11):
        choice = plan_for(work, gib, allowed).choice
        alone = plan_for(work, gib).choice
        assert choice.weight_format == WeightFormat("fp8") and choice.swapped
        assert expected_seconds(work, GPU, choice) < expected_seconds(work, GPU, alone)
    slow = {"link": 50e9, "flops": 20e12}  # copies of any size hide behind it
    assert plan_for(work, 12, allowed, **slow).choice.precision == "fp8"


def test_a_small_fast_card_recomputes_instead_of_waiting_for_copies():
    """One H100, 23.5 GiB left free: 45 blocks swapped and 34 recomputed took 0.83 s a picture, the bus fully busy."""
    work = full_work(recorded=True)
    plan = plan_for(work, 23, flops=457e12, link=35e9)
    assert plan.device
    busy = Choice(checkpointed=34, swapped=45)
    assert expected_seconds(work, plan.device, busy) == pytest.approx(0.83, rel=0.05)
    assert expected_seconds(work, plan.device, plan.choice) < 0.62 and plan.choice.swapped < 42


def test_what_would_be_faster_in_8_bits_is_said_and_not_done():
    work, allowed = full_work(), Allowed(formats=(WeightFormat("bf16"), WeightFormat("fp8")))
    plan = with_faster(plan_for(work, 23), allowed)
    assert plan.choice.precision == "bf16" and plan.choice.swapped
    assert plan.faster and plan.faster.precision == "fp8" and not plan.faster.swapped
    assert any("--base_precision=auto (the base in fp8, " in line for line in plan.lines())
    roomy = plan_for(work, 79)
    assert with_faster(roomy, allowed) == roomy
    smaller = plan.smaller()
    assert smaller and smaller.faster is None


def test_given_flags_win():
    given = TrainConfig(checkpoint_blocks=3, blocks_to_swap=4)
    assert allowed_by(given, 57, GPU, CPU) == Allowed(checkpointed=3, swapped=4)
    assert allowed_by(TrainConfig(gradient_checkpointing=True), 57, GPU, CPU) == Allowed(checkpointed=57)
    assert allowed_by(TrainConfig(), 57, GPU, CPU) == Allowed()
    assert allowed_by(TrainConfig(memory="manual"), 57, GPU, CPU) == Allowed(checkpointed=0, swapped=0)
    assert allowed_by(TrainConfig(), 57, None, CPU) == Allowed(checkpointed=0, swapped=0)


def test_smaller_plans_take_less_each_time_and_end():
    plan = plan_for(full_work(), 79)
    peaks = []
    while plan:
        peaks.append(plan.bytes.peak)
        plan = plan.smaller()
    assert 5 < len(peaks) < 40 and peaks == sorted(peaks, reverse=True) and len(set(peaks)) == len(peaks)
    assert fastest(full_work(), replace(GPU, free=GIB), Allowed()) is None


def test_a_plan_says_what_and_why():
    work = full_work()
    (line,) = plan_for(work, 79).lines()
    assert "GiB" in line and "nothing recomputed" in line
    text = " ".join(plan_for(work, 15.5).lines())
    assert "55 of 57 blocks recomputed" in text and "in host memory" in text and "1.42 times" in text
    assert "assuming 450 TFLOP/s compute and 20 GB/s overlapped copies" in text
    assert "assuming" not in " ".join(plan_for(work, 15.5, unified=True, is_measured=False).lines())
    assert "may not fit" in " ".join(plan_for(work, 3).lines())
    measured = replace(plan_for(work, 79), measured=Measured(0.41, 52.1, 50.1, "2026-11-22"))
    assert "0.41 s per picture, 52.1 GiB (measured here on 2026-11-22)" in measured.lines()[0]
    assert make_memory_plan(work, None, Allowed(), CPU).lines() == []
