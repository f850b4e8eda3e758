"""The small programs that run inside the images: the first process, the seeding, the packages, the fetch."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.recipe_files import ROOT

CONTAINERS = ROOT / "containers"
INIT = [sys.executable, str(CONTAINERS / "init.py")]


def part(name: str):
    """One of containers/*.py as a module."""
    spec = importlib.util.spec_from_file_location(name, CONTAINERS / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


COUNTS_SIGNALS = """
import signal, sys, time
got = []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: got.append(signal.Signals(number).name))
print("ready", flush=True)
end = time.time() + float(sys.argv[1])
while time.time() < end and not got:
    time.sleep(0.02)
time.sleep(0.5)
print(*got, flush=True)
sys.exit(3)
"""


def ready(command: list[str], **kinds) -> subprocess.Popen:
    running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **kinds)
    assert running.stdout and running.stdout.readline() == "ready\n"
    return running


@pytest.mark.parametrize(("options", "heard"), [([], "SIGTERM"), (["--as", "SIGINT"], "SIGINT")], ids=["same", "as"])
def test_a_stop_is_handed_on_and_the_status_comes_back(options: list[str], heard: str):
    running = ready([*INIT, *options, sys.executable, "-c", COUNTS_SIGNALS, "20"])
    running.send_signal(signal.SIGTERM)
    out, _ = running.communicate(timeout=20)
    assert (out.strip(), running.returncode) == (heard, 3)


def test_ctrl_c_in_a_terminal_is_heard_once():
    """It goes to everyone in the terminal's group; twice would mean "at once"."""
    running = ready([*INIT, sys.executable, "-c", COUNTS_SIGNALS, "20"], start_new_session=True)
    os.killpg(running.pid, signal.SIGINT)
    assert running.communicate(timeout=20)[0].strip() == "SIGINT"


def test_under_a_launcher_the_training_hears_it_and_the_launcher_does_not(tmp_path: Path):
    (tmp_path / "trainer.py").write_text(COUNTS_SIGNALS)
    launcher = f"""
import subprocess, sys
sys.exit(subprocess.run([{sys.executable!r}, "-m", "trainer", "20"]).returncode + 1)
"""
    running = ready([*INIT, sys.executable, "-c", launcher], cwd=tmp_path)
    running.send_signal(signal.SIGINT)
    assert (running.communicate(timeout=20)[0].strip(), running.returncode) == ("SIGINT", 4)


def test_a_program_that_a_signal_ended_and_one_that_is_not_there():
    died = [*INIT, sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]
    assert subprocess.run(died).returncode == 137
    assert subprocess.run([*INIT, "no-such-program"], stderr=subprocess.DEVNULL).returncode == 127


def test_as_the_first_process_it_ends_on_a_signal_and_leaves_no_zombies():
    """In a process namespace of its own, where a default action does nothing and orphans come to process 1."""
    unshare = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"]
    if subprocess.run([*unshare, "true"], capture_output=True).returncode:
        pytest.skip("needs `unshare --pid` for this user: run as root, or allow user namespaces")
    orphan = "(sleep 0.2 &) ; sleep 0.6; grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null; echo ready; exec sleep 20"
    running = subprocess.Popen([*unshare, *INIT, "sh", "-c", orphan], stdout=subprocess.PIPE, text=True)
    assert running.stdout and running.stdout.readline() == "ready\n"
    first = part("init").children(running.pid)[0]
    os.kill(first, signal.SIGTERM)
    started = time.monotonic()
    running.wait(timeout=20)
    assert time.monotonic() - started < 5 and running.returncode == 143
    running.stdout.close()


def test_workflows_are_put_there_once(tmp_path: Path):
    source, user = tmp_path / "workflows", tmp_path / "user"
    source.mkdir()
    for name in ("base", "finetuned"):
        (source / f"{name}.json").write_text(name)
    seed = part("seed_user").seed_workflows
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
    part("seed_user").main([str(source), str(user)])
    assert (user / "workflows/base.json").read_text() == "theirs"
    settings = user / "comfy.settings.json"
    assert json.loads(settings.read_text())["Comfy.TutorialCompleted"] is True
    settings.write_text("{}")
    part("seed_user").main([str(source), str(user)])
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
    with pytest.raises(SystemExit, match="must stay as it was"):
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
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


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
