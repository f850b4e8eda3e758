"""Names of the original files and of diffusers, both ways."""

import pytest
import torch

from benchmarks.random_flux import SIZES, autoencoder_shapes, transformer_shapes
from trainer.lora_file.flux_names import bfl_module, diffusers_modules, fused_rows, kohya_name
from trainer.lora_file.keys import resolve
from trainer.models.names import (
    autoencoder_to_bfl,
    autoencoder_to_diffusers,
    transformer_to_bfl,
    transformer_to_diffusers,
)

SIZE = SIZES["tiny"]


def random_tensors(shapes):
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def assert_same_tensors(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_transformer_there_and_back_is_exact():
    original = random_tensors(transformer_shapes(SIZE))
    converted = {}
    for name, tensor in original.items():
        converted |= transformer_to_diffusers(f"model.diffusion_model.{name}", tensor, SIZE.hidden)
    assert_same_tensors(transformer_to_bfl(converted), original)


def test_autoencoder_there_and_back_is_exact():
    original = random_tensors(autoencoder_shapes(SIZE))
    converted = dict(autoencoder_to_diffusers(name, tensor, 4) for name, tensor in original.items())
    assert len(converted) == len(original)
    assert_same_tensors(dict(autoencoder_to_bfl(name, tensor, 4) for name, tensor in converted.items()), original)


def test_decoder_levels_are_counted_from_the_other_end():
    tensor = torch.zeros(1)
    name, _ = autoencoder_to_diffusers("decoder.up.3.block.2.conv1.weight", tensor, 4)
    assert name == "decoder.up_blocks.0.resnets.2.conv1.weight"
    assert autoencoder_to_bfl("decoder.up_blocks.0.upsamplers.0.conv.bias", tensor, 4)[0] == (
        "decoder.up.3.upsample.conv.bias"
    )


def test_fused_parts_of_a_single_block():
    parts = fused_rows(diffusers_modules("single_blocks.7.linear1"), 7 * 3072, 3072)
    assert [part.removeprefix("single_transformer_blocks.7.") for part in parts] == [
        "attn.to_q",
        "attn.to_k",
        "attn.to_v",
        "proj_mlp",
    ]
    assert [(rows.start, rows.stop) for rows in parts.values()] == [
        (0, 3072),
        (3072, 6144),
        (6144, 9216),
        (9216, 21504),
    ]


def test_rows_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="does not fit a width of 256"):
        fused_rows(diffusers_modules("double_blocks.0.img_attn.qkv"), 700, 256)


@pytest.mark.parametrize("name", ["double_blocks.0.img_attn.foo", "double_blocks.x.img_mlp.0", "pos_in"])
def test_unknown_modules_are_refused(name):
    with pytest.raises(KeyError):
        diffusers_modules(name)


def test_every_module_survives_kohya_and_diffusers_names():
    modules = {name.rpartition(".")[0] for name in transformer_shapes(SIZE)}
    for module in modules:
        target = resolve(kohya_name(module))
        assert target and target.bfl == module
        parts = diffusers_modules(module)
        assert [bfl_module(part) for part in parts] == [(module, index) for index in range(len(parts))]


def test_kohya_names_are_literally_kohyas():
    assert kohya_name("double_blocks.0.img_attn.qkv") == "lora_unet_double_blocks_0_img_attn_qkv"
    target = resolve("lora_unet_single_blocks_37_modulation_lin")
    assert target and target.bfl == "single_blocks.37.modulation.lin"
    clip = resolve("lora_te1_text_model_encoder_layers_0_mlp_fc1")
    assert clip and clip.bfl is None
