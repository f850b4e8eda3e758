"""README.md says what the programs do, and README.ko.md says the same in Korean."""

import contextlib
import io
import os
import re
import shlex
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from tests.hub_files import DEV, TEXT_ENCODERS
from tests.recipe_files import ROOT
from trainer.__main__ import VERBS, main
from trainer.config.values import FIELDS

ENGLISH, KOREAN = "README.md", "README.ko.md"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^(#+) (.+)$", re.MULTILINE)
CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"!?\[[^]]*\]\(([^)]+)\)|(https?://[^\s`)]+)")
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
FLAG = re.compile(r"--[A-Za-z][\w-]*")
PATH = re.compile(r"(?<![\w/:.-])\.?\w[\w.*-]*(?:/[\w.*-]*)+")
TRAINING = ("train", "check", "demo")  # verbs that take every setting
LAUNCHERS = {"launch_train.sh", "launch_comfyui.sh", "download.sh"}
COMFYUI_FLAGS = {"--lowvram", "--fp8_e4m3fn-unet"}
# what the programs write, and what a download brings
CREATED = re.compile(
    r"\.venv/.*|runs/.*|output/(demo/contact_sheet\.jpg)?|flux_data/\.cache|models/(loras|checkpoints|vae|text_encoders|tokenizers)/.*"
)
NOT_OURS = {DEV, TEXT_ENCODERS, "OWNER/NAME", "/proc/sys/vm/drop_caches", "models/*.safetensors"}


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(name: str) -> list[tuple[str, list[str]]]:
    """The code blocks: language, and lines without comments."""
    found = FENCE.findall(text(name))
    return [(language, [without_comment(line) for line in body.splitlines()]) for language, body in found]


def without_comment(line: str) -> str:
    return re.sub(r"(^|\s+)#( .*|$)", "", line)


def prose(name: str) -> str:
    return FENCE.sub("", text(name))


def headings(name: str) -> list[tuple[int, str]]:
    return [(len(marks), title) for marks, title in HEADING.findall(prose(name))]


def sections(name: str) -> list[str]:
    """What stands below each heading, code blocks left out."""
    return HEADING.split(prose(name))[3::3]


def links(page: str) -> list[str]:
    """Addresses and pictures; the language of an anchor or of the other page is not looked at."""
    found = [(inside or bare).rstrip(".,") for inside, bare in LINK.findall(page)]
    return sorted("#" if link.startswith("#") else link for link in found if link not in (ENGLISH, KOREAN))


def tables(page: str) -> list[tuple[int, list[str]]]:
    """Each row's number of cells, and the code in it."""
    rows = [line.replace(r"\|", "¦") for line in page.splitlines() if line.startswith("|")]
    return [(row.count("|"), sorted(CODE.findall(row))) for row in rows]


def test_the_headings_have_the_same_order_and_levels():
    assert [level for level, _ in headings(KOREAN)] == [level for level, _ in headings(ENGLISH)]
    numbered = [[title[:2] for _, title in headings(name) if title[:1].isdigit()] for name in (ENGLISH, KOREAN)]
    assert numbered == [[f"{number}." for number in range(1, 8)]] * 2


def test_the_code_blocks_are_the_same_but_for_comments():
    assert blocks(KOREAN) == blocks(ENGLISH)
    assert any("sh download.sh" in lines for _, lines in blocks(ENGLISH))


@pytest.mark.parametrize("index", range(len(sections(ENGLISH))), ids=[title for _, title in headings(ENGLISH)])
def test_a_section_has_the_same_links_code_figures_and_tables(index: int):
    english, korean = sections(ENGLISH)[index], sections(KOREAN)[index]
    assert links(korean) == links(english)
    assert Counter(CODE.findall(korean)) == Counter(CODE.findall(english))
    assert set(NUMBER.findall(korean)) >= set(NUMBER.findall(english))
    assert tables(korean) == tables(english)


@pytest.mark.parametrize("name", [ENGLISH, KOREAN])
def test_links_lead_somewhere(name: str):
    anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for _, title in headings(name)}
    for inside, _ in LINK.findall(text(name)):
        if inside.startswith("#"):
            assert inside[1:] in anchors
        elif inside and not inside.startswith("http"):
            assert (ROOT / inside).is_file(), inside


def said() -> list[str]:
    """Every line of a code block, and every piece of code in the prose."""
    return [line for _, lines in blocks(ENGLISH) for line in lines] + CODE.findall(prose(ENGLISH))


def paths() -> set[str]:
    found = {path for line in said() for path in PATH.findall(re.sub(r"https?://\S+", "", line))}
    return {path for path in found if path not in NOT_OURS and f"/{path}" not in NOT_OURS}


