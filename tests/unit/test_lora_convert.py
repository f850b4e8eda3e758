import json
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import load_file, save_file

from trainer.common.problems import Problems
from trainer.lora.adapter import linear_modules
from trainer.lora.convert import Source, convert, merge, resize, write_lora
from trainer.lora.file import LoraFile, load_lora
from trainer.lora_file.modules import LoraModule
from trainer.lora_file.writing import kohya_tensors

HIDDEN = 16
DOUBLE = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
SINGLE = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
CLIP = "text_encoder.text_model.encoder.layers.0.mlp.fc1"


def module(rank: int, inputs: int, outputs: int, alpha: float | None = None, seed: int = 0) -> LoraModule:
    generator = torch.Generator().manual_seed(seed)
    down, up = torch.randn(rank, inputs, generator=generator), torch.randn(outputs, rank, generator=generator)
    return LoraModule(down, up, rank if alpha is None else alpha)


def small_lora(rank: int = 2, seed: int = 0, alpha: float | None = None) -> LoraFile:
    names = [f"transformer.transformer_blocks.0.{part}" for part in DOUBLE]
    names += [f"transformer.single_transformer_blocks.0.{part}" for part in SINGLE]
    names += ["transformer.transformer_blocks.0.norm1.linear", CLIP]
    rows = {"proj_mlp": 4 * HIDDEN, "norm1.linear": 6 * HIDDEN}
    modules = {}
    for index, name in enumerate(names):
        outputs = next((rows[end] for end in rows if name.endswith(end)), HIDDEN)
        modules[name] = module(rank, HIDDEN, outputs, alpha, seed=100 * seed + index)
    return LoraFile(modules, {"ss_network_dim": str(rank), "ss_steps": "9"})


def change(one: LoraModule) -> torch.Tensor:
    return one.scale * (one.up.double() @ one.down.double())


def assert_same_change(one: LoraFile, other: LoraFile, **tolerance: float) -> None:
    assert one.modules.keys() == other.modules.keys()
    for name, ours in one.modules.items():
        torch.testing.assert_close(
            change(ours), change(other.modules[name]), **(tolerance or {"rtol": 0.0, "atol": 0.0})
        )


@pytest.mark.parametrize("alpha", [None, 0.5, 3.0])
def test_kohyas_layout_has_exactly_the_same_weight_change(tmp_path: Path, alpha):
    lora = small_lora(alpha=alpha)
    write_lora(tmp_path / "k", lora, "kohya", torch.float32)
    back = load_lora(tmp_path / "k")
    assert back.layout == "kohya"
    assert back.metadata["ss_steps"] == "9"
    assert_same_change(back, lora, rtol=1e-15, atol=1e-14)
    tensors = load_file(tmp_path / "k")
    assert tensors["lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight"].shape == (6, HIDDEN)
    assert tensors["lora_unet_single_blocks_0_linear1.lora_up.weight"].shape == (7 * HIDDEN, 8)
    assert f"lora_te1_{CLIP.removeprefix('text_encoder.').replace('.', '_')}.alpha" in tensors
    assert not [key for key in tensors if key.startswith("transformer")]


def test_the_fused_matrix_is_the_stack_of_its_parts():
    lora = small_lora(alpha=3.0)
    tensors = dict(kohya_tensors(lora.modules, torch.float32))
    name = "lora_unet_single_blocks_0_linear1"
    fused = LoraModule(
        tensors[f"{name}.lora_down.weight"],
        tensors[f"{name}.lora_up.weight"],
        tensors[f"{name}.alpha"].item(),
    )
    parts = [lora.modules[f"transformer.single_transformer_blocks.0.{part}"] for part in SINGLE]
    torch.testing.assert_close(change(fused), torch.cat([change(part) for part in parts]))


