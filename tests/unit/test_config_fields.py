"""The engine that reads every value a person writes."""

import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

from tests.recipe_files import ROOT
from trainer.__main__ import main
from trainer.config.fields import STEPS_OR_FRACTION, Given, Invalid, Schema, Spec, listed, read_pairs, shown
from trainer.config.paths import path_problem

SCHEMA = Schema(
    specs={"size": Spec(type=int, ge=1), "mode": Spec(choices=("fast", "exact"))},
    noun="an option of this test",
    refused={"width": "use size"},
    elsewhere={"dim": "use size"},
    ignored={"color": "there is no color"},
    off={"width": 1.0},
    listing="the options are size and mode",
)


def problems_of(*written: tuple, **how) -> list[str]:
    given = [
        Given(name, value, f"file.toml:{line}", subject=name, **how) for line, (name, value) in enumerate(written, 1)
    ]
    return [str(problem) for problem in SCHEMA.read(given).problems]


@pytest.mark.parametrize(
    ("hint", "spec"),
    [
        (int | None, Spec(type=int)),
        (int | float, Spec(type=STEPS_OR_FRACTION)),
        (Literal["a", "b"] | None, Spec(choices=("a", "b"))),
        (tuple[str, ...], Spec(type=tuple)),
        (Path | None, Spec(type=Path)),
    ],
)
def test_a_type_hint_gives_the_spec(hint, spec):
    assert Spec.of(hint) == spec


@pytest.mark.parametrize(
    ("spec", "value", "words"),
    [
        (Spec(type=int, gt=2), 2, "must be above 2"),
        (Spec(type=int, lt=2), 2, "must be below 2"),
        (Spec(type=int, multiple_of=8), 12, "multiple of 8"),
        (Spec(type=bool), 1, "not true or false"),
        (Spec(type=int), True, "true, not a whole number"),
        (Spec(type=float), float("inf"), "not a finite number"),
        (Spec(may_be_empty=False), "", "is empty"),
        (Spec(type=Path), " ", "is empty"),
        (Spec(type=Path), "a\tb", "control characters"),
        (Spec(type=Path), "D:\\loras", "a path of Windows"),
        (Spec(type=Path), f"loras/{'장난감' * 30}/x", "a name of 270 bytes, 장난감"),
        (Spec(type=Path), "D:/loras", "a path of Windows"),
        (Spec(type=Path), "loras\\new", "a path of Windows"),
        (Spec(type=tuple), ["a", 1], "not a list of texts"),
        (Spec(choices=("one", "two")), "ones", "must be one of one or two"),
    ],
)
def test_what_a_value_may_not_be(spec, value, words):
    with pytest.raises(Invalid, match=words):
        spec.convert(value)


def test_numbers_and_truth_are_text_only_where_everything_is():
    assert Spec(type=int).convert("3", from_text=True) == 3
    assert Spec(type=bool).convert("No", from_text=True) is False
    with pytest.raises(Invalid, match="is the text"):
        Spec(type=int).convert("3")


def test_a_path_with_a_control_character_that_exists_is_a_path(tmp_path):
    odd = tmp_path / "a\tb"
    odd.mkdir()
    assert Spec(type=Path).convert(str(odd)) == odd


def test_each_message_has_its_place_and_its_fix():
    assert problems_of(("sise", 1)) == ["file.toml:1: sise is not an option of this test\n    -> did you mean size?"]
    assert problems_of(("zzz", 1))[0].endswith("-> the options are size and mode")
    assert problems_of(("dim", 1))[0].endswith("-> use size")
    assert problems_of(("width", 2)) == ["file.toml:1: width is not supported\n    -> use size"]
    assert problems_of(("mode", "fats"))[0].endswith("did you mean fast?")
    (twice,) = problems_of(("size", 1), ("size", 2))
    assert twice.startswith("file.toml:2: size is given twice (also at file.toml:1)")


def test_what_asks_for_nothing_is_accepted():
    assert not problems_of(("width", 1.0)) and not problems_of(("width", False))
    read = SCHEMA.read([Given("color", "red", "here"), Given("SIZE", 1, "here"), Given("mode", "Exact", "here")])
    assert [given.name for given in read.ignored] == ["color"]
    assert read.values == {"mode": "exact"} and read.problems[0].hint == "did you mean size?"


def test_pairs():
    pairs, problems = read_pairs(["a=1", " b = x=y ", "c"], "--args")
    assert [(given.name, given.value) for given in pairs] == [("a", "1"), ("b", "x=y")]
    assert str(problems[0]).startswith('--args: "c" is not key=value')


def test_values_are_shown_on_one_short_line():
    assert shown("a\nb") == '"a\\nb"' and shown(True) == "true" and len(shown("x" * 500)) == 80
    assert listed(["a"]) == "a" and listed(["a", "b", "c"]) == "a, b or c"


@pytest.mark.parametrize(
    "module",
    [
        "trainer.config",
        "trainer.data.dataset_file",
        "trainer.data.keys",
        "trainer.lora.network_args",
        "trainer.sampling.prompts",
    ],
)
def test_settings_are_read_without_the_heavy_packages(module):
    heavy = ["torch", "diffusers", "transformers", "peft", "PIL", "numpy"]
    code = f"import sys, {module}; print(*({{*{heavy}}} & {{*sys.modules}}))"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.split() == []


def test_a_path_of_windows_says_what_it_is_here(tmp_path, monkeypatch):
    for text, hint in (
        ("D:\\my\\loras", "in WSL it is /mnt/d/my/loras"),
        ("loras\\new", "write loras/new"),
        ("\\\\nas\\x", "of this machine"),
    ):
        assert hint in path_problem(text)[1]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a\\b").mkdir()
    assert path_problem("a\\b") is None and path_problem("a/b: c") is None


@pytest.mark.parametrize("verb", ["convert a b", "mask a", "sample --prompt a", "compare run", "demo"])
@pytest.mark.parametrize(
    ("path", "words"), [("D:\\out", "in WSL it is /mnt/d/out"), ("x" * 256, "a name of 256 bytes")]
)
def test_commands_write_to_no_path_that_nobody_can_mean(verb, path, words, capsys):
    with pytest.raises(SystemExit):
        main([*verb.split(), "--output", path])
    assert words in capsys.readouterr().err
