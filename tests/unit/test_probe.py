"""What the probe says of a step is true, and looking changes nothing."""

import pytest
import torch
from torch import nn

from trainer.engine import probe
from trainer.engine.probe import StepProbe

RATE = 1e-3


def make(ranks: int = 4) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return {
        f"transformer.blocks.{index}.{matrix}.weight": nn.Parameter(torch.randn(shape, generator=generator))
        for index in range(3)
        for matrix, shape in (("lora_A", (ranks, 6)), ("lora_B", (5, ranks)))
    }


def loss_of(parameters: dict[str, nn.Parameter]) -> torch.Tensor:
    return sum((each.square().sum() for each in parameters.values()), torch.zeros(()))


def alphas(ranks: int = 4) -> dict[str, float]:
    return {f"transformer.blocks.{index}": float(ranks) for index in range(3)}


def descend(parameters: dict[str, nn.Parameter], watching: StepProbe | None, steps: int) -> list[dict[str, float]]:
    optimizer = torch.optim.SGD(parameters.values(), lr=RATE)
    numbers = []
    for _ in range(steps):
        loss_of(parameters).backward()
        if watching:
            watching.see_gradient()
        optimizer.step()
        if watching:
            watching.see_update()
            numbers.append({name: float(value) for name, value in watching.numbers().items()})
        optimizer.zero_grad(set_to_none=True)
    return numbers


def test_the_slopes_add_up_to_the_change_of_the_loss():
    parameters = make()
    before = loss_of(parameters).item()
    numbers = descend(parameters, StepProbe(parameters, alphas()), 50)
    last_update = loss_of(parameters).item() * 4 * RATE  # of which no gradient has said anything yet
    assert numbers[0]["slope"] == 0 and all(each["alignment"] == pytest.approx(-1) for each in numbers[1:])
    change = loss_of(parameters).item() - before
    assert sum(each["slope"] for each in numbers) == pytest.approx(change + last_update, rel=0.01)


def test_a_sample_of_the_weights_stands_for_all(monkeypatch):
    monkeypatch.setattr(probe, "MAX_TENSORS", 4)
    monkeypatch.setattr(probe, "MAX_ELEMENTS", 48)
    parameters, whole = make(), make()
    sample = StepProbe(parameters, alphas())
    some = descend(parameters, sample, 5)
    monkeypatch.undo()
    all_of_them = descend(whole, StepProbe(whole, alphas()), 5)
    assert sum(sample._sizes) <= 48 and len(sample._tensors) == 4
    assert some[-1]["slope"] == pytest.approx(all_of_them[-1]["slope"], rel=0.4)


def test_an_update_that_overshoots_has_a_positive_slope():
    parameters = make()
    watching = StepProbe(parameters, alphas())
    loss_of(parameters).backward()
    watching.see_gradient()
    with torch.no_grad():
        for each in parameters.values():
            each.mul_(-2)
            each.grad = 2 * each
    watching.see_update()
    watching.see_gradient()
    numbers = watching.numbers()
    assert numbers["slope"] > 0 and float(numbers["alignment"]) == pytest.approx(1)


def test_strength_is_the_adapter_next_to_a_layer():
    """A random down projection times an up projection, against the weights that a linear layer starts with."""
    generator = torch.Generator().manual_seed(0)
    inputs, outputs, rank, alpha = 400, 300, 8, 4.0
    bound = inputs**-0.5
    down = torch.empty(rank, inputs).uniform_(-bound, bound, generator=generator)
    up = 0.01 * torch.randn(outputs, rank, generator=generator)
    name = "transformer.blocks.0"
    parameters = {f"{name}.lora_A.weight": nn.Parameter(down), f"{name}.lora_B.weight": nn.Parameter(up)}
    watching = StepProbe(parameters, {name: alpha})
    watching.see_update()
    expected = (alpha / rank * up @ down).square().mean().sqrt() / (bound / 3**0.5)
    assert float(watching.numbers()["strength"]) == pytest.approx(float(expected), rel=0.1)


def test_looking_changes_nothing():
    watched, alone = make(), make()
    descend(watched, StepProbe(watched, alphas()), 7)
    descend(alone, None, 7)
    assert all(torch.equal(watched[name], alone[name]) for name in alone)


def test_a_parameter_without_a_gradient_counts_as_still():
    parameters = make()
    watching = StepProbe(parameters, alphas())
    first = next(iter(parameters.values()))
    first.square().sum().backward()
    watching.see_gradient()
    with torch.no_grad():
        first.sub_(RATE * first.grad)  # type: ignore[arg-type]
    watching.see_update()
    watching.see_gradient()
    assert float(watching.numbers()["alignment"]) == pytest.approx(-1)
