"""Every workflow resolves against the running server, both its forms are in step, and graphs of others keep working."""

import uuid
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageChops

from custom_nodes.flux_dreambooth import NODE_CLASS_MAPPINGS
from tests.nodes import workflows
from tests.nodes.model_files import write_lora
from tests.nodes.server import COMFYUI, NO_COMFYUI, PACK, ComfyServer, prepare_base
from tests.nodes.workflows import NAMES, WORKFLOWS, choices, inputs_of, load, to_api, widget_values

pytestmark = pytest.mark.comfyui
EACH = pytest.mark.parametrize("name", NAMES)
EXAMPLES = PACK / "example_workflows"


@pytest.fixture(scope="module")
def object_info(comfyui: ComfyServer) -> dict[str, Any]:
    """The server's nodes, with the files there that the workflows name."""
    mini, trigger = comfyui.folder / "models/mini", {"modelspec.trigger_phrase": "tjtoy toy"}
    for name in ("flux_dreambooth", "flux_dreambooth-000025", "demo"):
        write_lora(comfyui.loras / f"{name}.safetensors", mini, trigger, seed=len(name))
    return comfyui.object_info()


def test_these_are_the_workflows():
    assert {path.stem for path in WORKFLOWS.glob("*.json")} == {*NAMES}
    assert {path.stem for path in (WORKFLOWS / "api").glob("*.json")} == {*NAMES}
    assert {path.stem for path in EXAMPLES.glob("*.json")} == {*NAMES}


@EACH
def test_templates_are_the_same_and_have_thumbnails(name: str):
    assert (EXAMPLES / f"{name}.json").read_bytes() == (WORKFLOWS / f"{name}.json").read_bytes()
    with Image.open(EXAMPLES / f"{name}.jpg") as picture:
        assert picture.format == "JPEG" and min(picture.size) >= 256


def test_ids_are_own_ones():
    ids = [load(name)["id"] for name in NAMES]
    assert len({uuid.UUID(each) for each in ids}) == len(NAMES)
    assert not any(each.startswith("1512219c") for each in ids)


@EACH
def test_links_have_two_ends_that_know_them(name: str):
    graph = load(name)
    nodes = {node["id"]: node for node in graph["nodes"]}
    assert len(nodes) == len(graph["nodes"]) and max(nodes) == graph["last_node_id"]
    for link, origin, slot, target, place, kind in graph["links"]:
        assert link <= graph["last_link_id"]
        assert link in nodes[origin]["outputs"][slot]["links"] and nodes[origin]["outputs"][slot]["type"] == kind
        assert nodes[target]["inputs"][place]["link"] == link and nodes[target]["inputs"][place]["type"] == kind
    known = {link[0] for link in graph["links"]}
    for node in graph["nodes"]:
        assert {link for each in node["outputs"] for link in each["links"] or ()} <= known
        assert {each["link"] for each in node["inputs"] if each["link"] is not None} <= known


@EACH
def test_nodes_lie_apart_and_in_their_groups(name: str):
    graph = load(name)
    boxes = {node["id"]: (*node["pos"], *node["size"]) for node in graph["nodes"]}
    for first, (x, y, w, h) in boxes.items():
        for second, (x2, y2, w2, h2) in boxes.items():
            apart = x + w <= x2 or x2 + w2 <= x or y + h + 30 <= y2 or y2 + h2 + 30 <= y  # 30: a node's title
            assert first == second or apart, (first, second)
    for node in graph["nodes"]:
        if node["type"] not in workflows.VIRTUAL:
            x, y, w, h = boxes[node["id"]]
            inside = [
                gx <= x and gy + 30 <= y - 30 and x + w <= gx + gw and y + h <= gy + gh
                for gx, gy, gw, gh in (group["bounding"] for group in graph["groups"])
            ]
            assert sum(inside) == 1, node["type"]


