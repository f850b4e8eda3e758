import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.recipe_files import ROOT
from tests.unit.test_lora_convert import CLIP, change, module, small_lora
from trainer.common.problems import Problems
from trainer.lora.convert import write_lora
from trainer.lora.file import LoraFile
from trainer.lora.info import describe, render
from trainer.lora_file.numbers import product_norm

DATASETS = [
    {"subsets": [{"class_tokens": "tjtoy toy", "image_dir": "toy", "img_count": 6, "num_repeats": 1}]},
    {"subsets": [{"class_tokens": "tjtoy toy", "image_dir": "toy", "img_count": 6, "num_repeats": 1}]},
    {"subsets": [{"class_tokens": "gpu", "image_dir": "g", "img_count": 7, "num_repeats": 2, "is_reg": True}]},
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    lora = small_lora()
    lora.metadata.update(
        {
            "ss_epoch": "3",
            "ss_sd_model_name": "flux1-dev.safetensors",
            "ss_datasets": json.dumps(DATASETS),
            "modelspec.architecture": "flux-1-dev/lora",
            "my_note": "x",
        }
    )
    write_lora(tmp_path / "a.safetensors", lora, "diffusers", torch.bfloat16)
    return tmp_path / "a.safetensors"


def test_the_norm_of_a_product_is_found_without_forming_it():
    one = module(3, 20, 30, alpha=1.5)
    assert one.scale * product_norm(one.down, one.up) == pytest.approx(change(one).norm().item(), rel=1e-5)


@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
def test_block_norms_join_the_modules_of_a_block(tmp_path: Path, layout: str):
    lora = small_lora(alpha=0.7)
    write_lora(tmp_path / "a", lora, layout, torch.float32)
    norms = describe(tmp_path / "a")["block_norms"]
    single = [change(m) for name, m in lora.modules.items() if "single_transformer_blocks.0" in name]
    expected = sum(each.square().sum() for each in single).sqrt().item()
    assert norms["single_transformer_blocks.0"] == pytest.approx(expected, rel=1e-5)
    assert sorted(norms) == [
        "single_transformer_blocks.0",
        "text_encoder.text_model.encoder.layers.0",
        "transformer_blocks.0",
    ]


def test_a_description_says_what_the_file_is(file: Path):
    info = json.loads(json.dumps(describe(file)))
    assert info["concepts"] == [
        {"trigger": "tjtoy toy", "folder": "toy", "is_reg": False, "pictures": 6, "num_repeats": 1},
        {"trigger": "gpu", "folder": "g", "is_reg": True, "pictures": 7, "num_repeats": 2},
    ]
    assert info["modules"] == {"double block": 7, "single block": 4, "CLIP": 1}
    assert (info["ranks"], info["scales"], info["dtypes"]) == ([2], [1.0], ["bfloat16"])
    assert (info["steps"], info["epoch"]) == (9, 3)
    assert info["other_metadata"] == ["my_note"]
    assert info["bytes"] == file.stat().st_size


def test_the_text_has_it_too(file: Path):
    text = render(describe(file))
    for words in ("flux-1-dev/lora", "tjtoy toy  (6 pictures x 1)", "regularisation gpu", "my_note"):
        assert words in text
    assert "transformer_blocks.0" in text
    assert "None" not in text


def test_a_file_without_metadata_is_described_by_its_tensors(tmp_path: Path):
    one = module(2, 8, 8)
    save_file({f"{CLIP}.lora_A.weight": one.down, f"{CLIP}.lora_B.weight": one.up}, tmp_path / "a")
    info = describe(tmp_path / "a")
    assert info["concepts"] == []
    assert info["modules"] == {"CLIP": 1}
    assert "rank" in render(info)


def test_a_number_that_is_not_finite_is_said(tmp_path: Path):
    one = module(2, 8, 8)
    one.up[0, 0] = torch.nan
    write_lora(tmp_path / "a", LoraFile({CLIP: one}, {}), "diffusers", torch.float32)
    info = describe(tmp_path / "a")
    assert info["not_finite"] == [CLIP]
    json.dumps(info, allow_nan=False)
    assert "NOT FINITE" in render(info)


def test_a_file_that_is_no_lora_is_refused(tmp_path: Path):
    save_file({"double_blocks.0.img_attn.qkv.weight": torch.ones(3, 1)}, tmp_path / "a")
    with pytest.raises(Problems, match="a complete FLUX transformer, not a LoRA"):
        describe(tmp_path / "a")
    write_lora(tmp_path / "b", LoraFile({}, {}), "diffusers", torch.float32)
    with pytest.raises(Problems, match="holds no tensors"):
        describe(tmp_path / "b")


@pytest.mark.parametrize(
    "text", ["None", "", "{", "{}", "[1]", '[{"subsets": null}]', '[{"subsets": [1]}]', "[" * 100_000]
)
def test_metadata_of_others_may_be_no_json(tmp_path: Path, text):
    one = module(2, 8, 8)
    metadata = {"ss_datasets": text, "ss_tag_frequency": text, "lora_adapter_metadata": text}
    tensors = {f"{CLIP}.lora_A.weight": one.down, f"{CLIP}.lora_B.weight": one.up}
    save_file(tensors, tmp_path / "a", metadata=metadata)
    info = describe(tmp_path / "a")
    assert info["concepts"] == [] and render(info)


def test_concepts_of_an_odd_type_are_shown(tmp_path: Path):
    one = module(2, 8, 8)
    datasets = json.dumps([{"subsets": [{"class_tokens": ["a", "b"], "image_dir": None}]}])
    tensors = {f"{CLIP}.lora_A.weight": one.down, f"{CLIP}.lora_B.weight": one.up}
    save_file(tensors, tmp_path / "a", metadata={"ss_datasets": datasets})
    assert [concept["trigger"] for concept in describe(tmp_path / "a")["concepts"]] == [["a", "b"]]


def test_a_header_that_is_nested_too_deeply_is_a_problem(tmp_path: Path):
    header = b'{"a":' * 100_000
    (tmp_path / "a").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(Problems, match="nested too deeply"):
        describe(tmp_path / "a")


def test_another_models_lora_is_called_by_its_name(tmp_path: Path):
    name = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
    save_file(
        {f"{name}.lora_down.weight": torch.ones(4, 8), f"{name}.lora_up.weight": torch.ones(8, 4)}, tmp_path / "a"
    )
    with pytest.raises(Problems, match=r"it is a LoRA of SDXL or SD 1\.5"):
        describe(tmp_path / "a")


def test_a_lora_of_t5_is_described(tmp_path: Path):
    name = "lora_te3_encoder_block_0_layer_0_SelfAttention_q"
    save_file(
        {f"{name}.lora_down.weight": torch.ones(4, 8), f"{name}.lora_up.weight": torch.ones(8, 4)}, tmp_path / "a"
    )
    info = describe(tmp_path / "a")
    assert info["modules"] == {"T5": 1} and list(info["block_norms"]) == ["text_encoder_2.encoder.block.0"]


def test_another_kind_of_adapter_is_described_without_norms(tmp_path: Path):
    name = "lycoris_transformer_blocks_0_attn_to_q"
    save_file({f"{name}.lokr_w1": torch.ones(2, 2), f"{name}.lokr_w2": torch.ones(4, 4)}, tmp_path / "a")
    info = describe(tmp_path / "a")
    assert info["modules"] == {"double block": 1} and "LoKr" in info["notes"][0]
    assert "norms of the weight change are shown for LoRA only" in render(info)


@pytest.mark.parametrize("text", ["9" * 5000, "-3", "1.5", "x"])
def test_steps_that_are_no_number_are_none(tmp_path: Path, text: str):
    one = module(2, 8, 8)
    save_file({f"{CLIP}.lora_A.weight": one.down, f"{CLIP}.lora_B.weight": one.up}, tmp_path / "a", {"ss_steps": text})
    assert describe(tmp_path / "a")["steps"] is None


def test_info_needs_no_torch(file: Path):
    code = "import sys; from trainer.__main__ import main; main(sys.argv[1:]); print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, "info", str(file)], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.stdout.splitlines()[-1] == "False", done.stderr
