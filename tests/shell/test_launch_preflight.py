"""What keeps a container from starting: each said with its remedy, and all of it in one message."""

import os
import shutil

import pytest

from tests.recipe_files import ROOT
from tests.shell.recorder import DOCKER, SHELLS, Place

BOTH = pytest.mark.parametrize("script", ["train", "comfyui"])


def refused(place: Place, script: str, *arguments: str, **env: str) -> str:
    """What a launcher says that starts nothing."""
    done = place.launch(script, *arguments, **env)
    assert done.status == 1, done.err
    assert not any(call[1:2] in (["run"], ["build"]) for call in done.calls)
    return done.err


@BOTH
def test_docker_is_not_there(place: Place, script: str):
    (place.bin / "docker").unlink()
    said = refused(place, script)
    assert "docker is not installed" in said and "--native" in said


@BOTH
def test_permission_denied_gives_two_commands(place: Place, script: str):
    place.program("docker", "echo 'permission denied while trying to connect to the daemon socket' >&2; exit 1")
    said = refused(place, script)
    assert "sudo usermod -aG docker ada" in said and "newgrp docker" in said


@BOTH
def test_the_daemon_does_not_answer(place: Place, script: str):
    place.program("docker", "echo 'Cannot connect to the Docker daemon at unix:///x' >&2; exit 1")
    said = refused(place, script)
    assert "sudo systemctl start docker" in said and "Cannot connect" in said


@BOTH
def test_no_driver(place: Place, script: str):
    place.program("nvidia-smi", "exit 9")
    assert "--cpu" in refused(place, script)
    assert place.launch(script, "--cpu").status == 0


@BOTH
def test_no_nvidia_runtime_gives_the_command_that_installs_it(place: Place, script: str):
    place.program("docker", "")
    said = refused(place, script)
    assert "apt-get install -y nvidia-container-toolkit" in said and "--runtime=docker" in said and "--cpu" in said


@BOTH
def test_the_demo_goes_to_the_processor_instead(place: Place, script: str):
    place.program("nvidia-smi", "exit 9")
    done = place.launch(script, "--demo")
    assert done.status == 0 and "--gpus" not in done.ran() and "runs on the processor" in done.err


@BOTH
@pytest.mark.parametrize("name", ["checkpoints/flux1-dev", "vae/ae", "text_encoders/clip_l"])
@pytest.mark.parametrize("harm", ["missing", "empty", "cut", "no header"])
def test_a_model_file_that_is_not_whole(place: Place, script: str, name: str, harm: str):
    file = place.model(f"models/{name}.safetensors")
    if harm == "missing":
        file.unlink()
    else:
        file.write_bytes({"empty": b"", "cut": file.read_bytes()[:-1], "no header": b"\xff" * 50}[harm])
    said = refused(place, script)
    assert f"models/{name}.safetensors is " in said and "sh download.sh" in said
    assert ("missing" if harm in ("missing", "empty") else "cut short") in said
    assert place.launch(script, "--demo").status == 0, "the demo has a model of its own"


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file; run as somebody else")
def test_a_model_file_of_somebody_else(place: Place):
    place.model("models/vae/ae.safetensors").chmod(0)
    assert "models/vae/ae.safetensors cannot be read by you" in refused(place, "train")


def test_every_missing_file_is_named_at_once(place: Place):
    for file in (place.root / "models").rglob("*.safetensors"):
        file.unlink()
    said = refused(place, "train")
    assert said.count(".safetensors is missing") == 4 and said.count("sh download.sh") == 1


@BOTH
@pytest.mark.parametrize("native", [[], ["--native"]], ids=["container", "native"])
def test_the_demo_says_what_its_model_lacks(place: Place, script: str, native: list[str]):
    """It comes with the repository, so no download brings it."""
    place.environment()
    small = place.root / "models/mini"
    (small / "ae-mini.safetensors").write_bytes(b"cut")
    (small / "tokenizers/tokenizer_2").rmdir()
    said = refused(place, script, "--demo", *native)
    assert "1 thing" in said and "git pull" in said and "download.sh" not in said
    assert "in models/mini: ae-mini.safetensors is cut short, tokenizers/tokenizer_2 is missing." in said
    (small / "flux1-mini.safetensors").unlink()
    assert "There is no small model in models/mini yet." in refused(place, script, "--demo", *native)


def test_training_on_the_small_model_needs_no_download(place: Place):
    settings = (ROOT / "flux_data/demo.toml").read_text()
    (place.root / "flux_data/demo.toml").write_text(settings)
    shutil.rmtree(place.root / "models/tokenizers")
    assert place.launch("train", "--config_file=flux_data/demo.toml").status == 0
    (place.root / "models/mini/t5-mini.safetensors").unlink()
    said = refused(place, "train", "--config_file=flux_data/demo.toml")
    assert "t5-mini.safetensors is missing" in said and "git pull" in said


