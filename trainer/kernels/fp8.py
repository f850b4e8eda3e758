"""An fp8 matrix product with a low-rank product added to it before the result is rounded to bfloat16.

    y = (a bᵀ) scale_a scale_bᵀ + bias + scale hidden upᵀ

a and b are e4m3; hidden and up belong to the adapters of layers that share the input a. PyTorch's scaled product adds
only the bias. Adding the low-rank product afterwards reads and writes y once more, which takes up to half the time of
the product itself where N >= K. See `can_add`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from trainer.kernels.contiguous import stack_rows
from trainer.kernels.trial import HAS_TRITON, passes_trial

ROWS, COLUMNS = 128, 256  # the tile of y that a program computes at a time
MAX_LAYERS, MAX_RANK = 4, 64
MIN_TILES = 1.5  # per multiprocessor; smaller products are faster in two steps
HOPPER = 9  # the major compute capability of the GPUs on which the kernel was measured to be faster
TOLERANCE = 0.02  # a correct kernel rounds once, to bfloat16


@dataclass(frozen=True)
class LowRank:
    """What adapters add to the outputs y [M, N] of concatenated layers, each to its own columns: scale hidden_i up_iᵀ.

    hidden: [M, sum of R_i], the inputs multiplied by the down matrices. ups: one [N_i, R_i] per layer, in the dtype of
    hidden; several are copied unless they are adjacent in memory.
    """

    hidden: Tensor
    ups: Sequence[Tensor]
    scale: float

    def add_to(self, y: Tensor) -> Tensor:
        """Add scale hidden_i up_iᵀ to each layer's columns of y [M, N], in place, and return y."""
        hidden = torch.split(self.hidden, [up.shape[1] for up in self.ups], dim=1)
        columns = torch.split(y, [len(up) for up in self.ups], dim=1)
        for own_y, own, up in zip(columns, hidden, self.ups, strict=True):
            own_y.addmm_(own, up.t(), alpha=self.scale)
        return y


def can_add(a: Tensor, b: Tensor, low_rank: LowRank) -> bool:
    """Whether `multiply_and_add` supports these operands and is faster than two separate steps.

    So it is on Hopper, for large products with N >= K and adapters that all have the same rank. a: [M, K]; b: [N, K].
    """
    if not (a.is_cuda and HAS_TRITON and low_rank.hidden.dtype == torch.bfloat16):
        return False
    ranks, widths = {up.shape[1] for up in low_rank.ups}, [len(up) for up in low_rank.ups]
    if len(ranks) > 1 or max(ranks) > MAX_RANK or len(widths) > MAX_LAYERS:
        return False
    depth, width = a.shape[1], len(b)
    if width < depth or depth % 16 or width % 16 or (len(widths) > 1 and any(own % COLUMNS for own in widths)):
        return False
    tiles = -(-len(a) // ROWS) * -(-width // COLUMNS)
    return _works(a.device) and tiles >= MIN_TILES * _multiprocessors(a.device)


@cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


@cache
def _works(device: torch.device) -> bool:
    if torch.cuda.get_device_properties(device).major != HOPPER:
        return False
    return passes_trial("fp8 products with a fused adapter", lambda: kernel_error(device), TOLERANCE)


def kernel_error(device: torch.device) -> float:
    """Run the kernel once on a small random product; returns the relative error against float32."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(-8, 9, shape, generator=generator).to(device) for shape in ((192, 144), (528, 144)))
    hidden, up, bias = (torch.randn(shape, generator=generator).to(device) for shape in ((192, 16), (528, 16), (528,)))
    scale_a, scale_b = (1 + torch.rand(count, generator=generator).to(device) for count in (192, 528))
    low_rank = LowRank(hidden.bfloat16(), [up.bfloat16()], 0.5)
    factors = [each.to(torch.float8_e4m3fn) for each in (a, b)]
    found = multiply_and_add(factors[0], scale_a[:, None], factors[1], scale_b, bias, low_rank)
    exact = LowRank(low_rank.hidden.float(), [low_rank.ups[0].float()], 0.5)
    expected = exact.add_to(a.float() @ b.float().t() * scale_a[:, None] * scale_b + bias)
    return float((found.float() - expected).norm() / expected.norm())


def multiply_and_add(
    a: Tensor, scale_a: Tensor, b: Tensor, scale_b: Tensor | None, bias: Tensor | None, low_rank: LowRank
) -> Tensor:
    """y [M, N] = (a bᵀ) scale_a scale_bᵀ + bias + what the adapters add, rounded once, to bfloat16.

    a: [M, K] and b: [N, K] in e4m3; scale_a: [M, 1] and scale_b: [N] in float32; bias: [N]. Without scale_b its scales
    are 1. For operands that `can_add` accepts.
    """
    from trainer.kernels import triton_fp8

    ups = low_rank.ups
    up = ups[0].contiguous() if len(ups) == 1 else stack_rows(ups)
    second, third, fourth = (sum(len(other) for other in ups[:count]) for count in range(1, MAX_LAYERS))
    begins = (second, third, fourth)  # of layers that do not exist: beyond the last column
    hidden, scale, programs = low_rank.hidden, low_rank.scale, _multiprocessors(a.device)
    return triton_fp8.multiply_and_add(
        a, scale_a, b, scale_b, bias, hidden, up, begins, scale, (ROWS, COLUMNS), programs
    )
