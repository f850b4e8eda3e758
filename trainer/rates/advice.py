"""From the losses of a few steps at each learning rate to a range for a complete run. Pure functions."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

SETTLED = 0.5  # share of the steps that is left out, while the rates are still drawing apart
NOTABLE = 0.5  # of the best rate's gain, from which a rate counts as one that learns
STANDARD_ERRORS = 2.0


@dataclass(frozen=True)
class RateLosses:
    """The loss of each step at one rate. diverged: whether it was cut short there, because the loss exploded."""

    rate: float
    losses: tuple[float, ...]
    diverged: bool = False


@dataclass(frozen=True)
class Gain:
    """How much lower the loss is at a rate than without training, as a share of the latter; negative: it is higher.

    error: the standard error of `mean`, over steps; infinite if unknown. diverged: the loss exploded, and the gain is
    minus infinity.
    """

    rate: float
    mean: float
    error: float
    diverged: bool = False


@dataclass(frozen=True)
class Advice:
    """What a sweep says about a complete run.

    low, high: the range; usual: the rate within it to begin with; None if there is no range. best: the rate that gained
    most in the sweep's few steps; None if no rate gained more than its error. reason: why there is no range and what to
    do, or how far the range can be relied on.
    """

    low: float | None
    usual: float | None
    high: float | None
    best: float | None
    reason: str = ""


def gain_of(found: RateLosses, base: Sequence[float]) -> Gain:
    """The gain at a rate over the second half of the sweep's steps.

    base: the loss of each step without training. Steps are compared in pairs, so that only the weights differ.
    """
    if found.diverged:
        return Gain(found.rate, -math.inf, 0.0, True)
    start = int(SETTLED * len(base))
    level = statistics.fmean(base[start:])
    if level <= 0:  # only preserved images: without training there is nothing to lower
        return Gain(found.rate, 0.0, math.inf)
    shares = [(b - loss) / level for b, loss in zip(base[start:], found.losses[start:], strict=True)]
    error = statistics.stdev(shares) / math.sqrt(len(shares)) if len(shares) > 1 else math.inf
    return Gain(found.rate, statistics.fmean(shares), error)


def advise(gains: Sequence[Gain], sweep_steps: int, run_steps: float) -> Advice:
    """The range for a run. gains: by rising rate; run_steps: its steps, each counted by its share of the full rate.

    high is the rate that gained most in the sweep: above it, steps already undo one another after a few steps. low is
    the rate at which the run would move the weights as far as the lowest notable rate does in the sweep, if updates
    were a random walk, whose distance grows with the square root of the number of steps; below it the run would end
    before it has learned. The rate to begin with is in the middle, on a logarithmic scale.
    """
    best = max(gains, key=lambda gain: gain.mean)
    if math.isinf(best.error) and best.mean == 0:
        return Advice(None, None, None, None, "no rate lowered the loss: it is 0 without training, too")
    if best.mean <= STANDARD_ERRORS * best.error:
        return Advice(None, None, None, None, "no rate lowered the loss by more than its error: try more --steps")
    if len(gains) == 1:
        return Advice(
            None, None, None, best.rate, f"{best.rate:g} lowers the loss; give several --rates to find a range"
        )
    notable = next(gain for gain in gains if gain.mean >= NOTABLE * best.mean)
    high = best.rate
    low = min(high, notable.rate * math.sqrt(sweep_steps / max(run_steps, sweep_steps)))
    open_end = "the highest rate that was tried gained most, so that higher ones may suit too: give higher --rates"
    return Advice(low, math.sqrt(low * high), high, best.rate, open_end if best is gains[-1] else "")
