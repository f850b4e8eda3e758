"""Sampling with a base in fewer bits and with compiled blocks: close to the plain sampler, and the same image."""

import pytest
import torch
from PIL import Image

from benchmarks.random_flux import ModelFiles
from tests.unit.test_routed import random_lora
from trainer.__main__ import main
from trainer.engine.sampling_model import Sequences, compiled, load_adapted
from trainer.models.load import load_transformer
from trainer.models.transformer import Conditioning, predict_velocity
from trainer.sampling.prompts import SamplePrompt
from trainer.sampling.recorded import RecordedVelocity
from trainer.sampling.sampler import sample_latents

CPU, TXT = torch.device("cpu"), 32
PROMPT = SamplePrompt("", width=64, height=64, steps=3)


def texts(width: int, pooled: int) -> Conditioning:
    generator = torch.Generator().manual_seed(2)
    return Conditioning(torch.randn(1, TXT, width, generator=generator), torch.randn(1, pooled, generator=generator))


@pytest.fixture(scope="module")
def lora(tiny_flux: ModelFiles):
    return random_lora(load_transformer(tiny_flux.transformer, CPU, torch.float32), seed=3)


def sampled(transformer, predict=predict_velocity) -> torch.Tensor:
    config = transformer.config
    text = texts(config["joint_attention_dim"], config["pooled_projection_dim"])
    return sample_latents(transformer, PROMPT, 0, text, None, predict=predict)


def test_compiled_blocks_sample_the_same_image(tiny_flux, lora):
    plain = sampled(load_adapted(tiny_flux.transformer, lora, CPU, torch.float32))
    sequences = Sequences.of([PROMPT, PROMPT], TXT, masked=False)
    transformer = load_adapted(tiny_flux.transformer, lora, CPU, torch.float32, fastest_for=sequences)
    predict = compiled(transformer, len(sequences.img_tokens), None, backend="eager")
    assert all(hasattr(block, "_compiled_call_impl") for block in transformer.transformer_blocks)
    torch.testing.assert_close(sampled(transformer, predict), plain, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(sampled(load_adapted(tiny_flux.transformer, None, CPU, torch.float32)), plain, atol=1e-3)


def test_a_base_in_fp8_samples_nearly_the_same_image(tiny_flux, lora):
    plain = sampled(load_adapted(tiny_flux.transformer, lora, CPU, torch.float32))
    found = sampled(load_adapted(tiny_flux.transformer, lora, CPU, torch.float32, "fp8"))
    difference = float((found - plain).norm() / plain.norm())
    assert 1e-4 < difference < 0.1


def test_an_image_is_sampled_even_if_no_graph_can_be_recorded(tiny_flux, caplog):
    transformer = load_adapted(tiny_flux.transformer, None, CPU, torch.float32)
    recorded = RecordedVelocity(runs_before=1)
    assert torch.equal(sampled(transformer, recorded), sampled(transformer))
    assert recorded.is_broken and "CUDA graph capture failed" in caplog.text


def test_sample_records_the_base_precision(tiny_flux, tmp_path, capsys):
    files = [f"--pretrained_model_name_or_path={tiny_flux.transformer}", f"--ae={tiny_flux.ae}"]
    files += [
        f"--clip_l={tiny_flux.clip_l}",
        f"--t5xxl={tiny_flux.t5xxl}",
        f"--tokenizer_dir={tiny_flux.tokenizer_dir}",
    ]
    size = ["--width=32", "--height=32", "--steps=1", f"--t5xxl_max_token_length={TXT}"]
    argv = ["sample", "--prompt=a", *files, *size, f"--output={tmp_path}", "--base_precision=fp8"]
    assert main(argv) == 0
    with Image.open(capsys.readouterr().out.strip()) as picture:
        assert picture.info["base_precision"] == "fp8"
