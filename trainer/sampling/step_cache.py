"""Sampling with fewer evaluations of the transformer: where the velocity changes slowly, it is extrapolated.

Which steps are skipped is decided as in EasyCache (Zhou et al. 2025, arXiv:2507.02860), written from the paper's
description. How fast the velocity changes with its input, k = |v_t - v_(t-1)| / |x_t - x_(t-1)|, differs little from
step to step, so that k |x_t - x_(t-1)| / |v_(t-1)| estimates the next step's relative change without evaluating the
transformer. Steps are skipped while the sum of these estimates stays below a tolerance.

The paper keeps v - x of the last evaluated step in a skipped one. Here v is extrapolated linearly in sigma from the
last two evaluated steps, which for the same number of evaluations comes much closer to the complete sampler (see
docs/lab/performance.md).
"""

import math
from collections.abc import Callable

from torch import Tensor

WARM_UP = 0.15  # share of the steps that are always evaluated first; they decide what the image shows
MIN_WARM_UP = 3  # k and the extrapolation need two velocities


class StepCache:
    """Decides for one image, or one batch, which steps to evaluate. Call `velocity` once for each step, in order.

    tolerance: the sum of estimated relative changes up to which steps are skipped; num_steps: steps of the sampler.
    evaluated: how many steps were evaluated so far. error: the largest known relative error of an extrapolated
    velocity, by mean magnitudes: a step that is evaluated after skipped ones is compared with the extrapolation.
    """

    def __init__(self, tolerance: float, num_steps: int) -> None:
        self.tolerance, self.num_steps = tolerance, num_steps
        self.warm_up = max(MIN_WARM_UP, math.ceil(WARM_UP * num_steps))
        self.evaluated, self.error = 0, 0.0
        self._step, self._skipped, self._change = 0, 0, 0.0
        self._rate = 0.0
        self._last: tuple[Tensor, Tensor] | None = None  # x and v of the last step
        self._known: list[tuple[float, Tensor]] = []  # sigma and v of the last two evaluated steps

    def velocity(self, sigma: float, x: Tensor, evaluate: Callable[[], Tensor]) -> Tensor:
        """The velocity at x, from `evaluate` or extrapolated.

        sigma: of this step; x: its latents. The result has the shape of x.
        """
        v = self._extrapolated(sigma) if self._may_skip(x) else self._evaluated(sigma, x, evaluate())
        self._last = x, v
        self._step += 1
        return v

    @property
    def summary(self) -> str:
        """The steps evaluated and the error, in words."""
        return f"{self.evaluated} of {self.num_steps} steps evaluated, velocities off by at most {self.error:.1%}"

    def _may_skip(self, x: Tensor) -> bool:
        if self._step < self.warm_up or self._step == self.num_steps - 1 or self._last is None:
            return False
        last_x, last_v = self._last
        self._change += self._rate * _relative(x - last_x, last_v)
        return self._change < self.tolerance

    def _extrapolated(self, sigma: float) -> Tensor:
        self._skipped += 1
        (before, v_before), (last, v_last) = self._known
        return v_last + (v_last - v_before) * ((sigma - last) / (last - before))

    def _evaluated(self, sigma: float, x: Tensor, v: Tensor) -> Tensor:
        if self._skipped:
            self.error = max(self.error, _relative(self._extrapolated(sigma) - v, v))
        if self._last is not None:
            last_x, last_v = self._last
            self._rate = _relative(v - last_v, x - last_x)
        self._known = [*self._known[-1:], (sigma, v)]
        self._change, self._skipped = 0.0, 0
        self.evaluated += 1
        return v


def _relative(tensor: Tensor, other: Tensor) -> float:
    """The ratio of two tensors' mean magnitudes; infinite if the second is zero, so that nothing is skipped."""
    size = float(other.abs().mean())
    return float(tensor.abs().mean()) / size if size else math.inf