def test_there_and_back_from_kohya_is_bitwise_the_same(tmp_path: Path):
    name = "lora_unet_single_blocks_0_linear1"
    fused = module(3, HIDDEN, 7 * HIDDEN, alpha=1.0)
    tensors = {f"{name}.lora_down.weight": fused.down, f"{name}.lora_up.weight": fused.up}
    save_file(tensors | {f"{name}.alpha": torch.tensor(1.0)}, tmp_path / "a")
    again = dict(kohya_tensors(load_lora(tmp_path / "a").modules, torch.float32))
    assert again.keys() == {*tensors, f"{name}.alpha"}
    assert all(torch.equal(again[key], value) for key, value in tensors.items())
    assert again[f"{name}.alpha"] == 1.0


@pytest.mark.parametrize("present", [("attn.to_k",), ("attn.to_q", "attn.to_v"), ("attn.to_v", "proj_mlp")])
def test_parts_that_are_not_adapted_stay_as_they_are(tmp_path: Path, present):
    block = "transformer.single_transformer_blocks.0"
    some = {f"{block}.{part}": small_lora().modules[f"{block}.{part}"] for part in present}
    write_lora(tmp_path / "k", LoraFile(some, {}), "kohya", torch.float32)
    back = load_lora(tmp_path / "k").modules
    assert back.keys() == {f"{block}.{part}" for part in SINGLE}
    for name, one in back.items():
        expected = change(some[name]) if name in some else torch.zeros_like(change(one))
        assert torch.equal(change(one), expected)


def test_a_whole_flux_dev_has_kohyas_304_modules_of_their_sizes():
    """Names and sizes as networks/lora_flux.py of sd-scripts makes them (width 3072)."""
    with torch.device("meta"):
        transformer = FluxTransformer2DModel(guidance_embeds=True)
    modules = {}
    for name in linear_modules(transformer):
        outputs, inputs = transformer.get_submodule(name).weight.shape
        modules[f"transformer.{name}"] = LoraModule(torch.zeros(1, inputs), torch.zeros(outputs, 1), 1.0)
    tensors = dict(kohya_tensors(modules, torch.bfloat16))
    double = {
        "mod_lin": (3072, 18432),
        "attn_qkv": (3072, 9216),
        "attn_proj": (3072, 3072),
        "mlp_0": (3072, 12288),
        "mlp_2": (12288, 3072),
    }
    single = {"linear1": (3072, 21504), "linear2": (15360, 3072), "modulation_lin": (3072, 9216)}
    expected = {
        f"lora_unet_double_blocks_{block}_{stream}_{name}": shape
        for block in range(19)
        for stream in ("img", "txt")
        for name, shape in double.items()
    } | {f"lora_unet_single_blocks_{block}_{name}": shape for block in range(38) for name, shape in single.items()}
    found = {key.removesuffix(".alpha") for key in tensors if key.endswith(".alpha")}
    assert len(expected) == 304
    assert found == expected.keys()
    for name, shape in expected.items():
        down, up = tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"]
        assert (down.shape[1], len(up)) == shape


def test_parts_of_differing_rank_and_scale_are_fused_too():
    names = [f"transformer.transformer_blocks.0.{part}" for part in DOUBLE[:3]]
    modules = {name: module(2 + i, HIDDEN, HIDDEN, alpha=1.0 + i % 2, seed=i) for i, name in enumerate(names)}
    tensors = dict(kohya_tensors(modules, torch.float32))
    name = "lora_unet_double_blocks_0_img_attn_qkv"
    up, down = tensors[f"{name}.lora_up.weight"], tensors[f"{name}.lora_down.weight"]
    assert down.shape == (9, HIDDEN)
    product = tensors[f"{name}.alpha"].double() / 9 * (up.double() @ down.double())
    expected = torch.cat([change(modules[name]) for name in names])
    torch.testing.assert_close(product, expected, rtol=1e-5, atol=1e-6)


