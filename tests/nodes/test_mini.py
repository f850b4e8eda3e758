"""Load mini FLUX: files found, sizes read, and outputs equal to those of the trainer's own modules."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from custom_nodes.flux_dreambooth import mini
from tests.nodes.server import COMFYUI, NO_COMFYUI, ComfyServer, Refused
from trainer.models.load import load_autoencoder, load_clip, load_t5, load_transformer
from trainer.models.text import clip_ids, encode_t5, load_tokenizers
from trainer.models.transformer import Conditioning, predict_velocity, rotary_table

PROMPTS = ["a red bear toy on a desk", "tjtoy toy holding sparkgpu gpu, in the snow", ""]
LENGTH = 64


def test_a_folder_is_a_small_flux_only_when_nothing_is_missing(comfyui_base: Path, tmp_path: Path):
    assert mini.folders(comfyui_base / "models") == ["mini"]
    (tmp_path / "ae-x.safetensors").touch()
    with pytest.raises(FileNotFoundError, match=r"no flux1\*.safetensors, no clip_l.*, no t5.*tokenizer/vocab.json"):
        mini.find_files(tmp_path)


def test_sizes_are_those_of_the_trainers_modules(comfyui_base: Path):
    files = mini.find_files(comfyui_base / "models/mini")
    clip = load_clip(files.clip, "cpu", torch.float32, 0).config
    sizes = mini.clip_sizes(mini.read_header(files.clip))
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "max_position_embeddings")
    assert sizes == {name: getattr(clip, name) for name in names}
    t5 = load_t5(files.t5, "cpu", torch.float32).config
    sizes = mini.t5_sizes(mini.read_header(files.t5))
    assert sizes == {name: getattr(t5, name) for name in sizes}


@pytest.mark.parametrize("stated", ["0", "-1", "two", ""])
def test_a_number_in_metadata_that_is_none_is_refused(stated: str):
    header = mini.Header(Path("t5"), {}, {"max_token_length": stated}, 8, 8)
    with pytest.raises(ValueError, match="max_token_length"):
        mini.metadata_int(header, "max_token_length", 256)


def test_another_file_in_the_place_of_one_is_named(comfyui_base: Path):
    files = mini.find_files(comfyui_base / "models/mini")
    with pytest.raises(ValueError, match="not the file that its name says"):
        mini.clip_sizes(mini.read_header(files.t5))


@pytest.fixture(scope="module")
def both(comfyui_base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, dict]:
    """What the trainer makes of the prompts, noise and a picture, and what ComfyUI makes of the same."""
    if not COMFYUI:
        pytest.skip(NO_COMFYUI)
    folder, models = tmp_path_factory.mktemp("mini"), comfyui_base / "models/mini"
    generator = torch.Generator().manual_seed(3)
    given = {
        "noise": torch.randn(1, 16, 8, 12, generator=generator),
        "sigma": torch.tensor([0.6]),
        "latents": torch.randn(1, 16, 4, 4, generator=generator),
        "picture": torch.rand(1, 32, 48, 3, generator=generator),
    }
    save_file(given, folder / "given.safetensors")
    (folder / "prompts.json").write_text(json.dumps(PROMPTS))
    apply = Path(__file__).with_name("mini_apply.py")
    command = [os.environ.get("COMFYUI_PYTHON", sys.executable), apply, COMFYUI, models, folder]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return trainer_outputs(models, given), load_file(folder / "outputs.safetensors")


@torch.inference_mode()
def trainer_outputs(models: Path, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    files = mini.find_files(models)
    tokenizers = load_tokenizers(models / "tokenizers")
    clip = load_clip(files.clip, "cpu", torch.float32, tokenizers.clip.eos_token_id)
    t5 = load_t5(files.t5, "cpu", torch.float32)
    transformer = load_transformer(files.transformer, "cpu", torch.float32)
    vae = load_autoencoder(files.autoencoder, "cpu", torch.float32)
    outputs = {}
    for index, prompt in enumerate(PROMPTS):
        pooled = clip(clip_ids(tokenizers.clip, [prompt])).pooler_output
        hidden = encode_t5(t5, tokenizers.t5, [prompt], LENGTH, masked=False)[0]
        rotary = rotary_table(transformer, 8, 12, LENGTH, torch.device("cpu"))
        conditioning = Conditioning(hidden, pooled)
        velocity = predict_velocity(transformer, given["noise"], given["sigma"], conditioning, 3.5, rotary)
        outputs |= {f"pooled.{index}": pooled, f"hidden.{index}": hidden, f"velocity.{index}": velocity}
    picture = given["picture"].movedim(-1, 1) * 2 - 1
    outputs["encoded"] = vae.encode(picture).latent_dist.mean
    outputs["decoded"] = ((vae.decode(given["latents"]).sample + 1) / 2).clamp(0, 1).movedim(1, -1)
    return outputs


@pytest.mark.comfyui
@pytest.mark.parametrize("what", ["pooled", "hidden", "velocity", "encoded", "decoded"])
def test_outputs_are_the_trainers(both, what: str):
    ours, theirs = both
    names = [name for name in ours if name.startswith(what)]
    assert names and {*ours} == {*theirs}
    for name in names:
        error = (ours[name] - theirs[name]).norm() / ours[name].norm()
        assert ours[name].shape == theirs[name].shape and error < 1e-4, (name, error)


@pytest.mark.comfyui
def test_prompts_are_told_apart(both):
    ours, _ = both
    for what in ("pooled", "hidden"):
        assert (ours[f"{what}.0"] - ours[f"{what}.1"]).norm() > 1e-2 * ours[f"{what}.0"].norm()


@pytest.mark.comfyui
def test_the_server_offers_the_folder_and_no_other(comfyui: ComfyServer):
    assert comfyui.object_info("LoadMiniFlux")["input"]["required"]["folder"][0] == ["mini"]
    prompt = {
        "1": {"class_type": "LoadMiniFlux", "inputs": {"folder": "../../.."}},
        "2": {"class_type": "VAEDecode", "inputs": {"vae": ["1", 2], "samples": ["3", 0]}},
        "3": {"class_type": "EmptySD3LatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "4": {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}},
    }
    with pytest.raises(Refused, match="value_not_in_list"):
        comfyui.queue(prompt)
    prompt["1"]["inputs"]["folder"] = "mini"
    (picture,) = comfyui.run(prompt).pictures(comfyui)
    assert picture.size == (64, 64)
