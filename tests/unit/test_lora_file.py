import hashlib
import json
import stat

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from trainer.common.problems import Problems
from trainer.lora.adapter import adapter_alphas, adapter_parameters, add_lora, linear_modules
from trainer.lora.file import copy_into, load_lora, ranks_from, save_lora
from trainer.lora_file.module_names import resolve
from trainer.lora_file.modules import LoraModule, with_unit_scale
from trainer.lora_file.writing import tensors_hash

Q = "transformer.transformer_blocks.0.attn.to_q"


def pair(rank: int, inputs: int, outputs: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rank, inputs, generator=generator), torch.randn(outputs, rank, generator=generator)


def change(module: LoraModule) -> torch.Tensor:
    return module.up.double() @ module.down.double() * module.scale


def adapted(tiny_flux_transformer, ranks=None, alpha=None):
    names = linear_modules(tiny_flux_transformer)
    add_lora(tiny_flux_transformer, ranks or dict.fromkeys(names, 3), alpha, seed=0)
    parameters = adapter_parameters(tiny_flux_transformer)
    for index, parameter in enumerate(parameters.values()):
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(index))
    return parameters, adapter_alphas(tiny_flux_transformer)


@pytest.fixture
def transformer():
    from tests.unit.test_lora import tiny_transformer

    return tiny_transformer()


def test_a_saved_file_reads_back_the_same(tmp_path, transformer):
    parameters, alphas = adapted(transformer)
    assert save_lora(tmp_path / "a.safetensors", parameters, alphas, {"ss_x": "1"}, torch.float32) == ()
    lora = load_lora(tmp_path / "a.safetensors")
    assert lora.layout == "diffusers"
    assert lora.metadata["ss_x"] == "1"
    assert lora.modules.keys() == alphas.keys()
    for name, module in lora.modules.items():
        assert torch.equal(module.down, parameters[f"{name}.lora_A.weight"])
        assert torch.equal(module.up, parameters[f"{name}.lora_B.weight"])


def test_files_are_bf16_with_alpha_equal_to_rank_and_readable_by_others(tmp_path, transformer):
    parameters, alphas = adapted(transformer, alpha=6.0)
    save_lora(tmp_path / "a.safetensors", parameters, alphas, {})
    tensors = load_file(tmp_path / "a.safetensors")
    assert {t.dtype for key, t in tensors.items() if "lora_" in key} == {torch.bfloat16}
    assert {t.item() for key, t in tensors.items() if key.endswith(".alpha")} == {3.0}
    up = parameters[f"{Q}.lora_B.weight"] * 2  # 6 / 3 goes into up
    assert torch.equal(tensors[f"{Q}.lora_B.weight"], up.bfloat16())
    assert stat.S_IMODE((tmp_path / "a.safetensors").stat().st_mode) == 0o644


def test_unit_scale_keeps_the_weight_change():
    module = LoraModule(*pair(6, 5, 7), alpha=1.5)  # a power of two, so exact
    assert torch.equal(change(with_unit_scale(module)), change(module))
    module = LoraModule(*pair(6, 5, 7), alpha=1.0)
    torch.testing.assert_close(change(with_unit_scale(module)), change(module), rtol=1e-6, atol=1e-6)
    assert with_unit_scale(module).alpha == 6


def test_the_hash_is_that_of_the_files_data(tmp_path, transformer):
    parameters, alphas = adapted(transformer)
    path = tmp_path / "a.safetensors"
    save_lora(path, parameters, alphas, {"ss_x": "1"})
    content = path.read_bytes()
    data = content[8 + int.from_bytes(content[:8], "little") :]
    with safe_open(path, "pt") as file:
        assert file.metadata()["sshs_model_hash"] == hashlib.sha256(data).hexdigest()
    assert tensors_hash(load_file(path)) == hashlib.sha256(data).hexdigest()


def test_a_header_stays_under_one_mebibyte_and_says_what_it_left_out(tmp_path, transformer):
    parameters, alphas = adapted(transformer)
    metadata = {"ss_tag_frequency": "é" * 400_000, "ss_steps": "5", "ss_other": "x" * 1000}
    left_out = save_lora(tmp_path / "a.safetensors", parameters, alphas, metadata)
    with (tmp_path / "a.safetensors").open("rb") as file:
        assert int.from_bytes(file.read(8), "little") < 1 << 20
    assert left_out == ("ss_tag_frequency (400000 characters)",)
    found = load_lora(tmp_path / "a.safetensors").metadata
    assert "ss_tag_frequency" not in found
    assert found["flux_dreambooth_left_out"] == left_out[0]
    assert found["ss_steps"] == "5"


