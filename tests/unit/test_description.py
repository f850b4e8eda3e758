"""What is known of the base models: how each is recognised, and that nothing repeats it with other numbers."""

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from benchmarks.random_flux import SIZES, transformer_shapes, write_model_files
from custom_nodes.flux_dreambooth import sampling
from tests.recipe_files import ROOT
from trainer.config import TrainConfig
from trainer.models.description import DEV, FLUX1, KREA, SCHNELL
from trainer.models.load import base_model_of

GUIDED = ("img_in.weight", "model.diffusion_model.guidance_in.in_layer.weight")


@pytest.mark.parametrize(
    ("name", "tensors", "metadata", "base"),
    [
        ("flux1-dev.safetensors", GUIDED, {}, DEV),
        ("flux1-dev-fp8.safetensors", GUIDED, {}, DEV),
        ("my own.safetensors", GUIDED, {}, DEV),
        ("flux1-krea-dev.safetensors", GUIDED, {}, KREA),
        ("flux1-krea-dev_fp8_scaled.safetensors", GUIDED, {}, KREA),
        ("FLUX.1-Krea-dev.safetensors", GUIDED, {}, KREA),
        ("transformer.safetensors", GUIDED, {"modelspec.title": "FLUX.1 Krea [dev]"}, KREA),
        ("flux1-schnell.safetensors", ("img_in.weight",), {}, SCHNELL),
        ("krea.safetensors", ("img_in.weight",), {}, SCHNELL),
        ("flux1-dev.safetensors", ("img_in.weight",), {}, SCHNELL),
    ],
)
def test_a_base_model_is_recognised(name, tensors, metadata, base):
    """Tensors decide where they can; the name decides between models with the same tensors. No folder's name does."""
    assert FLUX1.recognise(Path("krea") / name, tensors, metadata) is base


def test_the_file_itself_tells_krea_by_its_name(tmp_path):
    dev = write_model_files(tmp_path, size="tiny").transformer
    assert base_model_of(dev) is DEV
    assert base_model_of(dev.rename(dev.with_name("flux1-krea-dev.safetensors"))) is KREA


def test_the_full_size_is_that_of_the_published_files():
    full, blocks = SIZES["full"], FLUX1.blocks
    assert (full.double_blocks, full.single_blocks, full.hidden) == (blocks.double, blocks.single, blocks.width)
    assert full.head_dim == blocks.head_width == sum(blocks.axes)
    assert (full.clip_width, full.t5_width, full.vae_latents) == (
        FLUX1.clip.width,
        FLUX1.t5.width,
        FLUX1.latents.channels,
    )
    assert transformer_shapes(full)["img_in.weight"] == (blocks.width, FLUX1.latents.features)


def test_settings_and_nodes_have_the_same_token_limits():
    """The settings come before the models, and the node pack stands alone: both state these numbers themselves."""
    (setting,) = [field for field in fields(TrainConfig) if field.name == "t5xxl_max_token_length"]
    assert setting.metadata["rules"]["le"] == FLUX1.t5.tokens == DEV.t5_tokens == sampling.DEV_LENGTH
    assert all(f"{base.t5_tokens} for" in setting.metadata["help"] for base in (DEV, SCHNELL))
    assert SCHNELL.t5_tokens == sampling.SCHNELL_LENGTH


def test_every_file_has_a_setting():
    assert {file.setting for file in FLUX1.files} < {field.name for field in fields(TrainConfig)}


@pytest.mark.parametrize("module", ["trainer.models.description", "trainer.cli.download", "trainer.hub.run"])
def test_neither_the_description_nor_a_download_needs_torch(module):
    code = (
        f"import sys, {module}; print(*({{'torch', 'diffusers', 'transformers', 'peft', 'numpy'}} & {{*sys.modules}}))"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not found.stdout.split()
