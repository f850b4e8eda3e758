"""Prodigy's update of many tensors in one kernel per pass.

Each pass reads and writes a number once. PyTorch's operations on lists of tensors move three times as many bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor

from trainer.kernels.trial import passes_trial, runs_triton

TOLERANCE = 1e-5  # float32 rounds by 6e-8


@dataclass(frozen=True)
class Chunk:
    """Parameters with their gradients and Prodigy's state: lists of equal length, with equal shapes at each index.

    exp_avg, exp_avg_sq: Adam's averages; s: the average of gradients from which Prodigy estimates d; starts: the
    parameters' initial values, or an empty list if they started at zero.
    """

    parameters: Sequence[Tensor]
    gradients: Sequence[Tensor]
    exp_avg: Sequence[Tensor]
    exp_avg_sq: Sequence[Tensor]
    s: Sequence[Tensor]
    starts: Sequence[Tensor] = field(default_factory=list)

    def lists(self) -> list[Sequence[Tensor]]:
        """All lists of the chunk, in the order of its fields, without `starts` if it is empty."""
        always = [self.parameters, self.gradients, self.exp_avg, self.exp_avg_sq, self.s]
        return [*always, self.starts] if self.starts else always


def fits(chunk: Chunk) -> bool:
    """Whether the kernels support a chunk: contiguous float32, on a GPU where they passed their trial."""
    return _works(chunk.parameters[0].device) and all(
        tensor.dtype == torch.float32 and tensor.is_contiguous() for tensors in chunk.lists() for tensor in tensors
    )


def average(chunk: Chunk, d: Tensor, share: Tensor, betas: tuple[float, float, float]) -> Tensor:
    """Update, in place, Adam's averages with d g and s with share d g, where g are the gradients.

    d: Prodigy's estimate; share: the factor of d g in s; both scalars. betas: the decay rates of exp_avg, exp_avg_sq
    and s. Returns, [2] in d's dtype, the sums over all numbers of (p - p0) share d g, where p0 are the initial values
    of the parameters p, and of |s|.
    """
    from trainer.kernels import triton_prodigy

    scalars = torch.stack([d, share]).float()
    return triton_prodigy.average(chunk.lists(), scalars, betas).sum(0, dtype=d.dtype)


def move(chunk: Chunk, length: Tensor, eps: Tensor, decay: Tensor) -> None:
    """Update the parameters p in place: p <- p - decay p - length exp_avg / (sqrt(exp_avg_sq) + eps).

    length (the step size), eps and decay: scalars.
    """
    from trainer.kernels import triton_prodigy

    triton_prodigy.move([chunk.parameters, chunk.exp_avg, chunk.exp_avg_sq], torch.stack([length, eps, decay]).float())


@cache
def _works(device: torch.device) -> bool:
    if not runs_triton(device):
        return False
    return passes_trial("Prodigy's update", lambda: kernel_error(device), TOLERANCE)


def kernel_error(device: torch.device) -> float:
    """Run the kernels on a few small random tensors; returns the largest relative error against float64."""
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
