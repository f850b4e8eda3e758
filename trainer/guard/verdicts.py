"""The verdicts: what the numbers of a run say about its learning rate and its length. Pure functions.

Two measures of the loss are used together. The losses of steps are true but noisy, since each step has its own images
and timesteps. `loss_change` adds up what each update changed to first order (`trainer.engine.probe`); it has little
noise, but overestimates the loss where updates overshoot.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, dropwhile, takewhile
from typing import Literal

from trainer.guard.history import History, Step

Kind = Literal["too_high", "too_low", "improving", "overfitting"]
MIN_STEPS = 20  # before which nothing is said, unless the loss explodes
WINDOW, WINDOW_STEPS = 0.15, 20  # of the run so far, and at least: what counts as recent
EXPLODED, EXPLODED_LOSS, EXPLODED_STEPS = 5.0, 0.5, 5  # times the loss at the start, and the loss, in so many steps
FEW = 5  # steps, whose spread says little
NOTHING = 1e-3  # a loss that is none
RAISED = 1.5  # times the loss at the start, for longer than noise explains
STANDARD_ERRORS = 5.0  # many, since a run is looked at many times
PATIENCE = 0.4  # of the run, after which it must have learned something
LEARNED = 0.02  # share of the loss
IMPROVING = 0.15  # share of all that was learned, gained in the last third of the run
FADED = 0.05  # the same, when a run counts as finished
WORSE_LOSS = 0.1  # held-out loss above its best, as a share
WORSE_SCORE = 3.0  # points below the best score
CONFIRMED = 3  # validations in a row


@dataclass(frozen=True)
class Verdict:
    """One verdict. step: when it was reached; since: since when it holds; text: for the user, with its evidence.

    evidence: the numbers behind it, by name; more_steps: with "improving".
    """

    kind: Kind
    step: int
    text: str
    evidence: dict[str, float] = field(default_factory=dict)
    since: int | None = None
    more_steps: int | None = None


def verdicts(history: History) -> list[Verdict]:
    """What can be said after the last step of the history, the most serious first; often nothing."""
    if not history.steps:
        return []
    if high := too_high(history):
        return [high]
    found = [too_low(history), overfitting(history)]
    return [each for each in found if each] or [each for each in [improving(history)] if each]


def loss_at_start(steps: Sequence[Step]) -> tuple[float, float]:
    """The loss with the adapter as it was at the start, and its standard error, from all steps so far.

    A step's loss less its `loss_change` is that loss plus noise. Where updates overshoot, `loss_change` says too much:
    it counts as 0 where it is positive, and steps are used until it first exceeds half of the highest loss before.
    A loss of nearly 0 at the beginning is that of an image which is only preserved, and says nothing.
    """
    begun = list(dropwhile(lambda each: each.loss < NOTHING, steps)) or steps[:1]
    highest = accumulate((each.loss for each in begun), max)
    trusted = takewhile(lambda pair: abs(pair[0].loss_change) <= pair[1] / 2, zip(begun[1:], highest, strict=False))
    usable = [begun[0].loss, *(each.loss - min(0.0, each.loss_change) for each, _ in trusted)]
    mean = statistics.fmean(usable)
    noise = statistics.stdev(usable) if len(usable) > 1 else 0.0
    return mean, (noise if len(usable) >= FEW else max(noise, mean / 2)) / math.sqrt(len(usable))


def too_high(history: History) -> Verdict | None:
    """Whether the loss is higher than without training, by more than its noise."""
    steps = history.steps
    start, start_error = loss_at_start(steps)
    recent = steps[-max(WINDOW_STEPS, int(WINDOW * len(steps))) :]
    level = statistics.median(each.loss for each in recent)
    error = math.hypot(_error([each.loss for each in recent]), start_error)
    raised = len(steps) >= MIN_STEPS and level > RAISED * start and level - start > STANDARD_ERRORS * error
    if not raised:
        latest = [each.loss for each in steps[-EXPLODED_STEPS:]]
        if len(latest) < EXPLODED_STEPS or min(latest) <= max(EXPLODED * start, EXPLODED_LOSS):
            return None
        level = statistics.median(latest)
    text = f"the loss is {level:.2g}, and was {start:.2g} without training"
    return Verdict(
        "too_high",
        steps[-1].step,
        f"learning rate too high: images will break up ({text}). Start again with a third of it",
        {"loss": level, "loss_at_start": start, "alignment": statistics.fmean(each.alignment for each in recent)},
    )


def too_low(history: History) -> Verdict | None:
    """Whether the run has learned next to nothing after 40 % of its steps."""
    steps = history.steps
    last = steps[-1]
    if history.finds_rate or last.step < PATIENCE * history.total_steps or len(steps) < MIN_STEPS:
        return None
    start, _ = loss_at_start(steps)
    if start <= 0:
        return None
    most, learned = (-change / start for change in (min(each.loss_change for each in steps), last.loss_change))
    if most >= LEARNED or learned <= -LEARNED:  # far below zero, updates overshoot, and are not small
        return None
    share, fell = last.step / history.total_steps, f"the loss fell by {max(0.0, learned):.1%}"
    return Verdict(
        "too_low",
        last.step,
        f"learning rate too low: nothing learned after {share:.0%} of the run ({fell})."
        " Start again with three times the rate, or use python -m trainer find_rate",
        {"learned": learned, "loss_at_start": start, "alignment": statistics.fmean(e.alignment for e in steps)},
    )


def improving(history: History) -> Verdict | None:
    """At the end of a run: whether more steps would go on lowering the loss, and how many.

    Progress is counted per unit of learning rate, since a schedule that ends at zero ends at zero progress.
    """
    steps = history.steps
    if steps[-1].step < history.total_steps or len(steps) < MIN_STEPS:
        return None
    first, second = _gain(steps, 1 / 3, 2 / 3), _gain(steps, 2 / 3, 1)
    total = -steps[-1].loss_change
    if total <= 0 or second < IMPROVING * total:
        return None
    kept = min(0.9, max(0.1, second / first)) if first > 0 else 0.9
    thirds = min(3.0, math.log(FADED * total / second) / math.log(kept))
    more = round(thirds * history.total_steps / 3)
    text = f"still improving: {more} more steps ({second / total:.0%} of what it learned came in the last third)"
    return Verdict("improving", steps[-1].step, text, {"last_third": second / total}, more_steps=more)


def overfitting(history: History) -> Verdict | None:
    """Whether the loss on held-out images, or the score of evaluations, has been getting worse for some time."""
    return (_loss_rises(history) if history.holds_out else None) or _score_falls(history)


def _loss_rises(history: History) -> Verdict | None:
    found = history.validations
    if len(found) <= CONFIRMED:
        return None
    best_step, best = min(found, key=lambda each: each[1])
    last = found[-CONFIRMED:]
    if best <= 0 or best_step >= last[0][0] or any(loss < (1 + WORSE_LOSS) * best for _, loss in last):
        return None
    rise = last[-1][1] / best - 1
    text = (
        f"overfitting since step {best_step} (the loss on held-out images is {rise:.1%} above its best)."
        " Generated images may still get better: compare the LoRA files"
    )
    return Verdict("overfitting", found[-1][0], text, {"held_out": last[-1][1], "best": best}, since=best_step)


def _score_falls(history: History) -> Verdict | None:
    found = history.scores
    if len(found) < 3:
        return None
    best = max(found, key=lambda each: each.score)
    last = found[-2:]
    if best in last or any(
        best.score - each.score < max(WORSE_SCORE, 2 * math.hypot(best.error, each.error)) for each in last
    ):
        return None
    lost = best.score - last[-1].score
    text = f"overfitting since step {best.step} (the score of the evaluations has fallen by {lost:.0f} points)"
    return Verdict("overfitting", found[-1].step, text, {"score": last[-1].score, "best": best.score}, since=best.step)


def _error(values: Sequence[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.inf


def _gain(steps: Sequence[Step], start: float, end: float) -> float:
    """How far the loss fell between two shares of the learning rates' sum over the run."""
    total = sum(each.rate for each in steps)
    passed, inside = 0.0, []
    for each in steps:
        if start * total <= passed <= end * total:
            inside.append(each)
        passed += each.rate
    return inside[0].loss_change - inside[-1].loss_change if inside else 0.0
