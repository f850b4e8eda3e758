"""Several LoRAs in one node, from JSON; trigger words that a user wrote; a LoRA's images of its run."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from custom_nodes.flux_dreambooth.loaded_loras import Loaded, loras_before
from custom_nodes.flux_dreambooth.lora_file.concepts import Concept, read_concepts
from custom_nodes.flux_dreambooth.lora_file.metadata import with_triggers
from custom_nodes.flux_dreambooth.lora_files import Names
from custom_nodes.flux_dreambooth.nodes_loras import MOST, LoadFluxDreamBoothLoRAs, Row, read_rows
from custom_nodes.flux_dreambooth.runs import Runs
from custom_nodes.flux_dreambooth.safetensors_header import read_header
from custom_nodes.flux_dreambooth.triggers import FILE, edited_concepts, keep_triggers, write_into_file
from tests.nodes.model_files import write_lora as write_fitting
from tests.nodes.run_writer import RunWriter, write_lora
from tests.nodes.server import ComfyServer, Refused
from tests.nodes.test_loaded_loras import CLASSES, MODELS, graph
from tests.nodes.test_sample_node import as_trained

ROUTES = "/flux_dreambooth"


def test_rows_are_read():
    rows = [
        {"lora": "a", "strength": 0.5, "strength_clip": 0}, {"lora": "b", "on": False}, {"lora": "c", "strength": 0},
        {"lora": "d"},
    ]  # fmt: skip
    assert read_rows(json.dumps(rows)) == [Row("a", 0.5, 0.0), Row("d", 1.0, 1.0)]
    assert read_rows("") == read_rows("[]") == []


@pytest.mark.parametrize(
    "text",
    ["{", "3", '{"lora": "a"}', "[3]", '[{"lora": 3}]', '[{"lora": "a", "on": 1}]', '[{"lora": "a", "strength": "1"}]',
     '[{"lora": "a", "strength": NaN}]', '[{"lora": "a", "strength_clip": 101}]', '[{"lora": "a", "strength": true}]',
     "[" * 50_000, json.dumps([{"lora": "a"}] * (MOST + 1))],
)  # fmt: skip
def test_other_lists_are_refused_before_anything_runs(text: str):
    with pytest.raises(ValueError, match="loras"):
        read_rows(text)
    assert "loras" in str(LoadFluxDreamBoothLoRAs.VALIDATE_INPUTS(text))


def test_the_walk_through_a_graph_knows_them():
    rows = [{"lora": "b.safetensors"}, {"lora": "a.safetensors", "on": False}, {"lora": "sub/c.safetensors"}]
    prompt = graph(n2=("LoadFluxDreamBoothLoRAs", MODELS | {"loras": json.dumps(rows)}), n3=("X", {"clip": ["2", 1]}))
    classes = type(CLASSES)(
        lambda kind: ("MODEL", "CLIP", "STRING") if kind == "LoadFluxDreamBoothLoRAs" else CLASSES.outputs(kind),
        bool,
    )
    names = Names(["a.safetensors", "b.safetensors", "sub/c.safetensors"])
    assert loras_before(prompt, "3", names, classes) == Loaded(("b.safetensors", "sub/c.safetensors"))
    assert loras_before(prompt, "3", Names([]), classes).missing == ("b.safetensors", "sub/c.safetensors")


def test_triggers_are_kept_for_all_checkpoints_of_a_run(tmp_path: Path):
    file = tmp_path / "runs" / FILE
    assert edited_concepts(file, "sub/tj.safetensors") is None
    keep_triggers(file, "sub\\tj-000001.safetensors", ["tjtoy  toy", "tjtoy toy", "(small)"])
    expected = [Concept("tjtoy toy", "tjtoy toy"), Concept("(small)", "(small)")]
    assert edited_concepts(file, "sub/tj.safetensors") == expected
    assert edited_concepts(file, "tj.safetensors") is None
    keep_triggers(file, "other.safetensors", ["x"])
    keep_triggers(file, "sub/tj.safetensors", [])
    assert json.loads(file.read_text()) == {"other": ["x"]} and [each.name for each in file.parent.iterdir()] == [FILE]


@pytest.mark.parametrize("words", [["x" * 201], [""], ["a\0b"], [str(n) for n in range(65)]])
def test_other_words_are_refused(tmp_path: Path, words: list[str]):
    with pytest.raises(ValueError, match="Triggers are"):
        keep_triggers(tmp_path / FILE, "a.safetensors", words)
    assert not (tmp_path / FILE).exists()


@pytest.mark.parametrize("content", ["[]", "{", "\xff"])
def test_a_file_of_another_kind_is_not_replaced(tmp_path: Path, content: str):
    (tmp_path / FILE).write_text(content)
    assert edited_concepts(tmp_path / FILE, "a.safetensors") is None
    with pytest.raises(ValueError, match="move it away"):
        keep_triggers(tmp_path / FILE, "a.safetensors", ["x"])
    assert (tmp_path / FILE).read_text() == content


def test_examples_are_the_images_of_the_loras_run(tmp_path: Path):
    run = RunWriter(tmp_path, per_epoch=10, total=30)
    for _ in range(3):
        run.steps(10)
        run.samples("a", "b")
        run.checkpoint()
    found = Runs(tmp_path).examples("sub/tj-000002.safetensors")
    assert found and found["run"] == "tj" and [each["step"] for each in found["samples"]] == [20, 20]
    assert Runs(tmp_path).examples("other.safetensors") is None


def test_images_of_one_prompt_at_all_steps(tmp_path: Path):
    run = RunWriter(tmp_path)
    for _ in range(3):
        run.steps(10)
        run.samples("a", "b")
    found = Runs(tmp_path).series("tj", "01")["samples"]
    assert [(each["step"], each["prompt"]) for each in found] == [(10, "b"), (20, "b"), (30, "b")]
    assert Runs(tmp_path).series("tj", "02") == {"samples": []}
    for hostile in ("", "1", "../01", "01\n", "-01", "٠١", "0" * 7):
        with pytest.raises(LookupError):
            Runs(tmp_path).series("tj", hostile)
    with pytest.raises(LookupError):
        Runs(tmp_path).series("../tj", "01")


@pytest.mark.comfyui
def test_the_node_applies_them_and_the_sampler_takes_their_length(comfyui: ComfyServer):
    ours = {"flux_dreambooth": json.dumps({"config": {"t5xxl_max_token_length": 32}})}
    names = ["stack/one.safetensors", "stack/two.safetensors"]
    for name in names:
        write_fitting(comfyui.loras / name, comfyui.folder / "models/mini", ours)
    rows = [{"lora": names[0], "strength": 0.5}, {"lora": names[1].replace("/", "\\"), "on": True}]
    prompt = as_trained(model=["5", 0], clip=["5", 1])
    loader: dict[str, Any] = {"model": ["1", 0], "clip": ["1", 1], "loras": json.dumps(rows)}
    prompt["5"] = {"class_type": "LoadFluxDreamBoothLoRAs", "inputs": loader}
    result = comfyui.run(prompt)
    assert not result.error and "32" in result.outputs["4"]["text"][0]
    (text,) = result.outputs["5"]["text"]
    assert [line.split(" ")[0] for line in text.split("\n")] == ["one.safetensors", "two.safetensors"]
    assert "at 0.5" in text and "at 1" in text
    loader["loras"] = json.dumps([{"lora": "nobody.safetensors"}])
    with pytest.raises(Refused, match="not in models/loras"):
        comfyui.run(prompt)


def test_triggers_in_metadata_keep_what_is_known():
    """Of our trainer, of kohya, and of nobody."""
    fox = {"concept": "fox", "trigger": "zwx fox", "pictures": 4, "is_reg": False}
    others = {"concept": "animals", "trigger": "animal", "is_reg": True}
    ours = json.dumps({"version": "1", "config": {"a": 1}, "concepts": [fox, others]})
    kohya = json.dumps([{"subsets": [{"image_dir": "10_fox", "class_tokens": "zwx fox", "img_count": 4}]}])
    for metadata, known in (({"flux_dreambooth": ours}, 4), ({"ss_datasets": kohya}, 4), ({"other": "x"}, None)):
        changed = with_triggers(metadata, ["tail", "zwx fox"])
        found = [Concept("tail", "tail"), Concept("fox" if known else "zwx fox", "zwx fox", known)]
        assert read_concepts(changed) == found
        assert changed["modelspec.trigger_phrase"] == "tail, zwx fox"
        assert {key: changed[key] for key in metadata if key != "flux_dreambooth"}.items() <= metadata.items()
    changed = json.loads(with_triggers({"flux_dreambooth": ours}, ["tail"])["flux_dreambooth"])
    assert changed["config"] == {"a": 1} and others in changed["concepts"] and fox not in changed["concepts"]


def test_triggers_in_a_file_leave_its_tensors(tmp_path: Path):
    file = write_lora(tmp_path / "real" / "fox.safetensors")
    link = tmp_path / "fox.safetensors"
    link.symlink_to(file)
    before = read_header(file)
    data = file.read_bytes()[before.data_start :]
    write_into_file(link, ["여우", "tail"])
    after = read_header(file)
    assert [concept.trigger for concept in read_concepts(after.metadata)] == ["여우", "tail"]
    assert file.read_bytes()[after.data_start :] == data and after.shapes == before.shapes
    assert after.data_start % 8 == 0 and link.is_symlink()
    assert load_file(file).keys() == before.tensors.keys()
    assert [each.name for each in file.parent.iterdir()] == [file.name]


@pytest.mark.comfyui
def test_routes_of_a_lora_and_its_triggers(comfyui: ComfyServer):
    write_lora(comfyui.loras / "stack/words.safetensors")
    name = "stack/words.safetensors"
    assert name in comfyui.get(f"{ROUTES}/loras")["loras"]
    found = comfyui.get(f"{ROUTES}/lora?name={name}")
    assert (found["concepts"][0]["trigger"], found["edited"], found["examples"]) == ("tjtoy toy", False, None)
    kept = comfyui.post(f"{ROUTES}/triggers", {"lora": name, "triggers": ["zwx fox"]})
    assert [each["trigger"] for each in kept["concepts"]] == ["zwx fox"] and kept["edited"]
    assert [each["trigger"] for each in comfyui.get(f"{ROUTES}/concepts?lora={name}")["concepts"]] == ["zwx fox"]
    assert not kept["in_file"] and read_concepts(read_header(comfyui.loras / name).metadata)[0].trigger == "tjtoy toy"
    assert comfyui.post(f"{ROUTES}/triggers/file", {"lora": name})["in_file"]
    assert [concept.trigger for concept in read_concepts(read_header(comfyui.loras / name).metadata)] == ["zwx fox"]
    assert not comfyui.post(f"{ROUTES}/triggers", {"lora": name, "triggers": []})["edited"]
    for body, status in (({"lora": name}, 409), ({"lora": "../x"}, 404), ({}, 400)):
        with pytest.raises(Refused) as refused:
            comfyui.post(f"{ROUTES}/triggers/file", body)
        assert refused.value.status == status
    for body, status in (({"lora": "../x", "triggers": ["a"]}, 404), ({"lora": name, "triggers": "a"}, 400),
                         ({"lora": 3, "triggers": []}, 400), ({"lora": name, "triggers": ["a\0"]}, 400)):  # fmt: skip
        with pytest.raises(Refused) as refused:
            comfyui.post(f"{ROUTES}/triggers", body)
        assert refused.value.status == status
    with pytest.raises(Refused) as refused:
        comfyui.get(f"{ROUTES}/lora?name=..%2Fx")
    assert refused.value.status == 404
