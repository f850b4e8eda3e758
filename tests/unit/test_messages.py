"""Every text that the node pack's Python code shows has a Korean one, and the page finds it by the English text."""

import ast
import errno
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

PACK = Path(__file__).parents[2] / "custom_nodes/flux_dreambooth"
KOREAN = PACK / "locales/ko/main.json"
# What is not shown on the page: words for the search, what programs read, and labels that are drawn into images.
NOT_SHOWN = (
    r"private, max-age=.*|attachment; filename.*|sandbox; default-src.*|text/html; charset=.*|dict\[str, .*\]",
    r"image_dir = .*|(?s:\[\[datasets\..*)|unreadable \{\}|job \{\}|unexpected end of data|unnamed LoRA",
    r"A run's files are listed together.*|\[\{\"lora\": .*|New workflow in the sidebar.*|only on systems with flock",
    r"no attention was added|FLUX DreamBooth|\{\} [MK]B",
    r"\{\}, rank \{\} to \{\}, \{\} of the squared norm",  # metadata
    r"(single|double) blocks|(CLIP|T5) layers|\{\}: norm of the weight change|alpha / rank \{\}|rank \{\}",
    r"\{\} modules hold numbers that are not finite|base model|loss (on images|without triggers) \{\} %",
    r"\{\}\nstrength \{\}|seed \{\}, \{\} steps, \{\}, \{\}, guidance \{\}, \{\} x \{\}",
)
WORDS_TO_SEARCH = "SEARCH_ALIASES"
# Parts of texts that are put together: words without a space, and what joins a name with what is said of it.
PARTS = {
    "{}: {}", "{}: {} ({})", "{} ({})", "{} transformer", "{} CLIP", "{} unknown", "transformer", "modules", "rank",
    "concept", "model", "note", "title", "base", "steps", "epoch", "date", "settings", "nothing", "none",
}  # fmt: skip
SYSTEM = {os.strerror(number) for number in errno.errorcode}


def catalogue() -> dict[str, str]:
    return json.loads(KOREAN.read_text())["fluxDreamBooth"]["messages"]


def options() -> dict[str, str]:
    """The values of lists, which the page also shows in Korean."""
    return json.loads(KOREAN.read_text())["fluxDreamBooth"]["options"]


def texts(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of each string in code that may be read by a person, with {} for the values of f-strings."""
    tree = ast.parse(source)
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            skipped.add(node.value)  # a docstring
        elif isinstance(node, ast.JoinedStr):
            skipped |= {part for part in node.values if isinstance(part, ast.Constant)}
            formats = [part.format_spec for part in node.values if isinstance(part, ast.FormattedValue)]
            skipped |= {each for found in formats if found for each in ast.walk(found)}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if node.value and any(isinstance(each, ast.Name) and each.id == WORDS_TO_SEARCH for each in targets):
                skipped |= {*ast.walk(node.value)}
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "split":
            skipped.add(node.func.value)  # a list of words
        elif isinstance(node, ast.Call) and ast.unparse(node.func).startswith(("log.", "logging.")):
            skipped |= {each for argument in node.args for each in ast.walk(argument)}
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.JoinedStr):
            text = "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value
        else:
            continue
        for cell in re.split(r" {2,}", text):  # the page translates cells of a line by themselves
            cell = re.sub(r"^\{\}(?=\{\})", "", cell.strip(" \n;,"))
            if " " in cell and re.search(r"[A-Za-z]{2}", cell.replace("{}", "")):
                yield node.lineno, cell


def shown() -> dict[str, str]:
    """The texts of the pack that the page shows -> where each is."""
    found = {}
    for path in sorted(PACK.rglob("*.py")):
        for line, text in texts(path.read_text()):
            if not any(re.fullmatch(each, text) for each in NOT_SHOWN):
                found.setdefault(text, f"{path.relative_to(PACK)}:{line}")
    return found


def test_every_text_has_a_korean_one():
    known, needed = catalogue(), shown()
    missing = [f"{where}: {text}" for text, where in needed.items() if text not in known | options()]
    assert not missing, f'add to "messages" in {KOREAN}:\n' + "\n".join(missing)
    left_over = known.keys() - needed.keys() - PARTS - SYSTEM
    assert not left_over, f"the code no longer has {left_over}"
    assert len(needed) > 200


def test_the_values_are_those_of_the_english_text():
    for english, korean in catalogue().items():
        numbers = {int(number) for number in re.findall(r"\{(\d+)\}", korean)}
        assert numbers == {*range(english.count("{}"))}, english
        assert korean != english or english in PARTS, english


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ('"""A docstring of it."""\nraise E(f"{a} is not {b!r:<14}{c}.")', ["{} is not {}{}."]),
        ('log.info(f"{a} is read")\nSEARCH_ALIASES = ("a word",)', []),
        ("f\"  {'rank':<14}{a}  (alpha / rank {b})\"", ["(alpha / rank {})"]),
        ('text += f"; {n} left out: {a}"', ["{} left out: {}"]),
    ],
)
def test_texts_are_found_in_code(source: str, found: list[str]):
    assert [text for _, text in texts(source)] == found


SAMPLES = {
    "x.safetensors cannot be used: it holds no tensors": "x.safetensors 파일을 사용할 수 없습니다: 텐서가 없습니다",
    "a.safetensors (kohya): applied 19 transformer keys at 1, 3 CLIP keys at 0.5; 2 left out: b, c and 4 more":
        "a.safetensors (kohya): 적용함: 트랜스포머 키 19개(강도 1), CLIP 키 3개(강도 0.5); 2개 제외: b, c 외 4개",
    "merged 2 LoRAs, rank 8, cut to 4 with 99.10% of the squared norm kept; written to models/loras/m.safetensors, "
    "1.2 MB": "LoRA 2개를 합침, 랭크 8, 랭크 4(으)로 줄임(제곱 노름의 99.10% 유지); "
        "models/loras/m.safetensors에 저장함(1.2 MB)",
    "  rank          16  (alpha / rank 1)": "  랭크          16  (알파 / 랭크 1)",
    "what another program says, with a comma": "what another program says, with a comma",
    "": "",
}  # fmt: skip
PAGE = """import { translator } from %s
const [catalogue, texts] = JSON.parse(process.argv[1])
const translate = translator(catalogue).translate
console.log(JSON.stringify(texts.map(translate)))
"""


def filled_in(english: str) -> str:
    """The text with v0, v1 … as its values."""
    numbers = count()
    return re.sub(r"\{\}", lambda _: f"v{next(numbers)}", english)


@pytest.mark.skipif(not shutil.which("node"), reason="node runs the page's script")
def test_the_page_finds_them(tmp_path: Path):
    known = catalogue()
    filled = [filled_in(english) for english in known]
    expected = [re.sub(r"\{(\d+)\}", r"v\1", korean) for korean in known.values()]
    shutil.copy(PACK / "web/messages.js", module := tmp_path / "messages.mjs")
    script = PAGE % json.dumps(module.as_uri())
    asked = json.dumps([known, [*filled, *SAMPLES]])
    command = ["node", "--input-type=module", "--eval", script, "--", asked]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    found = json.loads(answer.stdout)
    assert dict(zip([*filled, *SAMPLES], found, strict=True)) == dict(
        zip([*filled, *SAMPLES], [*expected, *SAMPLES.values()], strict=True)
    )
