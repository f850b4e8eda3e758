"""`sh download.sh`: in the environment, in the training image, in neither; from any folder, with spaces in its path."""

import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fake_hub import serving
from tests.hub_files import DEV, flux_hub
from tests.recipe_files import PATIENCE, ROOT, environment

TOKEN = flux_hub().token
SHELLS = [shell for shell in ("dash", "bash") if shutil.which(shell)]
# writes down its arguments and, of its environment, the names that a test asks for
DOCKER = """#!/bin/sh
case "$*" in
    "image inspect"*) [ -z "${NO_IMAGE:-}" ] || exit 1 ;;
    info*) ;;
    *) printf '%s\\n' "$@" >"$RECORD"; exit 42 ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What the script needs of the repository, in a folder with spaces."""
    folder = tmp_path / "my flux $HOME; folder"
    folder.mkdir()
    shutil.copy(ROOT / "download.sh", folder)
    shutil.copytree(ROOT / "containers", folder / "containers")
    (folder / "trainer").symlink_to(ROOT / "trainer")
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "docker").write_text(DOCKER)
    (programs / "docker").chmod(0o755)
    return folder


def add_environment(checkout: Path, python: str = sys.executable) -> None:
    program = checkout / ".venv" / "bin" / "python"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nexec "{python}" "$@"\n')
    program.chmod(0o755)


def run(checkout: Path, *argv: str, shell: str = "sh", **more: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in environment().items() if not name.startswith(("HF_", "HUGGING"))}
    path = f"{checkout.parent / 'bin'}:{os.environ['PATH']}"
    inside = {"PATH": path, "HOME": str(checkout.parent), "RECORD": str(checkout.parent / "record")}
    command = [shell, str(checkout / "download.sh"), *argv]
    return subprocess.run(command, env=kept | inside | more, cwd="/", capture_output=True, text=True, timeout=PATIENCE)


def recorded(checkout: Path) -> list[str]:
    return (checkout.parent / "record").read_text().splitlines()


def pairs(words: list[str], option: str) -> list[str]:
    return [value for word, value in itertools.pairwise(words) if word == option]


@pytest.mark.parametrize("shell", SHELLS)
def test_in_the_environment(checkout, shell):
    add_environment(checkout)
    with serving(flux_hub()) as hub:
        done = run(checkout, "--only", "ae", "clip_l", shell=shell, HF_ENDPOINT=hub.url, HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    assert (checkout / "models/vae/ae.safetensors").read_bytes() == hub.files[DEV]["ae.safetensors"]
    assert TOKEN not in done.stdout + done.stderr


def test_the_status_reaches_the_shell(checkout):
    add_environment(checkout)
    with serving(flux_hub()) as hub:
        hub.accepted = False
        done = run(checkout, HF_ENDPOINT=hub.url, HF_TOKEN=TOKEN)
    assert done.returncode == 5 and f"{hub.url}/{DEV}" in done.stderr and TOKEN not in done.stderr


@pytest.mark.parametrize("shell", SHELLS)
def test_in_the_image(checkout, shell):
    done = run(checkout, "--only", "ae", shell=shell, HF_TOKEN=TOKEN, HTTPS_PROXY="http://proxy:1")
    words = recorded(checkout)
    assert done.returncode == 42, "the container's status is ours"
    image = words.index("flux-dreambooth-train")
    assert words[image:] == ["flux-dreambooth-train", *"python -m trainer download --only ae".split()]
    assert f"{checkout}/models:/flux/models" in pairs(words, "--volume") and (checkout / "models").is_dir()
    assert {"HF_TOKEN", "HTTPS_PROXY", "HF_HUB_OFFLINE=0"} <= set(pairs(words, "--env"))
    assert TOKEN not in "".join(words) and "--gpus" not in words and "--tty" not in words
    assert f"{os.getuid()}:{os.getgid()}" in pairs(words, "--user") or "SUDO_UID" in os.environ


def test_the_saved_login_is_mounted(checkout):
    login = checkout.parent / ".cache" / "huggingface" / "token"
    login.parent.mkdir(parents=True)
    login.write_text(TOKEN)
    run(checkout)
    words = recorded(checkout)
    assert f"{login}:/home/flux/login:ro" in pairs(words, "--volume")
    assert "HF_TOKEN_PATH=/home/flux/login" in pairs(words, "--env") and TOKEN not in "".join(words)


def test_linked_folders_are_written_where_they_lead(checkout):
    disk = checkout.parent / "big disk"
    disk.mkdir()
    (checkout / "models").mkdir()
    (checkout / "models" / "checkpoints").symlink_to(disk)
    run(checkout)
    assert f"{disk}:{disk}" in pairs(recorded(checkout), "--volume")


def test_a_folder_that_no_container_keeps_is_refused(checkout):
    done = run(checkout, "--models_dir=/elsewhere")
    assert done.returncode == 2 and "--models_dir" in done.stderr
    assert not (checkout.parent / "record").exists()


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("broken", [False, True])
def test_with_neither_both_ways_are_named(checkout, shell, broken):
    if broken:  # an installation that was interrupted
        add_environment(checkout, python="false")
    done = run(checkout, shell=shell, NO_IMAGE="1")
    assert done.returncode == 127 and not done.stdout
    assert "make -C" in done.stderr and "setup" in done.stderr and "launch_train.sh" in done.stderr


def test_help_comes_from_the_program(checkout):
    add_environment(checkout)
    done = run(checkout, "--help")
    assert done.returncode == 0 and "--schnell" in done.stdout and "exit statuses" in done.stdout


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="needs shellcheck: apt-get install shellcheck")
def test_shellcheck():
    done = subprocess.run(["shellcheck", "-x", "download.sh"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
