"""Names of LoRA files in graphs: absent ones are explained, Windows' slashes find their file; what the page is told."""

from pathlib import Path
from typing import Any

import pytest

from custom_nodes.flux_dreambooth.lora_files import Names
from tests.nodes.model_files import write_lora as write_fitting
from tests.nodes.run_writer import write_lora
from tests.nodes.server import ComfyServer, Refused

ASK = "/flux_dreambooth/concept_prompt"


def test_names_are_found_as_they_are_written():
    names = Names(
        ["a.safetensors", "sub/b.safetensors", r"win\c.safetensors", "sub/d.safetensors", "other/d.safetensors"]
    )
    found = {
        "a.safetensors": "a.safetensors", r"sub\b.safetensors": "sub/b.safetensors",
        "win/c.safetensors": r"win\c.safetensors", "b.safetensors": None, "../a.safetensors": None, "": None,
    }  # fmt: skip
    assert {written: names.find(written) for written in found} == found
    loosely = {"b": "sub/b.safetensors", "c.safetensors": r"win\c.safetensors", "sub/b": "sub/b.safetensors", "d": None}
    assert {written: names.find(written, loosely=True) for written in loosely} == loosely
    assert names.find(None) is names.find(3) is names.find(["a.safetensors"]) is None


def loading(**inputs: Any) -> dict[str, Any]:
    """The mini FLUX with a LoRA of our loader, and the report of what was applied."""
    wires = {
        "model": ["1", 0],
        "clip": ["1", 1],
        "checkpoint": "this file",
        "strength_model": 1.0,
        "strength_clip": 1.0,
    }
    return {
        "1": {"class_type": "LoadMiniFlux", "inputs": {"folder": "mini"}},
        "2": {"class_type": "LoadFluxDreamBoothLoRA", "inputs": wires | inputs},
        "3": {"class_type": "PreviewAny", "inputs": {"source": ["2", 2]}},
    }


@pytest.mark.comfyui
def test_an_absent_file_is_explained(comfyui: ComfyServer):
    (comfyui.loras / "demo.safetensors").unlink(missing_ok=True)
    with pytest.raises(Refused) as refused:
        comfyui.queue(loading(lora_name="demo.safetensors"))
    (error,) = refused.value.answer["node_errors"]["2"]["errors"]
    assert "run `make demo` first" in error["details"] and error["type"] == "custom_validation_failed"
    with pytest.raises(Refused, match=r"gone\.safetensors is not in models/loras"):
        comfyui.queue(loading(lora_name="gone.safetensors"))
    with pytest.raises(Refused, match="value_not_in_list"):
        comfyui.queue(loading(lora_name="gone.safetensors", checkpoint="sometimes"))
    for kind, inputs in (
        ("ConceptPrompt", {"clip": ["1", 1], "text": "", "parentheses": "weights"}),
        ("LoRAReport", {}),
    ):
        graph = loading() | {"2": {"class_type": kind, "inputs": inputs | {"lora_name": "gone.safetensors"}}}
        graph["3"]["inputs"]["source"] = ["2", 0]
        with pytest.raises(Refused, match=r"gone\.safetensors is not in models/loras"):
            comfyui.queue(graph)


@pytest.mark.comfyui
def test_a_name_with_the_slashes_of_windows_is_found(comfyui: ComfyServer):
    write_fitting(comfyui.loras / "names/slash.safetensors", comfyui.folder / "models/mini")
    result = comfyui.run(loading(lora_name=r"names\slash.safetensors"))
    assert not result.error and result.outputs["2"]["text"][0].startswith("slash.safetensors")
    write_fitting(comfyui.loras / "names/slash-000002.safetensors", comfyui.folder / "models/mini", seed=1)
    sampling = {"width": 64, "height": 64, "seed": 1, "steps": 1, "guidance": 3.5, "sampler": "euler", "t5_length": 0}
    sampling |= {"model": ["1", 0], "clip": ["1", 1], "vae": ["1", 2], "schedule": "as trained"}
    grid = {"run": r"names\slash", "checkpoints": "2", "strengths": "1", "prompts": "a", "cell_size": 64}
    shown = {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}}
    drawn = comfyui.run(loading() | {"2": {"class_type": "CheckpointGrid", "inputs": sampling | grid}, "3": shown})
    assert not drawn.error and len(drawn.pictures(comfyui, "3")) == 1
    newest = loading(lora_name=r"names\slash-000001.safetensors", checkpoint="newest of its run")
    assert comfyui.run(newest).outputs["2"]["text"][0].startswith("slash-000002.safetensors")


