"""Attention whose gradients can be trusted.

cuDNN's attention, which torch prefers on recent GPUs, takes the gradient of its output to be dense. In
FLUX's single blocks it is not: attention and MLP are joined before the last projection, so what comes
back is a slice of a wider tensor, and torch 2.11 then computes gradients from other rows, without an
error. `give_dense_gradients` removes the cause; `ensure_right_attention` looks whether all is well.
"""

import logging
from collections.abc import Iterable

import torch
from diffusers import FluxTransformer2DModel
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from trainer.faults import Fault, Faults

log = logging.getLogger(__name__)
TOLERANCE = 0.1  # two right kernels differ by about 0.01 in bfloat16, a wrong one by about 1


class _DenseGradient(torch.autograd.Function):
    @staticmethod
    def forward(_ctx, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.view_as(tensor)

    @staticmethod
    def backward(_ctx, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return gradient.contiguous()


def give_dense_gradients(transformer: FluxTransformer2DModel) -> None:
    """Let the attention of every single block receive a dense gradient; forward is as it was."""
    for block in transformer.single_transformer_blocks:
        attention: nn.Module = block.get_submodule("attn")
        attention.register_forward_hook(lambda _module, _inputs, output: _DenseGradient.apply(output))


def ensure_right_attention(transformer: FluxTransformer2DModel, txt_length: int, img_lengths: Iterable[int]) -> None:
    """Try both kinds of block with torch's choice of kernel; if it is wrong, turn cuDNN's off.

    Call it before adapters are added. Raises `Faults` when the choice is still wrong then. A few
    milliseconds on a GPU; nothing on the CPU, where there is one kernel.
    """
    if transformer.device.type != "cuda":
        return
    for length in sorted(set(img_lengths)):
        if attention_error(transformer, txt_length, length) < TOLERANCE:
            continue
        log.warning("cuDNN's attention is wrong at %d tokens on this machine; it is not used", txt_length + length)
        torch.backends.cuda.enable_cudnn_sdp(False)
        if not attention_error(transformer, txt_length, length) < TOLERANCE:
            what = f"attention over {txt_length + length} tokens has wrong gradients with torch {torch.__version__}"
            raise Faults([Fault(str(transformer.device), what, "use another version of torch or of the driver")])


def attention_error(transformer: FluxTransformer2DModel, txt_length: int, img_length: int) -> float:
    """The largest relative difference of the blocks' gradients between torch's kernel and another one.

    NaN counts as infinitely wrong. Inputs are random, of one picture.
    """
    others = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]  # the second where there is no first
    worst = 0.0
    for block in (transformer.transformer_blocks[0], transformer.single_transformer_blocks[0]):
        found = _gradients(transformer, block, txt_length, img_length)
        with sdpa_kernel(others):
            expected = _gradients(transformer, block, txt_length, img_length)
        for one, reference in zip(found, expected, strict=True):
            error = float((one.float() - reference.float()).norm() / reference.float().norm())
            worst = max(worst, error if error == error else float("inf"))
    return worst


def _gradients(
    transformer: FluxTransformer2DModel, block: nn.Module, txt_length: int, img_length: int
) -> tuple[torch.Tensor, ...]:
    """Of the block's two inputs, when only its image output counts, as in the last block."""
    weight = transformer.x_embedder.weight
    generator = torch.Generator(weight.device).manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=weight.device).to(weight.dtype)

    width, head_dim = weight.shape[0], transformer.config["attention_head_dim"]
    img, txt = draw(1, img_length, width).requires_grad_(), draw(1, txt_length, width).requires_grad_()
    still = torch.ones(txt_length + img_length, head_dim, device=weight.device)
    with torch.enable_grad():
        _, output = block(img, txt, draw(1, width), (still, torch.zeros_like(still)), None)
        return torch.autograd.grad(output, (img, txt), draw(*output.shape))
