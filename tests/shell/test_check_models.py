"""check_models.py: which model files ComfyUI lacks, found inside the image before it starts."""

import contextlib
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.recipe_files import PATIENCE, ROOT
from tests.shell.parts import CONTAINERS, part

FULL = ("checkpoints/flux1-dev", "vae/ae", "text_encoders/clip_l", "text_encoders/t5xxl_fp16")


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder with complete model files, the full ones and the small ones."""
    for name in (*FULL, *(f"mini/{name}-mini" for name in ("flux1", "ae", "clip_l", "t5"))):
        file = tmp_path / f"a b/models/{name}.safetensors"
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({"a": np.ones(3), "b": np.ones((2, 2))}, file, metadata={"note": "[1,2]"})
    for name in ("tokenizer", "tokenizer_2"):
        (tmp_path / "a b/models/mini/tokenizers" / name).mkdir(parents=True)
    return tmp_path / "a b/models"


def check_models(models: Path, workflow: str = "base_flux") -> tuple[int, str]:
    """Exit status and message of the check."""
    message = io.StringIO()
    with contextlib.redirect_stderr(message):
        return part("check_models").main([str(models), workflow]), message.getvalue()


@pytest.mark.parametrize("name", FULL)
@pytest.mark.parametrize("harm", ["missing", "empty", "cut", "longer", "no header"])
def test_a_model_file_that_is_not_complete(models: Path, name: str, harm: str):
    file = models / f"{name}.safetensors"
    whole = file.read_bytes()
    if harm == "missing":
        file.unlink()
    else:
        file.write_bytes({"empty": b"", "cut": whole[:-1], "longer": whole + b"x", "no header": b"\xff" * 50}[harm])
    what = "missing" if harm in ("missing", "empty") else "incomplete"
    status, said = check_models(models)
    assert status == 1 and f"models/{name}.safetensors is {what}." in said and "sh download.sh" in said
    assert said.startswith("1 problem found:") and "--skip-checks" in said
    assert check_models(models, "mini_base") == (0, ""), "the demo has a model of its own"


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file; run as another user")
def test_a_model_file_of_another_user(models: Path):
    (models / "vae/ae.safetensors").chmod(0)
    assert "models/vae/ae.safetensors cannot be read" in check_models(models)[1]


def test_every_missing_file_is_named_at_once(models: Path):
    assert check_models(models) == (0, "")
    shutil.rmtree(models)
    status, said = check_models(models)
    assert status == 1 and said.count(".safetensors is missing.") == 4 and said.count("sh download.sh") == 1


def test_the_small_model_comes_with_the_repository(models: Path):
    """No download brings it."""
    (models / "mini/ae-mini.safetensors").write_bytes(b"cut")
    (models / "mini/tokenizers/tokenizer_2").rmdir()
    status, said = check_models(models, "mini_base")
    assert status == 1 and "2 problems found:" in said and "git pull" in said and "download.sh" not in said
    assert "models/mini/ae-mini.safetensors is incomplete." in said
    assert "models/mini/tokenizers/tokenizer_2 is missing." in said
    assert part("check_models").problems(ROOT / "models", mini=True) == []


def test_schnell_and_the_smaller_text_encoder_will_do(models: Path):
    (models / "checkpoints/flux1-dev.safetensors").rename(models / "checkpoints/flux1-schnell.safetensors")
    (models / "text_encoders/t5xxl_fp16.safetensors").rename(models / "text_encoders/t5xxl_fp8_e4m3fn.safetensors")
    assert check_models(models) == (0, "")
    (models / "text_encoders/t5xxl_fp8_e4m3fn.safetensors").write_bytes(b"cut")
    assert "models/text_encoders/t5xxl_fp8_e4m3fn.safetensors is incomplete." in check_models(models)[1]


def test_comfyui_starts_only_with_its_models(models: Path, tmp_path: Path):
    """In a container and without one; FLUX_SKIP_CHECKS starts it anyway."""
    main = tmp_path / "comfyui/main.py"
    main.parent.mkdir()
    main.write_text("print('started')")
    command = ["bash", CONTAINERS / "comfyui.sh", main.parent, models.parent, ROOT / "workflows"]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"

    def start(**variables: str) -> tuple[int, str]:
        environment = {**os.environ, "PATH": path, **variables}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)
        return done.returncode, done.stdout + done.stderr

    status, said = start(FLUX_FIRST_WORKFLOW="base_flux")
    assert status == 0 and "started" in said
    (models / "vae/ae.safetensors").unlink()
    status, said = start()
    assert status == 1 and "ae.safetensors is missing." in said and "started" not in said
    assert start(FLUX_FIRST_WORKFLOW="mini_base")[0] == 0
    status, said = start(FLUX_SKIP_CHECKS="yes")
    assert status == 0 and "started" in said


UNIFIED = ["--disable-mmap", "--disable-dynamic-vram"]


@pytest.mark.parametrize("known", [UNIFIED, UNIFIED[:1]], ids=["with DynamicVRAM", "before it"])
def test_weights_are_held_once_where_the_gpu_shares_memory(models: Path, tmp_path: Path, known: list[str]):
    """Flags that this ComfyUI has, in front of the user's own."""
    comfyui = tmp_path / "my comfyui"
    (comfyui / "comfy").mkdir(parents=True)
    (comfyui / "main.py").write_text("import sys; print(*sys.argv[1:], sep='|')")
    (comfyui / "comfy/cli_args.py").write_text("".join(f'parser.add_argument("{flag}")\n' for flag in known))
    command = ["bash", CONTAINERS / "comfyui.sh", comfyui, models.parent, ROOT / "workflows", "--port", "1 2"]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for variables, flags in ({}, []), ({"FLUX_UNIFIED_MEMORY": "yes"}, known):
        done = subprocess.run(command, env=environment | variables, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, done.stderr
        *said, words = done.stdout.splitlines()
        assert words.endswith("|".join(["--disable-auto-launch", *flags, "--port", "1 2"]))
        assert (f"Unified memory: ComfyUI starts with {' '.join(flags)}" in said) == bool(flags)
