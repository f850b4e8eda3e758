"""What the judge says of the recommendations: read from the runs' folders, and tabulated."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

WITHIN = 3.0  # points of the judge's score that a recommendation may be below the best checkpoint
NUMBERS = ("likeness", "bleed", "drift")
RESULT, JUDGED = "result.json", "judged.json"
Rows = Sequence[Mapping[str, Any]]  # of `JudgedImages.part`


def is_complete(folder: Path) -> bool:
    """Whether a run, or the base model, has been judged on all prompts."""
    file = folder / JUDGED
    return file.is_file() and bool(json.loads(file.read_text())["complete"])


def read_results(folder: Path) -> list[dict[str, Any]]:
    """The results of the runs that have been judged, by name; each checkpoint with its "truth", and as "halves" the
    judge's scores on either half of the prompts.

    Those that are judged in part are compared with the base model on the same prompts.
    """
    base = {name: _rows(folder / f"base-{name}").get("base", []) for name in ("tuning", "scoring")}
    results = []
    for file in sorted(folder.glob(f"*/{RESULT}")):
        result, judged = json.loads(file.read_text()), _rows(file.parent)
        before = base["tuning" if result["tuning"] else "scoring"]
        if not judged or not before:
            continue
        for checkpoint in result["checkpoints"]:
            rows = judged[checkpoint["name"]]
            checkpoint["truth"] = truth(before, rows, result["concepts"])
            halves = [[row for row in rows if row["index"] % 2 == half] for half in (0, 1)]
            checkpoint["halves"] = [truth(before, half, result["concepts"])["score"] for half in halves]
        results.append(result)
    return results


def _rows(folder: Path) -> dict[str, Rows]:
    file = folder / JUDGED
    return json.loads(file.read_text())["rows"] if file.is_file() else {}


def truth(base: Rows, found: Rows, concepts: Sequence[str]) -> dict[str, float]:
    """The judge's likeness, bleed and drift, in percent, and the score by the default rule of `compare`.

    likeness: of the images whose prompts name a concept, how many show it. bleed: by how much more a concept is in
    images whose prompts do not name it than in the base model's. drift: by how much less of what the prompts without a
    trigger name is recognised. changed: in how many of their images the judge sees other things than in the base
    model's. base, found: of the base model and the checkpoint; only prompts that both have are counted.
    """
    before = {(row["set"], row["index"]): row for row in base}
    pairs = [(before[key], row) for row in found if (key := (row["set"], row["index"])) in before]
    shown = [row["shown"][name] for name in concepts for _, row in pairs if row["set"] in (name, "both")]
    more = [
        row["shown"][name] - old["shown"][name]
        for name in concepts
        for old, row in pairs
        if row["set"] not in (name, "both")
    ]
    plain = [(old, row) for old, row in pairs if row["set"] == "base"]
    numbers = {
        "likeness": 100 * fmean(shown),
        "bleed": max(0.0, 100 * fmean(more)),
        "drift": max(0.0, fmean(old["prior"] - row["prior"] for old, row in plain)),
        "changed": 100 * fmean(old["seen"] != row["seen"] for old, row in plain),
    }
    return numbers | {"score": numbers["likeness"] - numbers["bleed"] - numbers["drift"], "prompts": len(pairs)}


def tabulate(results: Sequence[Mapping[str, Any]]) -> str:
    """For either half of the runs: a line for each, how often the recommendation is good, and how the measures rank."""
    parts = []
    for title, tuning in (("to choose how to measure", True), ("to score", False)):
        half = [result for result in results if result["tuning"] == tuning]
        if half:
            parts.append(f"{len(half)} runs {title}\n{_half(half)}")
    return "\n\n".join(parts) or "no run has been judged"


def _half(results: Sequence[Mapping[str, Any]]) -> str:
    lines = [f"{'run':<34} {'recommended':>11} {'best':>9} {'judge':>7} {'best':>6} {'lost':>6}"]
    lost, lost_by_last, lost_by_judge = [], [], []
    for result in results:
        checkpoints = result["checkpoints"]
        scores = [each["truth"]["score"] for each in checkpoints]
        chosen = next(each for each in checkpoints if each["file"] == result["recommended"])
        best = checkpoints[scores.index(max(scores))]
        lost.append(max(scores) - chosen["truth"]["score"])
        lost_by_last.append(max(scores) - scores[-1])
        for half in (0, 1):
            asked, others = ([each["halves"][which] for each in checkpoints] for which in (half, 1 - half))
            lost_by_judge.append(max(others) - others[asked.index(max(asked))])
        lines.append(
            f"{result['run']:<34} {chosen['name']:>11} {best['name']:>9}"
            f" {chosen['truth']['score']:>7.1f} {best['truth']['score']:>6.1f} {lost[-1]:>6.1f}"
        )
    lines += [
        _within(lost, "the recommended checkpoint"),
        _within(lost_by_last, "always the last one"),
        _within(lost_by_judge, "the judge's own choice from half of the prompts, on the other half"),
    ]
    every = [checkpoint for result in results for checkpoint in result["checkpoints"]]
    for name in (*NUMBERS, "score"):
        measured = [each["score"] if name == "score" else each[name]["mean"] for each in every]
        rank = spearman(measured, [each["truth"][name] for each in every])
        lines.append(f"{name}: Spearman {rank:.2f} over {len(every)} checkpoints")
    for name, of in (("drift", "changed"), ("loss_on_images", "likeness"), ("loss_drift", "drift")):
        rank = spearman([each[name]["mean"] for each in every], [each["truth"][of] for each in every])
        lines.append(f"{name} for the judge's {of}: Spearman {rank:.2f}")
    return "\n".join(lines)


def _within(lost: Sequence[float], who: str) -> str:
    good = sum(each <= WITHIN for each in lost)
    share = f"{good} of {len(lost)} ({100 * good / len(lost):.0f} %)"
    return f"within {WITHIN:g} points of the best: {share}, {fmean(lost):.1f} lost on average: {who}"


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's rank correlation; equal values share their mean rank. 0 if one does not vary."""
    ranks = [_ranks(np.asarray(values, np.float64)) for values in (one, other)]
    if any(each.std() == 0 for each in ranks):
        return 0.0
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places]
