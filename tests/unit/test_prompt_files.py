"""Prompt files as people write them: each value is read, or its line and the fix are named."""

from pathlib import Path

import pytest

from trainer.common.problems import Problems
from trainer.sampling.prompt_syntax import prompt_notices
from trainer.sampling.prompts import SamplePrompt, load_sample_prompts


def read(folder: Path, name: str, text: str | bytes) -> list[SamplePrompt]:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_sample_prompts(path)


def problems(folder: Path, name: str, text: str | bytes) -> str:
    with pytest.raises(Problems) as found:
        read(folder, name, text)
    return str(found.value)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.txt", "a toy\nb toy --h", "a.txt:2: --h has no value"),
        ("a.txt", "a toy--w 256", "a.txt:1: --w is part of the prompt\n    -> write a space before --w"),
        ("a.txt", "--w 64 a toy", "a.txt:1: has no prompt\n    -> write the prompt, and its options behind it"),
        ("a.txt", "a toy, --w 64, --h 64", 'a.txt:1: --w is "64,", not a whole number\n    -> leave the comma out'),
        ("a.txt", "a toy\nNegative prompt: dull", "a.txt:2: is another program's negative prompt"),
        ("a.txt", "a toy\nSteps: 20, Sampler: Euler, Seed: 1", "a.txt:2: is another program's settings"),
        ("a.txt", "", "a.txt:1: has no prompt\n    -> write one prompt per line"),
        ("a.txt", "a toy\nb\0", "a.txt:2: contains zero bytes"),
        ("a.txt", "a toy".encode("utf-16-le"), "UTF-16 without a byte-order mark"),
        ("a.json", '[\n{"prompt": "a --w 256"}]', "a.json:2: --w is part of the prompt\n    -> give width"),
        ("a.json", "[" * 100_000, "a.json:1: is nested too deeply"),
        ("a.json", '// mine\n["a"]', "JSON has no comments"),
        ("a.toml", '[[prompt.subset]]\nprompt = "a --s 4"', "a.toml:1: --s is part of the prompt"),
        ("a.toml", '[other]\nx = 1\n[[prompt.subset]]\nprompt = "a"', "a.toml:1: other is not a table"),
    ],
)
def test_what_would_be_misread_names_its_line(tmp_path: Path, name: str, text: str | bytes, words: str) -> None:
    assert words in problems(tmp_path, name, text)


def test_a_whole_number_with_a_point_is_not_taken_for_a_comma(tmp_path: Path) -> None:
    assert "comma" not in problems(tmp_path, "a.txt", "a toy --s 20.5")
    assert "write a decimal point, not a comma" in problems(tmp_path, "a.txt", "a toy --g 3,5")


def test_a_wrong_default_is_reported_once(tmp_path: Path) -> None:
    text = "[prompt]\nwidth = 250\n" + '[[prompt.subset]]\nprompt = "a"\n' * 2
    assert problems(tmp_path, "a.toml", text).count("width is 250") == 1


def test_json_and_toml_take_the_letters_of_a_line(tmp_path: Path) -> None:
    (json,) = read(tmp_path, "a.json", '[{"prompt": "a", "W": 256, "n": ""}]')
    (toml,) = read(tmp_path, "a.toml", '[[prompt.subset]]\nprompt = "a"\nw = 256\nn = ""')
    assert json == toml == SamplePrompt("a", width=256)


def test_comments_in_a_list_of_lines_are_no_prompts(tmp_path: Path) -> None:
    assert [prompt.prompt for prompt in read(tmp_path, "a.json", '["# mine", "a --w 256"]')] == ["a"]


@pytest.mark.parametrize(
    ("prompt", "hint"),
    [
        ("a toy <lora:tj:0.8>", "by flags"),
        ("a {red|blue} toy", "each choice"),
        ("a toy __place__", "each choice"),
        ("a (toy:1.3) on a desk", "have none here"),
        ('"a toy"', "quotation marks"),
    ],
)
def test_the_syntax_of_other_programs_is_named(tmp_path: Path, prompt: str, hint: str) -> None:
    first, second = (
        str(notice) for notice in prompt_notices(read(tmp_path, "a.txt", f"a cat --n dull\n{prompt}\n{prompt}"))
    )
    assert "negative prompt" in first and "a.txt:2" in second and "is read as text (and 1 more)" in second
    assert hint in second


def test_brackets_of_plain_prose_are_no_syntax(tmp_path: Path) -> None:
    text = 'a toy (red) at 10:30 [sic]\na sign that says "OPEN"\na screen (16:9) and a clock (set to 10:30)'
    assert not prompt_notices(read(tmp_path, "a.txt", text))
