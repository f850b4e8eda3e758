"""Chooses the fastest attention kernel whose gradients are correct.

cuDNN's attention, which torch prefers on recent GPUs, assumes that the gradient of its output is contiguous. In FLUX's
single blocks as diffusers runs them it is not: attention and MLP are concatenated before the last projection, so the
gradient is a slice of a wider tensor. torch 2.11 then computes gradients from wrong rows, without an error.
`trainer.lora.blocks` removes the cause, and `choose_attention` verifies each kernel before it is used.

The choice is stored in the processors of the blocks' attention, as diffusers' `set_attention_backend` does, and so
becomes part of a compiled block. torch's own switches do not: a block compiled under one setting would be taken from
the compiler's cache under another.
"""

import logging
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from diffusers import FluxTransformer2DModel
from diffusers.models.attention_dispatch import _CAN_USE_FLASH_ATTN_3, AttentionBackendName, dispatch_attention_fn
from diffusers.models.transformers.transformer_flux import FluxAttention
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from trainer.common.problems import Problem, Problems

log = logging.getLogger(__name__)
TOLERANCE = 0.1  # two correct kernels differ by about 0.01 in bfloat16, a wrong one by about 1
OWN = "native"  # torch's own choice, which needs no copies of q, k and v
NAMES = {
    SDPBackend.CUDNN_ATTENTION: ("_native_cudnn", "cuDNN"),
    SDPBackend.FLASH_ATTENTION: ("_native_flash", "flash"),
    SDPBackend.EFFICIENT_ATTENTION: ("_native_efficient", "efficient"),
    SDPBackend.MATH: ("_native_math", "plain"),
}
LABELS = {**dict(NAMES.values()), "_flash_3": "flash 3"}
WITHOUT_MASKS = ("_native_flash", "_flash_3")
CLEARLY = 0.97  # another kernel has to take less than this share of the time, so that runs choose the same one
SHAPES_TIMED = 3
TIMES = 5


def choose_attention(
    transformer: FluxTransformer2DModel,
    txt_length: int,
    shapes: Mapping[tuple[int, int], int],
    masked: bool = False,
    timed: bool = True,
) -> None:
    """Make the blocks use the fastest attention kernel whose gradients are correct; does nothing on the CPU.

    txt_length: text tokens. shapes: (images, image tokens) of a batch -> number of such batches. masked: whether
    padding in the text is masked. timed: if False, nothing is timed and the first correct kernel is used, torch's own
    choice before others. Call this before adapters are added. Raises `Problems` if no kernel is correct.
    """
    if transformer.device.type != "cuda":
        return
    start = time.perf_counter()
    lengths = sorted({img_length for _, img_length in shapes})
    own = own_kernel(transformer, txt_length + lengths[-1], masked)
    labels = {OWN: LABELS[own]} | {name: LABELS[name] for name in candidates(masked) if name != own}
    correct = [name for name in labels if _is_correct(transformer, name, labels[name], txt_length, lengths, masked)]
    if not correct:
        what = f"attention over {txt_length + lengths[-1]} tokens has wrong gradients with torch {torch.__version__}"
        raise Problems([Problem(str(transformer.device), what, "use another version of torch or of the GPU driver")])
    usual = sorted(shapes, key=lambda shape: -shapes[shape])[:SHAPES_TIMED]
    times = dict.fromkeys(correct, 0.0)
    if timed and len(correct) > 1:
        weights = [shapes[shape] / sum(shapes[each] for each in usual) for shape in usual]
        for name in correct:
            each = [_milliseconds(transformer, name, batch, txt_length + img, masked) for batch, img in usual]
            times[name] = sum(weight * milliseconds for weight, milliseconds in zip(weights, each, strict=True))
    chosen = fastest(times)
    set_backend(transformer, chosen)
    log.info("%s (chosen in %.1f s)", in_words(chosen, times, labels), time.perf_counter() - start)


def candidates(masked: bool) -> list[str]:
    """The kernels to try, as diffusers names its attention backends, usually fastest first.

    masked: leave out the kernels that take no mask.
    """
    names = ["_native_cudnn", "_native_flash", "_native_efficient"]
    if _CAN_USE_FLASH_ATTN_3:  # means that it is installed; it is verified like the others
        names.insert(0, "_flash_3")
    return [name for name in names if not (masked and name in WITHOUT_MASKS)]


def fastest(times: Mapping[str, float]) -> str:
    """The kernel with the shortest time, or the first in `times` unless another is clearly faster.

    times: kernel -> milliseconds. Clearly faster: less than 0.97 of the first one's time.
    """
    first, *others = times
    best = min(others, key=lambda name: times[name], default=first)
    return best if times[best] < CLEARLY * times[first] else first


def in_words(chosen: str, times: Mapping[str, float], labels: Mapping[str, str]) -> str:
    """One line for the log: the chosen kernel, with the times of all kernels if they were measured.

    times: kernel -> milliseconds, 0 if not measured. labels: kernel -> its name in the log.
    """
    if not times[chosen]:
        return f"attention: {labels[chosen]}"
    others = [f"{labels[name]} {times[name]:.2f} ms" for name in times if name != chosen]
    return f"attention: {labels[chosen]} {times[chosen]:.2f} ms" + (f" against {', '.join(others)}" if others else "")


