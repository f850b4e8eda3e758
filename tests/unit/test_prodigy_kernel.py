"""Prodigy's steps by plain operations and by the kernels."""

import pytest
import torch

from tests.triton_kernels import DEVICE, needs_triton
from trainer.kernels import prodigy as kernel
from trainer.optim import foreach
from trainer.optim.prodigy import Prodigy

SHAPES = [(16, 48), (48, 16), (3, 5), (7,), (1, 9001)]  # the last is more than one program's share
STEPS = 5


def parameters() -> list[torch.nn.Parameter]:
    """Every other one starts at zero, as up matrices do."""
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(shape, generator=generator) * (index % 2) for index, shape in enumerate(SHAPES)]
    return [torch.nn.Parameter(tensor.to(DEVICE)) for tensor in drawn]


def train(settings: dict, still: int = 0) -> tuple[list[torch.Tensor], Prodigy]:
    """Parameters after a few steps on a slope with noise, of which the first `still` have no gradient but zeros."""
    chosen = parameters()
    optimizer = Prodigy([{"params": chosen[:3]}, {"params": chosen[3:]}], **settings)
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        for parameter in chosen:
            noise = torch.randn(parameter.shape, generator=generator).to(DEVICE)
            parameter.grad = (parameter.detach() - 3 + 0.1 * noise) * (step >= still)
        optimizer.step()
    return [parameter.detach() for parameter in chosen], optimizer


@pytest.fixture
def calls(monkeypatch):
    """How often kernels averaged."""
    counted = []
    monkeypatch.setattr(kernel, "_works", lambda _: True)
    average = kernel.average
    monkeypatch.setattr(kernel, "average", lambda *given: counted.append(1) or average(*given))
    return counted


def assert_same(one: tuple[list[torch.Tensor], Prodigy], other: tuple[list[torch.Tensor], Prodigy]) -> None:
    (found, optimizer), (expected, plain) = one, other
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    for name in ("d", "d_max", "d_hat", "d_numerator", "d_denom", "k"):
        torch.testing.assert_close(optimizer.param_groups[0][name], plain.param_groups[0][name], rtol=1e-5, atol=0)
    for state, plain_state in zip(optimizer.state.values(), plain.state.values(), strict=True):
        torch.testing.assert_close(state, plain_state, rtol=1e-4, atol=1e-9)


@needs_triton
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"weight_decay": 0.1},
        {"use_bias_correction": True, "safeguard_warmup": True, "betas": (0.8, 0.99)},
        {"d_coef": 2.0, "growth_rate": 1.5, "beta3": 0.9, "eps": 1e-3},
    ],
)
def test_kernels_make_the_same_steps(settings, calls, monkeypatch):
    settings = {"d0": 1e-3, **settings}
    by_kernel = train(settings)
    assert len(calls) == 4 * STEPS  # two groups, each with parameters that started at zero and others
    assert by_kernel[1].param_groups[0]["d_numerator"] > 0
    monkeypatch.setattr(kernel, "_works", lambda _: False)
    assert_same(by_kernel, train(settings))
    assert len(calls) == 4 * STEPS


@needs_triton
def test_kernels_in_many_chunks(calls, monkeypatch):
    whole = train({"d0": 1e-3})
    monkeypatch.setattr(foreach, "CHUNK_ELEMENTS", 16)
    assert_same(train({"d0": 1e-3}), whole)
    assert len(calls) == (4 + len(SHAPES)) * STEPS


@needs_triton
def test_nothing_moves_before_there_is_a_gradient(calls):
    found, optimizer = train({}, still=STEPS)
    assert calls
    torch.testing.assert_close(found, [parameter.detach() for parameter in parameters()], rtol=0, atol=0)
    assert optimizer.d == optimizer.param_groups[0]["d0"]


@needs_triton
def test_the_trial_is_near():
    assert kernel.kernel_error(DEVICE) < kernel.TOLERANCE / 10


@pytest.mark.parametrize(
    "settings", [{"slice_p": 2}, {"betas": (0.0, 0.99)}, {"weight_decay": 0.1, "decouple": False}], ids=str
)
def test_other_settings_are_left_to_plain_operations(settings, calls):
    train(settings)
    assert not calls


def test_what_the_kernels_do_not_read_is_left_to_plain_operations(monkeypatch):
    monkeypatch.setattr(kernel, "_works", lambda _: True)
    tensors = [torch.zeros(4, 6)]
    assert kernel.fits(kernel.Chunk(*[tensors] * 5))
    assert not kernel.fits(kernel.Chunk([torch.zeros(6, 4).t()], *[tensors] * 4))
    assert not kernel.fits(kernel.Chunk(*[tensors] * 4, [torch.zeros(4, 6, dtype=torch.bfloat16)]))
    monkeypatch.undo()
    assert not kernel.fits(kernel.Chunk(*[tensors] * 5))  # there is no kernel on a CPU
