"""LoRA files of other tools: the loader node on ComfyUI's own code, and the trainer's reader, against known changes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.random_flux import ModelFiles
from tests.nodes.lora_layouts import SCALE, write_tensors
from tests.nodes.model_files import write_mini
from tests.nodes.other_tools import BLOCKS, all_files, names_of_tools, peft_dora, strengths_of_tools
from tests.nodes.server import COMFYUI, NO_COMFYUI
from trainer.common.problems import Problems
from trainer.lora.file import load_lora
from trainer.lora.info import describe
from trainer.lora_file.flux_names import diffusers_modules

APPLY = Path(__file__).with_name("apply_others.py")
FILES = all_files()
ON_COMFYUI = [pytest.mark.comfyui, pytest.mark.skipif(not COMFYUI, reason=NO_COMFYUI)]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory, tiny_flux: ModelFiles) -> dict[str, Any]:
    """What the loader node made of each file, in ComfyUI's interpreter."""
    folder = tmp_path_factory.mktemp("others")
    for each in ("models/mini", "changes", "loras"):
        (folder / each).mkdir(parents=True)
    write_mini(folder / "models/mini", folder / "none", tiny_flux.transformer.parents[1])
    for name, file in FILES.items():
        write_tensors(folder / f"loras/{name}.safetensors", file.tensors, file.metadata)
        expected = {f"+{key}": value for key, value in file.changes.items()}
        expected |= {f"={key}": value for key, value in file.new_values.items()}
        save_file(
            {key: value.float().contiguous() for key, value in expected.items()}, folder / f"changes/{name}.safetensors"
        )
    dora = peft_dora()
    write_tensors(folder / "loras/dora.safetensors", dora.tensors, dora.metadata)
    write_tensors(folder / "loras/peft/adapter_model.safetensors", names_of_tools()["two_prefixes"].tensors, {})
    (folder / "loras/peft/adapter_config.json").write_text(json.dumps({"lora_alpha": 4, "r": 4, "use_rslora": True}))
    changes = {f"+{key}": 2 * value for key, value in names_of_tools()["two_prefixes"].changes.items()}
    save_file({key: value.contiguous() for key, value in changes.items()}, folder / "changes/peft.safetensors")
    plain = names_of_tools()["bare_diffusers"].tensors
    fill = plain | {"x_embedder.lora_A.weight": torch.ones(4, 384), "x_embedder.lora_B.weight": torch.ones(256, 4)}
    write_tensors(folder / "loras/bad_fill.safetensors", fill, {})
    broken = {key: value.clone() for key, value in plain.items()}
    next(iter(broken.values()))[0, 0] = torch.nan
    write_tensors(folder / "loras/bad_nan.safetensors", broken, {})
    several = names_of_tools()["named_adapter"].tensors
    several |= {key.replace(".toy.", ".cat."): value for key, value in several.items()}
    write_tensors(folder / "loras/bad_two_adapters.safetensors", several, {})
    command = [os.environ.get("COMFYUI_PYTHON", sys.executable), str(APPLY), str(COMFYUI), str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, env=environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads((folder / "answers.json").read_text())


class TestOnComfyUI:
    """The loader node."""

    pytestmark = ON_COMFYUI

    @pytest.mark.parametrize("name", [*FILES, "dora", "peft"])
    def test_each_file_changes_the_weights_as_its_writer_means(self, name: str, answers: dict[str, Any]):
        assert answers["differences"][name] < 1e-4

    def test_an_alpha_that_is_not_known_is_said(self, answers: dict[str, Any]):
        assert "has no alpha: it is taken to be the rank" in answers["texts"]["bare_diffusers"]
        assert "adapter_config.json, which is not beside the file" in answers["texts"]["named_adapter"]
        for name in ("header", "rslora", "peft", "uso", "control", "alpha_vector"):
            assert "no alpha" not in answers["texts"][name]

    def test_what_is_refused_is_called_by_its_name(self, answers: dict[str, Any]):
        assert "not finite (NaN), as " in answers["errors"]["bad_nan"]
        assert "several adapters" in answers["errors"]["bad_two_adapters"]
        fill = answers["errors"]["bad_fill"]
        assert "x_embedder goes from 384 to 256" in fill and "Turn on allow_partial" in fill
        assert "1 left out: x_embedder" in answers["partial"]


@pytest.mark.parametrize("name", [*names_of_tools(), *strengths_of_tools()])
def test_the_trainer_reads_the_same_change(name: str, tmp_path: Path):
    file = FILES[name]
    path = write_tensors(tmp_path / "x.safetensors", file.tensors, file.metadata)
    modules = load_lora(path).modules
    for layer in BLOCKS:
        found = [modules[f"transformer.{part}"] for part in diffusers_modules(layer.name)]
        change = torch.cat([each.scale * each.up.float() @ each.down.float() for each in found])
        true = file.changes[f"diffusion_model.{layer.name}.weight"]
        assert float((change - true).norm() / true.norm()) < 1e-5
    assert describe(path)["not_finite"] == []


def test_the_trainer_reads_xlabs_and_uso(tmp_path: Path):
    path = write_tensors(tmp_path / "x.safetensors", FILES["uso"].tensors, {})
    info, modules = describe(path), load_lora(path).modules
    assert info["layout"] == "xlabs" and info["scales"] == [1.0] and info["notes"] == []
    proj = modules["transformer.transformer_blocks.0.attn.to_out.0"]
    layer = next(layer for layer in BLOCKS if layer.name == "double_blocks.0.img_attn.proj")
    torch.testing.assert_close(proj.up @ proj.down, layer.change / SCALE)
    assert "transformer.single_transformer_blocks.1.proj_mlp" not in modules


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("control", "changes of biases in 13 layers"),
        ("differences", "full differences of weights or norms in 2 layers"),
        ("lora_bias", "lora_B.bias"),
    ],
)
def test_what_the_trainer_does_not_read_is_called_by_its_name(name: str, words: str, tmp_path: Path):
    path = write_tensors(tmp_path / "x.safetensors", FILES[name].tensors, {})
    with pytest.raises(Problems, match=words):
        load_lora(path)
    assert any(words in note for note in describe(path)["notes"])


def test_dora_says_why_it_is_not_read(tmp_path: Path):
    path = write_tensors(tmp_path / "x.safetensors", peft_dora().tensors, {})
    with pytest.raises(Problems, match=r"DoRA.*depends on the base model's weights"):
        load_lora(path)
    assert any("DoRA" in note for note in describe(path)["notes"])
