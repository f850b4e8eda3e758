"""README.md and the guide say what the programs do; README.ko.md is compared with README.md."""

import contextlib
import io
import json
import os
import re
import shlex
import warnings
from functools import cache
from pathlib import Path

import pytest

from mini.training.export.card_text import card_text
from tests.hub_files import DEV, TEXT_ENCODERS
from tests.recipe_files import ROOT
from tools.korean import CODE, LINK, blocks, differences, headings, prose, sections
from trainer.__main__ import VERBS, main
from trainer.config.values import FIELDS
from trainer.sampling.prompts import LINE_OPTIONS

ENGLISH, KOREAN = "README.md", "README.ko.md"
GUIDE = sorted(f"docs/guide/{path.name}" for path in (ROOT / "docs/guide").glob("*.md"))
USER_PAGES = [ENGLISH, *GUIDE]
PAGES = [KOREAN, *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").rglob("*.md"))), *USER_PAGES]
MAX_LINES = 220
FLAG = re.compile(r"--[A-Za-z][\w-]*")
PATH = re.compile(r"(?<![\w/:.-])\.?\w[\w.*-]*(?:/[\w.*-]*)+")
TRAINING = ("train", "check", "generate", "demo", "bench")  # verbs that take every setting
LAUNCHERS = {"launch_train.sh", "launch_comfyui.sh", "download.sh"}
COMFYUI_FLAGS = {
    "--lowvram",
    "--fp8_e4m3fn-unet",
    "--disable-mmap",
    "--disable-dynamic-vram",
    "--enable-dynamic-vram",
}
# what the programs write, and what a download brings
CREATED = re.compile(
    r"\.venv/.*|runs/.*|output/((demo/contact_sheet|masks/FOLDER)\.jpg)?|flux_data/(\.cache|presets/?)|SD_SCRIPTS/.*"
    r"|models/(loras|checkpoints|vae|text_encoders|tokenizers|masks|judges|captions)(/.*)?"
)
NOT_OURS = {DEV, TEXT_ENCODERS, "OWNER/NAME", "/proc/sys/vm/drop_caches", "models/*.safetensors", "flux_data/*.toml"}


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_readme_is_read_in_one_go():
    assert len(text(ENGLISH).splitlines()) <= MAX_LINES
    numbered = [title[:2] for _, title in headings(text(ENGLISH)) if title[:1].isdigit()]
    assert numbered == [f"{number}." for number in range(1, 8)]
    assert any("sh download.sh" in lines for _, lines in blocks(text(ENGLISH)))


def test_where_the_korean_page_falls_behind_is_reported():
    """A warning, not a failure: whoever changes README need not know Korean."""
    if found := differences(text(ENGLISH), text(KOREAN)):
        warnings.warn("\n".join([f"{KOREAN} is behind {ENGLISH} (python tools/korean.py):", *found]), stacklevel=1)


SMALL = """# Title

See [this](a.md) and `--flag`, 3 times.

```sh
make demo      # a comment
```

| a | `b` |
|---|---|
| c | 12 |

## Next
"""


@pytest.mark.parametrize(
    ("before", "after", "reported"),
    [
        ("a comment", "주석", ""),
        ("See ", "보기 2 ", ""),
        ("make demo", "make test", "code block 1"),
        ("a.md", "b.md", "Title: lacks the link a.md"),
        ("`--flag`", "`--flags`", "Title: lacks the code --flag"),
        ("3 times", "often", "Title: lacks the figure 3"),
        ("| c | 12 |\n", "12\n", "Title: table rows: 3 in English, 2 in Korean"),
        ("## Next", "", "headings: 2 in English, 1 in Korean"),
    ],
)
def test_what_the_korean_page_lacks_is_named(before: str, after: str, reported: str):
    found = differences(SMALL, SMALL.replace(before, after))
    assert found == [] if not reported else reported in "\n".join(found)


def test_the_code_names_every_folder():
    listed = sections(text(ENGLISH))[[title for _, title in headings(text(ENGLISH))].index("The code")]
    folders = {f"{name}/" for name in "trainer mini benchmarks custom_nodes containers tests docs tools".split()}
    assert folders <= set(CODE.findall(listed))


def test_the_model_card_is_written_from_its_figures():
    figures = json.loads(text("models/mini/figures.json"))
    assert text("models/mini/README.md") == card_text(figures)


def test_no_page_of_the_guide_is_left_out_of_readme():
    linked = {inside.split("#")[0] for inside, _ in LINK.findall(text(ENGLISH))}
    assert set(GUIDE) <= linked
    assert {f"docs/{inside}" for inside, _ in LINK.findall(text("docs/README.md"))} >= set(GUIDE)


@pytest.mark.parametrize("name", sorted(set(PAGES)))
def test_links_lead_somewhere(name: str):
    for inside, _ in LINK.findall(text(name)):
        if not inside or inside.startswith("http"):
            continue
        target, _, anchor = inside.partition("#")
        page = (ROOT / name).parent / target if target else ROOT / name
        assert page.is_file(), inside
        assert not anchor or anchor in anchors(page.read_text(encoding="utf-8")), inside


def anchors(page: str) -> set[str]:
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for _, title in headings(page)}


