"""The node pack's routes on a real ComfyUI server: what the browser gets, and what a hostile one does not."""

import http.client
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from custom_nodes.flux_dreambooth.routes import first_workflow
from tests.nodes.model_files import write_lora as write_fitting
from tests.nodes.run_writer import CONCEPTS, RunWriter, write_lora
from tests.nodes.server import COMFYUI, NO_COMFYUI, PACK, ComfyServer, Refused
from tests.nodes.test_help import keys_of, texts
from tests.nodes.workflows import NAMES
from tests.recipe_files import PATIENCE

pytestmark = [pytest.mark.comfyui, pytest.mark.skipif(not COMFYUI, reason=NO_COMFYUI)]
ROUTES = "/flux_dreambooth"
HOSTILE = ("..", "../..", "../outside", "/etc/passwd", "link", "a\0b", "a\nb", ".hidden", "x" * 3000, "nobody")


@pytest.fixture(scope="session")
def run(comfyui: ComfyServer) -> RunWriter:
    """A run in the server's runs/ folder, a checkpoint of it in models/loras, and a folder linked into runs/.

    It lives as long as the server: a process that is given tests of this file twice must not write it twice.
    """
    writer = RunWriter(comfyui.folder / "runs", "routes", per_epoch=10)
    writer.steps(10)
    writer.samples("tjtoy toy")
    writer.checkpoint(comfyui.loras)
    RunWriter(comfyui.folder, "outside").steps(3)
    (comfyui.folder / "runs/link").symlink_to(comfyui.folder / "outside")
    return writer


