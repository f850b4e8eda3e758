"""Both Dockerfiles really built, on a stand-in for NVIDIA's base, and the images really run.

Needs root, buildah and debootstrap (apt-get install buildah debootstrap), and COMFYUI_DIR for inference.
FLUX_BASE names a base image that is already there, else tools/standin_base.sh makes one.
"""

import json
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.recipe_files import ROOT

CHROOT = ["--isolation", "chroot", "--network", "host"]
PORT = 18188


def missing() -> str:
    if not os.environ.get("FLUX_CONTAINERS"):
        return "make test-containers builds and runs the images"
    if os.getuid():
        return "building needs root here"
    lacking = [tool for tool in ("buildah", "debootstrap") if not shutil.which(tool)]
    return f"apt-get install {' '.join(lacking)}" if lacking else ""


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
    name = f"localhost/flux-dreambooth-{kind}"
    shared = ["bud", "--layers", *CHROOT, "--format", "docker", "--build-arg", f"BASE={base}"]
    buildah(*shared, *options, "--file", f"Dockerfile.{kind}", "--tag", name, ".")
    return name


@contextmanager
def container(image: str) -> Iterator[list[str]]:
    """The words that run something in it as a user without a name."""
    name = buildah("from", image).strip()
    try:
        yield ["buildah", "run", *CHROOT, "--user", "1234:4321", name, "--"]
    finally:
        buildah("rm", name)


def settings(image: str) -> dict:
    return json.loads(buildah("inspect", "--type", "image", image))["Docker"]["config"]


def test_the_training_image(base: str):
    image = build(base, "train")
    asked = settings(image)
    assert asked["User"] == "1000:1000" and asked["StopSignal"] == "SIGTERM"
    assert asked["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"
    started = time.monotonic()
    build(base, "train", "--build-arg", "REVISION=another")
    assert time.monotonic() - started < 60
    with container(image) as run:
        program = "import torch, numpy, peft; print(torch.__file__); torch.from_numpy(numpy.ones(3))"
        entry = [*run, *asked["Entrypoint"]]
        done = subprocess.run([*entry, "python", "-c", program], capture_output=True, text=True)
        assert "/opt/venv" not in done.stdout and done.returncode == 0, done.stderr
        done = subprocess.run(
            [*entry, "python", "-m", "trainer", "check", "--config_file=flux_data/train.toml"],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 1 and "flux1-dev.safetensors" in done.stderr


def test_the_inference_image(base: str):
    if not (comfyui := os.environ.get("COMFYUI_DIR")):
        pytest.skip("needs COMFYUI_DIR, a checkout of the pinned ComfyUI")
    image = build(base, "inference", "--build-context", f"comfyui={comfyui}")
    asked = settings(image)
    assert asked["StopSignal"] == "SIGINT" and "healthy.py" in str(asked["Healthcheck"]["Test"])
    with container(image) as run:
        command = [*run, *asked["Entrypoint"], "--listen", "127.0.0.1", "--port", str(PORT), "--cpu"]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            assert answer("/system_stats")["system"]["comfyui_version"] == "0.8.0"
            listed = {entry["path"] for entry in answer("/api/userdata?dir=workflows&recurse=true&full_info=true")}
            assert listed >= {file.name for file in (ROOT / "workflows").glob("*.json")}
            healthy = [*run, "python3", "/flux/containers/healthy.py", str(PORT)]
            assert subprocess.run(healthy).returncode == 0
        finally:
            server.terminate()
            log, _ = server.communicate(timeout=60)
        assert not any(word in log for word in ("Traceback", "IMPORT FAILED", "Cannot import", "torchaudio missing")), (
            log
        )


def answer(path: str):
    """What ComfyUI says, as soon as it answers."""
    for _ in range(120):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{PORT}{path}", timeout=5) as reply:
                return json.load(reply)
        except OSError:
            time.sleep(1)
    raise AssertionError("ComfyUI does not answer")
