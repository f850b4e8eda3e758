"""Our LoRA files in real ComfyUI code: every key used, and the output of our own forward.

ComfyUI runs in a process of its own, with the interpreter COMFYUI_PYTHON (this one if not set).
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from trainer.lora.adapter import adapter_alphas, adapter_parameters, add_lora, linear_modules
from trainer.lora.convert import resize, write_lora
from trainer.lora.file import load_lora, save_lora
from trainer.models.names import transformer_to_bfl
from trainer.models.transformer import Conditioning, predict_velocity, rotary_table

COMFYUI = os.environ.get("COMFYUI_DIR")
pytestmark = [
    pytest.mark.comfyui,
    pytest.mark.skipif(
        not COMFYUI,
        reason="ComfyUI is not here: git clone --branch v0.33.0 https://github.com/comfyanonymous/ComfyUI, "
        "pip install -r ComfyUI/requirements.txt, then set COMFYUI_DIR=ComfyUI",
    ),
]
APPLY = Path(__file__).parents[1] / "comfyui_apply.py"
CLIP = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
T5 = {"d_model": 32, "d_ff": 48, "d_kv": 8, "num_heads": 4, "num_layers": 24, "vocab_size": 64}
ALPHA = 5.0


def make_transformer() -> diffusers.FluxTransformer2DModel:
    return diffusers.FluxTransformer2DModel(
        in_channels=64,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=128,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=64,
        guidance_embeds=True,
    ).eval()


def draw_weights(model: torch.nn.Module, std: float) -> None:
    for index, (name, parameter) in enumerate(model.named_parameters()):
        generator = torch.Generator().manual_seed(index)
        centre = 1.0 if "norm" in name and name.endswith("weight") and parameter.ndim == 1 else 0.0
        torch.nn.init.normal_(parameter, centre, std, generator=generator)


def make_inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(9)
    return {
        "x": torch.randn(1, 16, 8, 12, generator=generator),
        "sigma": torch.tensor([0.7]),
        "txt": torch.randn(1, 5, 32, generator=generator),
        "pooled": torch.randn(1, 64, generator=generator),
        "guidance": torch.tensor([2.5]),
        "tokens": torch.randint(0, 49000, (1, 77), generator=generator),
    }


@torch.no_grad()
def our_outputs(transformer, clip, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    conditioning = Conditioning(inputs["txt"], inputs["pooled"])
    rotary = rotary_table(transformer, 8, 12, 5, torch.device("cpu"))
    velocity = predict_velocity(
        transformer, inputs["x"], inputs["sigma"], conditioning, inputs["guidance"].item(), rotary
    )
    return {"velocity": velocity, "clip": clip(inputs["tokens"]).last_hidden_state}


def write_models(folder: Path, transformer, clip) -> None:
    save_file(transformer_to_bfl(transformer.state_dict()), folder / "transformer.safetensors")
    tensors = {f"text_model.{k.removeprefix('text_model.')}": v for k, v in clip.state_dict().items()}
    save_file(tensors, folder / "clip_l.safetensors")
    t5 = T5EncoderModel(T5Config(**T5, feed_forward_proj="gated-gelu"))
    tensors = {k: v for k, v in t5.state_dict().items() if k != "encoder.embed_tokens.weight"}
    save_file(tensors, folder / "t5xxl.safetensors")
    sizes = {"clip_l_model_config": CLIP, "t5xxl_model_config": T5}
    (folder / "text_encoders.json").write_text(json.dumps(sizes))


def write_loras(folder: Path, parameters: dict, alphas: dict[str, float]) -> None:
    ours, bare = folder / "ours.safetensors", {k: v for k, v in alphas.items() if not k.startswith("text")}
    save_lora(ours, parameters, alphas, {"ss_steps": "1"}, torch.float32)
    save_lora(folder / "bf16.safetensors", parameters, alphas, {})
    some = {key: value for key, value in parameters.items() if key.startswith("transformer.")}
    save_lora(folder / "transformer_only.safetensors", some, bare, {}, torch.float32)
    lora = load_lora(ours)
    write_lora(folder / "kohya.safetensors", lora, "kohya", torch.float32)
    write_lora(folder / "back.safetensors", load_lora(folder / "kohya.safetensors"), "diffusers", torch.float32)
    write_lora(folder / "resized.safetensors", resize(lora, rank=64)[0], "kohya", torch.float32)
    wrong = {"transformer.transformer_blocks.7.attn.to_q.lora_A.weight": torch.ones(2, 256)}
    wrong["transformer.transformer_blocks.7.attn.to_q.lora_B.weight"] = torch.ones(256, 2)
    save_file(wrong, folder / "wrong_names.safetensors")


@pytest.fixture(scope="module")
def comfyui(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, dict, dict, dict]:
    """Our outputs with and without the adapter, ComfyUI's of each file, and ComfyUI's report."""
    folder = tmp_path_factory.mktemp("comfyui")
    (folder / "loras").mkdir()
    transformer, inputs = make_transformer(), make_inputs()
    clip = CLIPTextModel(CLIPTextConfig(**CLIP, vocab_size=49408, projection_dim=64, eos_token_id=49407)).eval()
    draw_weights(transformer, 0.04)
    draw_weights(clip, 0.1)
    write_models(folder, transformer, clip)
    save_file(inputs, folder / "inputs.safetensors")
    base = our_outputs(transformer, clip, inputs)

    ranks = {name: 2 + index % 3 for index, name in enumerate(linear_modules(transformer))}
    add_lora(transformer, ranks, ALPHA, seed=0)
    add_lora(clip, dict.fromkeys(linear_modules(clip), 3), ALPHA, seed=0)
    parameters, alphas = adapter_parameters(transformer, clip), adapter_alphas(transformer, clip)
    for index, parameter in enumerate(parameters.values()):
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(index))
    write_loras(folder / "loras", {k: v.detach() for k, v in parameters.items()}, alphas)
    ours = our_outputs(transformer, clip, inputs)

    command = [os.environ.get("COMFYUI_PYTHON", sys.executable), str(APPLY), str(COMFYUI), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    report = json.loads((folder / "report.json").read_text())
    return base, ours, load_file(folder / "outputs.safetensors"), report


def relative_error(one: torch.Tensor, other: torch.Tensor) -> float:
    return ((one - other).norm() / other.norm()).item()


def test_the_base_models_agree(comfyui):
    base, ours, theirs, _ = comfyui
    for part in ("velocity", "clip"):
        assert relative_error(theirs[f"base.{part}"], base[part]) < 1e-4
        assert relative_error(base[part], ours[part]) > 0.05  # the adapter is seen at all


@pytest.mark.parametrize("name", ["ours", "kohya", "back", "resized"])
def test_every_key_is_used_and_the_output_is_ours(comfyui, name):
    _, ours, theirs, report = comfyui
    assert report[name]["complaints"] == []
    for part in ("velocity", "clip"):
        assert relative_error(theirs[f"{name}.{part}"], ours[part]) < 1e-3


def test_each_adapted_layer_is_one_patch(comfyui):
    *_, report = comfyui
    assert (report["ours"]["transformer"], report["ours"]["clip"]) == (2 * 14 + 2 * 6, 12)
    assert (report["kohya"]["transformer"], report["kohya"]["clip"]) == (2 * 10 + 2 * 3, 12)
    assert report["transformer_only"] == {"transformer": 40, "clip": 0, "complaints": []}


def test_a_bf16_file_is_as_near_as_bf16_is(comfyui):
    _, ours, theirs, report = comfyui
    assert report["bf16"]["complaints"] == []
    assert 0 < relative_error(theirs["bf16.velocity"], ours["velocity"]) < 2e-2


def test_a_file_of_the_transformer_alone_leaves_clip_as_it_is(comfyui):
    base, ours, theirs, _ = comfyui
    assert relative_error(theirs["transformer_only.velocity"], ours["velocity"]) < 1e-3
    assert relative_error(theirs["transformer_only.clip"], base["clip"]) < 1e-4


def test_a_wrong_name_would_be_noticed(comfyui):
    """The check that ComfyUI complains of nothing can fail."""
    *_, report = comfyui
    assert report["wrong_names"]["complaints"]
    assert report["wrong_names"]["transformer"] == 0
