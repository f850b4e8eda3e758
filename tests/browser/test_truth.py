"""What the page says about LoRAs is so, however they are wired, while files and the server come and go."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser.graphs import Graph
from tests.nodes.model_files import write_lora as write_fitting
from tests.nodes.run_writer import write_lora
from tests.nodes.server import COMFYUI, NO_COMFYUI, ComfyServer, prepare_base
from tests.nodes.test_sample_node import as_trained, settings

pytestmark = [pytest.mark.browser, pytest.mark.comfyui, pytest.mark.slow]
OpenPage = Callable[..., Any]
FOX = [{"concept": "fox", "trigger": "zwx fox", "pictures": 4}]
NONE = "No LoRA is loaded before this node"
BYPASS, NEVER = 4, 2
OTHERS = ("rgthree-comfy", "ComfyUI-Custom-Scripts", "ComfyUI-KJNodes")
PACKS = [Path(os.environ.get("COMFYUI_PACKS", "none")) / name for name in OTHERS]
BROADCASTER = Path(os.environ.get("COMFYUI_PACKS", "none")) / "cg-use-everywhere"


def test_subgraphs_reroutes_and_switched_off_nodes(open_page: OpenPage, comfyui: ComfyServer):
    write_lora(comfyui.loras / "a.safetensors")
    write_lora(comfyui.loras / "b.safetensors", FOX)
    graph = Graph(open_page())
    base, loader, prompt = graph.chain("LoraLoader", lora_name="a.safetensors")
    graph.says("tjtoy toy")
    graph.set(loader, mode=BYPASS)
    graph.says(line=NONE)
    graph.set(loader, mode=NEVER)
    graph.says(line=NONE)
    graph.set(loader, mode=0)
    graph.set_widget(loader, "strength_model", 0)
    graph.set_widget(loader, "strength_clip", 0)
    graph.says(line=NONE)
    graph.set_widget(loader, "strength_clip", 1)
    reroute = graph.add("Reroute", 700)
    graph.link(loader, "CLIP", reroute, 0)
    graph.link(reroute, 0, prompt, "clip")
    graph.says("tjtoy toy")
    inner = graph.wrap(loader)
    graph.says("tjtoy toy")
    outer = graph.wrap(inner, reroute)
    graph.says("tjtoy toy")
    graph.set(outer, mode=BYPASS)
    graph.page.wait_for_timeout(1500)
    graph.set(outer, mode=0)
    graph.says("tjtoy toy")
    wrapped = graph.wrap(prompt)
    open_subgraph = "(id) => { app.canvas.setGraph(app.graph.getNodeById(id).subgraph) }"
    graph.page.evaluate(open_subgraph, wrapped)
    graph.says("tjtoy toy")
    graph.page.wait_for_timeout(1000)  # two looks, which used to throw
    graph.page.evaluate("() => { app.canvas.setGraph(app.rootGraph ?? app.graph) }")
    assert base is not None


def test_a_lora_on_the_model_and_one_of_another_branch(open_page: OpenPage, comfyui: ComfyServer):
    write_lora(comfyui.loras / "a.safetensors")
    write_lora(comfyui.loras / "b.safetensors", FOX)
    graph = Graph(open_page())
    base = graph.add("LoadMiniFlux")
    on_model = graph.add("LoraLoaderModelOnly", 350, lora_name="b.safetensors")
    other = graph.add("LoraLoaderModelOnly", 350, 250, lora_name="a.safetensors")
    prompt, sampler = graph.add("ConceptPrompt", 700), graph.add("FluxSampleAsTrained", 1150)
    graph.link(base, "MODEL", on_model, "model")
    graph.link(base, "MODEL", other, "model")
    graph.link(base, "CLIP", prompt, "clip")
    graph.says(line=NONE)
    graph.link(on_model, "MODEL", sampler, "model")
    graph.link(prompt, 1, sampler, "prompt")
    graph.says("zwx fox")


def test_text_and_names_of_other_nodes(open_page: OpenPage, comfyui: ComfyServer):
    write_lora(comfyui.loras / "a.safetensors")
    graph = Graph(open_page())
    _, loader, prompt = graph.chain("LoraLoader", lora_name="a.safetensors")
    text = graph.add("PrimitiveString", 400, 350, value="a TJ toy")
    graph.link(text, 0, prompt, "text")
    graph.says("tjtoy toy", "“TJ toy” should be “tjtoy toy”")
    assert "click" not in graph.page.locator(".fdb-says").inner_text()
    assert graph.page.locator(".fdb-chip").first.is_disabled()
    graph.set_widget(text, "value", "a tjtoy toy")
    graph.says("tjtoy toy", "names what the LoRA was taught")
    joined = graph.add("StringConcatenate", 400, 550)
    graph.link(joined, 0, prompt, "text")
    graph.says("tjtoy toy", "")
    assert loader is not None


def test_a_file_appears_changes_goes_and_returns(open_page: OpenPage, comfyui: ComfyServer):
    graph = Graph(open_page())
    prompt = graph.add("ConceptPrompt", 400)
    graph.set_widget(prompt, "lora_name", "demo.safetensors")
    graph.says(line="run `make demo` first")
    graph.set_widget(prompt, "lora_name", r"sub\later.safetensors")
    graph.says(line="is not in models/loras")
    file = write_lora(comfyui.loras / "sub/later.safetensors")
    graph.says("tjtoy toy")
    write_lora(file, FOX)
    graph.says("zwx fox")
    content = file.read_bytes()
    file.write_bytes(b"<html>")
    graph.says(line="cannot be read")
    file.unlink()
    graph.says(line="is not in models/loras")
    file.write_bytes(content)
    graph.says("zwx fox")


def test_a_server_that_restarts(open_page: OpenPage, comfyui: ComfyServer):
    write_lora(comfyui.loras / "a.safetensors")
    graph = Graph(open_page(outage=True))
    graph.chain("LoraLoader", lora_name="a.safetensors")
    graph.says("tjtoy toy")
    comfyui.stop()
    try:
        graph.says(line="The server does not answer")
    finally:
        comfyui.start()
    graph.says("tjtoy toy")


@pytest.fixture(scope="module")
def packs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """A server with rgthree's, pysssss' and Kijai's nodes, from the folder that COMFYUI_PACKS names."""
    if not COMFYUI:
        pytest.skip(NO_COMFYUI)
    if not all(pack.is_dir() for pack in PACKS):
        pytest.skip(f"COMFYUI_PACKS names no folder with {', '.join(pack.name for pack in PACKS)}")
    broadcaster = [BROADCASTER] if BROADCASTER.is_dir() else []
    with ComfyServer(prepare_base(tmp_path_factory.mktemp("packs"), *PACKS, *broadcaster)) as server:
        yield server


