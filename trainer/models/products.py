"""Matrix products of frozen layers in 8 bits: weight, input and output gradient are quantized row by row.

A weight W [N, K] is stored as q [N, K] and one scale s per row, W = s q. In the forward pass x is quantized per token
and x Wᵀ is a product of 8-bit numbers, scaled per token and per row. In the backward pass dy W = (dy s) q: dy is
multiplied by s before it is quantized, so the same q serves both directions and the gradient is that of the weights
that the forward pass used. fp8 is e4m3 everywhere: since each row's scale maps its largest number to the top of the
range, e4m3's third mantissa bit is worth more than e5m2's range.

Quantization uses PyTorch operations, which torch.compile fuses with what precedes them. The products are opaque
operators. On the CPU, fp8 gives the same numbers through float32.
"""

from importlib import import_module

import torch
import torch.nn.functional as F

from trainer.kernels.fp8 import LowRank, can_add, multiply_and_add
from trainer.kernels.mx import can_multiply, multiply
from trainer.kernels.quantize import FP8, quantize_rows

NF4 = torch.uint8
NF4_BLOCK = 64  # numbers that share a scale
MIN_INT8_ROWS = 32  # torch._int_mm refuses 16 rows and fewer on a GPU


def quantize_nf4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight [N, K] in nf4: its bytes [N K / 2, 1] as bitsandbytes packs them, and its scales, float32 [N K / 64].

    A scale is the largest magnitude of 64 numbers.
    """
    packed, state = import_module("bitsandbytes.functional").quantize_4bit(
        weight.contiguous(), blocksize=NF4_BLOCK, quant_type="nf4"
    )
    return packed, state.absmax


def product(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, transposed: torch.Tensor | None, out_features: int
) -> torch.Tensor:
    """x Wᵀ [..., N] in the dtype of x [..., K], differentiable in x, for a frozen weight W [N, K] in fp8, int8 or nf4.

    weight, scale: W as it is stored, with float32 scales, [N] or in nf4 one per 64 numbers. transposed: the stored
    weight as [K, N], which the backward pass otherwise has to build each time, with the same result. out_features: N.
    For 8-bit weights x is quantized per token. Inputs with one vector per image, [B, K], and nf4 weights are multiplied
    in the dtype of x.
    """
    if weight.dtype == NF4 or x.ndim < 3:
        return _DequantizedProduct.apply(x, weight, scale, out_features)
    return _RowProduct.apply(x, weight, scale, transposed)


def input_gradient(
    dy: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, transposed: torch.Tensor | None
) -> torch.Tensor:
    """dy W [..., K] in the dtype of dy [..., N]: the gradient of x for y = x Wᵀ.

    weight, scale: W [N, K] as it is stored, with float32 scales, [N] or in nf4 one per 64 numbers. transposed: the
    stored weight as [K, N], if there is one.
    """
    if weight.dtype == NF4 or dy.ndim < 3:
        return dequantized_gradient(dy, weight, scale)
    rows = dy.reshape(-1, dy.shape[-1]) * scale
    swapped = weight.t().contiguous() if transposed is None else transposed
    return _multiply(rows, swapped, None, dy.dtype).view(*dy.shape[:-1], -1)


class _RowProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, scale, transposed):
        ctx.save_for_backward(weight, scale, transposed)
        y = _multiply(x.reshape(-1, x.shape[-1]), weight, scale, x.dtype)
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx, dy):  # type: ignore[override]
        return input_gradient(dy, *ctx.saved_tensors), None, None, None


def _multiply(rows: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """Quantize rows [M, K] and multiply them by weight [N, K] transposed; scale: of the weight's rows."""
    values, row_scale = quantize_rows(rows, weight.dtype)
    if weight.dtype == FP8:
        return fp8_product(values, row_scale, weight, scale, dtype)
    y = int8_product(values, weight) * row_scale
    return (y if scale is None else y * scale).to(dtype)


@torch.library.custom_op("flux_dreambooth::fp8_product", mutates_args=())
def fp8_product(
    a: torch.Tensor, scale_a: torch.Tensor, b: torch.Tensor, scale_b: torch.Tensor | None, dtype: torch.dtype
) -> torch.Tensor:
    """(a bᵀ) scale_a scale_bᵀ [M, N] in dtype, for a [M, K] and b [N, K] in e4m3; opaque to the compiler.

    scale_a: [M, 1], scale_b: [N] or None for ones, float32.
    """
    return multiply_fp8(a, scale_a, b, scale_b, None, dtype)


@fp8_product.register_fake
def _(a, _scale_a, b, _scale_b, dtype):
    return a.new_empty(a.shape[0], b.shape[0], dtype=dtype)


