"""The product in 8 bits with a low-rank one added: its numbers, and which products it takes."""

import pytest
import torch
from torch import Tensor

from tests.quantized_layers import draw
from tests.triton_kernels import DEVICE, INTERPRETED, needs_triton
from trainer.kernels import fp8
from trainer.kernels.contiguous import as_one_vector, stack_rows
from trainer.kernels.fp8 import COLUMNS, LowRank, can_add, multiply_and_add
from trainer.kernels.quantize import FP8, quantize_rows
from trainer.models.products import multiply_fp8

# Triton's interpreter does not multiply bf16
LOW_RANK_DTYPE = torch.float32 if INTERPRETED else torch.bfloat16


@pytest.fixture(autouse=True)
def three_programs(monkeypatch):
    """Fewer than there are tiles, so that each program walks over several."""
    monkeypatch.setattr(fp8, "_multiprocessors", lambda _device: 3)


def factors(rows: int, columns: int, depth: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    a, scale_a = quantize_rows(draw(rows, depth).to(DEVICE), FP8)
    b, scale_b = quantize_rows(draw(columns, depth, seed=1).to(DEVICE), FP8)
    return a, scale_a, b, scale_b.flatten()


def low_rank_of(rows: int, widths: tuple[int, ...], rank: int) -> LowRank:
    hidden = draw(rows, rank * len(widths), seed=2).to(DEVICE, LOW_RANK_DTYPE)
    up = draw(sum(widths), rank, seed=3).to(DEVICE, LOW_RANK_DTYPE)
    return LowRank(hidden, up.split(list(widths)), 0.5)


def in_float32(a: Tensor, scale_a: Tensor, b: Tensor, scale_b: Tensor, bias: Tensor, low_rank: LowRank) -> Tensor:
    y = (a.float() @ b.float().t()) * scale_a * scale_b + bias
    ups = [up.float() for up in low_rank.ups]
    return LowRank(low_rank.hidden.float(), ups, low_rank.scale).add_to(y)


@needs_triton
@pytest.mark.parametrize("rank", [4, 16, 48, 64])
@pytest.mark.parametrize("rows, widths", [(100, (272,)), (300, (COLUMNS, 2 * COLUMNS, COLUMNS))])
def test_it_adds_what_adapters_give_to_each_layers_columns(rows, widths, rank):
    a, scale_a, b, scale_b = factors(rows, sum(widths), 304)
    low_rank, bias = low_rank_of(rows, widths, rank), draw(sum(widths), seed=4).to(DEVICE)
    found = multiply_and_add(a, scale_a, b, scale_b, bias, low_rank)
    expected = in_float32(a, scale_a, b, scale_b, bias, low_rank)
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).norm() < 0.005 * expected.norm()


@needs_triton
def test_backward_needs_no_scale_of_rows_and_takes_a_matrix_lying_on_its_side():
    a, scale_a, b, scale_b = factors(140, 320, 256)
    down = draw(16, 320, seed=5).to(DEVICE, LOW_RANK_DTYPE)
    low_rank = LowRank(draw(140, 16, seed=6).to(DEVICE, LOW_RANK_DTYPE), [down.t()], 1.0)
    found = multiply_and_add(a, scale_a, b, None, None, low_rank)
    bias = torch.zeros(320, device=DEVICE)
    expected = in_float32(a, scale_a, b, torch.ones_like(scale_b), bias, low_rank)
    assert (found.float() - expected).norm() < 0.005 * expected.norm()


@needs_triton
def test_what_is_tried_before_it_is_relied_on_is_right():
    # the interpreter does not multiply bf16
    assert INTERPRETED or fp8.kernel_error(DEVICE) < fp8.TOLERANCE / 4


def test_on_the_cpu_plain_operations_add_it():
    a, scale_a = quantize_rows(draw(12, 64), FP8)
    b, scale_b = quantize_rows(draw(48, 64, seed=1), FP8)
    low_rank = LowRank(draw(12, 8, seed=2), draw(48, 4, seed=3).split([16, 32]), 2.0)
    assert not can_add(a, b, low_rank)
    bias = draw(48, seed=4)
    found = multiply_fp8(a, scale_a, b, scale_b.flatten(), bias, torch.float32, low_rank)
    expected = in_float32(a, scale_a, b, scale_b.flatten(), bias, low_rank)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


class OnGpu:
    """A factor as far as the choice looks at it."""

    is_cuda, device = True, torch.device("cuda")

    def __init__(self, rows: int, depth: int):
        self.shape = (rows, depth)

    def __len__(self) -> int:
        return self.shape[0]


def test_which_products_are_taken(monkeypatch):
    monkeypatch.setattr(fp8, "HAS_TRITON", True)
    monkeypatch.setattr(fp8, "_multiprocessors", lambda _device: 132)
    monkeypatch.setattr(fp8, "_works", lambda _device: True)

    def taken(
        rows=4608, depth=3072, widths: tuple[int, ...] = (12288, 3072, 3072, 3072), rank=16, dtype=torch.bfloat16
    ):
        ups = [torch.empty(width, rank, dtype=dtype) for width in widths]
        low_rank = LowRank(torch.empty(4, rank * len(widths), dtype=dtype), ups, 1.0)
        return can_add(OnGpu(rows, depth), OnGpu(sum(widths), depth), low_rank)  # type: ignore[arg-type]

    assert taken() and taken(widths=(3072,), rank=64)
    assert not taken(rows=512, widths=(3072,)), "too small"
    assert not taken(depth=15360, widths=(3072,)), "adding to so little costs less than a slower product"
    assert not taken(rank=256), "the rank is too high"
    assert not taken(widths=(12288, 3000, 3072, 3072)), "a tile would be of two layers"
    assert not taken(widths=(3072,) * 5), "too many layers"
    assert not taken(depth=3080), "rows that the copy engine cannot fetch"
    assert not taken(dtype=torch.float32)
    mixed = LowRank(torch.empty(4, 24).bfloat16(), [torch.empty(3072, rank) for rank in (8, 16)], 1.0)
    assert not can_add(OnGpu(4608, 3072), OnGpu(6144, 3072), mixed), "two ranks"  # type: ignore[arg-type]
    monkeypatch.setattr(fp8, "_works", lambda _device: False)
    assert not taken(), "not on such GPUs"


def test_matrices_that_lie_one_after_another_are_not_copied():
    whole = draw(10, 4)
    together = stack_rows(whole.split([3, 7]))
    assert torch.equal(together, whole) and together.data_ptr() == whole.data_ptr()
    apart = [draw(3, 4), draw(7, 4, seed=1)]
    assert as_one_vector(apart) is None and torch.equal(stack_rows(apart), torch.cat(apart))
