"""The LoRA nodes on ComfyUI's own classes: what is applied, what is refused and why, and what it costs."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.random_flux import ModelFiles
from custom_nodes.flux_dreambooth.safetensors_header import read_header
from tests.nodes.lora_layouts import (
    LAYOUTS,
    changes,
    make_clip_layers,
    make_layers,
    ours,
    write_layout,
    write_refused,
    write_tensors,
)
from tests.nodes.model_files import write_mini
from tests.nodes.server import COMFYUI, NO_COMFYUI, ComfyServer

pytestmark = [pytest.mark.comfyui, pytest.mark.skipif(not COMFYUI, reason=NO_COMFYUI)]
APPLY = Path(__file__).with_name("apply_loras.py")
LAYERS, CLIP = make_layers(), make_clip_layers()
COUNTED = {"double": "img_mod.lin.weight", "single": "modulation.lin.weight"}  # in every block
SLOWER_AT_MOST = 1.2  # times core's loader; 1.02 and 1.05 were measured on a busy machine


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_flux: ModelFiles) -> Path:
    """What apply_loras.py needs: a random small model and all the LoRA files."""
    folder = tmp_path_factory.mktemp("loras")
    (folder / "models/mini").mkdir(parents=True)
    write_mini(folder / "models/mini", folder / "none", tiny_flux.transformer.parents[1])
    loras = folder / "loras"
    for layout in LAYOUTS:
        write_layout(loras / f"{layout}.safetensors", layout, LAYERS, CLIP)
    write_layout(loras / "other.safetensors", "ours", make_layers(seed=5), CLIP)
    write_layout(loras / "clip_only.safetensors", "kohya", [], CLIP)
    for name, time in (("run", 10), ("run-000002", 30), ("run-000001", 20)):
        path = write_layout(loras / f"{name}.safetensors", "ours", LAYERS[:2], [])
        os.utime(path, (time, time))
    write_tensors(loras / "rank16.safetensors", *_every_block(make_layers(3072, 1, 1, rank=16)))
    refused = write_refused(loras, loras / "kohya.safetensors", LAYERS)
    (folder / "refused.json").write_text(json.dumps(refused))
    save_file(changes(LAYERS, CLIP), folder / "changes.safetensors")
    return folder


def _every_block(layers: list[Any]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The first block's tensors as those of all 19 double and 38 single blocks, in bf16."""
    tensors, metadata = ours(layers, [])
    return {
        re.sub(r"blocks\.0\.", f"blocks.{block}.", name): tensor.bfloat16()
        for name, tensor in tensors.items()
        for block in range(38 if ".single_" in name else 19)
    }, metadata


@pytest.fixture(scope="module")
def answers(folder: Path) -> dict[str, Any]:
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    command = [python, str(APPLY), str(COMFYUI), str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, env=environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads((folder / "answers.json").read_text())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_changes_the_weights_as_it_says(layout: str, answers: dict[str, Any]):
    found = answers["layouts"][layout]
    assert found["difference"] < 1e-5
    modules = len([key for key in LAYOUTS[layout](LAYERS, CLIP)[0] if key.endswith(("lora_A.weight", "down.weight"))])
    counted = sum(map(int, re.findall(r"(\d+) (?:transformer|CLIP) keys at 1", found["text"])))
    assert counted == modules
    assert f"{layout}.safetensors" in found["text"]


def test_refused_files_say_why(folder: Path, answers: dict[str, Any]):
    expected = json.loads((folder / "refused.json").read_text())
    for name, part in expected.items():
        assert part in answers["refused"][name], name
        assert f"{name}.safetensors" in answers["refused"][name]


def test_strengths_and_missing_inputs(answers: dict[str, Any]):
    found = answers["options"]
    assert found["strengths"] < 1e-5
    assert found["without_clip"][0] and "12 not applied, as CLIP is not connected" in found["without_clip"][1]
    assert found["zero_is_the_same_model"]
    assert not found["base_has_patches"]
    assert found["partial"][1] == 1 and "1 left out" in found["partial"][0]
    assert "connect CLIP" in found["clip_file_without_clip"]


def test_a_changed_file_is_read_again_and_an_old_one_stays_whole(answers: dict[str, Any]):
    found = answers["fresh"]
    assert found["stable"] and found["noticed"] and found["first_is_the_other"]
    assert found["second_is_ours"] < 1e-5
    assert found["held_is_untouched"] == 0
    assert "run-000002.safetensors" in found["newest"]
    assert "not in models/loras" in found["gone"]


def test_the_report_counts_what_fits(answers: dict[str, Any]):
    for layout in LAYOUTS:
        found = answers["reports"][layout]
        assert re.search(r"all \d+ modules fit the connected model", found["text"])
        assert found["shape"][0] == 1 and found["shape"][2:] == [1024, 3] and found["images"] == 1
    assert "1 of 2 modules match" in answers["reports"]["part"]["text"]
    assert "tjtoy toy" in answers["reports"]["ours"]["text"]


def test_loading_costs_no_more_than_cores(answers: dict[str, Any]):
    cost = answers["cost"]
    print(f"rank 16, all blocks: ours {cost['ours']:.3f} s, core {cost['core']:.3f} s")
    assert cost["modules"] == 19 * 10 + 38 * 3
    assert cost["ours"] < SLOWER_AT_MOST * cost["core"]


def graph(node: str, **inputs: Any) -> dict[str, Any]:
    """A prompt of the small model and one of our nodes, "2", whose text is its result."""
    mini = {"class_type": "LoadMiniFlux", "inputs": {"folder": "mini"}}
    return {"1": mini, "2": {"class_type": node, "inputs": inputs}}


def load_graph(name: str, **more: Any) -> dict[str, Any]:
    """Load a LoRA and draw one step of 64 pixels with it."""
    options = {"checkpoint": "this file", "strength_model": 1.0, "strength_clip": 1.0} | more
    prompt = graph("LoadFluxDreamBoothLoRA", model=["1", 0], clip=["1", 1], lora_name=name, **options)
    steps = {"steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "seed": 1, "denoise": 1.0}
    return prompt | {
        "3": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["2", 1], "text": "tjtoy toy"}},
        "4": {"class_type": "EmptySD3LatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "5": {
            "class_type": "KSampler",
            "inputs": steps | {"model": ["2", 0], "positive": ["3", 0], "negative": ["3", 0], "latent_image": ["4", 0]},
        },
        "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["1", 2]}},
        "7": {"class_type": "PreviewImage", "inputs": {"images": ["6", 0]}},
    }


