"""Each wrong file that a user may give for a model, told before any weights are read."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.random_flux import (
    REAL_BYTES,
    SIZES,
    autoencoder_shapes,
    clip_shapes,
    file_header,
    t5_shapes,
    transformer_shapes,
    write_model_files,
)
from trainer.models.description import FLUX1
from trainer.models.identify import check_model_file, identify
from trainer.models.weights import read_header

FULL = SIZES["full"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_model_files(tmp_path_factory.mktemp("models"), size="tiny")


def the_problem(path, key="flux", flag="--pretrained_model_name_or_path"):
    (problem,) = check_model_file(path, FLUX1.file(key), flag)
    assert problem.where.startswith(flag)
    assert str(FLUX1.file(key).source) in problem.hint
    return problem.what


def stored(tensors, folder, name="file.safetensors"):
    save_file(tensors, folder / name)
    return folder / name


def test_the_right_files_have_no_problems(files):
    given = {"flux": files.transformer, "ae": files.ae, "clip_l": files.clip_l, "t5xxl": files.t5xxl}
    for key, path in given.items():
        assert identify(read_header(path)) == key
        assert check_model_file(path, FLUX1.file(key), "--any") == []


def test_files_in_each_others_place_are_named(files):
    assert the_problem(files.ae) == "is FLUX.1's autoencoder, not the FLUX.1 transformer"
    assert "is the T5-XXL encoder" in the_problem(files.t5xxl, "clip_l", "--clip_l")
    assert "is CLIP-L's text encoder" in the_problem(files.clip_l, "t5xxl", "--t5xxl")
    assert "is the FLUX.1 transformer" in the_problem(files.transformer, "ae", "--ae")


def test_no_file_no_such_file_and_folders(tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.models.identify.in_container", lambda: False)
    assert the_problem(None) == "not given"
    assert the_problem(tmp_path / "absent.safetensors") == "no such file"
    (krea,) = check_model_file(tmp_path / "flux1-krea-dev.safetensors", FLUX1.transformer, "--any")
    assert "sh download.sh --krea, " in krea.hint and "black-forest-labs/FLUX.1-Krea-dev" in krea.hint
    assert the_problem(tmp_path) == "is a folder, not a single file"
    (tmp_path / "model_index.json").write_text("{}")
    assert the_problem(tmp_path) == "is a diffusers folder, not a single file"


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["transformer.transformer_blocks.0.attn.to_q.lora_A.weight"], "is a LoRA"),
        (["lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight"], "is a LoRA"),
        (["model.diffusion_model.img_in.weight", "vae.encoder.conv_in.weight"], "several models in one file"),
        (["transformer_blocks.0.attn.to_q.weight"], "diffusers' layout"),
        (["encoder.down_blocks.0.resnets.0.conv1.weight"], "an autoencoder in diffusers' layout"),
        (["distilled_guidance_layer.in_proj.weight", "double_blocks.0.img_attn.qkv.weight"], "Chroma"),
        (["double_stream_modulation_img.lin.weight"], "FLUX.2"),
        (["text_model.a", "vision_model.b"], "a complete CLIP"),
        (["model.diffusion_model.input_blocks.0.0.weight"], "Stable Diffusion U-Net"),
        (["decoder.block.0.layer.0.SelfAttention.q.weight"], "a T5 with its decoder"),
        (["something.else"], "a file of unknown tensors"),
    ],
)
def test_other_kinds_are_named(tmp_path, names, kind):
    assert kind in the_problem(stored({name: torch.zeros(2, 2) for name in names}, tmp_path))


def test_other_shapes_tell_other_models(tmp_path):
    fill = {"img_in.weight": torch.zeros(8, 384), "double_blocks.0.img_attn.qkv.weight": torch.zeros(24, 8)}
    assert "Fill, Canny, Depth" in the_problem(stored(fill, tmp_path))
    sdxl = {
        "encoder.down.0.block.0.conv1.bias": torch.zeros(4),
        "decoder.conv_in.weight": torch.zeros(8, 4, 3, 3),
    }
    assert "4 latent channels" in the_problem(stored(sdxl, tmp_path), "ae", "--ae")
    clip_g = {"text_model.encoder.layers.0.self_attn.q_proj.weight": torch.zeros(1280, 2)}
    assert "CLIP-G" in the_problem(stored(clip_g, tmp_path), "clip_l", "--clip_l")


def test_fp8_is_for_the_two_large_files_alone(files, tmp_path):
    def cast(path, dtype):
        return stored({name: tensor.to(dtype) for name, tensor in load_file(path).items()}, tmp_path)

    assert check_model_file(cast(files.transformer, torch.float8_e4m3fn), FLUX1.file("flux"), "--any") == []
    assert "fp8 (e5m2)" in the_problem(cast(files.transformer, torch.float8_e5m2))
    assert check_model_file(cast(files.t5xxl, torch.float8_e4m3fn), FLUX1.file("t5xxl"), "--any") == []
    assert "fp8 (e4m3)" in the_problem(cast(files.clip_l, torch.float8_e4m3fn), "clip_l", "--clip_l")
    assert "fp8 (e4m3)" in the_problem(cast(files.ae, torch.float8_e4m3fn), "ae", "--ae")


def test_truncated_downloads_and_web_pages(files, tmp_path):
    path = tmp_path / "flux1-dev.safetensors"
    path.write_bytes(files.transformer.read_bytes()[:-1000])
    assert "truncated: 1,000 of" in the_problem(path)
    path.write_text("<html><title>401 Unauthorized</title></html>")
    assert "a web page" in the_problem(path)


def test_tensors_that_are_missing_are_named(files, tmp_path):
    tensors = load_file(files.t5xxl)
    del tensors["encoder.block.1.layer.1.DenseReluDense.wi_1.weight"]
    what = the_problem(stored(tensors, tmp_path), "t5xxl", "--t5xxl")
    assert what == "as T5EncoderModel it lacks: encoder.block.1.layer.1.DenseReluDense.wi_1.weight"


def test_sizes_that_no_model_can_have_are_a_problem(files, tmp_path):
    tensors = load_file(files.ae)
    tensors["encoder.down.0.block.0.conv1.weight"] = torch.zeros(7, 32, 3, 3)
    assert "do not fit together" in the_problem(stored(tensors, tmp_path), "ae", "--ae")


@pytest.mark.parametrize(
    ("key", "name", "shapes", "dtype"),
    [
        ("flux", "flux1-dev.safetensors", transformer_shapes(FULL), torch.bfloat16),
        ("ae", "ae.safetensors", autoencoder_shapes(FULL), torch.float32),
        ("clip_l", "clip_l.safetensors", clip_shapes(FULL), torch.float16),
        ("t5xxl", "t5xxl_fp16.safetensors", t5_shapes(FULL), torch.float16),
    ],
)
def test_full_size_headers_have_no_problems(tmp_path, key, name, shapes, dtype):
    """Sparse files: the published names and shapes with no data behind them."""
    path = tmp_path / name
    path.write_bytes(file_header(shapes, dtype, {}, REAL_BYTES[name]))
    with path.open("r+b") as file:
        file.truncate(REAL_BYTES[name])
    assert check_model_file(path, FLUX1.file(key), "--any") == []