def set_backend(transformer: FluxTransformer2DModel, name: str) -> None:
    """Make this transformer's blocks use an attention kernel, named as diffusers names its attention backends.

    Unlike diffusers' `set_attention_backend`, it leaves other models in the process alone.
    """
    for module in transformer.modules():
        if isinstance(module, FluxAttention):
            cast(Any, module.processor)._attention_backend = AttentionBackendName(name)


def own_kernel(transformer: FluxTransformer2DModel, num_tokens: int, masked: bool) -> str:
    """The kernel that torch chooses by itself for one image with `num_tokens` text and image tokens.

    Returns its name among diffusers' attention backends. masked: whether a mask is passed.
    """
    query = _random_heads(transformer, 1, num_tokens).transpose(1, 2)
    found = SDPBackend(torch._fused_sdp_choice(query, query, query, _mask(transformer, num_tokens, masked)))
    return NAMES.get(found, NAMES[SDPBackend.MATH])[0]


def _is_correct(
    transformer: FluxTransformer2DModel, name: str, label: str, txt_length: int, lengths: Sequence[int], masked: bool
) -> bool:
    for length in lengths:
        try:
            error = attention_error(transformer, txt_length, length, name, masked)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, NotImplementedError, ValueError) as reason:  # unsupported device, dtype or size
            log.debug("%s attention cannot be used here: %s", label, reason)
            return False
        if not error < TOLERANCE:
            log.warning(
                "%s attention is wrong at %d tokens on this machine and is not used", label, txt_length + length
            )
            return False
    return True


def _milliseconds(transformer: FluxTransformer2DModel, name: str, batch: int, num_tokens: int, masked: bool) -> float:
    """The time of one attention, forward and backward: the median after a warm-up."""
    query, key, value = (_random_heads(transformer, batch, num_tokens).requires_grad_() for _ in range(3))
    gradient, mask = torch.randn_like(query), _mask(transformer, num_tokens, masked)
    moments = []
    with torch.enable_grad():
        for _ in range(2 + TIMES):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            output = dispatch_attention_fn(query, key, value, attn_mask=mask, backend=AttentionBackendName(name))
            torch.autograd.grad(output, (query, key, value), gradient)
            end.record()
            moments.append((start, end))
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in moments[-TIMES:])


def _random_heads(transformer: FluxTransformer2DModel, batch: int, num_tokens: int) -> torch.Tensor:
    """Random queries, keys or values: [B, tokens, heads, head width]."""
    weight, config = transformer.x_embedder.weight, transformer.config
    shape = (batch, num_tokens, config["num_attention_heads"], config["attention_head_dim"])
    return torch.randn(shape, device=weight.device).to(weight.dtype)


def _mask(transformer: FluxTransformer2DModel, num_tokens: int, masked: bool) -> torch.Tensor | None:
    """A mask [1, 1, 1, tokens] for a text whose second token is padding; None if nothing is masked."""
    if not masked:
        return None
    positions = torch.arange(num_tokens, device=transformer.x_embedder.weight.device)
    return (positions != 1)[None, None, None]


@contextmanager
def _attending_with(transformer: FluxTransformer2DModel, name: str) -> Iterator[None]:
    set_backend(transformer, name)
    try:
        yield
    finally:
        set_backend(transformer, OWN)


def attention_error(
    transformer: FluxTransformer2DModel, txt_length: int, img_length: int, name: str = OWN, masked: bool = False
) -> float:
    """How far a kernel's gradients are from those of a trusted kernel: the largest relative error, inf if any is NaN.

    Compared are the gradients of the image and text inputs of the first double and the first single block, each by
    norm(difference) / norm(trusted), on random inputs for one image. name: the kernel, as diffusers names its attention
    backends; the lengths are in tokens; masked: treat one text token as padding, so that a mask is passed.
    """
    others = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]  # the second if the first is not available
    worst = 0.0
    for block in (transformer.transformer_blocks[0], transformer.single_transformer_blocks[0]):
        with _attending_with(transformer, name):
            found = _gradients(transformer, block, txt_length, img_length, masked)
        with _attending_with(transformer, OWN), sdpa_kernel(others):
            expected = _gradients(transformer, block, txt_length, img_length, masked)
        for one, reference in zip(found, expected, strict=True):
            error = float((one.float() - reference.float()).norm() / reference.float().norm())
            worst = max(worst, error if error == error else float("inf"))
    return worst


def _gradients(
    transformer: FluxTransformer2DModel, block: nn.Module, txt_length: int, img_length: int, masked: bool = False
) -> tuple[torch.Tensor, ...]:
    """The gradients of a block's two inputs if only its image output is used, as in the last block."""
    weight = transformer.x_embedder.weight
    generator = torch.Generator(weight.device).manual_seed(0)

    def sample(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=weight.device).to(weight.dtype)

    width, head_dim = weight.shape[0], transformer.config["attention_head_dim"]
    img, txt = sample(1, img_length, width).requires_grad_(), sample(1, txt_length, width).requires_grad_()
    mask = _mask(transformer, txt_length + img_length, masked)
    attention = None if mask is None else {"attention_mask": mask}
    ones = torch.ones(txt_length + img_length, head_dim, device=weight.device)
    with torch.enable_grad():
        _, output = block(img, txt, sample(1, width), (ones, torch.zeros_like(ones)), attention)
        return torch.autograd.grad(output, (img, txt), sample(*output.shape))
