"""The moving average: its formula, its warm-up, and that swapping leaves no trace."""

import pytest
import torch

from trainer.optim import foreach
from trainer.optim.ema import Ema


def weights(dtype=torch.float32) -> dict[str, torch.nn.Parameter]:
    torch.manual_seed(0)
    return {name: torch.nn.Parameter(torch.randn(shape).to(dtype)) for name, shape in [("a", (4, 3)), ("b", (5,))]}


def move(chosen, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for parameter in chosen.values():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("limit", [2**25, 6])
def test_averages_follow_the_formula(dtype, limit, monkeypatch):
    monkeypatch.setattr(foreach, "CHUNK_ELEMENTS", limit)
    chosen = weights(dtype)
    ema = Ema(chosen, decay=0.9)
    expected = {name: parameter.detach().double() for name, parameter in chosen.items()}
    for step in range(200):
        move(chosen, step)
        ema.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = {name: decay * e + (1 - decay) * chosen[name].detach().double() for name, e in expected.items()}
    for name, average in ema.averages.items():
        assert average.dtype == torch.float32
        torch.testing.assert_close(average.double(), expected[name], rtol=1e-4, atol=1e-4)


def test_the_start_is_soon_forgotten():
    chosen = {"a": torch.nn.Parameter(torch.full((2,), 100.0))}
    ema = Ema(chosen, decay=0.9999)
    with torch.no_grad():
        chosen["a"].zero_()
    for step in range(50):
        ema.update(step)
    assert ema.averages["a"].max() < 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_swapping_and_back_is_exact_even_after_an_error(dtype):
    chosen = weights(dtype)
    ema = Ema(chosen, decay=0.9)
    move(chosen, 1)
    ema.update(5)
    before = {name: parameter.detach().clone() for name, parameter in chosen.items()}
    averages = {name: average.clone() for name, average in ema.averages.items()}
    with pytest.raises(KeyError), ema.swapped():
        for name, parameter in chosen.items():
            assert torch.equal(parameter, averages[name].to(dtype))
            assert not torch.equal(parameter, before[name])
        raise KeyError
    for name, parameter in chosen.items():
        assert torch.equal(parameter, before[name])
        assert torch.equal(ema.averages[name], averages[name])


def test_averages_are_saved_and_loaded():
    chosen = weights()
    ema, other = Ema(chosen, decay=0.9), Ema(chosen, decay=0.9)
    move(chosen, 1)
    ema.update(0)
    other.load_state_dict(ema.state_dict())
    assert all(torch.equal(other.averages[name], ema.averages[name]) for name in chosen)
    with pytest.raises(AssertionError):
        other.load_state_dict({"a": chosen["a"]})