def test_resizing_is_the_best_approximation_of_its_rank():
    lora = small_lora(rank=8, alpha=4.0)
    smaller, kept = resize(lora, rank=3)
    wanted, total = 0.0, 0.0
    for name, one in lora.modules.items():
        full = change(one)
        left, singular, right = torch.linalg.svd(full, full_matrices=False)
        best = left[:, :3] * singular[:3] @ right[:3]
        torch.testing.assert_close(change(smaller.modules[name]), best, rtol=1e-4, atol=1e-4)
        assert smaller.modules[name].rank == smaller.modules[name].alpha == 3
        wanted, total = wanted + singular[:3].square().sum().item(), total + full.square().sum().item()
    assert kept == pytest.approx(wanted / total, rel=1e-5)
    assert 0.3 < kept < 0.95
    assert smaller.metadata["ss_network_dim"] == "3"


def test_a_larger_rank_than_there_is_keeps_everything():
    lora = small_lora(rank=4)
    same, kept = resize(lora, rank=64)
    assert kept == pytest.approx(1.0)
    assert {one.rank for one in same.modules.values()} == {4}
    assert_same_change(same, lora, rtol=1e-4, atol=1e-4)


def test_a_share_of_energy_takes_as_few_ranks_as_it_needs():
    singular = torch.tensor([3.0, 2.0, 1.0, 0.1])
    basis = torch.linalg.qr(torch.randn(HIDDEN, 4, generator=torch.Generator().manual_seed(0)))[0]
    lora = LoraFile({CLIP: LoraModule(basis.T.contiguous(), basis * singular, 4.0)}, {})
    for share, rank in ((0.6, 1), (0.9, 2), (0.995, 3), (1.0, 4)):
        smaller, kept = resize(lora, energy=share)
        assert smaller.modules[CLIP].rank == rank
        assert kept >= share - 1e-6


def test_an_untrained_module_can_be_resized():
    one = LoraModule(torch.randn(4, 6), torch.zeros(5, 4), 4.0)
    smaller, _ = resize(LoraFile({CLIP: one}, {}), energy=0.9)
    assert torch.equal(change(smaller.modules[CLIP]), torch.zeros(5, 6).double())


def test_merging_adds_weight_changes_exactly():
    one, other = small_lora(2, seed=1), small_lora(3, seed=2, alpha=1.5)
    del other.modules[CLIP]
    merged = merge([("one", one, 1.0), ("other", other, -0.5)])
    assert merged.modules.keys() == one.modules.keys()
    for name, both in merged.modules.items():
        expected = change(one.modules[name])
        if name in other.modules:
            expected = expected - 0.5 * change(other.modules[name])
            assert both.rank == 5
        torch.testing.assert_close(change(both), expected, rtol=1e-13, atol=1e-13)
    assert merged.metadata["ss_network_dim"] == "Dynamic"  # CLIP's is 2, the others' 5


def test_merged_metadata_names_the_parents_and_keeps_every_concept():
    one, other = small_lora(seed=1), small_lora(seed=2)
    for lora, trigger in ((one, "tjtoy toy"), (other, "sparkgpu gpu")):
        lora.metadata["modelspec.trigger_phrase"] = trigger
        lora.metadata["ss_tag_frequency"] = json.dumps({trigger: {trigger: 6}})
        lora.metadata["ss_datasets"] = json.dumps([{"subsets": [{"class_tokens": trigger}]}])
    metadata = merge([("one", one, 1.0), ("other", other, 0.5)]).metadata
    assert metadata["modelspec.merged_from"] == "one x 1, other x 0.5"
    assert metadata["modelspec.trigger_phrase"] == "tjtoy toy, sparkgpu gpu"
    assert json.loads(metadata["ss_tag_frequency"]).keys() == {"tjtoy toy", "sparkgpu gpu"}
    assert len(json.loads(metadata["ss_datasets"])) == 2


