"""A copy of the launchers in a folder of its own, with programs on PATH that record how they are called."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.recipe_files import PATIENCE, ROOT

SHELLS = [shell for shell in ("dash", "bash", "busybox") if shutil.which(shell)]
TOOLS = (
    "sh dash bash cat sed awk grep tr wc od head tail find sort cksum cut df ps id mkdir dirname readlink env".split()
)
FILES = ("checkpoints/flux1-dev", "vae/ae", "text_encoders/clip_l", "text_encoders/t5xxl_fp16")

# what a healthy docker answers; a test may put its own answers first
DOCKER = """
case "$*" in
    'info --format {{json .Runtimes}}') echo '{"nvidia":{},"runc":{}}' ;;
    'info --format {{.DockerRootDir}}') echo / ;;
    info*) ;;
    'image inspect '*) ;;
esac
"""
HEALTHY = {
    "docker": DOCKER,
    "nvidia-smi": "case $* in *memory.total*) echo '81559 MiB' ;; esac",
    "ss": "",
    "git": "exit 1",
}


@dataclass(frozen=True)
class Ran:
    """What a launcher printed, how it ended, and the recorded calls, one list of words each."""

    status: int
    out: str
    err: str
    calls: list[list[str]]

    def call(self, *words: str) -> list[str]:
        """The one recorded call that starts with these words."""
        (found,) = (call for call in self.calls if call[: len(words)] == list(words))
        return found

    def ran(self) -> list[str]:
        """The words of `docker run`."""
        return self.call("docker", "run")


class Place:
    """A repository with launchers, fake programs and model files, which no launcher reads."""

    def __init__(self, folder: Path, name: str = "my repo"):
        self.root, self.bin, self.record = folder / name, folder / "bin", folder / "calls"
        self.root.mkdir(parents=True)
        shutil.copytree(ROOT / "containers", self.root / "containers", ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("launch_train.sh", "launch_comfyui.sh"):
            shutil.copy(ROOT / name, self.root / name)
        self.bin.mkdir()
        for tool in TOOLS:
            if found := shutil.which(tool):
                (self.bin / tool).symlink_to(found)
        for name, body in HEALTHY.items():
            self.program(name, body)
        (self.root / "flux_data").mkdir()
        shutil.copy(ROOT / "flux_data/train.toml", self.root / "flux_data/train.toml")
        for name in FILES:
            file = self.root / f"models/{name}.safetensors"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"weights")

    def program(self, name: str, body: str) -> None:
        """A program on PATH: it records its words, then does what `body` says."""
        words = f'{{ printf "%s\\n" {name} "$@"; echo; }} >>"{self.record}"'
        (self.bin / name).unlink(missing_ok=True)
        (self.bin / name).write_text(f"#!/bin/sh\n{words}\n{body}\n")
        (self.bin / name).chmod(0o755)

    def environment(self) -> None:
        """The virtual environment of --native, with a Python that only records."""
        folder = self.root / ".venv/bin"
        folder.mkdir(parents=True)
        self.program("python", "")
        shutil.move(self.bin / "python", folder / "python")

    def launch(self, script: str, *arguments: str, shell: str = "sh", cwd: Path | None = None, **env: str) -> Ran:
        """Run a launcher as a user would, without a terminal."""
        self.record.unlink(missing_ok=True)
        command = [*(["busybox", "sh"] if shell == "busybox" else [shell]), str(self.root / f"launch_{script}.sh")]
        environment = {"PATH": str(self.bin), "HOME": str(self.root), "USER": "ada", **env}
        done = subprocess.run(
            [shutil.which(command[0]) or command[0], *command[1:], *arguments],
            cwd=cwd or self.root.parent,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        text = self.record.read_text() if self.record.exists() else ""
        calls = [block.split("\n") for block in text.removesuffix("\n\n").split("\n\n") if block]
        return Ran(done.returncode, done.stdout, done.stderr, calls)


def owner() -> str:
    return f"{os.getuid()}:{os.getgid()}"
