"""The texts of the nodes: English is complete and in one place; Korean that is missing or behind is a warning."""

import json
import re
import warnings
from typing import Any

import pytest

from custom_nodes.flux_dreambooth import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
from tests.nodes.server import PACK, ComfyServer
from tests.nodes.workflows import NAMES, load

DOCS = PACK / "web/docs"
EACH = pytest.mark.parametrize("node", NODE_CLASS_MAPPINGS)


def texts(language: str) -> dict[str, Any]:
    """The strings of a language in all of its files, nodeDefs.json with the other ones.

    Without those that English has in the code (tests/unit/test_messages.py).
    """
    found = {path.stem: json.loads(path.read_text()) for path in (PACK / "locales" / language).glob("*.json")}
    found["main"]["fluxDreamBooth"].pop("messages", None)
    return found


def keys_of(strings: dict[str, Any], before: str = "") -> set[str]:
    return {
        key
        for name, value in strings.items()
        for key in (keys_of(value, f"{before}{name}.") if isinstance(value, dict) else {f"{before}{name}"})
    }


def report(behind: list[str]) -> None:
    """Tell who translates; whoever adds a node without Korean is not held up."""
    if behind:
        warnings.warn(f"Korean is behind: {', '.join(behind)}", stacklevel=2)


def english_page(node: str) -> str:
    return (DOCS / f"{node}.md").read_text()


def korean_page(node: str) -> str | None:
    path = DOCS / node / "ko.md"
    return path.read_text() if path.exists() else None


def headings(page: str) -> list[str]:
    return re.findall(r"^#+ .*", page, re.MULTILINE)


def rows(page: str) -> list[list[str]]:
    """The cells of the tables' rows."""
    return [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]


def page_differences(english: str, korean: str) -> list[str]:
    """What a translated page lacks: headings and rows of tables are counted, the first cells compared."""
    found = []
    if [line.split()[0] for line in headings(english)] != [line.split()[0] for line in headings(korean)]:
        found.append("other headings")
    ours, theirs = rows(english), rows(korean)
    if [len(row) for row in ours] != [len(row) for row in theirs]:
        return [*found, "other tables"]
    named = ("input", "file", "the others")
    return found + [f"row {a[0]}" for a, b in zip(ours, theirs, strict=True) if a[0] != b[0] and a[0] not in named]


def test_no_page_is_left_over():
    assert {path.stem for path in DOCS.glob("*.md")} == {*NODE_CLASS_MAPPINGS}
    assert {path.parent.name for path in DOCS.glob("*/*")} <= {*NODE_CLASS_MAPPINGS}
    assert {path.name for path in DOCS.glob("*/*")} == {"ko.md"}


@EACH
def test_the_english_title_is_the_nodes_name(node: str):
    assert headings(english_page(node))[0] == f"# {NODE_DISPLAY_NAME_MAPPINGS[node]}"


@EACH
def test_every_output_has_its_english_text(node: str):
    cls, outputs = NODE_CLASS_MAPPINGS[node], texts("en")["nodeDefs"][node]["outputs"]
    names = getattr(cls, "RETURN_NAMES", cls.RETURN_TYPES)
    assert [outputs[str(index)]["name"] for index in range(len(outputs))] == list(names)
    assert all(cls.OUTPUT_TOOLTIPS) and len(cls.OUTPUT_TOOLTIPS) == len(names)


def test_the_page_s_texts_are_there_in_english():
    used = set()
    for path in PACK.glob("web/**/*.js"):
        used |= set(re.findall(r"\btext\('([\w.]+)'", path.read_text()))
    known = keys_of(texts("en")["main"]["fluxDreamBooth"])
    assert len(used) > 100 and not used - known


def test_missing_korean_is_reported_and_stops_nobody():
    english, korean = keys_of(texts("en")), keys_of(texts("ko"))
    report(sorted(english - korean) + [f"{key} (left over)" for key in sorted(korean - english)])
    for node in NODE_CLASS_MAPPINGS:
        page = korean_page(node)
        missing = ["no page"] if page is None else page_differences(english_page(node), page)
        title = texts("ko")["nodeDefs"].get(node, {}).get("display_name")
        missing += ["its title"] if page and title and headings(page)[0] != f"# {title}" else []
        report([f"{node}: {what}" for what in missing])


def test_the_texts_of_the_workflows_are_those_that_the_page_translates():
    given = texts("en")["main"]["fluxDreamBooth"]["workflows"]
    titles, notes = set(), set()
    for name in NAMES:
        graph = load(name)
        titles |= {group["title"] for group in graph["groups"]}
        titles |= {node["title"] for node in graph["nodes"] if node.get("title")}
        notes |= {node["widgets_values"][0] for node in graph["nodes"] if node["type"] == "MarkdownNote"}
    assert (titles, notes) == ({*given["titles"].values()}, {*given["notes"].values()})


def test_what_korean_lacks_is_found():
    assert keys_of({"a": {"b": "x", "c": {"d": "y"}}}) == {"a.b", "a.c.d"}
    english = "# A\n| input | |\n|---|---|\n| rank | x |\n"
    assert page_differences(english, english) == []
    assert page_differences(english, english.replace("rank", "other")) == ["row rank"]
    assert page_differences(english, "# A\n## B\n") == ["other headings", "other tables"]
    with pytest.warns(UserWarning, match="Korean is behind: x"):
        report(["x"])


@pytest.mark.comfyui
@EACH
def test_named_inputs_are_the_nodes(node: str, comfyui: ComfyServer):
    info = comfyui.object_info(node)
    known = {name for kind in info["input_order"].values() for name in kind}
    table = [row[0] for row in rows(english_page(node))]
    if table and table[0] == "input":
        named = {name.strip() for cell in table[1:] for name in re.split(r",|…", cell)} - {"the others"}
        assert named <= known


@pytest.mark.comfyui
@EACH
def test_the_server_gives_them(node: str, comfyui: ComfyServer):
    where, korean = f"/extensions/{PACK.name}/docs/{node}", korean_page(node)
    assert comfyui.request(f"{where}.md").decode() == english_page(node)
    if korean is not None:
        assert comfyui.request(f"{where}/ko.md").decode() == korean


@pytest.mark.comfyui
@EACH
def test_every_input_has_its_english_text(node: str, comfyui: ComfyServer):
    info = comfyui.object_info(node)
    shown = {
        name: (options[0] if options else {}).get("tooltip")
        for kind in ("required", "optional")
        for name, (_, *options) in info["input"].get(kind, {}).items()
    }
    given = texts("en")["nodeDefs"][node]
    plain = {
        name: each["tooltip"].replace("{'{'}", "{").replace("{'}'}", "}") for name, each in given["inputs"].items()
    }
    assert shown == plain and all(shown.values())
    assert (info["display_name"], info["description"]) == (given["display_name"], given["description"])
