"""The help pages: every node has one in English and one in Korean, and both tell the same."""

import json
import re

import pytest

from custom_nodes.flux_dreambooth import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
from tests.nodes.server import PACK, ComfyServer

DOCS = PACK / "web/docs"
EACH = pytest.mark.parametrize("node", NODE_CLASS_MAPPINGS)


def pages(node: str) -> tuple[str, str]:
    """English and Korean, at the places where ComfyUI's browser looks for them."""
    return (DOCS / f"{node}.md").read_text(), (DOCS / node / "ko.md").read_text()


def headings(page: str) -> list[str]:
    return re.findall(r"^#+ .*", page, re.MULTILINE)


def rows(page: str) -> list[list[str]]:
    """The cells of the tables' rows."""
    return [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]


def test_no_page_is_left_over():
    assert {path.stem for path in DOCS.glob("*.md")} == {*NODE_CLASS_MAPPINGS}
    assert {path.parent.name for path in DOCS.glob("*/*")} == {*NODE_CLASS_MAPPINGS}
    assert {path.name for path in DOCS.glob("*/*")} == {"ko.md"}


@EACH
def test_titles_are_the_nodes_names(node: str):
    korean_names = json.loads((PACK / "locales/ko/nodeDefs.json").read_text())
    english, korean = pages(node)
    assert headings(english)[0] == f"# {NODE_DISPLAY_NAME_MAPPINGS[node]}"
    assert headings(korean)[0] == f"# {korean_names[node]['display_name']}"


@EACH
def test_both_languages_have_the_same_headings_and_rows(node: str):
    english, korean = pages(node)
    assert [line.split()[0] for line in headings(english)] == [line.split()[0] for line in headings(korean)]
    assert [len(row) for row in rows(english)] == [len(row) for row in rows(korean)]
    for ours, theirs in zip(rows(english), rows(korean), strict=True):
        assert ours[0] == theirs[0] or ours[0] in ("input", "file", "the others")


@pytest.mark.comfyui
@EACH
def test_named_inputs_are_the_nodes(node: str, comfyui: ComfyServer):
    info = comfyui.object_info(node)
    known = {name for kind in info["input_order"].values() for name in kind}
    table = [row[0] for row in rows(pages(node)[0])]
    if table and table[0] == "input":
        named = {name.strip() for cell in table[1:] for name in re.split(r",|…", cell)} - {"the others"}
        assert named <= known


@pytest.mark.comfyui
@EACH
def test_the_server_gives_them(node: str, comfyui: ComfyServer):
    english, korean = pages(node)
    where = f"/extensions/{PACK.name}/docs/{node}"
    assert comfyui.request(f"{where}.md").decode() == english
    assert comfyui.request(f"{where}/ko.md").decode() == korean
