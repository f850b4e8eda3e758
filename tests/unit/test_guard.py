"""The verdicts on made-up runs, of which the truth is known."""

import math
import random
from dataclasses import replace
from types import SimpleNamespace

import pytest

from trainer.config import TrainConfig
from trainer.engine.guard import Guard
from trainer.guard.history import History, Score, read_history
from trainer.guard.verdicts import Verdict, loss_at_start, verdicts

TOTAL = 200
NOISE = 0.15  # of a step's loss, as its images and timesteps vary


def run(curve, total: int = TOTAL, until: int | None = None, seed: int = 0, rate=lambda _share: 1e-3) -> History:
    """A run whose loss without noise is `curve`, a function of the share of the run from 0 to 1."""
    chance, history = random.Random(seed), History(total)
    for step in range(1, (until or total) + 1):
        true, before = curve(step / total), curve(0.0)
        numbers = {
            "loss": true * (1 + NOISE * chance.gauss(0, 1)),
            "loss_change": true - before + 0.0005 * chance.gauss(0, 1),
            "alignment": -0.05,
            "learning_rate": rate(step / total),
        }
        history.add_step(step, numbers)
    return history


def kinds(history: History) -> list[str]:
    return [each.kind for each in verdicts(history)]


def learns(share: float) -> float:
    return 0.5 - 0.08 * (1 - math.exp(-6 * share))


def test_a_run_that_learns_and_levels_off_gives_no_verdict():
    for until in (5, 30, 80, 120, TOTAL):
        for seed in range(10):
            assert kinds(run(learns, until=until, seed=seed)) == []


@pytest.mark.parametrize("times", [1.8, 3.0, 20.0])
def test_a_loss_above_its_start_is_a_rate_that_is_too_high(times):
    def breaks(share: float) -> float:
        return learns(share) if share < 0.3 else 0.5 * times

    for seed in range(10):
        (verdict,) = verdicts(run(breaks, until=100, seed=seed))
        assert verdict.kind == "too_high" and "images will break up" in verdict.text
        assert verdict.evidence["loss"] == pytest.approx(0.5 * times, rel=0.2)
        assert verdict.evidence["loss_at_start"] == pytest.approx(0.5, rel=0.1)


def test_a_first_step_with_a_low_loss_is_no_alarm():
    """A single step's loss may be a fifth of the mean: neither is the rest an explosion, nor has the loss risen."""
    for until in range(6, TOTAL):
        history = run(learns, until=until)
        history.steps[0] = replace(history.steps[0], loss=0.1)
        assert "too_high" not in kinds(history)


def test_images_that_are_only_preserved_are_no_alarm():
    """One image a step: a third are preserved, whose loss begins at zero, and the others differ by their timesteps."""
    for seed in range(5):
        chance, history = random.Random(seed), History(TOTAL)
        for step in range(1, TOTAL + 1):
            loss = 1e-6 * step if step == 1 or chance.random() < 0.33 else chance.uniform(0.1, 0.9)
            change = -0.05 * step / TOTAL
            history.add_step(step, {"loss": loss, "loss_change": change, "learning_rate": 1e-4})
            assert step % 4 or "too_high" not in kinds(history), (seed, step)


@pytest.mark.parametrize("loss", [0.0, math.nan, math.inf])
def test_losses_that_say_nothing_end_nothing(loss):
    history = History(40, holds_out=True)
    for step in range(1, 41):
        history.add_step(step, {"loss": loss, "loss_change": 0.0, "learning_rate": 1e-3})
        history.validations.append((step, 0.0 if step < 3 else 0.1))
    assert verdicts(history) == []


def test_an_optimizer_that_finds_its_step_size_is_never_too_low():
    history = run(lambda share: 0.5 - 0.002 * share, until=100)
    assert kinds(history) == ["too_low"]
    history.finds_rate = True
    assert kinds(history) == []
    assert read_history(
        [{"kind": "step", "step": 1, "loss": 1.0, "learning_rate": 1.0, "prodigy_d": 1e-4}], 9
    ).finds_rate


def test_a_rate_that_is_too_high_is_the_only_verdict():
    history = run(lambda share: 0.5 if share < 0.3 else 5.0)
    history.holds_out, history.validations = True, [(10, 0.5), (50, 0.8), (100, 0.9), (150, 0.9)]
    assert kinds(history) == ["too_high"]


def test_an_explosion_is_seen_within_a_few_steps():
    assert kinds(run(lambda share: 0.5 if share < 0.011 else 5.0, until=8)) == ["too_high"]


def test_nothing_learned_is_said_after_two_fifths_of_the_run_and_not_before():
    def flat(share: float) -> float:
        return 0.5 - 0.002 * share

    assert kinds(run(flat, until=79)) == []
    (verdict,) = verdicts(run(flat, until=80))
    assert verdict.kind == "too_low" and "nothing learned after 40% of the run" in verdict.text
    assert kinds(run(flat)) == ["too_low"]