@pytest.mark.comfyui
def test_the_page_is_told_about_a_graph(comfyui: ComfyServer):
    write_lora(comfyui.loras / "asked/told.safetensors")
    loader = {"model": ["1", 0], "clip": ["1", 1], "lora_name": r"asked\told.safetensors", "strength_model": 1.0}
    prompt = {
        "1": {"class_type": "LoadMiniFlux", "inputs": {"folder": "mini"}},
        "2": {"class_type": "LoraLoader", "inputs": loader | {"strength_clip": 1.0}},
        "5:3": {
            "class_type": "ConceptPrompt",
            "inputs": {"clip": ["2", 1], "lora_name": "(the loader's)", "text": "a TJ toy"},
        },
    }
    told = comfyui.post(ASK, {"prompt": prompt, "nodes": ["5:3"]})
    assert (told["loras"], told["complete"], told["certain"]) == (["asked/told.safetensors"], True, True)
    assert [(each["state"], each["written"]) for each in told["found"]] == [("differs", "TJ toy"), ("missing", "")]
    prompt["2"]["class_type"] = "No such loader"
    prompt["2"]["inputs"]["lora_name"] = "None"
    told = comfyui.post(ASK, {"prompt": prompt, "nodes": ["5:3"]})
    assert (told["loras"], told["complete"]) == ([], False)
    (comfyui.loras / "asked/broken.safetensors").write_bytes(b"<html>")
    prompt["2"]["inputs"]["lora_name"] = "asked/broken.safetensors"
    told = comfyui.post(ASK, {"prompt": prompt, "nodes": ["5:3"]})
    assert (
        told["problems"][0]["lora"] == "asked/broken.safetensors"
        and "broken.safetensors" in told["problems"][0]["error"]
    )
    assert str(comfyui.folder) not in told["problems"][0]["error"]
    (comfyui.loras / "asked/broken.safetensors").unlink()


@pytest.mark.comfyui
@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 400),
        ({"prompt": [], "nodes": ["1"]}, 400),
        ({"prompt": {}, "nodes": []}, 400),
        ({"prompt": {}, "nodes": ["1"]}, 404),
        ({"prompt": {"1": {"inputs": {"clip": ["1", 0], "text": {"a": 1}}}}, "nodes": ["1"]}, 200),
        ({"prompt": {"1": {"class_type": {}, "inputs": {"lora_name": ["1", 0]}}}, "nodes": ["1"] * 99}, 200),
        ({"prompt": {str(i): {"inputs": {"clip": [str(i + 1), 0]}} for i in range(20_000)}, "nodes": ["0"]}, 200),
        ({"prompt": {"1": {"inputs": {"text": "x" * 5_000_000}}}, "nodes": ["1"]}, 400),
    ],
)
def test_a_malformed_graph_is_no_harm(comfyui: ComfyServer, body: Any, status: int):
    try:
        comfyui.post(ASK, body)
        assert status == 200
    except Refused as refused:
        assert refused.status == status
    assert comfyui.answers()


def test_the_demo_is_what_the_recipe_writes():
    from custom_nodes.flux_dreambooth.lora_files import DEMO, absent

    root = Path(__file__).parents[2]
    assert DEMO in (root / "workflows/mini_finetuned.json").read_text() and "\ndemo:" in (root / "Makefile").read_text()
    assert "make demo" in absent(DEMO) and "make demo" not in absent("other.safetensors")
