"""Finds the fastest way to train that fits: what to recompute, what to swap, how to store the base."""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import get_args

import torch

from trainer.common.text import counted, in_seconds
from trainer.config import TrainConfig
from trainer.memory.bytes import (
    GIB,
    GRAPH_RESERVE,
    Choice,
    StepBytes,
    Work,
    copied_bytes,
    host_bytes,
    step_bytes,
    step_flops,
)
from trainer.memory.device import Device
from trainer.memory.record import Measured
from trainer.models.offload import swappable_order
from trainer.models.quantized import Precision, WeightFormat, precision_problems

MARGIN = 0.03  # of the peak: fragmentation in torch's allocator
RESERVE = 0.6 * GIB  # for kernels and libraries that are loaded later, and their workspaces
HOST_SHARE = 0.7  # of free host memory may be used for swapped blocks
LESS = 0.08  # of the peak: how much less the next attempt uses after one did not fit
CLEARLY = 0.95  # another choice is mentioned if it is expected to take less than this share of the time
COPY_COST = 0.1  # of a copy's time is lost even if it overlaps with computation
LAUNCHING = 0.008  # seconds for a host to launch a block's kernels, a third of it forward and two thirds backward
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


@dataclass(frozen=True)
class Allowed:
    """The choices that the settings leave open.

    formats: of the base, the preferred first. checkpointed, swapped: how many blocks are recomputed and swapped; None
    leaves it open.
    """

    formats: tuple[WeightFormat, ...] = (WeightFormat("bf16"),)
    checkpointed: int | None = None
    swapped: int | None = None


def allowed_by(config: TrainConfig, num_blocks: int, gpu: Device | None, device: torch.device) -> Allowed:
    """The choices that the settings leave open; `--memory manual` and the CPU leave only one.

    num_blocks: of the transformer. gpu: what is known of `device`; None for the CPU.
    """
    given = config.base_precision
    names: tuple[Precision, ...] = (given,) if given != "auto" else _possible(device)
    manual = config.memory == "manual" or gpu is None
    checkpointed = num_blocks if config.gradient_checkpointing else config.checkpoint_blocks
    closed = 0 if manual else None
    return Allowed(
        formats=tuple(weight_format for name in names for weight_format in _formats(name, device))[
            : 1 if manual else None
        ],
        checkpointed=closed if checkpointed is None else min(checkpointed, num_blocks),
        swapped=closed if config.blocks_to_swap is None else config.blocks_to_swap,
    )


def _possible(device: torch.device) -> tuple[Precision, ...]:
    if device.type != "cuda":
        return ("bf16",)
    return tuple(name for name in PRECISIONS if not precision_problems(name, device))


def _formats(precision: Precision, device: torch.device) -> Iterator[WeightFormat]:
    roomy = WeightFormat.for_device(precision, device)
    yield roomy
    if roomy.both_layouts:
        yield replace(roomy, both_layouts=False)