def test_every_path_is_there_or_is_one_that_the_programs_make():
    assert {"flux_data/train.toml", "models/vae/ae.safetensors", "trainer/hub/"} <= paths()
    assert not [path for path in paths() if not (ROOT / path).exists() and not CREATED.fullmatch(path)]


def commands() -> list[list[str]]:
    """The words of everything that is run: `sh X …`, `python -m MODULE …`, `make …`."""
    words = [shlex.split(line) for line in said() if re.match(r"(sh|\S*python -m|make) ", line)]
    assert len(words) > 20
    return words


def settings() -> set[str]:
    return {f"--{name}" for name in FIELDS} | {"--config_file"}


@cache
def verb_flags(verb: str) -> set[str]:
    """The flags that `python -m trainer VERB --help` speaks of."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main([verb, "--help"])
    return set(FLAG.findall(out.getvalue())) | (settings() if verb in TRAINING else set())


def script_flags(script: str) -> set[str]:
    """The flags that a script's own help speaks of, and those of the program behind it."""
    if script == "download.sh":
        return verb_flags("download")
    own = set(FLAG.findall(text(script).split("END", 2)[1]))
    return own | (COMFYUI_FLAGS if script == "launch_comfyui.sh" else settings())


def test_every_script_and_flag_is_one_that_there_is():
    for _sh, script, *words in (words for words in commands() if words[0] == "sh"):
        assert script in LAUNCHERS and (ROOT / script).is_file()
        verb = next((word for word in words if word in VERBS), None)
        allowed = script_flags(script) | (verb_flags(verb) if verb else set())
        assert {word.split("=")[0] for word in words if FLAG.match(word)} <= allowed, words


def test_every_verb_and_flag_of_the_trainer_is_one_that_there_is():
    for words in (words for words in commands() if words[1:3] == ["-m", "trainer"] and len(words) > 3):
        verb, *rest = words[3:]
        assert verb in VERBS
        assert {word.split("=")[0] for word in rest if FLAG.match(word)} <= verb_flags(verb), words


def test_every_flag_that_stands_alone_is_of_some_program():
    known = set().union(*map(script_flags, LAUNCHERS), *map(verb_flags, VERBS))
    alone = {word.split("=")[0] for code in CODE.findall(prose(ENGLISH)) if code[:2] == "--" for word in code.split()}
    assert len(alone) > 10
    assert {word for word in alone if FLAG.match(word)} <= known


def test_every_make_target_and_module_is_there():
    targets = set(re.findall(r"^([a-z-]+):", text("Makefile"), re.MULTILINE))
    modules = {words[2] for words in commands() if words[1] == "-m"}
    assert {words[1] for words in commands() if words[0] == "make"} <= targets
    assert modules == {"trainer", "benchmarks.playbook"}
    assert (ROOT / "benchmarks/playbook.py").is_file()


PROGRAMS = ("hub/errors.py", "memory/first_step.py")


def test_messages_are_quoted_as_the_programs_say_them():
    """Each message in the first column of the troubleshooting table, numbers and names left open."""
    sources = [*(ROOT / "containers").glob("*.sh"), *(ROOT / "trainer" / name for name in PROGRAMS)]
    programs = " ".join(path.read_text(encoding="utf-8") for path in sources)
    table = sections(ENGLISH)[[title for _, title in headings(ENGLISH)].index("Troubleshooting")]
    quoted = [found.group(1) for row in table.splitlines() if (found := re.match(r"\| `([^`]+ [^`]+)` ", row))]
    assert len(quoted) >= 10
    for message in quoted:
        open_parts = re.sub(r"\b(docker|runs|flux-comfyui-7|\d+)(?=[ .])", "\0", message.removesuffix("…"))
        pieces = [piece.strip() for piece in open_parts.split("\0") if len(piece.strip()) > 3]
        assert all(piece in programs for piece in pieces), message


@pytest.mark.parametrize("name", ["base_flux", "finetuned_flux"])
def test_the_workflows_are_there(name: str):
    assert f"`{name}`" in text(ENGLISH) and (ROOT / "workflows" / f"{name}.json").is_file()


@pytest.mark.skipif("COMFYUI_DIR" not in os.environ, reason="needs COMFYUI_DIR, a checkout of the pinned ComfyUI")
def test_flags_for_comfyui_are_its_own():
    options = (Path(os.environ["COMFYUI_DIR"]) / "comfy/cli_args.py").read_text(encoding="utf-8")
    assert all(f'"{flag}"' in options for flag in COMFYUI_FLAGS)