def test_loaders_of_other_packs(open_page: OpenPage, packs: ComfyServer):
    write_lora(packs.loras / "a.safetensors")
    write_lora(packs.loras / "b.safetensors", FOX)
    graph = Graph(open_page(server=packs))
    _, power, _ = graph.chain("Power Lora Loader (rgthree)")
    graph.says(line="")  # it could load one that its inputs do not show
    add = "([id, lora]) => { app.graph.getNodeById(id).addNewLoraWidget(lora) }"
    graph.page.evaluate(add, [power, "b.safetensors"])
    graph.says("zwx fox")
    off = "(id) => { app.graph.getNodeById(id).widgets.find((w) => w.value?.lora).value.on = false }"
    graph.page.evaluate(off, power)
    graph.says()
    graph.clear()
    graph.chain("Lora Loader Stack (rgthree)", lora_01="a.safetensors", lora_02="b.safetensors", strength_01=0)
    graph.says("zwx fox")
    graph.clear()
    graph.chain("LoraLoader|pysssss", lora_name="a.safetensors")
    graph.says("tjtoy toy")


def test_use_fills_loaders_of_other_packs(open_page: OpenPage, packs: ComfyServer):
    """What the button Use of the tab Training does with the loader that is in the graph."""
    for name in ("a", "b"):
        write_lora(packs.loras / f"{name}.safetensors")
    page = open_page(server=packs)
    graph = Graph(page)
    use = "async (lora) => (await import('/extensions/flux_dreambooth/graph.js')).putIntoGraph(lora)"
    held = "(id) => JSON.stringify(app.graph.getNodeById(id).widgets.map(({ value }) => value?.lora ?? value))"
    for kind in ("LoraLoader|pysssss", "Lora Loader Stack (rgthree)", "Power Lora Loader (rgthree)"):
        graph.clear()
        loader = graph.add(kind)
        for name in ("a.safetensors", "b.safetensors"):
            page.evaluate(use, name)
            found = page.evaluate(held, loader)
            assert name in found and found.count(".safetensors") == 1, (kind, found)
        assert page.evaluate("() => app.graph.nodes.length") == 1


