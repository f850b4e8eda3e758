"""What is made of files by several tools: concepts, metadata, fp8, T5, and what a type cannot hold."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.recipe_files import ROOT
from tests.unit.test_lora_convert import CLIP, assert_same_change, change, module, small_lora
from trainer.common.problems import Problems
from trainer.lora.convert import Source, convert, merge, write_lora
from trainer.lora.file import LoraFile, load_lora
from trainer.lora_file.concepts import read_concepts
from trainer.lora_file.modules import LoraModule


def test_a_merge_keeps_the_concepts_of_every_source_whatever_tool_wrote_it(tmp_path: Path):
    ours = {"flux_dreambooth": json.dumps({"concepts": [{"concept": "toy", "trigger": "tjtoy toy", "pictures": 6}]})}
    kohya = {"ss_datasets": json.dumps([{"subsets": [{"class_tokens": "zwx fox", "image_dir": "5_fox"}]}])}
    phrase = {"modelspec.trigger_phrase": "sparkgpu gpu"}
    tags = {
        "ss_tag_frequency": json.dumps({"3_ohwx man": {"beach": 1}}),
        "ss_dataset_dirs": json.dumps({"3_ohwx man": {"img_count": 4}}),
    }
    sources = []
    for seed, metadata in enumerate((kohya, ours, phrase, tags, ours)):
        lora = small_lora(seed=seed)
        lora.metadata.update(metadata)
        sources.append(Source(tmp_path / f"{seed}.safetensors"))
        write_lora(sources[-1].path, lora, "diffusers", torch.float32)
    convert(sources, tmp_path / "all.safetensors")
    merged = load_lora(tmp_path / "all.safetensors").metadata
    expected = ["zwx fox", "tjtoy toy", "sparkgpu gpu", "ohwx man"]
    assert [concept.trigger for concept in read_concepts(merged)] == expected
    convert(sources[:1] + sources[3:4], tmp_path / "two.safetensors")
    assert [each.trigger for each in read_concepts(load_lora(tmp_path / "two.safetensors").metadata)] == [
        "zwx fox",
        "ohwx man",
    ]


def test_folders_of_one_name_are_both_kept():
    one, other = small_lora(seed=1), small_lora(seed=2)
    for lora, tag in ((one, "a"), (other, "b")):
        lora.metadata["ss_tag_frequency"] = json.dumps({"img": {tag: 3}})
    merged = merge([("one", one, 1.0), ("other", other, 1.0)]).metadata
    assert json.loads(merged["ss_tag_frequency"]) == {"img": {"a": 3}, "img (2)": {"b": 3}}


@pytest.mark.parametrize("rank", [None, 1])
def test_metadata_of_the_sources_tensors_is_left_out(tmp_path: Path, rank: int | None):
    lora = small_lora()
    stale = {"lora_adapter_metadata": '{"transformer.lora_alpha": 4}', "lora_alpha": "4", "modelspec.hash_sha256": "x"}
    tensors = {f"{name}.lora_{end}.weight": getattr(one, part) for name, one in lora.modules.items()
               for end, part in (("A", "down"), ("B", "up"))}  # fmt: skip
    save_file(tensors, tmp_path / "a", stale | {"mine": "kept", "peft": '{"lora_alpha": 4}'})
    convert([Source(tmp_path / "a")], tmp_path / "b", rank=rank)
    back = load_lora(tmp_path / "b")
    assert back.metadata.keys() & {*stale, "peft"} == set() and back.metadata["mine"] == "kept"
    if rank is None:
        assert {name: one.scale * one.up[0, 0] for name, one in back.modules.items()} == {
            name: (2 if name.startswith("transformer.") else 1) * one.up[0, 0] for name, one in lora.modules.items()
        }


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
def test_fp8_files_are_computed_with_and_written_in_bf16(tmp_path: Path, kind: torch.dtype, layout: str):
    name, one = "lora_unet_double_blocks_0_img_attn_proj", module(16, 64, 64)
    down, up = one.down.to(kind), (0.02 * one.up).to(kind)
    tensors = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(1.0)}
    save_file(tensors, tmp_path / "a")
    true = up.double() @ down.double() / 16
    for path, more in (("same", {}), ("smaller", {"rank": 16}), ("merged", {})):
        sources = (
            [Source(tmp_path / "a", 0.25), Source(tmp_path / "a", 0.75)]
            if path == "merged"
            else [Source(tmp_path / "a")]
        )
        lines = convert(sources, tmp_path / path, layout=layout, **more)
        (back,) = load_lora(tmp_path / path).modules.values()
        assert back.down.dtype == torch.bfloat16
        assert (change(back) - true).norm() / true.norm() < 0.01
        assert not any("too coarse" in line for line in lines)


def test_what_a_type_cannot_hold_is_said_or_refused(tmp_path: Path):
    lora = small_lora()
    lora.modules[CLIP] = LoraModule(lora.modules[CLIP].down, 1e-6 * lora.modules[CLIP].up, 2.0)
    write_lora(tmp_path / "a", lora, "diffusers", torch.float32)
    lines = convert([Source(tmp_path / "a")], tmp_path / "half", dtype=torch.float16)
    assert any("float16 is too coarse" in line and CLIP in line for line in lines)
    lora.modules[CLIP] = LoraModule(lora.modules[CLIP].down, 1e12 * lora.modules[CLIP].up, 2.0)
    write_lora(tmp_path / "b", lora, "diffusers", torch.float32)
    with pytest.raises(Problems, match="do not fit into float16; take bfloat16"):
        convert([Source(tmp_path / "b")], tmp_path / "large", dtype=torch.float16)
    assert not (tmp_path / "large").exists()


@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
def test_t5_is_kept_though_nothing_here_adapts_it(tmp_path: Path, layout: str):
    name = "text_encoder_2.encoder.block.0.layer.0.SelfAttention.q"
    lora = LoraFile({name: module(2, 8, 8), CLIP: module(2, 8, 8, seed=1)}, {})
    write_lora(tmp_path / "a", lora, "kohya", torch.float32)
    assert "lora_te3_encoder_block_0_layer_0_SelfAttention_q.alpha" in load_file(tmp_path / "a")
    convert([Source(tmp_path / "a")], tmp_path / "b", layout=layout)
    assert_same_change(load_lora(tmp_path / "b", with_t5=True), lora)
    with pytest.raises(Problems, match="1 layer is T5's"):
        load_lora(tmp_path / "b")


def test_an_alpha_that_is_not_known_is_said(tmp_path: Path):
    one = module(2, 8, 8)
    save_file({f"{CLIP}.lora_A.weight": one.down, f"{CLIP}.lora_B.weight": one.up}, tmp_path / "a")
    assert any("has no alpha" in line for line in convert([Source(tmp_path / "a")], tmp_path / "b"))
    assert not any("has no alpha" in line for line in convert([Source(tmp_path / "b")], tmp_path / "c"))


def test_loras_of_two_widths_are_not_merged():
    one = LoraFile({CLIP: module(2, 8, 8)}, {})
    other = LoraFile({CLIP: module(2, 8, 16)}, {})
    with pytest.raises(Problems, match="different base models"):
        merge([("one", one, 1.0), ("other", other, 1.0)])


def test_the_help_of_convert_needs_no_torch():
    code = "import sys; from trainer.cli.convert import run; sys.argv = ['x']\ntry: run(['--help'])\n"
    code += "except SystemExit: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "False", done.stderr
