"""fp8 matrix products with block scales, for GPUs that multiply fp8 at full rate only with them (RTX 50, GB10).

    y = (a bᵀ) scale_a scale_bᵀ + bias

Tensor cores of compute capability 12 have two instructions for e4m3: a plain one at half rate, and one at full rate
that takes a power of two as the scale of each 32 numbers of a row (MX formats, OCP 2023). With all of these scales at 1
it computes the same as the plain one. PyTorch's product with one scale per row uses the plain one.
"""

import logging
from functools import cache

import torch
from torch import Tensor

from trainer.kernels.trial import milliseconds, passes_trial, runs_triton

log = logging.getLogger(__name__)
MAJOR = 12  # compute capability of GPUs whose plain fp8 products run at half rate
BLOCK = 32  # numbers that share a scale
FASTER = 0.97  # the kernel has to take less than this share of PyTorch's time
TRIED = (4096, 3072, 3072)  # rows, columns and depth of the product that is timed: FLUX's attention output at 1024 px
TOLERANCE = 0.01  # a correct kernel rounds once, to bfloat16
WHAT = "fp8 products with block scales"


def can_multiply(a: Tensor) -> bool:
    """Whether `multiply` takes this operand, [M, K] in e4m3, and is faster than PyTorch."""
    return a.is_cuda and a.shape[1] % BLOCK == 0 and works(a.device)


def works(device: torch.device) -> bool:
    """Whether the device needs the kernel, and it computes correctly there and faster than PyTorch; tried once."""
    return _tile(device) is not None


@cache
def _tile(device: torch.device) -> int | None:
    """The index of the fastest of the kernel's tiles; None if PyTorch is better."""
    if not runs_triton(device, (MAJOR, 0)) or torch.cuda.get_device_capability(device)[0] != MAJOR:
        return None
    from trainer.kernels.triton_mx import TILES

    indices = range(len(TILES))
    if not passes_trial(WHAT, lambda: max(kernel_error(device, index) for index in indices), TOLERANCE):
        return None
    rows, columns, depth = TRIED
    a, b = (torch.randn(count, depth, device=device).to(torch.float8_e4m3fn) for count in (rows, columns))
    scale_a, scale_b = torch.ones(rows, 1, device=device), torch.ones(columns, device=device)
    times = [milliseconds(lambda index=index: _multiply(a, scale_a, b, scale_b, None, index)) for index in indices]
    plain = milliseconds(lambda: _plain(a, scale_a, b, scale_b))
    return choose_tile(times, plain)


def choose_tile(times: list[float], plain: float) -> int | None:
    """The index of the shortest time, or None if that is not clearly shorter than PyTorch's; logs which.

    times, plain: milliseconds of the same product with each of the kernel's tiles, and by PyTorch.
    """
    best = min(range(len(times)), key=times.__getitem__)
    if times[best] < FASTER * plain:
        log.info("%s: %.2f ms against PyTorch's %.2f", WHAT, times[best], plain)
        return best
    log.warning("falling back to PyTorch for %s: they take %.2f ms, PyTorch's %.2f", WHAT, times[best], plain)
    return None


def _plain(a: Tensor, scale_a: Tensor, b: Tensor, scale_b: Tensor) -> Tensor:
    options = {"scale_a": scale_a, "scale_b": scale_b[None], "out_dtype": torch.bfloat16, "use_fast_accum": True}
    return torch._scaled_mm(a, b.t(), **options)


def kernel_error(device: torch.device, tile: int = 0) -> float:
    """Run the kernel once on a small product; returns the relative error against float32. tile: which of its tiles."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(-8, 9, shape, generator=generator).to(device) for shape in ((200, 160), (272, 160)))
    scale_a, scale_b, bias = (1 + torch.rand(count, generator=generator).to(device) for count in (200, 272, 272))
    factors = [each.to(torch.float8_e4m3fn) for each in (a, b)]
    found = _multiply(factors[0], scale_a[:, None], factors[1], scale_b, bias, tile)
    expected = a.float() @ b.float().t() * scale_a[:, None] * scale_b + bias
    return float((found.float() - expected).norm() / expected.norm())


def multiply(a: Tensor, scale_a: Tensor, b: Tensor, scale_b: Tensor | None, bias: Tensor | None) -> Tensor:
    """y [M, N] = (a bᵀ) scale_a scale_bᵀ + bias, rounded once, to bfloat16, for operands that `can_multiply` accepts.

    a: [M, K] and b: [N, K] in e4m3; scale_a: [M, 1] and scale_b: [N] in float32; bias: [N]. Without scale_b its scales
    are 1.
    """
    tile = _tile(a.device)
    assert tile is not None
    return _multiply(a, scale_a, b, scale_b, bias, tile)


def _multiply(a: Tensor, scale_a: Tensor, b: Tensor, scale_b: Tensor | None, bias: Tensor | None, tile: int) -> Tensor:
    from trainer.kernels import triton_mx

    return triton_mx.multiply(a, scale_a, b, scale_b, bias, triton_mx.TILES[tile])
