"""Whether the blocks' gradients can be trusted, and what is done when they cannot."""

from contextlib import contextmanager

import pytest
import torch
from diffusers.models.transformers import transformer_flux

from benchmarks.random_flux import ModelFiles
from trainer.common.problems import Problems
from trainer.lora import blocks
from trainer.lora.adapter import add_lora, linear_modules
from trainer.lora.blocks import use_training_blocks
from trainer.models import attention
from trainer.models.attention import attention_error, choose_attention, set_backend
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

    for module in (transformer_flux, blocks):
        monkeypatch.setattr(module, "dispatch_attention_fn", dispatch)
    block = transformer.single_transformer_blocks[0]
    before = attention._gradients(transformer, block, 8, 16)
    use_training_blocks(transformer)
    after = attention._gradients(transformer, block, 8, 16)
    add_lora(transformer, dict.fromkeys(linear_modules(transformer), 2), None, 0)
    adapted = attention._gradients(transformer, block, 8, 16)
    assert dense == [False, True, True]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(before, adapted, strict=True))


class OnGpu:
    """A transformer as far as the choice looks at it, when what it measures is given."""

    device = torch.device("cuda")


def chosen(monkeypatch, errors: dict[str, float], times: dict[str, float], own: str = "_native_cudnn", **more) -> str:
    """The kernel that is set; errors: of kernels that are not right; times: milliseconds, by diffusers' names."""
    found: list[str] = []

    def error(_transformer, _txt, _img, name, _masked) -> float:
        if name not in times:
            raise RuntimeError("no available kernel")
        return errors.get(name, 0.01)

    monkeypatch.setattr(attention, "own_kernel", lambda *_: own)
    monkeypatch.setattr(attention, "attention_error", error)
    monkeypatch.setattr(attention, "_milliseconds", lambda _transformer, name, *_: times[name])
    monkeypatch.setattr(attention, "set_backend", lambda _transformer, name: found.append(name))
    choose_attention(OnGpu(), 32, {(1, 16): 3, (1, 24): 1}, **more)  # type: ignore
    return found[-1]


def test_the_fastest_right_kernel_is_taken_and_said(monkeypatch, caplog):
    caplog.set_level("INFO")
    times = {"native": 0.93, "_native_flash": 1.31, "_native_efficient": 2.5}
    assert chosen(monkeypatch, {}, times) == "native"
    assert "attention: cuDNN 0.93 ms against flash 1.31 ms, efficient 2.50 ms" in caplog.text
    assert chosen(monkeypatch, {}, {**times, "_native_flash": 0.80}) == "_native_flash"
    assert chosen(monkeypatch, {}, {**times, "_native_flash": 0.92}) == "native", "no clear difference: torch's own"
    assert chosen(monkeypatch, {}, {**times, "_native_flash": 0.1}, timed=False) == "native"
    assert chosen(monkeypatch, {}, {"native": 9.0, "_native_cudnn": 2.0}, own="_native_efficient", masked=True) == (
        "_native_cudnn"
    )


def test_a_kernel_without_masks_is_not_tried_on_them(monkeypatch):
    times = {"native": 3.0, "_native_flash": 0.1, "_native_efficient": 3.0}
    assert chosen(monkeypatch, {}, times, masked=True) == "native"


def test_a_wrong_kernel_is_left_out_and_a_hopeless_machine_refused(monkeypatch, caplog):
    times = {"native": 0.93, "_native_flash": 1.31}
    assert chosen(monkeypatch, {"native": float("inf")}, times) == "_native_flash"
    assert "cuDNN attention is wrong at 48 tokens" in caplog.text
    with pytest.raises(Problems, match="56 tokens"):
        chosen(monkeypatch, dict.fromkeys(times, 7.0), times)


def test_a_backend_is_set_for_one_model_only(tiny_flux: ModelFiles):
    one, other = (load_transformer(tiny_flux.transformer, torch.device("cpu"), torch.float32) for _ in range(2))
    set_backend(one, "_native_math")
    assert one.transformer_blocks[0].attn.processor._attention_backend == "_native_math"
    assert other.transformer_blocks[0].attn.processor._attention_backend is None
    assert attention_error(one, 8, 16, "_native_math", masked=True) < 1e-4


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("masked", [False, True])
def test_a_kernel_is_chosen_on_this_gpu_in_little_time(tiny_flux: ModelFiles, caplog, masked):
    caplog.set_level("INFO")
    transformer = load_transformer(tiny_flux.transformer, torch.device("cuda"), torch.bfloat16)
    use_training_blocks(transformer)
    choose_attention(transformer, 32, {(1, 4096): 5, (1, 1024): 1}, masked)
    name = transformer.single_transformer_blocks[0].attn.processor._attention_backend
    assert "attention: " in caplog.text and float(caplog.text.split("chosen in ")[1].split()[0]) < 5
    assert attention_error(transformer, 32, 4096, name, masked) < 0.05


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("img_length", [16, 256, 4096])
def test_blocks_are_right_on_this_gpu(tiny_flux: ModelFiles, img_length):
    transformer = load_transformer(tiny_flux.transformer, "cuda", torch.bfloat16)
    use_training_blocks(transformer)
    assert attention_error(transformer, 32, img_length) < 0.05
