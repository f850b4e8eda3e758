"""Whether the blocks' gradients can be trusted, and what is done when they cannot."""

from contextlib import contextmanager

import pytest
import torch
from diffusers.models.transformers import transformer_flux

from benchmarks.random_flux import ModelFiles
from trainer.faults import Faults
from trainer.models import attention
from trainer.models.attention import attention_error, ensure_right_attention, give_dense_gradients
from trainer.models.load import load_transformer

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: run `make test` on one")


def test_a_right_kernel_is_found_right(tiny_flux: ModelFiles):
    assert attention_error(load_transformer(tiny_flux.transformer, "cpu", torch.float32), 8, 16) < 1e-4


def test_a_kernel_without_gradients_is_found_wrong(tiny_flux: ModelFiles, monkeypatch):
    right, in_reference = transformer_flux.dispatch_attention_fn, []

    @contextmanager
    def reference(_kernel):
        in_reference.append(True)
        yield
        in_reference.pop()

    def dispatch(q, k, v, **rest):
        return right(q, k, v, **rest) if in_reference else right(q, k, v.detach(), **rest)

    monkeypatch.setattr(attention, "sdpa_kernel", reference)
    monkeypatch.setattr(transformer_flux, "dispatch_attention_fn", dispatch)
    assert attention_error(load_transformer(tiny_flux.transformer, "cpu", torch.float32), 8, 16) > 0.1


def test_single_blocks_receive_dense_gradients(tiny_flux: ModelFiles, monkeypatch):
    """The condition that cuDNN's backward silently relies on."""
    transformer = load_transformer(tiny_flux.transformer, "cpu", torch.float32)
    right, dense = transformer_flux.dispatch_attention_fn, []

    def dispatch(*args, **rest):
        output = right(*args, **rest)
        output.register_hook(lambda gradient: dense.append(gradient.is_contiguous()))
        return output

    monkeypatch.setattr(transformer_flux, "dispatch_attention_fn", dispatch)
    before = attention._gradients(transformer, transformer.single_transformer_blocks[0], 8, 16)
    give_dense_gradients(transformer)
    after = attention._gradients(transformer, transformer.single_transformer_blocks[0], 8, 16)
    assert dense == [False, True]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_a_wrong_kernel_is_turned_off_and_a_hopeless_one_refused(monkeypatch, caplog):
    class OnGpu:
        device = torch.device("cuda")

    turned_off = []
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", lambda on: turned_off.append(not on))
    monkeypatch.setattr(attention, "attention_error", lambda *_: 0.0 if turned_off else float("inf"))
    ensure_right_attention(OnGpu(), 32, [16])  # type: ignore
    assert turned_off == [True]
    assert "wrong at 48 tokens" in caplog.text
    monkeypatch.setattr(attention, "attention_error", lambda *_: 7.0)
    with pytest.raises(Faults, match="48 tokens"):
        ensure_right_attention(OnGpu(), 32, [16])  # type: ignore


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("img_length", [16, 256, 4096])
def test_blocks_are_right_on_this_gpu(tiny_flux: ModelFiles, img_length):
    transformer = load_transformer(tiny_flux.transformer, "cuda", torch.bfloat16)
    give_dense_gradients(transformer)
    assert attention_error(transformer, 32, img_length) < 0.05
