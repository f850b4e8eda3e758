"""Both Dockerfiles really built, on a stand-in for NVIDIA's base, and the images really run.

Needs root, buildah and debootstrap (apt-get install buildah debootstrap), and COMFYUI_DIR for inference.
FLUX_BASE names a base image that is already there, else tools/standin_base.sh makes one.
"""

import json
import os
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from custom_nodes.flux_dreambooth import NODE_CLASS_MAPPINGS
from tests.dataset_files import draw_folder
from tests.recipe_files import ROOT
from trainer.checkpoint.state import read_progress

CHROOT = ["--isolation", "chroot", "--network", "host"]
ADDRESS = "http://127.0.0.1:18188"
USER = (1234, 4321)
BROKEN = ("Traceback", "IMPORT FAILED", "Cannot import", "torchaudio missing")
DATASET = (
    '[[datasets]]\nresolution = 64\n[[datasets.subsets]]\nimage_dir = "flux_data/toy"\nclass_tokens = "tjtoy toy"\n'
)
TINY = [
    *("--pretrained_model_name_or_path=models/checkpoints/flux1-dev.safetensors", "--ae=models/vae/ae.safetensors"),
    *("--clip_l=models/text_encoders/clip_l.safetensors", "--t5xxl=models/text_encoders/t5xxl_fp16.safetensors"),
    *("--dataset_config=flux_data/data.toml", "--output_name=tj", "--network_dim=4", "--learning_rate=1e-3"),
    *("--t5xxl_max_token_length=32", "--mixed_precision=no", "--log_with=none"),
]


def missing() -> str:
    if not os.environ.get("FLUX_CONTAINERS"):
        return "make test-containers builds and runs the images"
    if os.getuid():
        return "building needs root here"
    lacking = [tool for tool in ("buildah", "debootstrap") if not shutil.which(tool)]
    return (
        f"apt-get install {' '.join(lacking)}: tools/standin_base.sh makes the base image with them" if lacking else ""
    )


pytestmark = [
    pytest.mark.container,
    pytest.mark.timeout(3000),
    pytest.mark.skipif(bool(missing()), reason=missing()),
]


def buildah(*words: str) -> str:
    done = subprocess.run(["buildah", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def base() -> str:
    if given := os.environ.get("FLUX_BASE"):
        return given
    name = "localhost/flux-dreambooth-standin"
    if subprocess.run(["buildah", "inspect", "--type", "image", name], capture_output=True).returncode:
        subprocess.run(["sh", ROOT / "tools/standin_base.sh", name], check=True)
    return name


def build(base: str, kind: str, *options: str) -> str:
    """Build an image and return its name; prints how long it took (pytest -s)."""
    name, started = f"localhost/flux-dreambooth-{kind}", time.monotonic()
    shared = ["bud", "--layers", *CHROOT, "--format", "docker", "--build-arg", f"BASE={base}"]
    buildah(*shared, *options, "--file", f"Dockerfile.{kind}", "--tag", name, ".")
    print(f"{kind}: {time.monotonic() - started:.0f} s, {buildah('images', '--format', '{{.Size}}', name).strip()}")
    return name


@contextmanager
def container(image: str, folders: Path | None = None, *variables: str) -> Iterator[list[str]]:
    """The words that run something in it as a user without a name, with these folders mounted as the launchers do.

    variables: NAME=VALUE, for its environment.
    """
    name = buildah("from", image).strip()
    mounts = [f"--volume={folder}:/flux/{folder.name}:rw" for folder in sorted(folders.iterdir())] if folders else []
    env = [f"--env={variable}" for variable in variables]
    try:
        yield ["buildah", "run", *CHROOT, "--user", "{}:{}".format(*USER), *env, *mounts, name, "--"]
    finally:
        buildah("rm", name)


def settings(image: str) -> dict:
    return json.loads(buildah("inspect", "--type", "image", image))["Docker"]["config"]


def folders_of_the_caller(place: Path, *names: str) -> Path:
    """Folders that belong to USER, as the launchers make them for the person who calls."""
    for name in names:
        (place / name).mkdir(parents=True)
    for path in [place, *place.rglob("*")]:
        os.chown(path, *USER)
    place.chmod(0o755)
    return place


def in_background(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)


def stop(program: str) -> None:
    """SIGTERM to the first process of a container, which buildah does not hand on; `program` tells it from others."""
    for process in Path("/proc").glob("[0-9]*"):
        words = (process / "cmdline").read_bytes().decode().split("\0") if (process / "cmdline").exists() else []
        if words[1:2] == ["/flux/containers/init.py"] and program in words:
            os.kill(int(process.name), signal.SIGTERM)
            return
    raise AssertionError(f"{program} does not run")


def wait_until(seen: Callable[[], Any], log: Path, seconds: int = 180) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := seen()):
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.5)
    return found


