"""Our Prodigy against prodigyopt 1.1.2, step by step."""

import pytest
import torch

from trainer.optim import foreach
from trainer.optim.prodigy import Prodigy

prodigyopt = pytest.importorskip("prodigyopt", reason="pip install prodigyopt==1.1.2")

SHAPES = [(8, 24), (24, 8), (5,), (16, 16), (3, 4, 5)]
STEPS = 60


def start(dtype=torch.float32) -> list[torch.nn.Parameter]:
    """Random weights; every second one zero, as LoRA's up matrices are."""
    torch.manual_seed(0)
    values = [torch.randn(shape) * (index % 2 == 0) for index, shape in enumerate(SHAPES)]
    return [torch.nn.Parameter(value.to(dtype)) for value in values]


def set_gradients(leading, following, step: int) -> None:
    """The gradient of a noisy quadratic with its minimum at 3, at the leading weights, for both.

    Were each given the gradient at its own weights, the oscillation of this problem would blow up
    differences of rounding and hide whether a step is the same step.
    """
    for index, (lead, follow) in enumerate(zip(leading, following, strict=True)):
        noise = torch.randn(lead.shape, generator=torch.Generator().manual_seed(1000 * step + index))
        lead.grad = (lead.detach() - 3) * 0.2 + 0.05 * noise
        follow.grad = lead.grad.to(follow.dtype, copy=True)


def both(groups=lambda parameters: [{"params": parameters}], **options):
    theirs, ours = start(), start()
    return (
        (theirs, prodigyopt.Prodigy(groups(theirs), **options)),
        (ours, Prodigy(groups(ours), **options)),
    )


def assert_same(theirs, their_optimizer, ours, our_optimizer) -> None:
    group, mine = their_optimizer.param_groups[0], our_optimizer.param_groups[0]
    for name in ("d", "d_max", "d_hat", "d_numerator", "d_denom", "k"):
        if name in group:  # theirs has some only after the first step
            expected = torch.as_tensor(group[name], dtype=torch.float64)
            torch.testing.assert_close(mine[name], expected, rtol=2e-5, atol=1e-12, msg=name)
    for a, b in zip(theirs, ours, strict=True):
        torch.testing.assert_close(b, a, rtol=2e-5, atol=2e-5)


OPTIONS = [
    {},
    {"use_bias_correction": True},
    {"safeguard_warmup": True},
    {"use_bias_correction": True, "safeguard_warmup": True, "weight_decay": 0.01},
    {"weight_decay": 0.1},
    {"weight_decay": 0.1, "decouple": False},
    {"betas": (0.0, 0.99)},
    {"betas": (0.9, 0.99), "beta3": 0.98},
    {"growth_rate": 1.02},
    {"d_coef": 2.0, "d0": 1e-5, "eps": 1e-6},
    {"slice_p": 3},
    {"slice_p": 3, "safeguard_warmup": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("chunk", [2**25, 100])
def test_every_step_is_prodigyopts(options, chunk, monkeypatch):
    monkeypatch.setattr(foreach, "CHUNK_ELEMENTS", chunk)
    (theirs, their_optimizer), (ours, our_optimizer) = both(**options)
    for step in range(STEPS):
        set_gradients(theirs, ours, step)
        their_optimizer.step()
        our_optimizer.step()
        assert_same(theirs, their_optimizer, ours, our_optimizer)
    assert our_optimizer.d > 100 * our_optimizer.param_groups[0]["d0"] or "growth_rate" in options


def cosine_with_warmup(step: int) -> float:
    return min(step / 5, 0.5 * (1 + torch.cos(torch.tensor(step / STEPS * torch.pi)).item()))


def test_groups_and_a_schedule_that_starts_at_zero():
    def groups(parameters):
        frozen = {"params": parameters[3:], "lr": 0.0}
        return [{"params": parameters[:2], "weight_decay": 0.05}, {"params": parameters[2:3]}, frozen]

    (theirs, their_optimizer), (ours, our_optimizer) = both(groups, lr=1.0)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, cosine_with_warmup)
        for optimizer in (their_optimizer, our_optimizer)
    ]
    frozen = ours[3].detach().clone()
    for step in range(STEPS):
        set_gradients(theirs, ours, step)
        their_optimizer.step()
        our_optimizer.step()
        for schedule in schedules:
            schedule.step()
        assert_same(theirs, their_optimizer, ours, our_optimizer)
    assert torch.equal(ours[3], frozen)


def test_gradients_that_are_zero_at_first_or_missing():
    (theirs, their_optimizer), (ours, our_optimizer) = both(use_bias_correction=True)
    for step in range(20):
        set_gradients(theirs, ours, step)
        theirs[-1].grad = ours[-1].grad = None
        for parameter in [*theirs[:-1], *ours[:-1]] if step < 3 else []:
            parameter.grad.zero_()
        their_optimizer.step()
        our_optimizer.step()
        assert_same(theirs, their_optimizer, ours, our_optimizer)
    assert our_optimizer.param_groups[0]["k"] == 17


def test_state_is_theirs_too():
    (theirs, their_optimizer), (ours, our_optimizer) = both()
    for step in range(10):
        set_gradients(theirs, ours, step)
        their_optimizer.step()
        our_optimizer.step()
    for a, b in zip(theirs, ours, strict=True):
        expected, state = their_optimizer.state[a], our_optimizer.state[b]
        for name in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(state[name], expected[name], rtol=1e-5, atol=1e-12)
        torch.testing.assert_close(state["s"].flatten(), expected["s"], rtol=1e-5, atol=1e-12)
        if "p0" in state:
            assert torch.equal(state["p0"].flatten(), expected["p0"])
        else:
            assert expected["p0"].dim() == 0 and expected["p0"] == 0


def test_bfloat16_weights_have_float32_state():
    """Rounding keeps large bf16 weights in place while d is small, so only the trend can be the same."""
    exact, rounded = start(), start(torch.bfloat16)
    optimizers = [Prodigy(exact), Prodigy(rounded)]
    for step in range(STEPS):
        set_gradients(exact, rounded, step)
        for optimizer in optimizers:
            optimizer.step()
    assert optimizers[1].d > 0.1 * optimizers[0].d
    state = optimizers[1].state[rounded[0]]
    assert [state[name].dtype for name in ("exp_avg", "exp_avg_sq", "s")] == [torch.float32] * 3
    assert state["p0"].dtype == torch.bfloat16
    for parameter in rounded:
        assert (parameter.detach() - 3).abs().mean() < 3
