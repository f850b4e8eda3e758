"""Refuse to publish a node pack that is not ready for the Comfy registry.

usage: python -m tools.check_publishable [TAG]    exit status 1 with one line for each problem
"""

import sys
import tomllib
from pathlib import Path

from tools.pack_nodes import all_differences

PACK = Path(__file__).parents[1] / "custom_nodes/flux_dreambooth"
TAG = "nodes-v"


def problems(pack: Path = PACK, tag: str = "") -> list[str]:
    """What has to be done before this pack can be published; tag: nodes-v and its version, where there is one."""
    settings = tomllib.loads((pack / "pyproject.toml").read_text(encoding="utf-8"))
    project = settings["project"]
    found = []
    if not project["urls"].get("Repository", "").startswith("https://"):
        found.append("[project.urls] Repository is not set: give the https address of this repository")
    if not settings["tool"]["comfy"].get("PublisherId"):
        found.append("[tool.comfy] PublisherId is not set: create a publisher at https://registry.comfy.org")
    if tag.startswith(TAG) and tag.removeprefix(TAG) != project["version"]:
        found.append(f"the tag is {tag} but [project] version is {project['version']}: change one of them")
    if different := all_differences(pack):
        found.append(f"the pack's copy of trainer/ differs in {', '.join(different)}: run make pack")
    return found


if __name__ == "__main__":
    found = problems(tag="".join(sys.argv[1:2]))
    print(*found, sep="\n", file=sys.stderr, end="\n" * bool(found))
    sys.exit(bool(found))