def test_set_and_get_nodes_and_reroutes_of_other_packs(open_page: OpenPage, packs: ComfyServer):
    write_lora(packs.loras / "a.safetensors")
    graph = Graph(open_page(server=packs))
    _, loader, prompt = graph.chain("LoraLoader", 400, lora_name="a.safetensors")
    setter, getter = graph.add("SetNode", 400, 400), graph.add("GetNode", 600, 400)
    graph.link(loader, "CLIP", setter, 0)
    graph.set_widget(setter, "Constant", "text encoders")
    graph.set_widget(getter, "Constant", "text encoders")
    graph.link(getter, 0, prompt, "clip")
    graph.says("tjtoy toy")
    graph.set_widget(getter, "Constant", "nobody")
    graph.says(line=NONE)
    graph.set_widget(getter, "Constant", "text encoders")
    graph.wrap(getter, prompt)
    graph.says("tjtoy toy")
    graph.clear()
    _, loader, prompt = graph.chain("LoraLoader", 400, lora_name="a.safetensors")
    for kind in ("Reroute (rgthree)", "Context (rgthree)"):
        between = graph.add(kind, 600, 500)
        graph.link(loader, "CLIP", between, 0 if kind.startswith("Reroute") else "clip")
        graph.link(between, 0 if kind.startswith("Reroute") else "CLIP", prompt, "clip")
        graph.says("tjtoy toy")


@pytest.mark.skipif(not BROADCASTER.is_dir(), reason="COMFYUI_PACKS names no folder with cg-use-everywhere")
def test_links_that_are_broadcast(open_page: OpenPage, packs: ComfyServer):
    write_lora(packs.loras / "a.safetensors")
    write_lora(packs.loras / "b.safetensors", FOX)
    graph = Graph(open_page(server=packs))
    _, loader, prompt = graph.chain("LoraLoader", 400, lora_name="a.safetensors")
    graph.page.evaluate("(id) => app.graph.getNodeById(id).disconnectInput(0)", prompt)
    graph.says(line=NONE)
    sender = graph.add("Anything Everywhere", 400, 500)
    graph.link(loader, "CLIP", sender, 0)
    graph.says("tjtoy toy")
    graph.set_widget(loader, "lora_name", "b.safetensors")
    graph.says("zwx fox")
    graph.set(sender, mode=NEVER)
    graph.says(line=NONE)


def test_the_sampler_takes_the_length_of_their_loras(packs: ComfyServer):
    ours = {"flux_dreambooth": json.dumps({"config": {"t5xxl_max_token_length": 32}})}
    write_fitting(packs.loras / "short.safetensors", packs.folder / "models/mini", ours)
    power = {"lora_1": {"on": True, "lora": "short.safetensors", "strength": 1}}
    stack = {f"lora_0{n}": "None" for n in range(1, 5)} | {f"strength_0{n}": 1.0 for n in range(1, 5)}
    one = {"lora_name": "short.safetensors", "strength_model": 1.0, "strength_clip": 1.0}
    for kind, inputs in (
        ("Power Lora Loader (rgthree)", power),
        ("Lora Loader Stack (rgthree)", stack | {"lora_02": "short.safetensors"}),
        ("LoraLoader|pysssss", one),
    ):
        prompt = as_trained(model=["5", 0], clip=["5", 1])
        prompt["5"] = {"class_type": kind, "inputs": {"model": ["1", 0], "clip": ["1", 1], **inputs}}
        assert "T5 32 (as short.safetensors was trained)" in settings(packs, prompt), kind