@EACH
def test_every_node_input_value_and_link_resolves(name: str, object_info: dict[str, Any]):
    graph = load(name)
    outputs = {node["id"]: object_info.get(node["type"], {}).get("output", []) for node in graph["nodes"]}
    links = {link[0]: link for link in graph["links"]}
    for node in graph["nodes"]:
        if node["type"] in workflows.VIRTUAL:
            continue
        info = object_info[node["type"]]
        expected = inputs_of(info)
        names = [each["name"] for each in node["outputs"]]
        assert names == info["output_name"][: len(names)]  # newer releases of ComfyUI append outputs to its own nodes
        assert len(names) == len(info["output_name"]) or node["type"] not in NODE_CLASS_MAPPINGS
        for each in node["inputs"]:
            if each["link"] is not None:
                _, origin, slot, *_ = links[each["link"]]
                assert outputs[origin][slot] == expected[each["name"]][0] == each["type"]
        values = widget_values(node, info)
        for key, value in values.items():
            check_value(value, *expected[key])
        linked = {each["name"] for each in node["inputs"] if each["link"] is not None}
        assert {*info["input"].get("required", {})} <= {*values} | linked


def check_value(value: Any, kind: Any, options: dict[str, Any]) -> None:
    offered = choices(kind, options)
    if offered is not None:
        assert value in offered
    elif kind in ("INT", "FLOAT"):
        assert isinstance(value, int if kind == "INT" else (int, float)) and not isinstance(value, bool)
        assert options.get("min", value) <= value <= options.get("max", value)
    else:
        assert isinstance(value, {"STRING": str, "BOOLEAN": bool}[kind])


@EACH
def test_the_form_for_scripts_is_in_step(name: str, object_info: dict[str, Any]):
    written = (WORKFLOWS / "api" / f"{name}.json").read_text()
    assert written == workflows.as_text(to_api(load(name), object_info)), "run python -m tests.nodes.workflows"


def test_a_wrong_workflow_would_be_noticed(object_info: dict[str, Any]):
    graph = load("base_flux")
    graph["nodes"][0]["widgets_values"].append(1)
    with pytest.raises(AssertionError, match="left over"):
        to_api(graph, object_info)


def test_size_reaches_latent_and_shift_together(object_info: dict[str, Any]):
    for name in ("base_flux", "finetuned_flux"):
        api = to_api(load(name), object_info)
        latent, shift = (inputs(api, kind) for kind in ("EmptySD3LatentImage", "ModelSamplingFlux"))
        for side in ("width", "height"):
            assert latent[side] == shift[side] and api[latent[side][0]]["class_type"] == "PrimitiveInt"


def inputs(api: dict[str, Any], kind: str) -> dict[str, Any]:
    (found,) = (node["inputs"] for node in api.values() if node["class_type"] == kind)
    return found


def smaller(api: dict[str, Any]) -> dict[str, Any]:
    """The same graph for 64 x 64 pixels and 2 steps."""
    for node in api.values():
        size = {key: 64 for key in ("width", "height") if isinstance(node["inputs"].get(key), int)}
        size |= {"value": 64} if node["class_type"] == "PrimitiveInt" else {}
        node["inputs"] |= size | ({"steps": 2} if "steps" in node["inputs"] else {})
    return api


@pytest.mark.parametrize("name", ["mini_base", "mini_finetuned", "mini_routed"])
def test_the_small_models_graphs_draw(name: str, comfyui: ComfyServer, object_info: dict[str, Any]):
    result = comfyui.run(smaller(to_api(load(name), object_info)))
    assert not result.error
    shown = 2 if name == "mini_routed" else 1  # its masks, too
    assert [picture.size for picture in result.pictures(comfyui)] == [(64, 64)] * shown


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory):
    """A server where FLUX.1-dev's file names load the small FLUX."""
    if not COMFYUI:
        pytest.skip(NO_COMFYUI)
    folder = prepare_base(tmp_path_factory.mktemp("dev"), Path(__file__).with_name("small_loaders"))
    for name in ("flux_dreambooth", "flux_dreambooth-000025"):
        write_lora(folder / f"models/loras/{name}.safetensors", folder / "models/mini", seed=len(name))
    with ComfyServer(folder) as server:
        yield server