def send(server: ComfyServer, method: str, target: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    """Status and body; the target goes out as it is, which urllib would tidy up."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, target, body, {"Content-Type": "application/json"} | named)
    answer = connection.getresponse()
    return answer.status, answer.read()


def test_the_first_workflow_is_one_of_ours(comfyui: ComfyServer):
    assert comfyui.get(ROUTES + "/first_workflow") == {"name": None, "ours": sorted(NAMES), "seeded": False}
    for name in ("base_flux", "mini_base"):
        assert first_workflow({"FLUX_FIRST_WORKFLOW": name}, PACK)["name"] == name
    for name in ("", "mine", "../base_flux", "base_flux.json", "workflows/base_flux"):
        assert first_workflow({"FLUX_FIRST_WORKFLOW": name}, PACK)["name"] is None


def test_workflows_are_copied_only_where_the_launcher_asks_for_a_first_one(comfyui: ComfyServer):
    with pytest.raises(Refused, match="names no workflow") as refused:
        comfyui.post(ROUTES + "/first_workflow")
    assert refused.value.status == 404 and not list((comfyui.folder / "user/default/workflows").iterdir())


def test_a_user_who_was_not_there_at_the_start_gets_the_workflows(start_comfyui: Callable[..., ComfyServer]):
    server = start_comfyui("--multi-user", environment={"FLUX_FIRST_WORKFLOW": "mini_base"})
    ada = server.post("/users", {"username": "ada"})
    route = ROUTES + "/first_workflow"
    assert server.get(route, ada) == {"name": "mini_base", "ours": sorted(NAMES), "seeded": False}
    assert server.post(route, user=ada) == {"new": [f"{name}.json" for name in sorted(NAMES)]}
    own = server.folder / "user" / ada / "workflows"
    assert {file.stem for file in own.iterdir()} == {*NAMES} and server.get(route, ada)["seeded"]
    (own / "mini_base.json").unlink()
    assert server.post(route, user=ada) == {"new": []} and not (own / "mini_base.json").exists()
    for nobody in ("eve", "../default", "__system"):
        with pytest.raises(Refused) as refused:
            server.post(route, user=nobody)
        assert refused.value.status == 404


def test_a_run_is_read(comfyui: ComfyServer, run: RunWriter):
    assert "routes" in [found["name"] for found in comfyui.get(f"{ROUTES}/runs")["runs"]]  # among those of other tests
    details = comfyui.get(f"/api{ROUTES}/runs/routes")
    assert (details["state"], details["step"], details["total"], len(details["curve"])) == ("running", 10, 400, 10)
    assert details["checkpoints"] == [
        {"file": "routes-000001.safetensors", "step": 10, "with_state": False, "lora": "routes-000001.safetensors"}
    ]
    (sample,) = details["samples"]
    picture = comfyui.request(f"{ROUTES}/runs/routes/samples/{sample['file']}")
    assert picture == (run.folder / "samples" / sample["file"]).read_bytes()


@pytest.mark.usefixtures("run")
@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("form", ["/runs/{}", "/runs/{}/samples/a-step00000001-00.png", "/runs/routes/samples/{}"])
def test_no_name_leads_out(comfyui: ComfyServer, name: str, form: str):
    for written in (quote(name, safe=""), quote(name)):
        status, body = send(comfyui, "GET", ROUTES + form.format(written))
        assert status in (400, 403, 404), (status, body[:200])
        assert b"root:" not in body and b'"curve"' not in body and b"PNG" not in body


@pytest.mark.usefixtures("run")
@pytest.mark.parametrize(
    "target", ["/runs/link/save", "/runs/..%2Foutside/save", "/runs/routes/delete", "/runs/x/stop"]
)
def test_only_save_and_stop_of_a_run_are_made(comfyui: ComfyServer, target: str):
    before = sorted(comfyui.folder.joinpath("runs").rglob("*")) + sorted((comfyui.folder / "outside").iterdir())
    assert send(comfyui, "POST", ROUTES + target, b"{}")[0] == 404
    assert sorted(comfyui.folder.joinpath("runs").rglob("*")) + sorted((comfyui.folder / "outside").iterdir()) == before


def test_save_and_stop(comfyui: ComfyServer, run: RunWriter):
    for wish in ("save", "stop"):
        assert comfyui.post(f"{ROUTES}/runs/routes/{wish}") == {"asked": wish}
        assert (run.folder / wish).is_file()
    assert comfyui.get(f"{ROUTES}/runs/routes")["asked"] == ["save", "stop"]
    for wish in ("save", "stop"):
        (run.folder / wish).unlink()


def test_reading_does_not_ask_for_anything(comfyui: ComfyServer, run: RunWriter):
    status, _ = send(comfyui, "GET", f"{ROUTES}/runs/routes/stop")
    assert status in (404, 405) and not (run.folder / "stop").exists()


def test_a_form_of_another_site_cannot_ask(comfyui: ComfyServer, run: RunWriter):
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        assert send(comfyui, "POST", f"{ROUTES}/runs/routes/stop", b"{}", Content_Type=kind)[0] == 400
    assert not (run.folder / "stop").exists()


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"3", b'{"loras": 3}', b'{"loras": [3]}', b'{"text": 3}', b"[" * 50_000, b" " * 70_000]
)
def test_a_broken_body_is_refused_and_the_server_lives_on(comfyui: ComfyServer, body: bytes):
    status, answer = send(comfyui, "POST", f"{ROUTES}/prompt", body)
    assert status == (200 if body == b"" else 400), answer
    assert "error" in json.loads(answer) or body == b""


def test_concepts_of_a_file_and_of_a_prompt(comfyui: ComfyServer):
    write_lora(comfyui.loras / "sub/concepts.safetensors")
    (lora,) = [name for name in lora_list(comfyui) if name.endswith("concepts.safetensors")]
    found = comfyui.get(f"{ROUTES}/concepts?lora={quote(lora)}")["concepts"]
    assert [concept["trigger"] for concept in found] == [entry["trigger"] for entry in CONCEPTS if not entry["is_reg"]]
    answer = comfyui.post(f"{ROUTES}/prompt", {"loras": [lora], "text": "a TJ toy, {no}"})
    assert [(each["state"], each["written"]) for each in answer["found"]] == [("differs", "TJ toy"), ("missing", "")]
    assert answer["unknown"] == ["no"] and len(answer["warnings"]) == 2


def lora_list(server: ComfyServer) -> list[Any]:
    return server.get("/models/loras")


@pytest.mark.parametrize("name", [*HOSTILE, "../checkpoints/flux1-dev.safetensors", "../../log"])
def test_only_listed_loras_are_opened(comfyui: ComfyServer, name: str):
    assert send(comfyui, "GET", f"{ROUTES}/concepts?lora={quote(name, safe='')}")[0] == 404


@pytest.mark.parametrize("data", [b"", b"\x80\x02}q\x00.", b"<html>", b"\xff" * 64, b"\x08" + b"\0" * 7 + b"{"])
def test_a_file_that_is_no_lora_is_named_in_the_error(comfyui: ComfyServer, data: bytes):
    (comfyui.loras / "broken.safetensors").write_bytes(data)
    with pytest.raises(Refused, match=r"broken\.safetensors") as refused:
        comfyui.get(f"{ROUTES}/concepts?lora=broken.safetensors")
    assert refused.value.status == 400 and str(Path(comfyui.folder)) not in refused.value.answer["error"]
    (comfyui.loras / "broken.safetensors").unlink()


def prompt_graph(**inputs: Any) -> dict[str, dict[str, Any]]:
    shown = {"class_type": "PreviewAny", "inputs": {"source": ["2", 1]}}
    return {
        "1": {"class_type": "LoadMiniFlux", "inputs": {"folder": "mini"}},
        "2": {"class_type": "ConceptPrompt", "inputs": {"clip": ["1", 1], "parentheses": "plain characters"} | inputs},
        "3": shown,
    }


def test_the_node_encodes_the_prompt_and_warns(comfyui: ComfyServer):
    write_lora(comfyui.loras / "node.safetensors")
    result = comfyui.run(prompt_graph(lora_name="node.safetensors", text="a TJ toy beside {2}"))
    assert result.status == "success", result.error
    assert result.outputs["2"]["text"] == [r"a TJ toy beside sparkgpu gpu \(small\)"]
    assert result.outputs["2"]["warnings"] == ['"TJ toy" is not how the LoRA knows it: "tjtoy toy".']


def test_a_changed_lora_is_read_again(comfyui: ComfyServer):
    write_lora(comfyui.loras / "fresh.safetensors")
    graph = prompt_graph(lora_name="fresh.safetensors", text="{1}")
    assert comfyui.run(graph).outputs["2"]["text"] == ["tjtoy toy"]
    write_lora(comfyui.loras / "fresh.safetensors", [{"concept": "fox", "trigger": "zwx fox"}])
    assert comfyui.run(graph).outputs["2"]["text"] == ["zwx fox"]


EXPANDS = """
from comfy_execution.graph_utils import GraphBuilder

class Expands:
    RETURN_TYPES, FUNCTION, CATEGORY = ("STRING",), "expand", "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "clip": ("CLIP",), "lora": ("STRING", {})}}

    def expand(self, model, clip, lora):
        graph = GraphBuilder()
        strengths = {"strength_model": 1.0, "strength_clip": 1.0}
        if lora:
            clip = graph.node("LoraLoader", model=model, clip=clip, lora_name=lora, **strengths).out(1)
        texts = {"lora_name": "(the loader's)", "text": "a {1}", "parentheses": "plain characters"}
        prompt = graph.node("ConceptPrompt", clip=clip, **texts)
        shown = graph.node("PreviewAny", source=prompt.out(1))
        return {"result": (prompt.out(1),), "expand": graph.finalize()}

NODE_CLASS_MAPPINGS = {"Expands": Expands}
"""


def test_nodes_that_another_node_expands_into(start_comfyui: Callable[..., ComfyServer], tmp_path: Path):
    """As the nodes of a loop do: their links are not in the prompt that was sent."""
    pack = tmp_path / "expands"
    pack.mkdir()
    (pack / "__init__.py").write_text(EXPANDS)
    server = start_comfyui(packs=(pack,))
    taught = {"flux_dreambooth": json.dumps({"concepts": CONCEPTS})}
    write_fitting(server.loras / "a.safetensors", server.folder / "models/mini", taught)
    for lora, said in (("a.safetensors", "a tjtoy toy"), ("", "a {1}")):
        inputs = {"model": ["1", 0], "clip": ["1", 1], "lora": lora}
        graph = {"1": prompt_graph()["1"], "2": {"class_type": "Expands", "inputs": inputs}}
        graph["3"] = {"class_type": "PreviewAny", "inputs": {"source": ["2", 0]}}
        result = server.run(graph)
        assert result.status == "success" and result.outputs["3"]["text"] == [said], (result.error, result.outputs)
    assert "No LoRA is loaded" not in server.log


def test_the_server_gives_the_texts_of_both_languages(comfyui: ComfyServer):
    given = comfyui.get("/i18n")
    for language in ("en", "ko"):
        for name, strings in texts(language).items():
            served = given[language] if name == "main" else given[language][name]  # main.json is the root there
            assert keys_of(strings) <= keys_of(served)