def test_convert_merges_resizes_and_says_what_it_did(tmp_path: Path):
    for seed, name in enumerate(("a", "b")):
        write_lora(tmp_path / name, small_lora(4, seed), "diffusers", torch.bfloat16)
    sources = [Source(tmp_path / "a"), Source(tmp_path / "b", 0.5)]
    lines = convert(sources, tmp_path / "out.safetensors", layout="kohya", rank=6)
    text = "\n".join(lines)
    assert "merged: 12 modules, rank 8" in text
    assert "resized: 12 modules, rank 6" in text
    tensors = load_file(tmp_path / "out.safetensors")
    assert tensors["lora_unet_double_blocks_0_txt_attn_qkv.lora_up.weight"].dtype == torch.bfloat16
    assert load_lora(tmp_path / "out.safetensors").metadata["modelspec.merged_from"] == "a x 1, b x 0.5"


def test_wrong_arguments_are_all_named(tmp_path: Path):
    with pytest.raises(Problems) as caught:
        convert([], tmp_path / "o", layout="xlabs", rank=0, energy=1.5)
    assert len(caught.value.problems) == 4


@pytest.mark.parametrize("text", ["None", "{", "null", "3"])
def test_metadata_that_is_no_json_is_no_hindrance(tmp_path: Path, text):
    odd, good = small_lora(), small_lora(seed=1)
    odd.metadata.update({"ss_datasets": text, "ss_tag_frequency": text, "flux_dreambooth": text})
    good.metadata.update({"ss_datasets": '[{"a": 1}]', "ss_tag_frequency": '{"toy": {"x": 2}}'})
    for name, lora in {"odd": odd, "good": good}.items():
        write_lora(tmp_path / name, lora, "diffusers", torch.float32)
    convert([Source(tmp_path / "odd"), Source(tmp_path / "good")], tmp_path / "both", rank=1)
    metadata = load_lora(tmp_path / "both").metadata
    assert json.loads(metadata["ss_datasets"]) == [{"a": 1}]
    assert json.loads(metadata["ss_tag_frequency"]) == {"toy": {"x": 2}}
    convert([Source(tmp_path / "odd", 0.5)], tmp_path / "half", layout="kohya")
    assert load_lora(tmp_path / "half").metadata["ss_datasets"] == text


def test_our_settings_do_not_claim_the_former_rank():
    lora = small_lora(rank=2)
    config = {"network_dim": 2, "network_alpha": None, "seed": 5}
    lora.metadata["flux_dreambooth"] = json.dumps({"version": "1", "config": config})
    once, _ = resize(lora, rank=1)
    ours = json.loads(once.metadata["flux_dreambooth"])
    assert ours["config"] == {"seed": 5} and once.metadata["ss_network_dim"] == "1"
    trained = {"trained_network_dim": 2, "trained_network_alpha": None}
    assert ours["converted"] == {"network_dim": 1, "network_alpha": 1, **trained}
    again = json.loads(merge([("a", once, 1.0), ("b", lora, 1.0)]).metadata["flux_dreambooth"])
    assert again["converted"] == {"network_dim": 3, "network_alpha": 3, **trained}


@pytest.mark.parametrize("output", ["file/a.safetensors", "file/deeper/a.safetensors", "folder", "x" * 300])
def test_an_output_that_cannot_be_written_is_a_problem(tmp_path: Path, output):
    write_lora(tmp_path / "a", small_lora(), "diffusers", torch.float32)
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder").mkdir()
    with pytest.raises(Problems, match="cannot be written") as found:
        convert([Source(tmp_path / "a")], tmp_path / output)
    assert found.value.problems[0].where == f"--output={tmp_path / output}"
    assert (tmp_path / "file").read_text() == "kept"


def test_a_full_disk_is_a_problem(tmp_path: Path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    write_lora(tmp_path / "a", small_lora(), "diffusers", torch.float32)
    monkeypatch.setattr("trainer.lora.convert.write_tensors", fail)
    with pytest.raises(Problems, match="No space left"):
        convert([Source(tmp_path / "a")], tmp_path / "b")
