"""Verdicts against the judge's truth, from the files that `benchmarks.rates run` writes."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from benchmarks.rates.runs import SHORT
from trainer.cli.find_rate import STEPS
from trainer.guard.history import read_history
from trainer.guard.verdicts import Verdict, verdicts
from trainer.rates.advice import Gain, advise

TOO_HIGH, TOO_LOW, FINE, IMPROVING = "too_high", "too_low", "fine", "improving"
BROKEN_PRIOR = 0.6  # of the base model's score on prompts without a trigger, below which its images broke up
NEAR = 3.5  # times outside of a range that the best of the rates, which are about three times apart, may be
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


def recognised(truth: str, said: Collection[str]) -> bool:
    """Whether the verdicts about the rate are right. A run that learned little may also be called still improving: both
    ask for more of it."""
    alarm = next((kind for kind in (TOO_HIGH, TOO_LOW) if kind in said), FINE)
    return truth == alarm or (truth == TOO_LOW and alarm == FINE and IMPROVING in said)


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
        truth = FINE if run["shipped"] else truth_of(run, best[run["data"]])
        half = "shipped" if run["shipped"] else run["data"]
        count[half] += 1
        is_right = recognised(truth, said)
        right[half] += is_right
        first = ", ".join(f"{kind} {step}" for kind, step in first_said(logs[run["name"]]).items())
        mark = " " if is_right else "!"
        lines.append(
            f"{run['name']:<26} {gain(run):>6.1f} {last_scores(run)['prior']:>6.1f} {truth:<9}"
            f" {mark}{', '.join(sorted(said)) or '-':<24} {first}"
        )
    lines += [f"{half}: {right[half]} of {count[half]} right ({right[half] / count[half]:.0%})" for half in count]
    return "\n".join([*lines, *_sweeps(results, runs, best)])


def _sweeps(
    results: Sequence[Mapping[str, Any]], runs: Sequence[Mapping[str, Any]], best: Mapping[str, float]
) -> list[str]:
    """A line for each sweep: its range, and what became of the runs with the same data and optimizer."""
    lines, right, count = [], 0, 0
    for result in (each for each in results if "sweep" in each):
        sweep = result["sweep"]
        gains = [Gain(**gain) for gain in sweep["gains"]]
        advice = advise(gains, STEPS, SHORT)
        tried = {
            float(run["settings"]["learning_rate"]): run
            for run in runs
            if run["data"] == result["data"]
            and run["settings"].get("optimizer_type") == result["optimizer"]
            and float(run["settings"]["max_train_steps"]) == SHORT
        }
        text = f"{result['name']}: {_number(advice.low)} to {_number(advice.high)}"
        if advice.low and advice.high and tried:
            inside = {
                rate: truth_of(run, best[run["data"]])
                for rate, run in tried.items()
                if advice.low <= rate <= advice.high
            }
            most = max(tried, key=lambda rate: gain(tried[rate]))
            is_right = set(inside.values()) <= {FINE} and advice.low / NEAR <= most <= advice.high * NEAR
            count, right = count + 1, right + is_right
            listed = ", ".join(f"{rate:g} {truth}" for rate, truth in inside.items())
            text += f"; best of the runs {most:g}, in the range {listed}"
            text += "" if is_right else " !"
        lines.append(text)
    return [
        *lines,
        f"{right} of {count} ranges right: every rate in it fine, the best one at most {NEAR:g} times outside",
    ]


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.2g}"