def multiply_fp8(
    a: torch.Tensor,
    scale_a: torch.Tensor,
    b: torch.Tensor,
    scale_b: torch.Tensor | None,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
    low_rank: LowRank | None = None,
) -> torch.Tensor:
    """(a bᵀ) scale_a scale_bᵀ + bias [M, N] in dtype, for a [M, K] and b [N, K] in e4m3.

    scale_a: [M, 1], scale_b: [N] or None for ones, float32. bias: [N] or None. low_rank: adapters' products to add, in
    the same kernel if possible.
    """
    if low_rank and dtype == torch.bfloat16 and can_add(a, b, low_rank):
        return multiply_and_add(a, scale_a, b, scale_b, bias, low_rank)
    y = _multiply_fp8(a, scale_a, b, scale_b, bias, dtype)
    return low_rank.add_to(y) if low_rank else y


def _multiply_fp8(
    a: torch.Tensor,
    scale_a: torch.Tensor,
    b: torch.Tensor,
    scale_b: torch.Tensor | None,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    if a.device.type != "cuda":
        y = (a.float() @ b.float().t()) * scale_a
        y = y if scale_b is None else y * scale_b
        return (y if bias is None else y + bias.float()).to(dtype)
    if can_multiply(a):
        return multiply(a, scale_a, b, scale_b, bias).to(dtype)
    if scale_b is None:
        scale_b = torch.ones(b.shape[0], device=a.device)
    y = torch._scaled_mm(
        a.contiguous(),
        b.contiguous().t(),  # column-major, as the tensor cores read it
        scale_a=scale_a.contiguous(),
        scale_b=scale_b.contiguous()[None],
        bias=None if bias is None else bias.to(torch.bfloat16),
        out_dtype=torch.bfloat16,  # the only one supported with one scale per row
        use_fast_accum=True,
    )
    return y if dtype == torch.bfloat16 else y.to(dtype)


@torch.library.custom_op("flux_dreambooth::int8_product", mutates_args=())
def int8_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a bᵀ [M, N] in int32, for a [M, K] and b [N, K] in int8."""
    rows = a.shape[0]
    if rows < MIN_INT8_ROWS:
        a = F.pad(a, (0, 0, 0, MIN_INT8_ROWS - rows))
    y = torch._int_mm(a.contiguous(), b.contiguous().t())
    return y if len(y) == rows else y[:rows].clone()


@int8_product.register_fake
def _(a, b):
    return a.new_empty(a.shape[0], b.shape[0], dtype=torch.int32)


class _DequantizedProduct(torch.autograd.Function):
    """A product in the dtype of x. The weight is dequantized temporarily, in the forward and the backward pass."""

    @staticmethod
    def forward(ctx, x, weight, scale, out_features):
        ctx.save_for_backward(weight, scale)
        return dequantized_product(x, weight, scale, out_features)

    @staticmethod
    def backward(ctx, dy):  # type: ignore[override]
        return dequantized_gradient(dy, *ctx.saved_tensors), None, None, None


@torch.library.custom_op("flux_dreambooth::dequantized_product", mutates_args=())
def dequantized_product(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, out_features: int) -> torch.Tensor:
    """x Wᵀ [..., N] in the dtype of x, for a weight W [N, K] in fp8, int8 or nf4; W is dequantized temporarily.

    scale: float32, [N] or in nf4 one per 64 numbers. out_features: N. Opaque to the compiler, which would otherwise
    keep the dequantized weight for the backward pass.
    """
    if weight.dtype == NF4:
        return F.linear(x, dequantized(weight, scale, x.dtype, out_features))
    return (F.linear(x, weight.to(x.dtype)) * scale).to(x.dtype)  # converting 8 bits to it is exact


@dequantized_product.register_fake
def _(x, _weight, _scale, out_features):
    return x.new_empty(*x.shape[:-1], out_features)


@torch.library.custom_op("flux_dreambooth::dequantized_gradient", mutates_args=())
def dequantized_gradient(dy: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """dy W [..., K] in the dtype of dy [..., N], for a weight W [N, K] in fp8, int8 or nf4.

    W is dequantized temporarily. scale: float32, [N] or in nf4 one per 64 numbers.
    """
    if weight.dtype == NF4:
        return dy @ dequantized(weight, scale, dy.dtype, dy.shape[-1])
    return (dy * scale).to(dy.dtype) @ weight.to(dy.dtype)


@dequantized_gradient.register_fake
def _(dy, weight, _scale):
    return dy.new_empty(*dy.shape[:-1], _in_features(weight, dy.shape[-1]))


def _in_features(weight: torch.Tensor, out_features: int) -> int:
    return 2 * weight.numel() // out_features if weight.dtype == NF4 else weight.shape[1]


def dequantized(weight: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype, out_features: int) -> torch.Tensor:
    """A weight in fp8, int8 or nf4 as [N, K] in dtype.

    scale: float32, [N] or in nf4 one per 64 numbers. out_features: N, which packed nf4 does not show.
    """
    if weight.dtype != NF4:
        return (weight.to(dtype) * scale[:, None]).to(dtype)
    library = import_module("bitsandbytes.functional")
    shape = torch.Size((out_features, _in_features(weight, out_features)))
    state = library.QuantState(scale, shape=shape, dtype=dtype, blocksize=NF4_BLOCK, quant_type="nf4")
    return library.dequantize_4bit(weight, state)
