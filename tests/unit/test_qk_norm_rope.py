"""Fused QK-norm + RoPE: the numbers and gradients of torch's RMS norm and diffusers' rotary embedding."""

import re

import pytest
import torch
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor, nn

from tests.quantized_layers import draw
from tests.triton_kernels import DEVICE, INTERPRETED, needs_triton
from trainer.kernels import qk_norm_rope
from trainer.kernels.qk_norm_rope import (
    TOLERANCE,
    can_norm_and_rotate,
    kernel_error,
    norm_and_rotate,
    norm_rope,
    norm_rope_backward,
)
from trainer.kernels.trial import passes_trial

EPS = 1e-6


def table(tokens: int, head_dim: int) -> tuple[Tensor, Tensor]:
    angles = draw(tokens, head_dim // 2, seed=9).repeat_interleave(2, dim=-1) * 3
    return angles.cos().to(DEVICE), angles.sin().to(DEVICE)


def norm_of(head_dim: int, seed: int) -> nn.RMSNorm:
    norm = nn.RMSNorm(head_dim, eps=EPS)
    norm.weight.data.copy_(1 + draw(head_dim, seed=seed) / 4)
    return norm.to(DEVICE).requires_grad_(False)


def plainly(parts: list[Tensor], norms: list[nn.RMSNorm], rotary: tuple[Tensor, Tensor]) -> Tensor:
    joined = torch.cat([norm(part) for part, norm in zip(parts, norms, strict=True)], dim=1)
    turned = apply_rotary_emb(joined, rotary, sequence_dim=1)
    assert isinstance(turned, Tensor)
    return turned


def heads_in_wider_rows(batch: int, tokens: int, count: int, head_dim: int, dtype: torch.dtype, seed: int) -> Tensor:
    """As queries stand beside keys, values and an MLP."""
    rows = draw(batch, tokens, 3 * count * head_dim, seed=seed).to(DEVICE, dtype)
    return rows[..., count * head_dim : 2 * count * head_dim].unflatten(-1, (count, head_dim))


@needs_triton
@pytest.mark.parametrize("num_heads, head_dim", [(3, 16), (8, 32), (24, 128)])
@pytest.mark.parametrize("lengths", [(7,), (3, 10)], ids=["one", "text and image"])
def test_numbers_and_gradients_are_those_of_plain_operations(num_heads, head_dim, lengths):
    parts = [heads_in_wider_rows(2, n, num_heads, head_dim, torch.float32, seed=n).requires_grad_() for n in lengths]
    norms = [norm_of(head_dim, seed) for seed, _ in enumerate(lengths)]
    rotary = table(sum(lengths), head_dim)
    expected, found = plainly(parts, norms, rotary), norm_and_rotate(parts, norms, *rotary)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    dy = draw(*expected.shape, seed=3).to(DEVICE)
    for one, other in zip(*(torch.autograd.grad(y, parts, dy) for y in (found, expected)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@needs_triton
def test_bf16_is_rounded_once():
    """Closer to float32 than operations that round in between."""
    part, norm, rotary = heads_in_wider_rows(1, 64, 4, 128, torch.bfloat16, seed=1), norm_of(128, 0), table(64, 128)
    exact = plainly([part.float()], [norm], rotary)
    found = norm_and_rotate([part], [norm.bfloat16()], *rotary)
    rounded = plainly([part], [norm], rotary)
    assert found.dtype == torch.bfloat16
    errors = [float((each.float() - exact).norm() / exact.norm()) for each in (found, rounded)]
    assert errors[0] <= (2 if INTERPRETED else 1) * errors[1], "the interpreter cuts off instead of rounding"


@needs_triton
def test_a_gradient_in_another_order_of_memory_is_read_right():
    part, rotary = heads_in_wider_rows(1, 6, 4, 16, torch.float32, seed=1), table(6, 16)
    dy = draw(1, 4, 6, 16, seed=2).to(DEVICE).transpose(1, 2)
    weight = norm_of(16, 0).weight
    (found,), (expected,) = (norm_rope_backward(g, [part], [weight], *rotary, EPS) for g in (dy, dy.contiguous()))
    assert torch.equal(found, expected) and found.is_contiguous()


@needs_triton
def test_shapes_for_the_compiler_are_those_of_the_kernels():
    parts = [heads_in_wider_rows(2, n, 4, 16, torch.float32, seed=n) for n in (3, 5)]
    arguments = (parts, [norm_of(16, 0).weight] * 2, *table(8, 16), EPS)
    torch.library.opcheck(norm_rope, arguments, test_utils=("test_schema", "test_faketensor"))
    dy = draw(2, 8, 4, 16).to(DEVICE)
    torch.library.opcheck(norm_rope_backward, (dy, *arguments), test_utils=("test_schema", "test_faketensor"))


@needs_triton
def test_what_is_tried_before_it_is_relied_on_is_right():
    assert kernel_error(DEVICE) < TOLERANCE / 4


def test_what_the_kernels_are_not_made_for_is_left_to_plain_operations(monkeypatch):
    norm, gpu = norm_of(16, 0), torch.device("cuda")
    assert not can_norm_and_rotate(torch.device("cpu"), [norm], 16)
    monkeypatch.setattr(qk_norm_rope, "_works", lambda _device: True)
    assert can_norm_and_rotate(gpu, [norm], 16)
    assert not can_norm_and_rotate(gpu, [norm, nn.LayerNorm(16)], 16)
    assert not can_norm_and_rotate(gpu, [nn.RMSNorm(16)], 16)
    assert not can_norm_and_rotate(gpu, [nn.RMSNorm(12, eps=EPS)], 12), "no power of two"


@pytest.mark.parametrize("error, words", [(0.5, "wrong numbers on this machine"), (None, "RuntimeError: no compiler")])
def test_a_kernel_that_fails_its_trial_is_not_used_and_the_log_says_so(caplog, error, words):
    def tried() -> float:
        if error is None:
            raise RuntimeError("no compiler\nand more lines")
        return error

    assert not passes_trial("a product", tried, 0.02)
    assert re.search(f"falling back to PyTorch for a product: .*{words}", caplog.text)
    assert "more lines" not in caplog.text
    assert not passes_trial("a product", lambda: float("nan"), 0.02) and passes_trial("it", lambda: 0.001, 0.02)
