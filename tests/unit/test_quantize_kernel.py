"""Rows in 8 bits from parts, scaled and activated: plain operations and the kernel."""

import pytest
import torch
from torch import Tensor

from tests.quantized_layers import draw
from tests.triton_kernels import DEVICE, INTERPRETED, needs_triton
from trainer.kernels import quantize
from trainer.kernels.quantize import FP8, LARGEST, MIN_ROW_MAX, gelu, quantize_concatenated

DTYPE = torch.float32 if INTERPRETED else torch.bfloat16


def parts_of(widths: tuple[int, ...], rows: int = 9) -> list[Tensor]:
    """Each a slice of wider rows, as an MLP stands beside queries, keys and values."""
    return [draw(rows, width + 16, seed=width).to(DEVICE, DTYPE)[:, 8 : 8 + width] for width in widths]


def by_kernel(parts: list[Tensor], scales: list[Tensor], activated: list[bool]) -> tuple[Tensor, Tensor]:
    from trainer.kernels import triton_quantize

    return triton_quantize.quantize_concatenated(parts, scales, activated, LARGEST[FP8], MIN_ROW_MAX)


def in_float32(parts: list[Tensor], scales: list[Tensor], activated: list[bool]) -> Tensor:
    made = [gelu(part.float()) if on else part.float() for part, on in zip(parts, activated, strict=True)]
    return torch.cat([x * s for x, s in zip(made, scales, strict=True)] if scales else made, dim=1)


CASES = pytest.mark.parametrize(
    "widths, scaled, activated",
    [
        ((48,), False, [True]),
        ((48, 80), False, [False, True]),
        ((48, 80, 16), True, [False] * 3),
        ((128, 32, 32, 48), True, [True, False, False, False]),
    ],
)


@CASES
def test_plain_operations_round_what_was_asked_for(widths, scaled, activated):
    parts, scales = parts_of(widths), [draw(width, seed=1).abs().to(DEVICE) for width in widths if scaled]
    values, scale = quantize._quantize_in_torch(parts, scales, activated)
    assert_near(values, scale, in_float32(parts, scales, activated))


@needs_triton
@CASES
def test_the_kernel_rounds_what_was_asked_for(widths, scaled, activated):
    parts, scales = parts_of(widths), [draw(width, seed=1).abs().to(DEVICE) for width in widths if scaled]
    values, scale = by_kernel(parts, scales, activated)
    expected = in_float32(parts, scales, activated)
    assert_near(values, scale, expected)
    torch.testing.assert_close(scale, expected.abs().amax(1, keepdim=True) / 448, rtol=1e-2, atol=0)


def assert_near(values: Tensor, scale: Tensor, expected: Tensor) -> None:
    assert values.dtype == FP8 and values.shape == expected.shape and scale.shape == (len(expected), 1)
    near = (values.float() * scale - expected).abs() <= 2**-4 * expected.abs() + 2**-9 * scale
    # Triton's interpreter forgets to carry where rounding leads to the next power of two
    assert near.float().mean() >= (0.9 if INTERPRETED else 1)


@needs_triton
def test_a_row_of_zeros_and_numbers_that_are_not_finite():
    x = draw(4, 48).to(DEVICE, DTYPE)
    x[0], x[1, 3], x[2, 3] = 0, float("inf"), float("nan")
    values, scale = by_kernel([x], [], [False])
    assert not values[0].float().any() and torch.isfinite(scale[0])
    wide = values.float() * scale
    assert torch.isfinite(wide[3]).all()
    assert not torch.isfinite(wide[1]).all() and not torch.isfinite(wide[2]).all()


@needs_triton
def test_what_is_tried_before_it_is_relied_on_is_right():
    assert INTERPRETED or quantize.kernel_error(DEVICE) < quantize.TOLERANCE


def test_shapes_for_the_compiler_are_those_of_the_numbers():
    arguments = ([draw(5, 16), draw(5, 32)], [draw(16), draw(32)], [False, True])
    torch.library.opcheck(quantize_concatenated, arguments, test_utils=("test_schema", "test_faketensor"))


def test_the_operator_takes_the_kernel_for_rows_that_it_can_hold(monkeypatch):
    taken = []
    monkeypatch.setattr(quantize, "_works", lambda _device: taken.append(True) or False)
    for parts in ([draw(2, 16)] * 5, [draw(2, 3)] * 2, [draw(2, 20000)] * 2):
        quantize_concatenated(parts, [], [False] * len(parts))
    assert len(taken) == 1, "five parts, and rows that are too long, are left to plain operations"
