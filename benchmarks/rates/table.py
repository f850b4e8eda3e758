"""Verdicts against the judge's truth, from the files that `benchmarks.rates run` writes."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from trainer.guard.history import read_history
from trainer.guard.verdicts import Verdict, verdicts

TOO_HIGH, TOO_LOW, FINE = "too_high", "too_low", "fine"
BROKEN_PRIOR = 0.6  # of the base model's score on prompts without a trigger, below which its images broke up
LITTLE = 0.2  # of the best run's gain in likeness
Log = Sequence[Mapping[str, Any]]


def truth_of(run: Mapping[str, Any], best: float) -> str:
    """What became of a run's images: broken up, nothing learned, or neither. best: the largest gain on its data."""
    base, last = run["scores"]["0"], last_scores(run)
    if run["problem"] or last["prior"] < BROKEN_PRIOR * base["prior"]:
        return TOO_HIGH
    return TOO_LOW if gain(run) < LITTLE * best else FINE


def last_scores(run: Mapping[str, Any]) -> Mapping[str, float]:
    """The judge's scores at the end of a run."""
    return run["scores"][max(run["scores"], key=int)]


def gain(run: Mapping[str, Any]) -> float:
    """How much likeness a run has gained, in points of the judge."""
    return last_scores(run)["likeness"] - run["scores"]["0"]["likeness"]


def said_of(log: Log, problem: str = "") -> list[Verdict]:
    """The verdicts that hold at the end of a run. problem: why it ended early, if it did."""
    total = next(int(event["total_steps"]) for event in log if event["kind"] == "start")
    if problem:
        return [Verdict("too_high", total, problem)]
    return verdicts(read_history(log, total, holds_out=True))


def first_said(log: Log) -> dict[str, int]:
    """The step at which each verdict came first during a run, looking as often as the guard does."""
    total = next(int(event["total_steps"]) for event in log if event["kind"] == "start")
    first: dict[str, int] = {}
    for step in range(max(1, total // 50), total + 1, max(1, total // 50)):
        for verdict in verdicts(read_history(log, total, holds_out=True, until=step)):
            first.setdefault(verdict.kind, step)
    return first


def tabulate(results: Sequence[Mapping[str, Any]], logs: Mapping[str, Log]) -> str:
    """A line for each run with truth and verdicts, and the share that is right for each half of the data."""
    runs = [each for each in results if "scores" in each]
    best = {data: max(gain(run) for run in runs if run["data"] == data) for data in {run["data"] for run in runs}}
    lines = [f"{'run':<26} {'gain':>6} {'prior':>6} {'truth':<9} {'said':<24} first said"]
    right: Counter[str] = Counter()
    count: Counter[str] = Counter()
    for run in runs:
        said = {each.kind for each in said_of(logs[run["name"]], run["problem"])}
        rate = next((kind for kind in (TOO_HIGH, TOO_LOW) if kind in said), FINE)
        truth = FINE if run["shipped"] else truth_of(run, best[run["data"]])
        half = "shipped" if run["shipped"] else run["data"]
        count[half] += 1
        right[half] += truth == rate
        first = ", ".join(f"{kind} {step}" for kind, step in first_said(logs[run["name"]]).items())
        mark = " " if truth == rate else "!"
        lines.append(
            f"{run['name']:<26} {gain(run):>6.1f} {last_scores(run)['prior']:>6.1f} {truth:<9}"
            f" {mark}{', '.join(sorted(said)) or '-':<24} {first}"
        )
    lines += [f"{half}: {right[half]} of {count[half]} right ({right[half] / count[half]:.0%})" for half in count]
    for result in results:
        if "sweep" in result:
            advice = result["sweep"]["advice"]
            lines.append(f"{result['name']}: {advice['low']} to {advice['high']}, best {advice['best']}")
    return "\n".join(lines)
