"""A product in 8 bits onto which a low-rank one is added while it is still in float32.

    y = (a bᵀ) scale_a scale_bᵀ + bias + scale hidden upᵀ

where a and b are e4m3, and hidden and up what adapters of layers on one input have. torch's own product of this
kind adds nothing but the bias, and adding the low-rank one afterwards reads and writes all of y once more: where y
is as wide as the product is deep, that takes up to half the time of the product itself. See `can_add`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from trainer.kernels.contiguous import one_below_another
from trainer.kernels.trial import HAS_TRITON, is_right

ROWS, COLUMNS = 128, 256  # of y that one program computes at a time
MOST_LAYERS, HIGHEST_RANK = 4, 64
LEAST_TILES = 1.5  # for each multiprocessor; smaller products are faster in two steps
HOPPER = 9  # the major capability of the GPUs on which it was found faster
TOLERANCE = 0.02  # a right kernel rounds once, to bfloat16


@dataclass(frozen=True)
class LowRank:
    """What layers side by side add, each to its own columns of y: scale hidden_i up_iᵀ.

    hidden: [M, sum of ranks]; ups: one [N_i, R_i] a layer, in the precision of hidden, one after another in memory
    where there are several.
    """

    hidden: Tensor
    ups: Sequence[Tensor]
    scale: float

    def add_to(self, y: Tensor) -> Tensor:
        """y [M, N] with it, in place."""
        hidden = torch.split(self.hidden, [up.shape[1] for up in self.ups], dim=1)
        columns = torch.split(y, [len(up) for up in self.ups], dim=1)
        for own_y, own, up in zip(columns, hidden, self.ups, strict=True):
            own_y.addmm_(own, up.t(), alpha=self.scale)
        return y


def can_add(a: Tensor, b: Tensor, low_rank: LowRank) -> bool:
    """Whether `multiply_and_add` takes this: on GPUs where it was found faster, large enough, of one rank, and y at
    least as wide as the product is deep."""
    if not (a.is_cuda and HAS_TRITON and low_rank.hidden.dtype == torch.bfloat16):
        return False
    ranks, widths = {up.shape[1] for up in low_rank.ups}, [len(up) for up in low_rank.ups]
    if len(ranks) > 1 or max(ranks) > HIGHEST_RANK or len(widths) > MOST_LAYERS:
        return False
    depth, width = a.shape[1], len(b)
    if width < depth or depth % 16 or width % 16 or (len(widths) > 1 and any(own % COLUMNS for own in widths)):
        return False
    tiles = -(-len(a) // ROWS) * -(-width // COLUMNS)
    return _works(a.device) and tiles >= LEAST_TILES * _multiprocessors(a.device)


@cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


@cache
def _works(device: torch.device) -> bool:
    if torch.cuda.get_device_properties(device).major != HOPPER:
        return False
    return is_right("products in fp8 have the adapter's added", lambda: kernel_error(device), TOLERANCE)


def kernel_error(device: torch.device) -> float:
    """The relative error of a small product against float32."""
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
    """y [M, N] in bf16. a: [M, K], b: [N, K]; scale_a: [M, 1], scale_b: [N], float32; bias: [N]."""
    from trainer.kernels import triton_fp8

    ups = low_rank.ups
    up = ups[0].contiguous() if len(ups) == 1 else one_below_another(ups)
    second, third, fourth = (sum(len(other) for other in ups[:count]) for count in range(1, MOST_LAYERS))
    begins = (second, third, fourth)  # those of layers that are not there lie behind the last column
    hidden, scale, programs = low_rank.hidden, low_rank.scale, _multiprocessors(a.device)
    return triton_fp8.multiply_and_add(
        a, scale_a, b, scale_b, bias, hidden, up, begins, scale, (ROWS, COLUMNS), programs
    )
