"""What a LoRA file says it was taught, and how a prompt names it."""

import json
from typing import Any

import pytest

from custom_nodes.flux_dreambooth.concepts import (
    Concept,
    build_prompt,
    escape_parentheses,
    find,
)
from custom_nodes.flux_dreambooth.lora_file.concepts import MAX_CONCEPTS, MAX_LENGTH, read_concepts
from tests.nodes.run_writer import CONCEPTS

TOY, GPU = Concept("tjtoy", "tjtoy toy", 6), Concept("sparkgpu", "sparkgpu gpu (small)", 5)
SUBSETS = [
    {"class_tokens": "tjtoy toy", "image_dir": "10_tjtoy", "img_count": 6, "is_reg": False},
    {"class_tokens": "toy", "image_dir": "reg", "is_reg": True},
    {"class_tokens": "tjtoy toy", "image_dir": "again"},
    {"class_tokens": None, "image_dir": "captions"},
]
OURS = {"flux_dreambooth": json.dumps({"concepts": CONCEPTS})}
KOHYA = {"ss_datasets": json.dumps([{"subsets": SUBSETS}])}
MODELSPEC = {"modelspec.trigger_phrase": "tjtoy toy, sparkgpu gpu"}
TAGS = {
    "ss_tag_frequency": json.dumps({"5_toy": {"beach": 2, "tjtoy toy": 6}, "x": {"a": 1, "fox": 2}}),
    "ss_dataset_dirs": json.dumps({"5_toy": {"img_count": 6}, "x": {"img_count": 2}}),
}


def states(text: str, *concepts: Concept) -> list[tuple[str, str]]:
    return [(found.state, found.written) for found in find(text, concepts or (TOY,))]


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        (OURS, [TOY, GPU]),
        (KOHYA, [TOY]),
        (MODELSPEC, [Concept("tjtoy toy", "tjtoy toy"), Concept("sparkgpu gpu", "sparkgpu gpu")]),
        (TAGS, [Concept("toy", "tjtoy toy", 6), Concept("x", "fox", 2)]),
        (MODELSPEC | KOHYA | OURS, [TOY, GPU]),
        (TAGS | MODELSPEC | {"ss_datasets": "None"}, read_concepts(MODELSPEC)),
        ({}, []),
    ],
)
def test_concepts_come_from_the_best_source_and_reg_folders_are_none(metadata: dict[str, str], expected: list[Concept]):
    assert read_concepts(metadata) == expected


@pytest.mark.parametrize("key", ["flux_dreambooth", "ss_datasets", "ss_tag_frequency"])
@pytest.mark.parametrize(
    "value",
    ["", "{", "null", "[]", "3", '"x"', "[[1]]", '[{"subsets": 3}]', '{"concepts": {}}', '{"a": 3}', "[" * 100_000],
)
def test_broken_metadata_is_no_concept(key: str, value: str):
    assert read_concepts({key: value}) == []


@pytest.mark.parametrize("trigger", [None, 3, "", " \n", "x" * (MAX_LENGTH + 1), ["a"], {"a": 1}])
def test_what_is_no_phrase_is_no_trigger(trigger: Any):
    assert read_concepts({"flux_dreambooth": json.dumps({"concepts": [{"concept": "a", "trigger": trigger}]})}) == []


def test_triggers_are_one_line_without_control_characters_and_not_too_many():
    entries = [{"concept": f"c\x00{index}", "trigger": f"t{index}\n\x1b[31m a"} for index in range(100)]
    concepts = read_concepts({"flux_dreambooth": json.dumps({"concepts": entries})})
    assert len(concepts) == MAX_CONCEPTS
    assert concepts[0] == Concept("c 0", "t0 [31m a")


@pytest.mark.parametrize(
    "text", ["tjtoy toy", "a (tjtoy toy) here", "a tjtoy toy.", r"\(tjtoy toy\)", "놀이터의 tjtoy toy"]
)
def test_a_trigger_is_found_letter_by_letter(text: str):
    assert states(text) == [("present", "")]


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("a TJToy toy here", "TJToy toy"),
        ("tjtoy  toy", "tjtoy  toy"),
        ("a tjtoy-toy", "tjtoy-toy"),
        ("tjtoytoy", "tjtoytoy"),
        ("my tjtoi toy, red", "tjtoi toy"),
        ("a TJ Toy", "TJ Toy"),
        ("a tjtoy on a beach", "tjtoy"),
    ],
)
def test_a_trigger_that_is_written_differently_is_shown(text: str, written: str):
    assert states(text) == [("differs", written)]


@pytest.mark.parametrize("text", ["", "a toy", "a boy on a beach", "the quick brown fox"])
def test_other_words_are_no_trigger(text: str):
    assert states(text) == [("missing", "")]


def test_parentheses_of_the_prompt_become_characters():
    built = build_prompt(r"a sparkgpu gpu (small), \(kept\) (a", [TOY, GPU])
    assert built.text == r"a sparkgpu gpu \(small\), \(kept\) \(a"
    assert [found.state for found in built.found] == ["missing", "present"]
    assert built.warnings == []


def test_weights_stay_weights_but_for_the_triggers():
    built = build_prompt("(sunset:1.3), sparkgpu gpu (small)", [GPU], weights=True)
    assert built.text == r"(sunset:1.3), sparkgpu gpu \(small\)"


@pytest.mark.parametrize("text", ["a (b) c", r"a \(b\)", "((", "", "()"])
def test_escaping_twice_changes_nothing(text: str):
    assert escape_parentheses(escape_parentheses(text)) == escape_parentheses(text)


def test_placeholders_stand_for_triggers():
    built = build_prompt("{1} beside {SparkGPU}, {nobody} {a|b}", [TOY, GPU])
    assert built.text == r"tjtoy toy beside sparkgpu gpu \(small\), {nobody} {a|b}"
    assert built.unknown == ("nobody",)
    assert built.warnings == ['No concept is called "{nobody}".']


def test_a_missing_trigger_warns_only_when_none_is_there():
    assert build_prompt("tjtoy toy", [TOY, GPU]).warnings == []
    (warning,) = build_prompt("a red car", [TOY, GPU]).warnings
    assert "tjtoy toy" in warning and "sparkgpu gpu (small)" in warning


def test_a_differing_trigger_warns_with_both_spellings():
    (warning,) = build_prompt("a TJ toy", [TOY]).warnings
    assert '"TJ toy"' in warning and '"tjtoy toy"' in warning


def test_a_concept_without_a_trigger_in_its_metadata_gives_no_warning():
    assert build_prompt("a red car", []).warnings == []


def test_concepts_of_another_branch_are_looked_for_and_have_no_placeholders():
    built = build_prompt("{1} with a TJ toy", [], elsewhere=[TOY])
    assert built.unknown == ("1",)
    assert [(found.state, found.written) for found in built.found] == [("differs", "TJ toy")]