def test_the_training_image(base: str, tiny_flux, tmp_path: Path):
    image = build(base, "train")
    asked = settings(image)
    assert asked["User"] == "1000:1000" and asked["StopSignal"] == "SIGTERM"
    assert asked["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"
    started = time.monotonic()
    build(base, "train", "--build-arg", "REVISION=another")
    assert time.monotonic() - started < 60
    shutil.copytree(tiny_flux.ae.parents[1], tmp_path / "here/models")
    draw_folder(tmp_path / "here/flux_data/toy", [(64, 64)] * 3)
    (tmp_path / "here/flux_data/data.toml").write_text(DATASET)
    here = folders_of_the_caller(tmp_path / "here", "runs", "models/loras")
    with container(image, here) as run:
        program = "import torch, numpy, peft; print(torch.__file__); torch.from_numpy(numpy.ones(3))"
        entry = [*run, *asked["Entrypoint"]]
        done = subprocess.run([*entry, "python", "-c", program], capture_output=True, text=True)
        assert "/opt/venv" not in done.stdout and done.returncode == 0, done.stderr
        for words, text in (["--help"], "train a LoRA"), (["bench", "--help"], "--setting"):
            done = subprocess.run([*entry, "python", "-m", "trainer", *words], capture_output=True, text=True)
            assert done.returncode == 0 and text in done.stdout, done.stderr
        training = [*entry, "python", "-m", "trainer", "train", *TINY]
        done = subprocess.run([*training, "--max_train_steps=2"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        assert (here / "models/loras/tj.safetensors").stat().st_uid == USER[0]
        a_stop_saves([*training, "--max_train_steps=5000", "--output_name=long"], here, tmp_path / "log")
    with container(image, here, "ACCELERATE_USE_CPU=true") as run:
        two = [*run, *asked["Entrypoint"], "--num_processes=2", "python", "-m", "trainer", "train", *TINY]
        flags = ["--max_train_steps=2", "--output_name=two", "--save_state_on_train_end"]
        done = subprocess.run([*two, *flags], capture_output=True, text=True)
        assert done.returncode == 0 and (here / "models/loras/two.safetensors").exists(), done.stderr[-3000:]
        (state,) = (here / "runs/two").glob("state-step*")
        assert read_progress(state)["world_size"] == 2


def test_the_demo_needs_nothing_but_its_image(base: str, tmp_path: Path):
    image = build(base, "train")
    here = folders_of_the_caller(tmp_path / "here", "runs", "output")
    short = ["--max_train_epochs=1", "--save_every_n_epochs=1", "--prompts=1"]
    with container(image, here) as run:
        command = [*run, *settings(image)["Entrypoint"], "python", "-m", "trainer", "demo", *short]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
    assert "tjtoy, mean probability" in done.stdout
    assert (here / "output/demo/contact_sheet.jpg").stat().st_uid == USER[0]
    assert json.loads((here / "output/demo/scores.json").read_text())["columns"][1]["name"] == "final"


def a_stop_saves(training: list[str], here: Path, log: Path) -> None:
    steps = here / "runs/long/log.jsonl"
    with in_background(training, log) as running:
        wait_until(lambda: steps.exists() and '"step"' in steps.read_text().partition('"kind": "step"')[2], log)
        stop("--output_name=long")
        assert running.wait(timeout=120) != 0
    said = log.read_text()
    assert said.splitlines()[-1].startswith(("To go on", "Error: exit status 143", "subprocess exited")), said
    assert "--resume=runs/long/state-step" in said and "Traceback" not in said
    (state,) = (here / "runs/long").glob("state-step*")
    (lora,) = (here / "models/loras").glob("long-step*.safetensors")
    assert {file.stat().st_uid for file in (state, lora)} == {USER[0]}


def test_the_inference_image(base: str, tmp_path: Path):
    if not (comfyui := os.environ.get("COMFYUI_DIR")):
        pytest.skip("needs COMFYUI_DIR, a checkout of the pinned ComfyUI")
    image = build(base, "inference", "--build-context", f"comfyui={comfyui}")
    asked = settings(image)
    assert asked["StopSignal"] == "SIGINT" and "healthy.py" in str(asked["Healthcheck"]["Test"])
    here = folders_of_the_caller(tmp_path / "here", "runs/tj", "user", "output", "input")
    (here / "runs/tj/log.jsonl").write_text('{"kind": "start", "step": 0, "total_steps": 9, "epochs": 1}\n')
    log = tmp_path / "log"
    with container(image, here) as run:
        done = subprocess.run([*run, *asked["Entrypoint"]], capture_output=True, text=True)
        assert done.returncode == 1 and "models/vae/ae.safetensors is missing." in done.stderr
    with container(image, here, "FLUX_FIRST_WORKFLOW=mini_base") as run:
        options = ["--listen", "127.0.0.1", "--port", ADDRESS.rpartition(":")[2], "--cpu"]
        with in_background([*run, *asked["Entrypoint"], *options], log) as server:
            stats = wait_until(lambda: answer("/system_stats"), log)
            assert stats["system"]["comfyui_version"] == "0.33.0"
            assert answer("/object_info").keys() >= NODE_CLASS_MAPPINGS.keys() and len(NODE_CLASS_MAPPINGS) >= 8
            listed = {entry["path"] for entry in answer("/api/userdata?dir=workflows&recurse=true&full_info=true")}
            assert listed >= {file.name for file in (ROOT / "workflows").glob("*.json")}
            assert "tj" in json.dumps(answer("/flux_dreambooth/runs"))
            healthy = [*run, "python3", "/flux/containers/healthy.py", options[3]]
            assert subprocess.run(healthy).returncode == 0
            stop("SIGINT")
            assert server.wait(timeout=60) == 0
    assert "Stopped server" in log.read_text() and not any(word in log.read_text() for word in BROKEN), log.read_text()
    assert (here / "user/comfyui.db").stat().st_uid == USER[0]


def answer(path: str) -> Any:
    """What ComfyUI says; None as long as nobody answers."""
    try:
        with urllib.request.urlopen(ADDRESS + path, timeout=10) as reply:
            return json.load(reply)
    except OSError:
        return None
