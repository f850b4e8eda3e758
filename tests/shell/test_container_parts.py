"""The small programs that run inside the images: workflows, packages, and ComfyUI at its pin."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from custom_nodes.flux_dreambooth import user_folder
from tests.recipe_files import PATIENCE, ROOT
from tests.shell.parts import CONTAINERS, part


def test_workflows_are_put_there_once(tmp_path: Path):
    source, user = tmp_path / "workflows", tmp_path / "user"
    source.mkdir()
    for name in ("base", "finetuned"):
        (source / f"{name}.json").write_text(name)
    seed = user_folder.seed_workflows
    assert seed(source, user) == ["base.json", "finetuned.json"]
    (user / "workflows/base.json").write_text("changed by the user")
    (user / "workflows/finetuned.json").unlink()
    (source / "new.json").write_text("new")
    assert seed(source, user) == ["new.json"]
    kept = {file.name: file.read_text() for file in (user / "workflows").iterdir()}
    assert kept == {"base.json": "changed by the user", "new.json": "new"}


def test_a_workflow_of_the_users_own_is_not_overwritten(tmp_path: Path):
    source, user = tmp_path / "workflows", tmp_path / "user"
    for folder, text in ((source, "ours"), (user / "workflows", "theirs")):
        folder.mkdir(parents=True)
        (folder / "base.json").write_text(text)
    user_folder.main([str(source), str(user)])
    assert (user / "workflows/base.json").read_text() == "theirs"
    settings = user / "comfy.settings.json"
    assert json.loads(settings.read_text())["Comfy.TutorialCompleted"] is True
    settings.write_text("{}")
    user_folder.main([str(source), str(user)])
    assert settings.read_text() == "{}"


def test_torch_is_pinned_to_what_is_there(tmp_path: Path):
    import torch

    dependencies = part("dependencies")
    lines = dependencies.constraints([ROOT / "constraints.txt", CONTAINERS / "constraints-comfyui.txt"])
    pins = [line for line in lines if not line.startswith("#")]
    assert f"torch=={torch.__version__}" in pins
    names = [dependencies.name_of(line) for line in pins]
    assert len(names) == len(set(names)) and "peft" in names and "aiohttp" in names
    file = tmp_path / "constraints"
    file.write_text("\n".join(line for line in lines if "torchvision" not in line))
    kept = {name: found for name, found in dependencies.kept().items() if name != "torchvision"}
    dependencies.kept = lambda: kept
    assert dependencies.unchanged(file)
    file.write_text(file.read_text().replace(f"torch=={torch.__version__} in", "torch==1.0 in"))
    with pytest.raises(SystemExit, match="must stay as it was, but"):
        dependencies.unchanged(file)


def test_what_came_later_is_no_change_but_has_to_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Where there was no torchvision, ComfyUI's requirements bring it."""
    dependencies = part("dependencies")
    file = tmp_path / "constraints"
    file.write_text("\n".join(line for line in dependencies.constraints([]) if "torchvision" not in line))
    there = {**dependencies.kept(), "torchvision": dependencies.kept()["torch"]}
    dependencies.kept = lambda: there
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    with pytest.raises(SystemExit, match=r"torchvision cannot be imported .*nms does not exist\n.*pytorch.org"):
        dependencies.unchanged(file)
    (tmp_path / "torchvision.py").write_text("")
    importlib.invalidate_caches()
    shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
    assert any(line.startswith("torchvision==") for line in dependencies.unchanged(file))


@pytest.mark.parametrize(
    ("torch", "folder"),
    [("2.13.0+cpu", "cpu"), ("2.11.0+cu130", "cu130"), ("2.13.0", ""), ("2.9.0a0+50eac8.nv25.09", "")],
)
def test_torchvision_comes_from_where_torch_came_from(torch: str, folder: str):
    index = part("dependencies").index_of_build(torch)
    assert index == ([f"--extra-index-url https://download.pytorch.org/whl/{folder}"] if folder else [])


def test_requirements_go_without_torch_but_with_all_else(tmp_path: Path):
    listed = tmp_path / "requirements.txt"
    dependencies = part("dependencies")
    listed.write_text("torch\ntorchsde\ntorchaudio\nPillow\n\n#a comment\nkornia>=0.7.1\nnumpy>=1.25.0\n")
    assert dependencies.requirements([listed]) == ["torchsde", "Pillow", "kornia>=0.7.1"]
    ours = dependencies.requirements([ROOT / "pyproject.toml"])
    assert "toml>=0.10.2" in ours and not any(line.startswith(("torch", "numpy")) for line in ours)


def git(folder: Path, *words: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    return subprocess.run(
        ["git", "-C", folder, *who, *words], check=True, capture_output=True, text=True
    ).stdout.strip()


def fetch(folder: Path, repository: Path | str, commit: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "COMFYUI_REPOSITORY": str(repository), "COMFYUI_COMMIT": commit}
    command = ["sh", CONTAINERS / "fetch_comfyui.sh", folder]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)


def test_comfyui_is_the_pinned_commit_or_nothing(tmp_path: Path):
    upstream, here = tmp_path / "up stream", tmp_path / "he re"
    upstream.mkdir()
    git(upstream, "init", "--quiet")
    commits = []
    for text in ("one", "two"):
        (upstream / "main.py").write_text(text)
        git(upstream, "add", ".")
        git(upstream, "commit", "--quiet", "--message", text)
        commits.append(git(upstream, "rev-parse", "HEAD"))
    git(upstream, "config", "uploadpack.allowAnySHA1InWant", "true")

    done = fetch(here, f"file://{upstream}", commits[0])
    assert done.returncode == 0 and commits[0] in done.stdout, done.stderr
    assert (here / "main.py").read_text() == "one"
    assert fetch(here, "file:///nowhere", commits[0]).returncode == 0, "what is there needs no network"
    (here / "main.py").write_text("changed")
    assert "was changed" in fetch(here, "file:///nowhere", commits[0]).stderr
    assert fetch(here, f"file://{upstream}", commits[1]).returncode == 0
    assert (here / "main.py").read_text() == "two"
    assert "network" in fetch(tmp_path / "x", "file:///nowhere", commits[0]).stderr
    for short in (commits[0][:10], "v0.8.0", "../" + commits[0][:37]):
        assert "full commit id" in fetch(tmp_path / "y", f"file://{upstream}", short).stderr