NAMES = [
    ("lora_unet_double_blocks_3_img_mod_lin", "transformer.transformer_blocks.3.norm1.linear"),
    ("lora_unet_double_blocks_18_txt_mlp_2", "transformer.transformer_blocks.18.ff_context.net.2"),
    ("diffusion_model.single_blocks.4.linear2", "transformer.single_transformer_blocks.4.proj_out"),
    ("diffusion_model.single_blocks.4.modulation.lin", "transformer.single_transformer_blocks.4.norm.linear"),
    ("lora_transformer_transformer_blocks_0_attn_to_out_0", "transformer.transformer_blocks.0.attn.to_out.0"),
    (
        "lora_transformer_single_transformer_blocks_37_proj_mlp",
        "transformer.single_transformer_blocks.37.proj_mlp",
    ),
    ("lycoris_transformer_blocks_0_ff_net_0_proj", "transformer.transformer_blocks.0.ff.net.0.proj"),
    ("base_model.model.transformer_blocks.0.attn.to_q", Q),
    ("base_model.model.transformer.transformer_blocks.0.attn.to_q", Q),
    ("transformer_blocks.0.attn.to_q", Q),
    ("lora_te3_encoder_block_1_layer_0_SelfAttention_q", "text_encoder_2.encoder.block.1.layer.0.SelfAttention.q"),
    ("lora_unet_guidance_in_in_layer", "transformer.time_text_embed.guidance_embedder.linear_1"),
    (
        "lora_te1_text_model_encoder_layers_11_mlp_fc1",
        "text_encoder.text_model.encoder.layers.11.mlp.fc1",
    ),
    (
        "text_encoders.clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj",
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
    ),
]


@pytest.mark.parametrize(("theirs", "ours"), NAMES)
def test_names_of_other_formats_are_understood(theirs, ours):
    target = resolve(theirs)
    assert target is not None
    assert target.modules == (ours,)


@pytest.mark.parametrize(
    "name",
    [
        "lora_unet_double_blocks_0_img_attn_norm_of_mine",
        "lora_unet_down_blocks_0_attentions_0",
        "lora_te2_text_model_encoder_layers_0_mlp_fc1",
        "transformer.double_stream.0",
    ],
)
def test_other_names_are_not(name):
    assert resolve(name) is None