@dataclass(frozen=True)
class MemoryPlan:
    """The choice for a run on one device (None: the CPU), with the memory and time that it is expected to need.

    measured: what an earlier run like it took. faster: what would be chosen if the base could be stored in fewer than
    16 bits, if that is expected to be faster.
    """

    work: Work
    device: Device | None
    allowed: Allowed
    choice: Choice
    measured: Measured | None = None
    faster: Choice | None = None

    @cached_property
    def bytes(self) -> StepBytes:
        """The memory that a step needs, by what uses it."""
        return step_bytes(self.work, self.choice)

    def settings(self, config: TrainConfig) -> TrainConfig:
        """A copy of the settings with this plan's numbers of recomputed and swapped blocks."""
        recomputed, swapped = self.choice.checkpointed, self.choice.swapped
        return replace(config, gradient_checkpointing=False, checkpoint_blocks=recomputed, blocks_to_swap=swapped)

    @property
    def slowdown(self) -> float:
        """A step's floating-point operations, relative to a step without recomputation; 1 if nothing is recomputed."""
        return step_flops(self.work, self.choice.checkpointed) / step_flops(self.work, 0)

    def smaller(self) -> "MemoryPlan | None":
        """The fastest plan that takes clearly less memory, for when this one did not fit; None if there is none."""
        if self.device is None:
            return None
        free = needed_bytes(self.work, self.choice) - LESS * self.bytes.peak
        device = replace(self.device, free=int(free))
        choice = fastest(self.work, device, self.allowed)
        return None if choice is None else replace(self, device=device, choice=choice, measured=None, faster=None)

    def lines(self) -> list[str]:
        """The plan in words for the log, line by line; empty on the CPU."""
        if self.device is None:
            return []
        expected = f"{self.bytes.peak / GIB:.1f} GiB"
        if self.measured:
            expected = (
                f"{in_seconds(self.measured.seconds_per_picture)} s per picture, {self.measured.peak_gib:.1f} GiB"
                f" (measured here on {self.measured.date})"
            )
        free = f"{self.device.free / GIB:.1f} GiB free on {self.device.name}"
        lines = [f"memory: expected {expected}, {free}: {in_words(self.work, self.choice)}"]
        if self.choice.checkpointed or self.choice.swapped:
            without = step_bytes(self.work, replace(self.choice, checkpointed=0, swapped=0)).peak
            slower = f"this way a step has {self.slowdown:.2f} times the arithmetic"
            lines.append(f"  with neither it would take {without / GIB:.1f} GiB; {slower}")
            if self.device.is_measured:
                flops, link = f"{self.device.flops / 1e12:.0f} TFLOP/s", f"{self.device.link / 1e9:.0f} GB/s"
                lines.append(f"  assuming {flops} compute and {link} overlapped copies (measured here)")
        if self.faster:
            words = in_words(self.work, self.faster)
            lines.append(f"  faster, but less precise: --base_precision=auto ({words})")
        if not self.measured and needed_bytes(self.work, self.choice) > self.device.free:
            lines.append("  this may not fit: lower the resolution, train_batch_size or network_dim")
        return lines


def make_memory_plan(work: Work, device: Device | None, allowed: Allowed, torch_device: torch.device) -> MemoryPlan:
    """The plan with the fastest choice that fits, or with the smallest one if none fits.

    device: what is known of the GPU; None for the CPU. torch_device: the same GPU; its speed is measured if the choice
    depends on it.
    """
    first = _first(allowed)
    if device is None or needed_bytes(work, first) <= device.free:
        return MemoryPlan(work, device, allowed, first)
    if not device.unified and not device.is_measured and allowed.swapped is None:
        device = device.measured_on(torch_device)
    return MemoryPlan(work, device, allowed, fastest(work, device, allowed) or smallest(work, device, allowed))


def with_faster(plan: MemoryPlan, allowed: Allowed) -> MemoryPlan:
    """The plan, whose base is in bf16, with `faster` set if a choice of `allowed` is expected to be clearly faster."""
    other = fastest(plan.work, plan.device, allowed) if plan.device else None
    if plan.device is None or other is None:
        return plan
    seconds, now = (expected_seconds(plan.work, plan.device, choice) for choice in (other, plan.choice))
    return replace(plan, faster=other) if seconds < CLEARLY * now else plan


def _first(allowed: Allowed) -> Choice:
    weight_format = allowed.formats[0]
    return Choice(weight_format.precision, weight_format.both_layouts, allowed.checkpointed or 0, allowed.swapped or 0)


def needed_bytes(work: Work, choice: Choice) -> float:
    """Bytes that have to be free on the device for a choice: its peak and a reserve."""
    return step_bytes(work, choice).peak * (1 + MARGIN) + RESERVE + (GRAPH_RESERVE if work.recorded else 0)


