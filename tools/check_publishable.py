"""Refuse to publish a node pack that is not ready for the Comfy registry.

usage: python -m tools.check_publishable [TAG]    exit status 1 with one line for each problem

`comfy node validate` asks for less: it only warns of what the registry would drop without a word.
"""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

from tools.pack_nodes import all_differences

PACK = Path(__file__).parents[1] / "custom_nodes/flux_dreambooth"
TAG = "nodes-v"
SECURITY = "S102,S307,E702"  # ruff's rules that comfy-cli applies: exec, eval, several statements on one line
VERSIONS = re.compile(r"(?:==|>=|<=|!=|~=|>|<|<>|=)?\s*\d+\.\d+\.\d+(?:-[a-zA-Z0-9]+)?")
NAME = re.compile(r"(?!comfy)[a-z][a-z0-9._-]*[a-z0-9]")
# what a pack needs that is found by its place in ComfyUI, so that nothing else would notice its absence
PLACES = (
    "LICENSE",
    "README.md",
    "icon.svg",
    "example_workflows/*.json",
    "locales/en/*.json",
    "subgraphs/*.json",
    "web/*.js",
)


def problems(pack: Path = PACK, tag: str = "") -> list[str]:
    """What has to be done before this pack can be published; tag: nodes-v and its version, where there is one."""
    settings = tomllib.loads((pack / "pyproject.toml").read_text(encoding="utf-8"))
    project = settings["project"]
    found = [*_project_problems(project), *_comfy_problems(settings["tool"]["comfy"]), *_file_problems(pack)]
    if tag.startswith(TAG) and tag.removeprefix(TAG) != project["version"]:
        found.append(f"the tag is {tag} but [project] version is {project['version']}: change one of them")
    if different := all_differences(pack):
        found.append(f"the pack's copy of trainer/ differs in {', '.join(different)}: run make pack")
    return found


def _project_problems(project: dict[str, Any]) -> list[str]:
    found = []
    if not project["urls"].get("Repository", "").startswith("https://"):
        found.append("[project.urls] Repository is not set: give the https address of this repository")
    if not NAME.fullmatch(project["name"]):
        found.append(f"[project] name is {project['name']!r}: use lower case, and do not start with comfy")
    if not re.fullmatch(r"\d+\.\d+\.\d+", project["version"]):
        found.append(f"[project] version is {project['version']!r}: the registry takes three numbers, such as 0.2.0")
    if not any(line.startswith("Operating System :: ") for line in project.get("classifiers", [])):
        found.append("[project] classifiers name no operating system: Operating System :: OS Independent")
    return found


def _comfy_problems(comfy: dict[str, Any]) -> list[str]:
    found = []
    if not comfy.get("PublisherId"):
        found.append("[tool.comfy] PublisherId is not set: create a publisher at https://registry.comfy.org")
    if not re.fullmatch(r"https://\S+\.(svg|png|jpg|gif)", comfy.get("Icon", "")):
        found.append("[tool.comfy] Icon is not set: give the https address of icon.svg in this repository")
    if not comfy.get("DisplayName"):
        found.append("[tool.comfy] DisplayName is not set: it is the pack's name in the registry")
    if not all(VERSIONS.fullmatch(part.strip()) for part in comfy.get("requires-comfyui", "").split(",")):
        found.append("[tool.comfy] requires-comfyui cannot be read: write it as >=0.8.0 or >=0.8.0,<1.0.0")
    return found


def _file_problems(pack: Path) -> list[str]:
    found = [f"{place} is missing" for place in PLACES if not any(pack.glob(place))]
    ruff = [sys.executable, "-m", "ruff", "check", str(pack), "--isolated", "--quiet", "--select", SECURITY]
    done = subprocess.run(ruff, capture_output=True, text=True)
    return found + ([f"the registry's security check fails:\n{done.stdout}{done.stderr}"] if done.returncode else [])


if __name__ == "__main__":
    found = problems(tag="".join(sys.argv[1:2]))
    print(*found, sep="\n", file=sys.stderr, end="\n" * bool(found))
    sys.exit(bool(found))
