"""The finish time: estimated after ten steps and compared with the actual time at the end."""

from datetime import datetime

import pytest

from trainer.common.text import duration
from trainer.engine.eta import Estimate

NOON = datetime(2026, 5, 4, 12, 0).timestamp()


def after(steps: int, total: int = 1000, seconds: float = 2.0, **due) -> Estimate:
    estimate = Estimate(total, due)
    for _ in range(steps):
        estimate.add_step(seconds, seconds / 4)
    return estimate


def test_there_is_no_forecast_before_ten_steps_nor_at_the_end():
    assert not after(9).is_due(9)
    assert after(10).is_due(10)
    assert not after(10, total=10).is_due(10)


def test_the_forecast_in_words():
    text = after(10, total=1210).make_forecast(10, NOON)
    assert text == "1,200 steps left: about 40 minutes, until 12:40 (0.50 s per image)"


def test_a_step_that_compiled_does_not_count():
    estimate = after(0, total=110)
    estimate.add_step(60.0, 60.0)
    for _ in range(9):
        estimate.add_step(1.0, 1.0)
    assert estimate.seconds_left(10) == pytest.approx(100)


def test_steps_before_full_speed_are_forgotten():
    estimate = after(0, total=110)
    for _ in range(20):
        estimate.add_step(5.0, 5.0, is_warming_up=True)
    assert not estimate.is_due(20) and estimate.seconds_left(20) == pytest.approx(450)
    for step in range(21, 31):
        assert not estimate.is_due(step - 1)
        estimate.add_step(1.0, 0.0027)
    assert estimate.is_due(30) and estimate.seconds_left(30) == pytest.approx(80)
    assert "(0.0027 s per image)" in estimate.make_forecast(30, NOON)


def test_pauses_count_once_they_have_been_measured():
    estimate = after(10, total=100, seconds=1.0, checkpoint=[50, 100], sample=[5, 55])
    assert estimate.seconds_left(10) == pytest.approx(90)
    assert estimate.unmeasured(10) == {"checkpoint": 2, "sample": 1}
    estimate.add_pause("sample", 30)
    assert estimate.seconds_left(10) == pytest.approx(120)
    assert estimate.make_forecast(10, NOON).endswith("; not included, because not measured yet: 2 x checkpoint")
    estimate.add_pause("checkpoint", 4)
    assert estimate.seconds_left(50) == pytest.approx(50 + 4 + 30)
    assert estimate.seconds_left(100) == 0


@pytest.mark.parametrize(
    ("late", "end", "words"),
    [(0, "12:40", "as estimated"), (24, "12:40", "1.0% later"), (-240, "12:36", "10.0% earlier")],
)
def test_the_review(late, end, words):
    estimate = after(10, total=1210)
    assert estimate.review(NOON) is None
    estimate.make_forecast(10, NOON)
    assert estimate.review(NOON + 2400 + late) == f"finished at {end}, estimated 12:40: {words}"


def test_another_day_has_its_date():
    assert "until 2026-05-05 00:00" in after(10, total=10 + 6 * 3600).make_forecast(10, NOON)


def test_durations():
    assert [duration(seconds) for seconds in (40, 2460, 3600 * 3 + 300)] == ["40 seconds", "41 minutes", "3 h 05 min"]
