"""`trainer.kernels.prodigy` in Triton: one launch for all tensors of a chunk, given as a table of addresses."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

Tensors = Sequence[Tensor]
BLOCK, TURNS = 512, 8  # a program handles TURNS blocks of BLOCK numbers
SHARE = BLOCK * TURNS
MIN_TENSORS = 128  # table lengths are padded to this or a power of two, so that few kernels are compiled


def average(lists: Sequence[Tensors], scalars: Tensor, betas: tuple[float, float, float]) -> Tensor:
    """See `trainer.kernels.prodigy.average`. Returns the sums of each program, [programs, 2] in float32.

    lists: parameters, gradients, exp_avg, exp_avg_sq, s and, if they are not zero, the initial parameters. scalars: d
    and share, [2] in float32.
    """
    table, programs = _table(lists)
    sums = torch.empty(programs, 2, device=scalars.device)
    beta1, beta2, beta3 = betas
    with torch.cuda.device_of(scalars):
        _prodigy_average[(programs,)](
            table, table.shape[1], scalars, sums, 1 - beta1, beta2, 1 - beta2, beta3,
            TENSORS=_padded(table.shape[1]), STARTED=len(lists) == 6, BLOCK=BLOCK, TURNS=TURNS, num_warps=4,
        )  # fmt: skip
    return sums


def move(lists: Sequence[Tensors], scalars: Tensor) -> None:
    """See `trainer.kernels.prodigy.move`.

    lists: parameters, exp_avg and exp_avg_sq. scalars: length, eps and decay, [3] in float32.
    """
    table, programs = _table(lists)
    with torch.cuda.device_of(scalars):
        _prodigy_move[(programs,)](
            table, table.shape[1], scalars, TENSORS=_padded(table.shape[1]), BLOCK=BLOCK, TURNS=TURNS, num_warps=4
        )


def _table(lists: Sequence[Tensors]) -> tuple[Tensor, int]:
    """The kernel's table [2 + number of lists, tensors], and the number of programs.

    Rows: the first program of each tensor, its length, and its address in each list.
    """
    firsts, programs = [], 0
    for tensor in lists[0]:
        firsts.append(programs)
        programs += triton.cdiv(tensor.numel(), SHARE)
    addresses = [[tensor.data_ptr() for tensor in tensors] for tensors in lists]
    rows = [firsts, [tensor.numel() for tensor in lists[0]], *addresses]
    device = lists[0][0].device
    table = torch.tensor(rows, dtype=torch.int64, pin_memory=device.type == "cuda").to(device, non_blocking=True)
    return table, programs


def _padded(tensors: int) -> int:
    return max(MIN_TENSORS, triton.next_power_of_2(tensors))


@triton.jit(do_not_specialize=["tensors"])
def _prodigy_average(
    table, tensors, scalars, sums, rest1, beta2, rest2, beta3,
    TENSORS: tl.constexpr, STARTED: tl.constexpr, BLOCK: tl.constexpr, TURNS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    index, begin, length = _place(table, tensors, program, TENSORS, BLOCK * TURNS)
    p_ptr, g_ptr = _address(table, tensors, 0, index), _address(table, tensors, 1, index)
    m_ptr, v_ptr = _address(table, tensors, 2, index), _address(table, tensors, 3, index)
    s_ptr = _address(table, tensors, 4, index)
    if STARTED:
        start_ptr = _address(table, tensors, 5, index)
    d, share = tl.load(scalars), tl.load(scalars + 1)
    top, bottom = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    for turn in range(TURNS):
        at = begin + turn * BLOCK + tl.arange(0, BLOCK)
        there = at < length
        g = tl.load(g_ptr + at, there, other=0.0) * d
        m = tl.load(m_ptr + at, there, other=0.0)
        v = tl.load(v_ptr + at, there, other=0.0)
        s = tl.load(s_ptr + at, there, other=0.0)
        way = tl.load(p_ptr + at, there, other=0.0)
        if STARTED:
            way -= tl.load(start_ptr + at, there, other=0.0)
        change = g * share
        s = s * beta3 + change
        tl.store(m_ptr + at, m + (g - m) * rest1, there)
        tl.store(v_ptr + at, v * beta2 + g * g * rest2, there)
        tl.store(s_ptr + at, s, there)
        top += way * change
        bottom += tl.abs(s)
    tl.store(sums + program * 2, tl.sum(top))
    tl.store(sums + program * 2 + 1, tl.sum(bottom))


@triton.jit(do_not_specialize=["tensors"])
def _prodigy_move(table, tensors, scalars, TENSORS: tl.constexpr, BLOCK: tl.constexpr, TURNS: tl.constexpr):
    index, begin, length = _place(table, tensors, tl.program_id(0), TENSORS, BLOCK * TURNS)
    p_ptr, m_ptr = _address(table, tensors, 0, index), _address(table, tensors, 1, index)
    v_ptr = _address(table, tensors, 2, index)
    far, eps, decay = tl.load(scalars), tl.load(scalars + 1), tl.load(scalars + 2)
    for turn in range(TURNS):
        at = begin + turn * BLOCK + tl.arange(0, BLOCK)
        there = at < length
        p = tl.load(p_ptr + at, there, other=0.0)
        m = tl.load(m_ptr + at, there, other=0.0)
        v = tl.load(v_ptr + at, there, other=0.0)
        tl.store(p_ptr + at, p - p * decay - far * m / (tl.sqrt_rn(v) + eps), there)


@triton.jit
def _place(table, tensors, program, TENSORS: tl.constexpr, SHARE: tl.constexpr):
    """The index of a program's tensor, where in the tensor the program starts, and the tensor's length."""
    place = tl.arange(0, TENSORS)
    begun = (place < tensors) & (tl.load(table + place, place < tensors, other=0) <= program)
    index = tl.sum(begun.to(tl.int32)) - 1
    return index, (program - tl.load(table + index)) * SHARE, tl.load(table + tensors + index)


@triton.jit
def _address(table, tensors, row, index):
    return tl.load(table + (2 + row) * tensors + index).to(tl.pointer_type(tl.float32))