def test_a_run_that_ends_while_it_learns_is_told_how_many_steps_it_lacks():
    (verdict,) = verdicts(run(lambda share: 0.5 - 0.1 * share))
    assert verdict.kind == "improving" and verdict.more_steps == TOTAL
    assert f"{TOTAL} more steps" in verdict.text
    (verdict,) = verdicts(run(lambda share: 0.5 - 0.1 * (1 - math.exp(-1.8 * share))))
    assert verdict.kind == "improving" and 0 < (verdict.more_steps or 0) < TOTAL
    assert kinds(run(lambda share: 0.5 - 0.1 * share, until=TOTAL - 1)) == []


def test_a_schedule_that_ends_at_zero_does_not_hide_that_more_would_help():
    """Progress in proportion to the rate: it stops at the end only because the rate does."""

    def falling(share: float) -> float:
        return 1e-3 * (1 - share)

    history = run(lambda share: 0.5 - 0.1 * (1 - (1 - share) ** 2), rate=falling)
    assert kinds(history) == ["improving"]


@pytest.mark.parametrize(("holds_out", "expected"), [(True, ["overfitting"]), (False, [])])
def test_a_rising_loss_on_held_out_images_is_overfitting(holds_out, expected):
    history = run(learns, until=120)
    history.holds_out = holds_out
    losses = (0.50, 0.47, 0.45, 0.50, 0.51, 0.52)
    history.validations = [(20 * (index + 1), loss) for index, loss in enumerate(losses)]
    assert kinds(history) == expected
    if expected:
        (verdict,) = verdicts(history)
        assert verdict.since == 60 and "overfitting since step 60" in verdict.text and "15.6%" in verdict.text


@pytest.mark.parametrize(
    "losses", [(0.5, 0.45, 0.452, 0.449, 0.455), (0.5, 0.45, 0.51, 0.52), (0.5, 0.45, 0.51, 0.455, 0.51)]
)
def test_a_held_out_loss_that_wavers_is_not(losses):
    history = run(learns, until=120)
    history.holds_out = True
    history.validations = list(enumerate(losses, 1))
    assert kinds(history) == []


@pytest.mark.parametrize(
    ("scores", "expected"),
    [((40, 60, 52, 48), "overfitting"), ((40, 60, 59, 58), None), ((40, 60, 48, 61), None), ((40, 60, 50), None)],
)
def test_scores_that_fall_are_overfitting(scores, expected):
    history = run(learns, until=120)
    history.scores = [Score(10 * index, score, 1.0) for index, score in enumerate(scores, 1)]
    assert kinds(history) == ([expected] if expected else [])


def test_scores_within_their_errors_say_nothing():
    history = run(learns, until=120)
    history.scores = [Score(10 * index, score, 5.0) for index, score in enumerate((40, 60, 52, 48), 1)]
    assert kinds(history) == []


def test_the_loss_at_the_start_is_found_from_all_steps():
    estimates = [loss_at_start(run(learns, seed=seed).steps) for seed in range(20)]
    assert all(abs(found - 0.5) < 4 * error and error < 0.01 for found, error in estimates)


def test_a_resumed_run_remembers_what_its_log_says_until_there():
    steps = [
        {"kind": "step", "step": n, "loss": 1.0, "loss_change": -n, "alignment": 0.0, "learning_rate": 1.0}
        for n in (1, 2, 3, 4)
    ]
    events = [
        {"kind": "start", "step": 0},
        *steps,
        {"kind": "validation", "step": 4, "loss": 0.4},
        {"kind": "start", "step": 2},
        {**steps[2], "loss_change": -7.0},
        {"kind": "evaluation", "step": 3, "score": 50.0, "error": 1.0},
        {"kind": "estimate", "step": 3},
    ]
    history = read_history(events, 10, until=3)
    assert [(each.step, each.loss_change) for each in history.steps] == [(1, -1), (2, -2), (3, -7.0)]
    assert history.validations == [] and [each.step for each in history.scores] == [3]


@pytest.mark.parametrize(("steps", "words"), [(3, "not judged in fewer than 20 steps"), (TOTAL, "no alarm")])
def test_a_run_without_a_verdict_says_whether_it_was_judged(steps: int, words: str):
    said: list[str] = []
    log = SimpleNamespace(active=True, say=said.append)
    Guard(TrainConfig(), log, run(learns, total=steps)).look(steps)  # type: ignore[arg-type]
    assert len(said) == 1 and words in said[0]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_validations_and_scores_that_are_not_finite_say_nothing(bad: float):
    history = History(100, holds_out=True)
    guard = Guard(TrainConfig(), SimpleNamespace(active=False), history)  # type: ignore[arg-type]
    for step, loss in enumerate([0.3, 0.3, bad, bad, bad]):
        guard.see_validation(step, loss)
        guard.see_evaluation(step, {"score": 50.0 if loss == 0.3 else bad, "error": 1.0})
        history.add_event({"kind": "validation", "step": step, "loss": loss})
    assert len(history.validations) == 4 and len(history.scores) == 2


def test_nothing_is_said_of_nothing():
    assert verdicts(History(10)) == [] and Verdict("too_low", 1, "").evidence == {}