@cache
def said() -> list[str]:
    """Every line of a code block, continued lines joined, and every piece of code in the prose, of all user pages."""
    pages = [text(name).replace("\\\n", " ") for name in USER_PAGES]
    lines = [line for page in pages for _, lines in blocks(page) for line in lines]
    return lines + [code for page in pages for code in CODE.findall(prose(page))]


def paths() -> set[str]:
    found = {path for line in said() for path in PATH.findall(re.sub(r"https?://\S+", "", line))}
    return {path for path in found if path not in NOT_OURS and f"/{path}" not in NOT_OURS}


def test_every_path_is_there_or_is_one_that_the_programs_make():
    assert {"flux_data/train.toml", "models/vae/ae.safetensors", "custom_nodes/"} <= paths()
    assert not [path for path in paths() if not (ROOT / path).exists() and not CREATED.fullmatch(path)]


@pytest.mark.parametrize("name", sorted(set(PAGES) - {KOREAN, *USER_PAGES}))
def test_source_files_that_other_pages_name_are_there(name: str):
    named = {path for code in CODE.findall(prose(text(name))) for path in PATH.findall(code)}
    ours = [path for path in named if path.startswith(("trainer/", "benchmarks/", "tests/", "tools/", "mini/"))]
    assert not [path for path in ours if not (ROOT / path).exists()]


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
        assert {word.split("=")[0] for word in rest if FLAG.match(word)} <= verb_flags(verb) | {"--help"}, words


def test_every_flag_that_stands_alone_is_of_some_program():
    known = set().union(*map(script_flags, LAUNCHERS), *map(verb_flags, VERBS), {f"--{key}" for key in LINE_OPTIONS})
    alone = {word.split("=")[0] for code in said() if code[:2] == "--" for word in code.split()}
    assert len(alone) > 10
    assert {word for word in alone if FLAG.match(word)} <= known


def test_every_make_target_and_module_is_there():
    targets = set(re.findall(r"^([a-z-]+):", text("Makefile"), re.MULTILINE))
    modules = {words[2] for words in commands() if words[1] == "-m"}
    assert {words[1] for words in commands() if words[0] == "make"} <= targets
    assert modules == {
        "trainer",
        "benchmarks.playbook",
        "benchmarks.blocks",
        "benchmarks.hold",
        "benchmarks.plain_peft",
        "benchmarks.probe",
        "benchmarks.rates",
        "benchmarks.sampling",
        "benchmarks.selection",
        "benchmarks.waits",
        "mini.concepts",
    }
    for module in modules:
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module


PROGRAMS = ("hub/errors.py", "memory/first_step.py")


def test_messages_are_quoted_as_the_programs_say_them():
    """Each message in the first column of the troubleshooting table, numbers and names left open."""
    sources = [*(ROOT / "containers").glob("*.sh"), *(ROOT / "trainer" / name for name in PROGRAMS)]
    programs = " ".join(path.read_text(encoding="utf-8") for path in sources)
    table = sections(text(ENGLISH))[[title for _, title in headings(text(ENGLISH))].index("Troubleshooting")]
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