@pytest.fixture(scope="module")
def server_layers(comfyui: ComfyServer) -> list[Any]:
    """Changes of the model that the server has, whatever its size is."""
    shapes = read_header(comfyui.folder / "models/mini/flux1-mini.safetensors").shapes
    blocks = [sum(f"{kind}_blocks.{n}.{last}" in shapes for n in range(99)) for kind, last in COUNTED.items()]
    return make_layers(shapes["img_in.weight"][0], *blocks)


def test_a_lora_overwritten_between_two_prompts_gives_the_new_picture(comfyui: ComfyServer, server_layers: list[Any]):
    path = write_layout(comfyui.loras / "n1/live.safetensors", "ours", server_layers, [])
    stamp = path.stat().st_mtime_ns
    first = comfyui.run(load_graph("n1/live.safetensors"))
    again = comfyui.run(load_graph("n1/live.safetensors"))
    other = comfyui.folder / "other.safetensors"
    tensors, metadata = ours([replace(layer, up=-layer.up) for layer in server_layers], [])
    path.write_bytes(write_tensors(other, tensors, metadata).read_bytes())
    os.utime(path, ns=(stamp, stamp))
    second = comfyui.run(load_graph("n1/live.safetensors"))
    assert first.status == again.status == second.status == "success", first.error + second.error
    assert "7" in again.cached and "2" not in second.cached
    assert "applied" in first.outputs["2"]["text"][0]
    assert first.pictures(comfyui, "7")[0].tobytes() != second.pictures(comfyui, "7")[0].tobytes()


def test_the_server_lives_on_after_refused_files(comfyui: ComfyServer, server_layers: list[Any]):
    good = write_layout(comfyui.loras / "n1/good.safetensors", "kohya", server_layers, [])
    expected = write_refused(good.parent, good, server_layers)
    for name in ("empty", "truncated", "pickle", "html", "sdxl", "rank"):
        result = comfyui.run(load_graph(f"n1/{name}.safetensors"))
        assert result.status == "error" and expected[name] in result.error
    for name in expected:
        (good.parent / f"{name}.safetensors").unlink()
    assert comfyui.run(load_graph("n1/good.safetensors")).status == "success"


def test_resized_and_merged_files_appear_and_load(comfyui: ComfyServer, server_layers: list[Any]):
    write_layout(comfyui.loras / "n1/whole.safetensors", "diffusers", server_layers, [])
    options = {"dtype": "bf16", "overwrite": False}
    small = graph("ResizeLoRA", lora_name="n1/whole.safetensors", rank=2, energy=1.0, new_name="", **options)
    done = comfyui.run(small)
    assert done.status == "success" and "rank 4 to 2" in done.outputs["2"]["text"][0], done.error
    weights = {"weight_1": 1.0, "weight_2": -0.5, "rank": 3, "new_name": "n1/sum", **options}
    both = {"lora_1": "n1/whole.safetensors", "lora_2": "n1/whole-rank2.safetensors"}
    done = comfyui.run(graph("MergeLoRAs", **both, **weights))
    assert done.status == "success" and "rank 6, cut to 3" in done.outputs["2"]["text"][0], done.error
    assert done.outputs["2"]["written"] == ["n1/sum.safetensors"]
    assert "written to models/loras/n1/sum.safetensors, " in done.outputs["2"]["text"][0]
    report = comfyui.run(graph("LoRAReport", lora_name="n1/sum.safetensors", model=["1", 0], clip=["1", 1]))
    assert "modules fit the connected model" in report.outputs["2"]["text"][0], report.error
    assert report.pictures(comfyui, "2")[0].width == 1024
    again = comfyui.run(graph("MergeLoRAs", **both, **weights | {"rank": 2}))
    assert "exists already" in again.error
    assert "no name for a file" in comfyui.run(graph("MergeLoRAs", **both, **weights | {"new_name": "../../x"})).error
    written = comfyui.loras / "n1/sum.safetensors"
    assert written.stat().st_mode & 0o777 == 0o644
    assert read_header(written).metadata["modelspec.merged_from"] == "whole x 1, whole-rank2 x -0.5"
