"""What a sweep of learning rates says: a range where it found one, and what it cannot know."""

from collections.abc import Mapping

from trainer.cli.find_rate import in_words, table
from trainer.config import TrainConfig
from trainer.rates.advice import Gain, RateLosses, advise, gain_of


def words(gains: Mapping[float, float]) -> str:
    advice = advise([Gain(rate, mean, 0.01) for rate, mean in gains.items()], 30, 600)
    return in_words(advice, TrainConfig())


def test_a_range_needs_several_rates():
    assert words({1e-4: 0.1, 1e-3: 0.4, 1e-2: 0.1}).startswith("Range for this run: 0.0002 to 0.001. Begin with")
    one = words({3e-4: 0.3})
    assert one.startswith("No range: 0.0003 lowers the loss") and "--rates" in one


def test_the_highest_rate_that_was_tried_is_not_called_a_bound():
    assert "higher ones may suit too" in words({1e-4: 0.1, 1e-3: 0.4})
    assert "higher ones" not in words({1e-4: 0.1, 1e-3: 0.4, 1e-2: 0.1})


def test_a_rate_on_images_that_are_only_preserved_has_no_gain():
    gain = gain_of(RateLosses(1e-4, (0.0, 0.0)), (0.0, 0.0))
    advice = advise([gain], 2, 100)
    assert gain.mean == 0.0 and advice.reason == "no rate lowered the loss: it is 0 without training, too"
    few = gain_of(RateLosses(1e-4, (1.0, 0.5)), (1.0, 1.0))
    assert few.mean == 0.5 and "by more than its error" in advise([few], 2, 100).reason
    assert "inf" not in table([gain], advice) and "exploded" not in table([gain], advice)
