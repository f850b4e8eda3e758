"""Prodigy's arithmetic on many tensors in one kernel, which reads and writes each number once for every time that the
algorithm must: plain operations on lists of tensors move three times as many bytes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor

from trainer.kernels.trial import is_right, runs_triton

TOLERANCE = 1e-5  # of float32, whose rounding is 6e-8 a number


@dataclass(frozen=True)
class Chunk:
    """Parameters with their gradients and Prodigy's state, lists of one length with tensors of one shape each.

    starts: where the parameters started, or no tensors where they started at zero.
    """

    parameters: Sequence[Tensor]
    gradients: Sequence[Tensor]
    exp_avg: Sequence[Tensor]
    exp_avg_sq: Sequence[Tensor]
    s: Sequence[Tensor]
    starts: Sequence[Tensor] = field(default_factory=list)

    def lists(self) -> list[Sequence[Tensor]]:
        """All that are there, in this order."""
        always = [self.parameters, self.gradients, self.exp_avg, self.exp_avg_sq, self.s]
        return [*always, self.starts] if self.starts else always


def fits(chunk: Chunk) -> bool:
    """Whether the kernels can work on it: float32 without gaps, on a GPU where they give the right numbers."""
    return _works(chunk.parameters[0].device) and all(
        tensor.dtype == torch.float32 and tensor.is_contiguous() for tensors in chunk.lists() for tensor in tensors
    )


def average(chunk: Chunk, d: Tensor, share: Tensor, betas: tuple[float, float, float]) -> Tensor:
    """Update Adam's averages with d g, and s with share d g. Returns, in d's type, the sums [2] over all numbers of
    (p - p0) share d g and |s|.

    d, share: of no dimension. betas: of exp_avg, exp_avg_sq and s.
    """
    from trainer.kernels import triton_prodigy

    scalars = torch.stack([d, share]).float()
    return triton_prodigy.average(chunk.lists(), scalars, betas).sum(0, dtype=d.dtype)


def move(chunk: Chunk, length: Tensor, eps: Tensor, decay: Tensor) -> None:
    """p <- p - decay p - length exp_avg / (sqrt(exp_avg_sq) + eps), the three of no dimension."""
    from trainer.kernels import triton_prodigy

    triton_prodigy.move([chunk.parameters, chunk.exp_avg, chunk.exp_avg_sq], torch.stack([length, eps, decay]).float())


@cache
def _works(device: torch.device) -> bool:
    if not runs_triton(device):
        return False
    return is_right("Prodigy's steps are made", lambda: kernel_error(device), TOLERANCE)


def kernel_error(device: torch.device) -> float:
    """The largest relative error of a few numbers that the kernels average, sum and move."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 5), (64, 48), (7,)]
    lists = [[torch.rand(shape, generator=generator).to(device) for shape in shapes] for _ in range(6)]
    wide = [torch.cat([tensor.double().flatten() for tensor in tensors]) for tensors in lists]
    p, g, exp_avg, exp_avg_sq, s, p0 = wide
    d, share = (torch.tensor(value, dtype=torch.float64, device=device) for value in (0.5, 3.0))
    chunk = Chunk(*lists)
    sums = average(chunk, d, share, (0.9, 0.99, 0.995))
    exp_avg = 0.9 * exp_avg + 0.1 * d * g
    exp_avg_sq = 0.99 * exp_avg_sq + 0.01 * (d * g) ** 2
    s = 0.995 * s + share * d * g
    expected = torch.stack([((p - p0) * share * d * g).sum(), s.sum()])
    move(chunk, d, share, d / 8)
    p = p - d / 8 * p - d * exp_avg / (exp_avg_sq.sqrt() + share)
    found = [torch.cat([tensor.flatten() for tensor in tensors]) for tensors in lists]
    pairs = zip([sums, found[0], *found[2:5]], [expected, p, exp_avg, exp_avg_sq, s], strict=True)
    return max(float((one - other).norm() / other.norm()) for one, other in pairs)