def fastest(work: Work, device: Device, allowed: Allowed) -> Choice | None:
    """The choice that fits and is expected to take the least time; None if none fits.

    Recomputing is tried before a lower precision of the base. Blocks are swapped instead of recomputed only if the
    copies take less time. If nothing fits without swapping, all precisions are compared with swapping, and the first of
    equals wins.
    """
    for weight_format in allowed.formats:
        fitting = [
            choice
            for swapped in _swapped_counts(work, device, allowed, weight_format, len(allowed.formats) > 1)
            if (choice := _least_recomputed(work, device, allowed, weight_format, swapped))
        ]
        if fitting:
            return min(fitting, key=lambda choice: (expected_seconds(work, device, choice), choice.swapped))
    if len(allowed.formats) > 1:
        alone = (fastest(work, device, replace(allowed, formats=(weight_format,))) for weight_format in allowed.formats)
        return min(filter(None, alone), key=lambda choice: expected_seconds(work, device, choice), default=None)
    return None


def _swapped_counts(
    work: Work, device: Device, allowed: Allowed, weight_format: WeightFormat, later: bool
) -> list[int]:
    """How many blocks may be swapped; none while a lower precision is still to be tried."""
    if allowed.swapped is not None:
        return [allowed.swapped]
    if device.unified or later:
        return [0]
    most = len(swappable_order(work.num_double, len(work.blocks) - work.num_double))
    of = Choice(weight_format.precision, weight_format.both_layouts)
    return [n for n in range(most + 1) if host_bytes(work, replace(of, swapped=n)) <= HOST_SHARE * device.host_free]


def _least_recomputed(
    work: Work, device: Device, allowed: Allowed, weight_format: WeightFormat, swapped: int
) -> Choice | None:
    # not the last one; if no block is reached there is nothing to recompute
    counts = range(max(work.num_in_backward, 1)) if allowed.checkpointed is None else [allowed.checkpointed]
    choices = [Choice(weight_format.precision, weight_format.both_layouts, count, swapped) for count in counts]
    first = bisect_left(choices, True, key=lambda choice: needed_bytes(work, choice) <= device.free)
    return choices[first] if first < len(choices) else None


def smallest(work: Work, device: Device, allowed: Allowed) -> Choice:
    """The allowed choice that needs the least memory, whether it fits or not."""
    weight_format = allowed.formats[-1]
    most = max(work.num_in_backward - 1, 0) if allowed.checkpointed is None else allowed.checkpointed
    counts = _swapped_counts(work, device, allowed, weight_format, later=False) or [0]
    choices = (Choice(weight_format.precision, weight_format.both_layouts, most, swapped) for swapped in counts)
    return min(choices, key=lambda choice: needed_bytes(work, choice))


def expected_seconds(work: Work, device: Device, choice: Choice) -> float:
    """A step's estimated time, for comparing choices on one device: arithmetic, with copies that overlap it.

    A GPU can be faster than its host launches kernels; steps captured as CUDA graphs need no launches.
    """
    computing = step_flops(work, choice.checkpointed) / device.flops
    copying = copied_bytes(work, choice) / device.link
    passes = len(work.blocks) + min(choice.checkpointed, work.num_in_backward) + 2 * work.num_in_backward
    launching = 0.0 if work.recorded else LAUNCHING * passes / 3
    return max(computing + COPY_COST * copying, copying, launching)


def in_words(work: Work, choice: Choice) -> str:
    """A choice in words for messages, like "12 of 57 blocks recomputed in backward"."""
    parts = [] if choice.precision == "bf16" else [f"the base in {choice.precision}"]
    if recomputed := min(choice.checkpointed, work.num_in_backward):
        parts.append(f"{recomputed} of {work.num_in_backward} blocks recomputed in backward")
    if choice.swapped:
        waiting = host_bytes(work, choice) / GIB
        parts.append(f"the weights of {counted(choice.swapped, 'block')} ({waiting:.1f} GiB) in host memory")
    return ", ".join(parts) or "nothing recomputed, nothing swapped"