@pytest.mark.parametrize(
    ("prefix", "down", "up"),
    [
        ("lora_unet_single_blocks_0_linear1", "lora_down", "lora_up"),
        ("diffusion_model.single_blocks.0.linear1", "lora_A", "lora_B"),
    ],
)
def test_a_fused_matrix_is_split_exactly(tmp_path, prefix, down, up):
    lora_down, lora_up = pair(4, 8, 3 * 8 + 32)
    tensors = {
        f"{prefix}.{down}.weight": lora_down,
        f"{prefix}.{up}.weight": lora_up,
        f"{prefix}.alpha": torch.tensor(2.0),
    }
    save_file(tensors, tmp_path / "a.safetensors")
    modules = load_lora(tmp_path / "a.safetensors").modules
    block = "transformer.single_transformer_blocks.0"
    parts = [modules[f"{block}.{part}"] for part in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")]
    assert len(modules) == 4
    assert [len(part.up) for part in parts] == [8, 8, 8, 32]
    assert torch.equal(torch.cat([part.up for part in parts]), lora_up)
    assert all(torch.equal(part.down, lora_down) and part.scale == 0.5 for part in parts)


def test_the_final_modulation_has_its_halves_swapped(tmp_path):
    lora_down, lora_up = pair(2, 4, 8)
    name = "lora_unet_final_layer_adaLN_modulation_1"
    save_file({f"{name}.lora_down.weight": lora_down, f"{name}.lora_up.weight": lora_up}, tmp_path / "a")
    module = load_lora(tmp_path / "a").modules["transformer.norm_out.linear"]
    assert torch.equal(module.up, torch.cat([lora_up[4:], lora_up[:4]]))


def test_alpha_is_the_rank_where_a_file_has_none_unless_the_header_says(tmp_path):
    lora_down, lora_up = pair(4, 8, 8)
    tensors = {f"{Q}.lora_A.weight": lora_down, f"{Q}.lora_B.weight": lora_up}
    save_file(tensors, tmp_path / "a")
    assert load_lora(tmp_path / "a").modules[Q].alpha == 4
    header = {"transformer.lora_alpha": 8, "transformer.alpha_pattern": {}}
    save_file(tensors, tmp_path / "b", {"lora_adapter_metadata": json.dumps(header)})
    assert load_lora(tmp_path / "b").modules[Q].alpha == 8
    header["transformer.alpha_pattern"] = {"transformer_blocks.0.attn.to_q": 2}
    save_file(tensors, tmp_path / "c", {"lora_adapter_metadata": json.dumps(header)})
    assert load_lora(tmp_path / "c").modules[Q].alpha == 2


def test_what_is_not_understood_is_named_and_nothing_is_loaded(tmp_path):
    lora_down, lora_up = pair(4, 8, 8)
    good = {f"{Q}.lora_A.weight": lora_down, f"{Q}.lora_B.weight": lora_up}
    dora = good | {f"{Q}.dora_scale": torch.ones(8)}
    for tensors, words in (
        (dora, "dora_scale"),
        ({f"{Q}.lora_A.weight": lora_down}, "has no up matrix"),
        (good | {f"{Q}.lora_B.weight": torch.ones(8, 5)}, "has rank 4 in down and 5 in up"),
        ({"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": torch.ones(2, 8),
          "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight": torch.ones(20, 2)}, "does not fit"),
        ({"x.weight": torch.ones(2)}, "x.weight"),
    ):  # fmt: skip
        save_file(tensors, tmp_path / "a.safetensors")
        with pytest.raises(Problems, match=words) as caught:
            load_lora(tmp_path / "a.safetensors")
        assert "a.safetensors" in str(caught.value)
    (tmp_path / "b").write_bytes(b"<!doctype html><html>")
    with pytest.raises(Problems, match="b: "):
        load_lora(tmp_path / "b")
    with pytest.raises(Problems, match="none: "):
        load_lora(tmp_path / "none")


def test_training_starts_from_a_file_with_its_weight_change(tmp_path, transformer):
    from tests.unit.test_lora import tiny_transformer

    names = linear_modules(transformer)
    ranks = {name: 2 + index % 2 for index, name in enumerate(names)} | {names[3]: 0}
    parameters, alphas = adapted(transformer, ranks)
    save_lora(tmp_path / "a", parameters, alphas, {}, torch.float32)
    lora, other = load_lora(tmp_path / "a"), tiny_transformer()
    assert ranks_from(lora, other) == ranks
    fresh, fresh_alphas = adapted(other, ranks_from(lora, other), alpha=1.0)
    copy_into(lora, fresh, fresh_alphas, "--network_weights")
    for name, module in lora.modules.items():
        mine = LoraModule(fresh[f"{name}.lora_A.weight"], fresh[f"{name}.lora_B.weight"], fresh_alphas[name])
        assert mine.scale != 1
        torch.testing.assert_close(change(mine), change(module), rtol=1e-6, atol=1e-6)


def test_a_file_of_other_modules_or_ranks_is_refused(tmp_path, transformer):
    from tests.unit.test_lora import tiny_transformer

    names = linear_modules(transformer)
    parameters, alphas = adapted(transformer, dict.fromkeys(names[1:], 2))
    save_lora(tmp_path / "a", parameters, alphas, {})
    fresh, fresh_alphas = adapted(tiny_transformer(), dict.fromkeys(names[:-1], 4))
    with pytest.raises(Problems) as caught:
        copy_into(load_lora(tmp_path / "a"), fresh, fresh_alphas, "--network_weights")
    text = str(caught.value)
    assert f"{names[0]} is adapted in this run but not in the file" in text
    assert f"{names[-1]} is adapted in the file but not in this run" in text
    assert f" and {len(names) - 3} more are of rank 2 in the file and 4 in this run" in text
    assert len(caught.value.problems) == 3
