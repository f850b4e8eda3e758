"""The pack as the registry hands it out: the files that git knows, in a folder of the registry's name."""

import json
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from custom_nodes.flux_dreambooth import NODE_CLASS_MAPPINGS
from tests.nodes import blueprint
from tests.nodes.server import PACK, ComfyServer
from tests.nodes.workflows import NAMES


def test_the_blueprint_is_made_from_the_workflow():
    assert blueprint.BLUEPRINT.read_text() == blueprint.as_text(), "run python -m tests.nodes.workflows"


def test_the_blueprints_links_have_two_ends_that_know_them():
    (graph,) = blueprint.make(json.loads(blueprint.SOURCE.read_text()))["definitions"]["subgraphs"]
    nodes = {node["id"]: node for node in graph["nodes"]}
    for link in graph["links"]:
        number, origin, target = link["id"], link["origin_id"], link["target_id"]
        start = graph["inputs"] if origin == blueprint.INPUT else nodes[origin]["outputs"]
        end = graph["outputs"] if target == blueprint.OUTPUT else nodes[target]["inputs"]
        assert number in (start[link["origin_slot"]].get("linkIds") or start[link["origin_slot"]]["links"])
        place = end[link["target_slot"]]
        assert number in place.get("linkIds", [place.get("link")])
    assert len({link["id"] for link in graph["links"]}) == len(graph["links"])


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The pack in a folder that is named as in pyproject.toml."""
    name = tomllib.loads((PACK / "pyproject.toml").read_text())["project"]["name"]
    listed = subprocess.run(["git", "ls-files", "-z", "."], cwd=PACK, capture_output=True, text=True, check=True)
    folder = tmp_path / "unpacked" / name
    for file in filter(None, listed.stdout.split("\0")):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(PACK / file, folder / file)
    return folder


@pytest.mark.comfyui
def test_what_is_packed_works_alone(installed: Path, start_comfyui: Callable[..., ComfyServer]):
    server = start_comfyui("--disable-all-custom-nodes", "--whitelist-custom-nodes", installed.name, packs=(installed,))
    known = server.object_info()
    assert {known[node]["python_module"] for node in NODE_CLASS_MAPPINGS} == {f"custom_nodes.{installed.name}"}
    assert set(server.get("/workflow_templates")[installed.name]) == {*NAMES}
    assert {f"/extensions/{installed.name}/{file.name}" for file in (PACK / "web").glob("*.js")} <= {
        *server.get("/extensions")
    }
    entries = {entry["name"]: key for key, entry in server.get("/global_subgraphs").items()}
    served = server.get(f"/global_subgraphs/{entries[blueprint.BLUEPRINT.stem]}")
    assert served["data"] == blueprint.BLUEPRINT.read_text()
    assert "(IMPORT FAILED)" not in server.log  # as ComfyUI says it of a pack
