"""Repeats a first step that runs out of memory with a smaller plan. A later step that does is a problem."""

import gc
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator

from trainer.common.problems import Problem, Problems
from trainer.memory.bytes import GIB
from trainer.memory.choose import MemoryPlan, in_words

log = logging.getLogger(__name__)
T = TypeVar("T")
LESS = "a lower resolution, train_batch_size or network_dim"


U = TypeVar("U")


class CanShrink(Protocol):
    """A run whose memory plan can be changed."""

    accelerator: Accelerator

    @property
    def memory(self) -> MemoryPlan:
        """The current plan."""
        ...

    def release_memory(self) -> None:
        """Drop everything that holds memory on the device, such as the model and the optimizer."""
        ...

    def reload(self, memory: MemoryPlan) -> None:
        """Load again what `release_memory` dropped, as it was before the first step, with the plan `memory`."""
        ...


def run_until_it_fits(run: CanShrink, gradient: Callable[[], T], update: Callable[[T], U]) -> tuple[T, U]:
    """Run the first step, `update(gradient())`, and return the results of both.

    If either runs out of memory, the run is reloaded with a smaller memory plan and both are repeated. Several
    processes agree after each of the two, so that all of them repeat it or none does; therefore `gradient` must not
    wait for other processes. Raises `Problems` if there is no smaller plan.
    """
    while True:
        first = _try(gradient)
        if _all(first is not None, run.accelerator) and first:
            second = _try(lambda first=first: update(first[0]))
            if _all(second is not None, run.accelerator) and second:
                return first[0], second[0]
        del first
        _begin_again(run)


def _try(half: Callable[[], T]) -> tuple[T] | None:
    try:
        return (half(),)
    except torch.OutOfMemoryError as error:
        log.debug("%s", error)
    return None  # outside the handler, where the error no longer keeps the step's tensors alive


def _all(fits: bool, accelerator: Accelerator) -> bool:
    if accelerator.num_processes == 1:
        return fits
    flag = torch.full((), float(fits), device=accelerator.device)
    dist.all_reduce(flag, op=dist.ReduceOp.MIN)
    return bool(flag)


def _begin_again(run: CanShrink) -> None:
    memory = run.memory.smaller()
    if memory is None:
        raise Problems([out_of_memory("the first step", run.memory)])
    on_gpu = run.accelerator.device.type == "cuda"
    reached = f", with {_reached(run.accelerator.device)}" if on_gpu else ""
    words = in_words(memory.work, memory.choice)
    log.warning("memory: out of memory in the first step%s; trying again with %s", reached, words)
    run.release_memory()
    gc.collect()
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    run.reload(memory)


def _reached(device: torch.device) -> str:
    tensors, taken = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
    return f"{tensors / GIB:.1f} GiB of tensors in {taken / GIB:.1f} GiB taken from the device"


@contextmanager
def reserve(num_bytes: int, device: torch.device) -> Iterator[None]:
    """In this context hold `num_bytes` of a GPU's memory, and none on the CPU.

    Hold what the optimizer will need from its first step on, so that what fits now still fits then.
    """
    held = torch.empty(max(num_bytes, 0) if device.type == "cuda" else 0, dtype=torch.uint8, device=device)
    yield
    del held


def out_of_memory(where: str, memory: MemoryPlan) -> Problem:
    """The problem of a step that does not fit, with what to do about it. where: the step, for the message."""
    smaller = memory.smaller()
    if smaller is None:
        return Problem(where, "out of memory", f"use {LESS}, or free memory that other programs use on the device")
    flags = f"--checkpoint_blocks={smaller.choice.checkpointed} --blocks_to_swap={smaller.choice.swapped}"
    return Problem(where, "out of memory", f"resume with {flags}, or use {LESS}")
