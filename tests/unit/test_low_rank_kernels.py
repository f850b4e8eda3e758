"""Thin products that read their input as it is kept: plain operations and kernels."""

import pytest
import torch
from torch import Tensor

from tests.quantized_layers import draw
from tests.triton_kernels import DEVICE, INTERPRETED, needs_triton
from trainer.kernels import low_rank
from trainer.kernels.low_rank import down_gradient_from_fp8, down_gradient_through_gelu, hidden_from_fp8
from trainer.kernels.quantize import FP8, gelu, quantize_rows

DTYPE = torch.float32 if INTERPRETED else torch.bfloat16  # the interpreter does not multiply bf16
SIZES = pytest.mark.parametrize("tokens, depth", [(40, 144), (200, 528)])


@pytest.fixture
def kernels(monkeypatch):
    monkeypatch.setattr(low_rank, "_works", lambda *_: True)


def operands(tokens: int, depth: int, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    shapes = (tokens, depth), (rank, depth), (tokens, rank)
    x, down, d_hidden = (draw(*shape, seed=seed).to(DEVICE, DTYPE) for seed, shape in enumerate(shapes))
    return x, down, d_hidden


def assert_near(found: Tensor, expected: Tensor, error: float) -> None:
    assert found.shape == expected.shape
    assert (found.float() - expected).norm() <= error * expected.norm()


@needs_triton
@SIZES
@pytest.mark.parametrize("rank", [4, 16, 48, 64])
@pytest.mark.usefixtures("kernels")
def test_kernels_read_8_bits(tokens, depth, rank):
    x, down, d_hidden = operands(tokens, depth, rank)
    values, scale = quantize_rows(x, FP8)
    wide = values.float() * scale
    hidden = hidden_from_fp8(values, scale, down)
    assert hidden.dtype == DTYPE
    assert_near(hidden, wide @ down.float().t(), 0.004)
    gradient = down_gradient_from_fp8(d_hidden, values, scale)
    assert gradient.dtype == torch.float32
    assert_near(gradient, d_hidden.float().t() @ wide, 0.004)


@needs_triton
@SIZES
@pytest.mark.parametrize("rank", [4, 16, 48, 64])
@pytest.mark.usefixtures("kernels")
def test_a_kernel_activates_what_it_reads(tokens, depth, rank):
    x, _, d_hidden = operands(tokens, depth, rank)
    gradient = down_gradient_through_gelu(d_hidden, x)
    assert gradient.dtype == torch.float32
    assert_near(gradient, d_hidden.float().t() @ gelu(x.float()), 0.004)


@needs_triton
@pytest.mark.usefixtures("kernels")
def test_many_tokens_are_shared_out_and_added_up():
    x, _, d_hidden = operands(1000, 32, 8)
    wider = draw(1000, 96).to(DEVICE, DTYPE)
    wider[:, 16:48] = x
    assert_near(down_gradient_through_gelu(d_hidden, wider[:, 16:48]), d_hidden.float().t() @ gelu(x.float()), 0.004)


@needs_triton
def test_what_is_tried_before_it_is_relied_on_is_right():
    assert INTERPRETED or low_rank.kernel_error(DEVICE) < low_rank.TOLERANCE / 2


@pytest.mark.parametrize("rank", [4, 80])
def test_plain_operations_do_what_kernels_are_not_made_for(rank):
    x, down, d_hidden = (each.float().cpu() for each in operands(24, 64, rank))
    values, scale = quantize_rows(x, FP8)
    wide = values.float() * scale
    assert_near(hidden_from_fp8(values, scale, down), wide @ down.t(), 1e-6)
    assert_near(down_gradient_from_fp8(d_hidden, values, scale), d_hidden.t() @ wide, 1e-6)
    assert_near(down_gradient_through_gelu(d_hidden, x), d_hidden.t() @ gelu(x), 1e-6)