def test_the_files_are_those_of_flags_and_settings(place: Place):
    place.model("models/vae/my own ae.safetensors")
    (place.root / "models/vae/ae.safetensors").unlink()
    assert place.launch("train", "--ae", "models/vae/my own ae.safetensors").status == 0
    (place.root / "flux_data/mine.toml").write_text('ae = "models/vae/nothing.safetensors"\n')
    assert "vae/nothing.safetensors is missing" in refused(place, "train", "--config_file=flux_data/mine.toml")
    assert "flux_data/none.toml" in refused(place, "train", "--config_file=flux_data/none.toml")
    assert "not seen in a container" in refused(place, "train", "--ae=/elsewhere/ae.safetensors")
    place.environment()
    said = refused(place, "train", "--native", "--ae=/elsewhere/ae.safetensors")
    assert "/elsewhere/ae.safetensors is missing" in said


def test_comfyui_takes_schnell_and_the_smaller_text_encoder(place: Place):
    models = place.root / "models"
    (models / "checkpoints/flux1-dev.safetensors").rename(models / "checkpoints/flux1-schnell.safetensors")
    (models / "text_encoders/t5xxl_fp16.safetensors").rename(models / "text_encoders/t5xxl_fp8_e4m3fn.safetensors")
    assert place.launch("comfyui").status == 0


def test_tokenizers(place: Place):
    (place.root / "models/tokenizers/tokenizer_2").rmdir()
    assert "tokenizers are missing" in refused(place, "train")


@pytest.mark.parametrize(
    ("line", "holder"),
    [
        ('LISTEN 0 128 127.0.0.1:8188 0.0.0.0:* users:(("python3",pid=77,fd=3))', "python3 (process 77)"),
        ("LISTEN 0 128 127.0.0.1:8188 0.0.0.0:*", "another user"),
    ],
)
def test_a_port_that_is_taken(place: Place, line: str, holder: str):
    place.program("ss", f"case $* in *':8188'|*':8189') echo '{line}' ;; esac")
    said = refused(place, "comfyui")
    assert holder in said and "--port 8190" in said
    assert place.launch("comfyui", "--port=8190").status == 0


def test_a_port_that_a_container_holds(place: Place):
    place.program("docker", "case $* in *publish=8188*) echo flux-comfyui-7 ;; esac" + DOCKER)
    assert "container flux-comfyui-7" in refused(place, "comfyui")


@BOTH
def test_another_container_on_the_gpu(place: Place, script: str):
    place.program("docker", "case $* in *label=flux-dreambooth.gpu*) echo flux-train-5 ;; esac" + DOCKER)
    assert "docker stop flux-train-5" in refused(place, script)
    assert place.launch(script, "--cpu").status == 0
    assert place.launch(script, "--skip-checks").status == 0


@pytest.mark.parametrize(
    ("total", "free", "enough"), [("[N/A]", 50, False), ("[N/A]", 70, True), ("81559 MiB", 50, True)]
)
def test_memory(place: Place, total: str, free: int, enough: bool):
    """A GPU that shares the host's memory needs more of it."""
    meminfo = place.root / "meminfo"
    meminfo.write_text(f"MemTotal: 1 kB\nMemAvailable:   {free * 1024 * 1024} kB\n")
    place.program("nvidia-smi", f"case $* in *memory.total*) echo '{total}' ;; esac")
    done = place.launch("train", MEMINFO=str(meminfo))
    assert (done.status == 0) == enough
    assert enough or (f"{free} GiB of memory" in done.err and "drop_caches" in done.err and "process" in done.err)


def test_disk(place: Place):
    place.program("df", "printf 'x\\n/dev/x 100 90 1048576 9%% /\\n'")
    said = refused(place, "train")
    assert "has 1 GiB free, about 30 are needed" in said and "flux_data/.cache" in said
    assert "about 2 are needed" in refused(place, "comfyui")


def test_disk_for_the_image(place: Place):
    place.program("df", "printf 'x\\n/dev/x 100 90 36000000 9%% /\\n'")
    place.program("docker", "case $* in 'image inspect'*) exit 1 ;; esac" + DOCKER)
    assert "docker system prune" in refused(place, "comfyui")


def test_a_folder_with_a_colon(tmp_path):
    place = Place(tmp_path, "a:b")
    assert "colon" in refused(place, "train")


@pytest.mark.parametrize("shell", SHELLS)
def test_everything_is_said_at_once(place: Place, shell: str):
    place.program("docker", "echo 'permission denied' >&2; exit 1")
    place.program("ss", "case $* in *:8188) echo 'LISTEN 0 1 *:8188' ;; esac")
    (place.root / "models/vae/ae.safetensors").unlink()
    done = place.launch("comfyui", shell=shell)
    assert done.status == 1 and done.out == ""
    assert done.err.startswith("3 things to mend") and "\n  3. " in done.err