@pytest.mark.parametrize("name", ["base_flux", "finetuned_flux", "epochs_grid"])
def test_the_graphs_of_flux_dev_draw(name: str, dev: ComfyServer):
    result = dev.run(smaller(to_api(load(name), dev.object_info())))
    assert not result.error
    (picture,) = result.pictures(dev)
    assert picture.size == (64, 64) or name == "epochs_grid"


def nvidia(lora: bool) -> dict[str, Any]:
    """The playbook's graphs as its users have them: nodes, numbers, Reroute and 4-channel latent."""
    numbers = {
        91: ("CheckpointLoaderSimple", ["flux1-dev.safetensors"], ["MODEL", "CLIP", "VAE"]),
        11: ("DualCLIPLoader", ["t5xxl_fp16.safetensors", "clip_l.safetensors", "flux", "default"], ["CLIP"]),
        10: ("VAELoader", ["ae.safetensors"], ["VAE"]),
        61: ("ModelSamplingFlux", [1.15, 0.5, 1024, 1024], ["MODEL"]),
        6: ("CLIPTextEncode", ["tjtoy toy holding sparkgpu gpu in a datacenter"], ["CONDITIONING"]),
        60: ("FluxGuidance", [3.5], ["CONDITIONING"]),
        22: ("BasicGuider", [], ["GUIDER"]),
        16: ("KSamplerSelect", ["dpmpp_2m"], ["SAMPLER"]),
        17: ("BasicScheduler", ["sgm_uniform", 50, 1], ["SIGMAS"]),
        25: ("RandomNoise", [25, "fixed"], ["NOISE"]),
        90: ("EmptyLatentImage", [1024, 1024, 1], ["LATENT"]),
        88: ("Reroute", [], ["LATENT"]),
        13: ("SamplerCustomAdvanced", [], ["LATENT", "LATENT"]),
        8: ("VAEDecode", [], ["IMAGE"]),
        9: ("SaveImage", ["MarkuryFLUX"], []),
    }
    if lora:
        numbers[92] = ("LoraLoader", ["flux_dreambooth.safetensors", 1, 1], ["MODEL", "CLIP"])
    model, clip = ((92, 0), (92, 1)) if lora else ((91, 0), (11, 0))
    wires = {
        61: {"model": model}, 6: {"clip": clip}, 60: {"conditioning": (6, 0)}, 88: {"": (90, 0)},
        22: {"model": (61, 0), "conditioning": (60, 0)}, 17: {"model": (61, 0)},
        8: {"samples": (13, 0), "vae": (10, 0)},
        13: {"noise": (25, 0), "guider": (22, 0), "sampler": (16, 0), "sigmas": (17, 0), "latent_image": (88, 0)},
        9: {"images": (8, 0)}, **({92: {"model": (91, 0), "clip": (11, 0)}} if lora else {}),
    }  # fmt: skip
    links: list[list[Any]] = []
    nodes = []
    for node, (kind, values, outputs) in numbers.items():
        ends = []
        for name, (origin, slot) in wires.get(node, {}).items():
            links.append([len(links) + 1, origin, slot, node, len(ends), numbers[origin][2][slot]])
            ends.append({"name": name, "type": links[-1][-1], "link": len(links)})
        nodes.append({"id": node, "type": kind, "inputs": ends, "outputs": outputs, "widgets_values": values})
    return {"nodes": nodes, "links": links, "version": 0.4}


def test_the_playbooks_own_graphs_draw_with_our_lora(dev: ComfyServer):
    pictures = []
    for lora in (False, True):
        result = dev.run(smaller(to_api(nvidia(lora), dev.object_info())))
        assert not result.error
        pictures += result.pictures(dev)
    base, tuned = pictures
    assert base.size == tuned.size == (64, 64)
    assert ImageChops.difference(base, tuned).getbbox() is not None
    assert "lora key not loaded" not in dev.log and "NOT LOADED" not in dev.log
