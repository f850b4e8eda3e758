"""Which layer each key of a LoRA belongs to, and what a refused file is; without torch and ComfyUI."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from custom_nodes.flux_dreambooth.lora_file.flux_names import fused_rows
from custom_nodes.flux_dreambooth.lora_file.foreign import what_it_is
from custom_nodes.flux_dreambooth.lora_file.keys import survey
from custom_nodes.flux_dreambooth.lora_file.module_names import block_of, comfyui_names, resolve
from custom_nodes.flux_dreambooth.lora_files import by_run, label_of, output_path, run_of, write_file
from custom_nodes.flux_dreambooth.safetensors_header import read_header
from tests.nodes.lora_layouts import LAYOUTS, RANK, make_clip_layers, make_layers, write_layout, write_refused
from trainer.lora.file import load_lora

LAYERS, CLIP = make_layers(), make_clip_layers()
TITLES = {
    "ours": "FLUX DreamBooth",
    "kohya": "kohya",
    "diffusers": "diffusers/PEFT",
    "ai_toolkit": "ai-toolkit",
    "onetrainer": "OneTrainer",
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_key_of_each_layout_belongs_to_a_layer(layout: str, tmp_path: Path):
    header = read_header(write_layout(tmp_path / "x.safetensors", layout, LAYERS, CLIP))
    found = survey(header.shapes, header.metadata)
    assert found.title.startswith(TITLES[layout])
    assert found.unknown == ()
    assert sum(len(module.keys) for module in found.modules.values()) == len(header.tensors)
    assert {module.rank for module in found.modules.values()} == {RANK}
    covered = {part for module in found.modules.values() for part in (module.target.modules if module.target else ())}
    assert covered == set(load_lora(tmp_path / "x.safetensors").modules)


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("base_model.model.transformer.transformer_blocks.3.attn.to_q", "transformer.transformer_blocks.3.attn.to_q"),
        ("lycoris_single_transformer_blocks_7_proj_mlp", "transformer.single_transformer_blocks.7.proj_mlp"),
        ("lora_te3_encoder_block_1_layer_0_SelfAttention_q", "text_encoder_2.encoder.block.1.layer.0.SelfAttention.q"),
        ("transformer.norm_out.linear", "transformer.norm_out.linear"),
        ("diffusion_model.img_in", "transformer.x_embedder"),
    ],
)  # fmt: skip
def test_names_of_other_tools_are_understood(name: str, module: str):
    target = resolve(name)
    assert target and target.modules == (module,)


def test_a_layer_that_flux_does_not_have_is_none():
    assert resolve("lora_unet_input_blocks_4_1_proj_in") is None
    assert resolve("lora_unet_double_blocks_0_img_attn_qk") is None


def test_fused_rows_are_those_of_the_parts():
    target = resolve("lora_unet_single_blocks_4_linear1")
    assert target and comfyui_names(target) == ("diffusion_model.single_blocks.4.linear1",)
    assert [rows.stop - rows.start for rows in fused_rows(target.modules, rows=7 * 8, hidden=8).values()] == [
        8,
        8,
        8,
        32,
    ]
    assert block_of(target) == "single 4"
    with pytest.raises(ValueError, match="does not fit a width"):
        fused_rows(target.modules, rows=20, hidden=8)


def test_refused_files_say_what_they_are(tmp_path: Path):
    good = write_layout(tmp_path / "good.safetensors", "kohya", LAYERS, CLIP)
    expected = write_refused(tmp_path, good, LAYERS)
    for name in ("empty", "truncated", "pickle", "zip", "html", "pointer"):
        with pytest.raises(ValueError, match=expected[name]) as raised:
            read_header(tmp_path / f"{name}.safetensors")
        assert f"{name}.safetensors" in str(raised.value)
    for name in ("transformer",):
        header = read_header(tmp_path / f"{name}.safetensors")
        with pytest.raises(ValueError, match=expected[name]):
            survey(header.shapes, header.metadata)
    assert "SDXL" in what_it_is(["lora_unet_down_blocks_0_attentions_0_proj_in.alpha"])


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"[1, 2]", "its header cannot be read"),
        (b"{" * 5000, "its header cannot be read"),
        (json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}).encode(), "offsets of a"),
        (json.dumps({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}).encode(), "negative"),
        (json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}).encode(), "offsets of a"),
        (json.dumps({"a": {"dtype": "F32", "shape": ["1"], "data_offsets": [0, 4]}}).encode(), "wrong kind"),
    ],
)
def test_a_damaged_header_is_refused(header: bytes, message: str, tmp_path: Path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(ValueError, match=message):
        read_header(path)


def test_a_runs_checkpoints_stand_together():
    names = [f"{name}.safetensors" for name in ("b", "toy-000050", "sub/toy", "toy", "toy-000025")]
    assert by_run(names) == [names[0], names[2], names[3], names[4], names[1]]
    assert run_of("sub/toy-step00000500.safetensors") == run_of("sub/toy.safetensors") == "sub/toy"
    assert (label_of(names[1]), label_of(names[3])) == ("epoch 50", "final")
    assert label_of("toy-step00000500.safetensors") == "step 500"


@pytest.mark.parametrize("name", ["", "  ", "../up", "/etc/x", "a/../../b", ".hidden", "a\\..\\b", "C:x", "x" * 300])
def test_a_new_file_stays_below_its_folder(name: str, tmp_path: Path):
    with pytest.raises(ValueError, match="no name for a file"):
        output_path(name, tmp_path)


def test_a_link_does_not_lead_a_new_file_out(tmp_path: Path):
    (tmp_path / "loras").mkdir()
    (tmp_path / "loras/out").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="leads out"):
        output_path("out/x", tmp_path / "loras")
    assert output_path("sub/x.safetensors", tmp_path / "loras") == tmp_path / "loras/sub/x.safetensors"


def test_files_are_written_whole_and_never_over_others(tmp_path: Path):
    path = tmp_path / "sub/new.safetensors"
    write_file(path, lambda target: target.write_bytes(b"1"), overwrite=False)
    assert path.stat().st_mode & 0o777 == 0o644
    with pytest.raises(ValueError, match="exists already"):
        write_file(path, lambda target: target.write_bytes(b"2"), overwrite=False)

    def appears_meanwhile(target: Path) -> None:
        target.write_bytes(b"3")
        (tmp_path / "late").write_bytes(b"theirs")

    with pytest.raises(ValueError, match="exists already"):
        write_file(tmp_path / "late", appears_meanwhile, overwrite=False)
    with pytest.raises(IsADirectoryError):
        write_file(path, lambda target: target.parent.write_bytes(b"no"), overwrite=True)
    write_file(path, lambda target: target.write_bytes(b"4"), overwrite=True)
    assert (path.read_bytes(), (tmp_path / "late").read_bytes()) == (b"4", b"theirs")
    assert sorted(each.name for each in tmp_path.rglob("*")) == ["late", "new.safetensors", "sub"]


def test_the_pack_imports_without_torch_and_comfyui():
    code = (
        "import sys, custom_nodes.flux_dreambooth as pack; print(len(pack.NODE_CLASS_MAPPINGS), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    count, has_torch = done.stdout.split() or [0, done.stderr]
    assert int(count) >= 4 and has_torch == "False"
