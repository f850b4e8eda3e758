"""The file of a small run in other people's software: every key used, and the output of our own forward."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from tests.parity import test_lora_comfyui as comfyui
from tests.recipe_files import Finished, Workshop
from trainer.lora.file import load_lora
from trainer.models.load import load_transformer
from trainer.models.transformer import Conditioning, predict_velocity, rotary_table
from trainer.sampling.adapted import apply_lora

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run(workshop: Workshop) -> Finished:
    settings = {"max_train_steps": 6, "learning_rate": 1e-2, "save_precision": "float", "network_alpha": 3}
    return workshop.train("elsewhere", **settings)


def base(workshop: Workshop) -> diffusers.FluxTransformer2DModel:
    return load_transformer(workshop.models.transformer, CPU, torch.float32)


def make_inputs(transformer: diffusers.FluxTransformer2DModel) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    inputs = comfyui.make_inputs()
    inputs["txt"] = torch.randn(1, 5, transformer.context_embedder.in_features, generator=generator)
    pooled = transformer.config["pooled_projection_dim"]
    return inputs | {"pooled": torch.randn(1, pooled, generator=generator)}


@torch.no_grad()
def velocity(transformer: diffusers.FluxTransformer2DModel, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    rotary = rotary_table(transformer, 8, 12, 5, CPU)
    text = Conditioning(inputs["txt"], inputs["pooled"])
    return predict_velocity(transformer, inputs["x"], inputs["sigma"], text, inputs["guidance"].item(), rotary)


@pytest.fixture(scope="module")
def expected(workshop: Workshop, run: Finished) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Inputs, and what our own forward makes of them with the trained adapter."""
    transformer = base(workshop)
    inputs = make_inputs(transformer)
    plain = velocity(transformer, inputs)
    apply_lora(load_lora(run.lora()), transformer, "transformer.")
    adapted = velocity(transformer, inputs)
    assert comfyui.relative_error(plain, adapted) > 0.01  # it has learned something to be seen
    return inputs, adapted


def test_in_diffusers(workshop, run, expected, caplog):
    inputs, ours = expected
    pipeline = diffusers.FluxPipeline(*[None] * 6, transformer=base(workshop))  # type: ignore
    diffusers.logging.enable_propagation()
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        pipeline.load_lora_weights(str(run.lora().parent), weight_name=run.lora().name)
    complaints = {record.getMessage().partition(". ")[0] for record in caplog.records}
    assert complaints == {"No LoRA keys associated to NoneType found with the prefix='text_encoder'"}  # it has none
    assert comfyui.relative_error(velocity(pipeline.transformer, inputs), ours) < 1e-3


@pytest.mark.comfyui
@pytest.mark.skipif(not comfyui.COMFYUI, reason="ComfyUI is not here: see tests/parity/test_lora_comfyui.py")
def test_in_comfyui(workshop, run, expected, tmp_path: Path):
    inputs, ours = expected
    clip = CLIPTextModel(CLIPTextConfig(**comfyui.CLIP, vocab_size=49408, projection_dim=64, eos_token_id=49407))
    comfyui.write_models(tmp_path, base(workshop), clip)
    save_file(inputs, tmp_path / "inputs.safetensors")
    (tmp_path / "loras").mkdir()
    save_file(load_file(run.lora()), tmp_path / "loras" / "trained.safetensors")
    interpreter = os.environ.get("COMFYUI_PYTHON", sys.executable)
    subprocess.run([interpreter, str(comfyui.APPLY), str(comfyui.COMFYUI), str(tmp_path)], check=True)
    outputs, report = load_file(tmp_path / "outputs.safetensors"), json.loads((tmp_path / "report.json").read_text())
    assert report["trained"] == {"transformer": 40, "clip": 0, "complaints": []}
    assert comfyui.relative_error(outputs["trained.velocity"], ours) < 1e-3
