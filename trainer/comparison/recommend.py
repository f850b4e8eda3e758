"""One checkpoint out of several, by a stated rule, and why, in two sentences."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from trainer.comparison.measures import Figure, Measures, with_error

MANY_COPIES = 0.25  # of all images: from which share of copied ones the recommendation warns
LEARNED = 20.0  # percent of likeness, or of the loss, below which nothing worth keeping was learned
LOSS_LEARNED = 1.0
UNSURE = "One prompt of a kind does not show how far these figures may be off: compare with more --prompts."
ALL_BROKEN = (
    "No file is worth keeping: their figures are not finite, as with broken weights.",
    "Train again with a lower learning rate.",
)
Reason = Literal["copies", "little", "only", "close", "next"]  # what the second sentence is about


@dataclass(frozen=True)
class Rule:
    """How a checkpoint's figures become one score. bleed, drift: how many points of benefit a point of it costs."""

    bleed: float = 1.0
    drift: float = 1.0

    def text(self, has_features: bool = True) -> str:
        """The rule in words. has_features: False if losses alone were measured, which show no bleed."""
        if not has_features:
            return f"score = fall of the loss - {self.drift:g} x drift"
        return f"score = likeness - {self.bleed:g} x bleed - {self.drift:g} x drift"


@dataclass(frozen=True)
class Standing:
    """What the rule weighs of one checkpoint.

    name: as the report calls it. benefit: likeness or, without features, by how many percent the loss on images
    fell. bleed: None without features. copied: the share of images that repeat a training image. step: optimizer steps
    of training, None if unknown.
    """

    name: str
    benefit: Figure
    bleed: Figure | None
    drift: Figure
    copied: float = 0.0
    step: int | None = None

    def score(self, rule: Rule) -> float:
        """The score by the rule, in points."""
        return self.benefit.mean - rule.drift * self.drift.mean - (rule.bleed * self.bleed.mean if self.bleed else 0)

    def error(self, rule: Rule) -> float:
        """The standard error of the score: how far it would be off with other prompts."""
        return math.hypot(*(weight * figure.error for weight, figure in self._weighed(rule)))

    def difference_error(self, other: "Standing", rule: Rule) -> float:
        """The standard error of the difference of two scores, both measured on the same prompts and seeds.

        It is smaller than that of either score, since what a prompt makes easy or hard is the same for both.
        """
        pairs = zip(self._weighed(rule), other._weighed(rule), strict=True)
        return math.hypot(*(weight * mine.minus(others).error for (weight, mine), (_, others) in pairs))

    def _weighed(self, rule: Rule) -> list[tuple[float, Figure]]:
        found = [(1.0, self.benefit), (rule.drift, self.drift)]
        return [*found, (rule.bleed, self.bleed)] if self.bleed else found


def standing_of(name: str, measures: Measures, step: int | None = None) -> Standing:
    """What the rule weighs, from measured features. step: optimizer steps of training."""
    copied = len(measures.copies) / len(measures.memorised.values)
    return Standing(name, measures.likeness, measures.bleed, measures.drift, copied, step)


@dataclass(frozen=True)
class Recommendation:
    """The best checkpoint by the rule.

    best: its index. sentences: two, what to keep and why. reason: what the second is about, for programs. close: names
    of the others whose score cannot be told apart from the highest.
    """

    best: int
    sentences: tuple[str, str]
    reason: Reason
    close: tuple[str, ...]

    @property
    def text(self) -> str:
        """Both sentences."""
        return " ".join(self.sentences)


def recommend(standings: Sequence[Standing], rule: Rule) -> Recommendation:
    """The checkpoint to keep, as `best_and_close` chooses it. standings: at least one."""
    best, close = best_and_close(standings, rule)
    chosen = standings[best]
    others = [each for index, each in enumerate(standings) if index != best]
    names = tuple(standings[index].name for index in close)
    score = with_error(chosen.score(rule), chosen.error(rule), digits=0)
    first = f"Keep {chosen.name}: {figures(chosen)}, score {score}."
    if not math.isfinite(chosen.score(rule)):
        return Recommendation(best, ALL_BROKEN, "little", ())
    reason, second = _why(chosen, others, names, rule)
    return Recommendation(best, (first, second), reason, names)


def best_and_close(standings: Sequence[Standing], rule: Rule) -> tuple[int, list[int]]:
    """The index of the checkpoint to keep, and those of the others that cannot be told apart from the highest score.

    A score that is lower than the highest by no more than the standard error of their difference is as good (the
    one-standard-error rule, Breiman et al. 1984, Classification and Regression Trees, section 3.4.3). Of these
    checkpoints the one with the most steps is kept; if steps are unknown, the one with the highest score. If the error
    is unknown, as with a single prompt of a kind, only the highest score counts. A checkpoint whose score is not finite
    is kept only if no score is.
    """
    scores = [score if math.isfinite(score) else -math.inf for score in (each.score(rule) for each in standings)]
    top = max(range(len(standings)), key=lambda index: scores[index])
    equals = [
        index
        for index, each in enumerate(standings)
        if index == top or scores[top] - scores[index] <= each.difference_error(standings[top], rule)
    ]
    steps = [each.step or 0 for each in standings]
    best = max(equals, key=lambda index: (steps[index], scores[index]))
    return best, [index for index in equals if index != best]


def figures(standing: Standing) -> str:
    """What was measured, in words: "likeness 78, bleed 5, drift 12"."""
    if standing.bleed is None:
        return f"loss on images {-standing.benefit.mean:+.1f} %, loss without triggers {standing.drift.mean:+.1f} %"
    parts = {"likeness": standing.benefit, "bleed": standing.bleed, "drift": standing.drift}
    return ", ".join(f"{name} {figure.mean:z.0f}" for name, figure in parts.items())


def _why(chosen: Standing, others: Sequence[Standing], close: Sequence[str], rule: Rule) -> tuple[Reason, str]:
    if chosen.copied >= MANY_COPIES:
        return "copies", f"Careful: {chosen.copied:.0%} of its images repeat the background of a training image."
    if chosen.benefit.mean < (LOSS_LEARNED if chosen.bleed is None else LEARNED):
        return "little", "But it has hardly learned anything: train longer, or with a higher learning rate."
    if not others:
        return "only", "It is the only one, so there is nothing to compare it with: save more often."
    if close:
        return "close", f"These prompts cannot tell it apart from {_listed(close)}; of such files, the latest is kept."
    finite = [each for each in others if math.isfinite(each.score(rule))]
    if not finite:
        return (
            "only",
            f"The figures of {_listed([each.name for each in others])} are not finite, as with broken weights.",
        )
    next_best = max(finite, key=lambda each: each.score(rule))
    second = f"The next best is {next_best.name} with {next_best.score(rule):.0f}: {figures(next_best)}."
    unsure = "" if math.isfinite(next_best.difference_error(chosen, rule)) else f" {UNSURE}"
    return "next", f"{second}{unsure}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
