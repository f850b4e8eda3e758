"""The table of `benchmarks.rates`: when a verdict counts as right, and when a range does."""

import pytest

from benchmarks.rates.runs import SHORT
from benchmarks.rates.table import recognised, tabulate


@pytest.mark.parametrize(
    ("truth", "said", "right"),
    [
        ("too_high", {"too_high"}, True), ("too_high", set(), False), ("too_high", {"overfitting"}, False),
        ("too_low", {"too_low"}, True), ("too_low", {"improving"}, True), ("too_low", {"too_high"}, False),
        ("too_low", {"overfitting"}, False), ("fine", {"improving"}, True), ("fine", {"overfitting"}, True),
        ("fine", {"too_low"}, False), ("fine", {"too_high", "improving"}, False),
    ],
)  # fmt: skip
def test_a_verdict_is_right_where_the_alarm_is_that_of_the_truth(truth, said, right):
    assert recognised(truth, said) == right


def run(rate: str, likeness: float, prior: float = 100.0) -> dict:
    settings = {"learning_rate": rate, "optimizer_type": "AdamW", "max_train_steps": str(SHORT)}
    scores = {"0": {"likeness": 0.0, "prior": 100.0}, "160": {"likeness": likeness, "prior": prior}}
    facts = {"data": "alone", "shipped": False, "problem": "", "settings": settings}
    return {"name": f"alone-adamw-{rate}", "scores": scores, **facts}


def log(change: float) -> list[dict]:
    steps = [
        {"kind": "step", "step": step, "loss": 1.0, "loss_change": change * step / SHORT, "learning_rate": 1e-3}
        for step in range(1, SHORT + 1)
    ]
    return [{"kind": "start", "step": 0, "total_steps": SHORT}, *steps]


def sweep(*gains: tuple[float, float]) -> dict:
    found = [{"rate": rate, "mean": mean, "error": 0.01, "diverged": False} for rate, mean in gains]
    return {"name": "sweep-alone-adamw", "data": "alone", "optimizer": "AdamW", "sweep": {"gains": found}}


def test_a_range_is_right_where_every_rate_in_it_is_fine_and_the_best_is_near():
    runs = [run("0.0001", 1.0), run("0.001", 60.0), run("0.003", 90.0), run("0.03", 5.0, prior=10.0)]
    logs = {each["name"]: log(-0.3) for each in runs}
    logs["alone-adamw-0.0001"] = log(-0.001)
    good, bad = sweep((1e-3, 0.2), (3e-3, 0.3), (3e-2, 0.1)), sweep((1e-4, 0.2), (1e-3, 0.2), (3e-2, 0.3))
    text = tabulate([*runs, good], logs)
    assert "alone: 3 of 4 right" in text  # what broke up gave no alarm in its log
    assert "best of the runs 0.003, in the range 0.001 fine, 0.003 fine" in text and "1 of 1 ranges right" in text
    text = tabulate([*runs, bad], logs)
    assert "0.0001 too_low" in text and "0.03 too_high !" in text and "0 of 1 ranges right" in text
