"""How the launchers call docker or the environment's Python, option by option."""

import itertools
import os
import pty
import shlex
import shutil
import subprocess

import pytest

from tests.recipe_files import ROOT
from tests.shell.recorder import SHELLS, Place, owner

BOTH = pytest.mark.parametrize("script", ["train", "comfyui"])
PROGRAM = ["python", "-m", "trainer"]


def after_image(call: list[str]) -> list[str]:
    """The words that follow the image's name."""
    (image,) = (word for word in call if word in ("flux-dreambooth-train", "flux-dreambooth-comfyui"))
    return call[call.index(image) + 1 :]


def options(call: list[str], name: str) -> list[str]:
    return [value for word, value in itertools.pairwise(call) if word == name]


@BOTH
@pytest.mark.parametrize("shell", SHELLS)
def test_a_healthy_machine_starts_the_container(place: Place, script: str, shell: str):
    done = place.launch(script, shell=shell)
    assert done.status == 0, done.err
    call = done.ran()
    for words in ("--gpus all", "--ipc=host", "--init", "--ulimit memlock=-1", "--ulimit stack=67108864", "--rm"):
        assert words in " ".join(call)
    assert options(call, "--user") == [owner()]
    assert int(options(call, "--stop-timeout")[0]) >= 600
    assert "--interactive" not in call and "--tty" not in call
    assert f"{place.root}/models:/flux/models:ro" in options(call, "--volume")
    assert f"{place.root}/models/loras:/flux/models/loras" in options(call, "--volume")
    assert (place.root / "models/loras").is_dir() and (place.root / "output").is_dir()


def test_training_is_the_default_and_takes_its_settings_from_the_file(place: Place):
    assert after_image(place.launch("train").ran()) == [*PROGRAM, "train", "--config_file=flux_data/train.toml"]
    call = place.launch("train", "--network_dim", "16", "--config_file", "flux_data/train.toml").ran()
    assert after_image(call) == [*PROGRAM, "train", "--network_dim", "16", "--config_file", "flux_data/train.toml"]
    for folder in ("flux_data", "runs", "output"):
        assert f"{place.root}/{folder}:/flux/{folder}" in options(call, "--volume")


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        (["check"], ["check", "--config_file=flux_data/train.toml"]),
        (["info", "a b.safetensors", "--json"], ["info", "a b.safetensors", "--json"]),
        (["train", "--help"], ["train", "--config_file=flux_data/train.toml", "--help"]),
        (["--demo"], ["demo"]),
        (["--demo", "--max_train_steps=2"], ["demo", "--max_train_steps=2"]),
        (["--cpu", "--", "sample", "--cpu", "--demo"], ["sample", "--cpu", "--demo"]),
        (["sample", "--prompt", 'it\'s "here" $HOME *'], ["sample", "--prompt", 'it\'s "here" $HOME *']),
    ],
    ids=lambda words: " ".join(words),
)
def test_everything_else_goes_through(place: Place, given: list[str], asked: list[str]):
    assert after_image(place.launch("train", *given).ran()) == [*PROGRAM, *asked]


def test_a_waiting_trainer_shares_gpu_and_network_with_comfyui(place: Place):
    """It reaches ComfyUI on the loopback address, and neither of the two counts the other as in its way."""
    place.program("docker", "case $* in ps*gpu=yes*) echo flux-comfyui-7 ;; *Runtimes*) echo nvidia ;; esac")
    assert "flux-comfyui-7 is using the GPU" in place.launch("train").err
    done = place.launch("train", "--serve", "--num_processes=2", "--comfyui=none")
    call = done.ran()
    assert after_image(call) == [*PROGRAM, "serve", "--num_processes=2", "--comfyui=none"], done.err
    assert options(call, "--network") == ["host"] and "flux-dreambooth.gpu=yes" not in call
    for refused in (["--demo"], ["--num_machines=2", "--machine_rank=0", "--main_process_ip=10.0.0.1"]):
        assert place.launch("train", "--serve", *refused, "--skip-checks").status == 2


def test_a_trainer_waits_without_a_container_too(place: Place):
    dry = place.launch("train", "--native", "--dry-run", "--cpu", "--serve", "--num_processes", "2")
    line = shlex.split(dry.out.splitlines()[-1])
    assert line[-5:] == [*PROGRAM, "serve", "--num_processes=2"] and "CUDA_VISIBLE_DEVICES=" in line


def test_comfyui_may_write_jobs_images_and_captions(place: Place):
    call = place.launch("comfyui").ran()
    for folder in ("flux_data", "runs"):
        assert f"{place.root}/{folder}:/flux/{folder}" in options(call, "--volume")


@BOTH
def test_help_asks_nothing_of_anyone(place: Place, script: str):
    done = place.launch(script, "--help")
    assert done.status == 0 and done.calls == []
    for option in ("--demo", "--cpu", "--build", "--shell", "--native", "--dry-run"):
        assert option in done.out
    assert len(max(done.out.splitlines(), key=len)) <= 110


@BOTH
@pytest.mark.parametrize("shell", SHELLS)
def test_a_dry_run_prints_what_a_run_would_do(place: Place, script: str, shell: str):
    """The line is for a shell: quoted where it has to be, and the same words."""
    arguments = ["--build", "sample" if script == "train" else "--lowvram", "it's", "a b", "$x"]
    dry = place.launch(script, "--dry-run", *arguments, shell=shell)
    assert dry.status == 0 and not any("run" in call[:2] or "build" in call[:2] for call in dry.calls)
    assert not (place.root / "output").exists()
    printed = [shlex.split(line) for line in dry.out.splitlines()]
    real = place.launch(script, *arguments, shell=shell)
    without_number = [
        [word for word in line if not word.startswith("flux-train-") and "flux-comfyui-" not in word]
        for line in (*printed, real.call("docker", "build"), real.ran())
    ]
    assert without_number[:2] == without_number[2:]


@BOTH
def test_the_image_is_built_when_missing_or_asked_for(place: Place, script: str):
    assert not any(call[1] == "build" for call in place.launch(script).calls)
    build = place.launch(script, "--build").call("docker", "build")
    dockerfile = {"train": "Dockerfile.train", "comfyui": "Dockerfile.inference"}[script]
    assert options(build, "--file") == [f"{place.root}/{dockerfile}"] and build[-1] == str(place.root)
    place.program("docker", "case $* in 'image inspect'*) exit 1 ;; *Runtimes*) echo nvidia ;; esac")
    done = place.launch(script, BASE="other:1", COMFYUI_DIR="/a b/c")
    build = done.call("docker", "build")
    assert "BASE=other:1" in options(build, "--build-arg")
    assert options(build, "--build-context") == (["comfyui=/a b/c"] if script == "comfyui" else [])
    assert done.calls.index(build) < done.calls.index(done.ran())


@BOTH
def test_a_build_that_fails_starts_nothing(place: Place, script: str):
    place.program("docker", "case $1 in build) exit 7 ;; esac; case $* in *Runtimes*) echo nvidia ;; esac")
    done = place.launch(script, "--build")
    assert done.status == 2 and "could not be built" in done.err
    assert not any(call[1] == "run" for call in done.calls)


@BOTH
def test_without_a_gpu(place: Place, script: str):
    place.program("nvidia-smi", "exit 9")
    call = place.launch(script, "--cpu").ran()
    assert "--gpus" not in call and "flux-dreambooth.gpu=yes" not in call
    if script == "comfyui":
        assert after_image(call)[-1] == "--cpu"
    else:
        assert "CUDA_VISIBLE_DEVICES=" in options(call, "--env")


@BOTH
def test_a_shell(place: Place, script: str):
    call = place.launch(script, "--shell", "--port=8190" if script == "comfyui" else "--cpu").ran()
    assert options(call, "--entrypoint") == ["bash"] and after_image(call) == []
    assert "--publish" not in call


@BOTH
def test_podman(place: Place, script: str):
    place.program("podman", "")
    place.program("nvidia-ctk", "echo nvidia.com/gpu=all")
    (place.bin / "docker").unlink()
    done = place.launch(script, "--build", DOCKER="podman")
    assert done.status == 0, done.err
    call = done.call("podman", "run")
    assert options(call, "--device") == ["nvidia.com/gpu=all"] and "--gpus" not in call
    assert ("--userns=keep-id" in call) == (os.getuid() != 0)
    assert options(done.call("podman", "build"), "--format") == ["docker"]


@BOTH
def test_the_files_belong_to_the_caller(place: Place, script: str):
    """Under sudo to the person who typed it; of a rootless docker's root they are the caller's own."""
    call = place.launch(script, "--dry-run", SUDO_UID="1234", SUDO_GID="4321").out
    assert "--user 1234:4321" in call
    place.program("docker", "case $* in *Security*) echo '[name=rootless]' ;; *Runtimes*) echo nvidia ;; esac")
    assert options(place.launch(script, SUDO_UID="1").ran(), "--user") == ["0:0"]


@pytest.mark.parametrize(
    ("arguments", "published"),
    [
        ([], "127.0.0.1:8188:8188"),
        (["--port", "8200"], "127.0.0.1:8200:8188"),
        (["--port=8200"], "127.0.0.1:8200:8188"),
        (["--listen"], "0.0.0.0:8188:8188"),
        (["--listen", "10.0.0.5", "--lowvram"], "10.0.0.5:8188:8188"),
        (["--listen=10.0.0.5", "--port=9"], "10.0.0.5:9:8188"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_comfyui_is_for_this_machine_alone_unless_asked(place: Place, arguments: list[str], published: str):
    done = place.launch("comfyui", *arguments)
    assert options(done.ran(), "--publish") == [published]
    assert ("no password" in done.err) == (not published.startswith("127."))
    assert after_image(done.ran())[:2] == ["--listen", "0.0.0.0"]
    port = published.rsplit(":", 2)[-2]
    assert f"ComfyUI: http://127.0.0.1:{port}\n" in done.err


@pytest.mark.parametrize(("arguments", "workflow"), [([], "base_flux"), (["--demo"], "mini_base")])
def test_a_browser_that_comes_first_sees_our_workflow(place: Place, arguments: list[str], workflow: str):
    name = f"FLUX_FIRST_WORKFLOW={workflow}"
    assert name in options(place.launch("comfyui", *arguments).ran(), "--env")
    place.environment()
    assert name in shlex.split(place.launch("comfyui", "--native", "--dry-run", *arguments).out.splitlines()[-1])


@pytest.mark.parametrize("port", ["x", "", "123456"])
def test_a_port_that_is_none(place: Place, port: str):
    done = place.launch("comfyui", f"--port={port}")
    assert done.status == 2 and "not a port" in done.err


def test_skip_checks_reaches_the_check_inside_the_image(place: Place):
    assert "FLUX_SKIP_CHECKS=yes" in options(place.launch("comfyui", "--skip-checks").ran(), "--env")
    assert "FLUX_SKIP_CHECKS=yes" not in options(place.launch("comfyui").ran(), "--env")
    place.environment()
    line = place.launch("comfyui", "--native", "--dry-run", "--skip-checks").out.splitlines()[-1]
    assert "FLUX_SKIP_CHECKS=yes" in shlex.split(line)


def test_nothing_of_comfyui_is_lost_with_the_container(place: Place):
    call = place.launch("comfyui").ran()
    for folder in ("output", "input", "user"):
        assert f"{place.root}/{folder}:/flux/{folder}" in options(call, "--volume")


@BOTH
def test_what_was_compiled_outlives_the_container(place: Place, script: str, tmp_path):
    place.environment()
    own = tmp_path / "my cache"
    for given, kept in (({}, place.root / "flux_data/.cache/compiled/triton"), ({"TRITON_CACHE_DIR": str(own)}, own)):
        volumes = options(place.launch(script, **given).ran(), "--volume")
        assert f"{kept}:/flux/.cache/compile/triton" in volumes and kept.is_dir()
        assert f"{place.root}/flux_data/.cache/compiled/inductor:/flux/.cache/compile/inductor" in volumes
        dry = shlex.split(place.launch(script, "--native", "--dry-run", **given).out.splitlines()[-1])
        assert f"TRITON_CACHE_DIR={kept}" in dry
        assert f"TORCHINDUCTOR_CACHE_DIR={place.root}/flux_data/.cache/compiled/inductor" in dry
    dockerfile = (ROOT / f"Dockerfile.{'train' if script == 'train' else 'inference'}").read_text()
    for name in (
        "TORCHINDUCTOR_CACHE_DIR=/flux/.cache/compile/inductor",
        "TRITON_CACHE_DIR=/flux/.cache/compile/triton",
    ):
        assert name in dockerfile


def test_several_processes(place: Place):
    call = place.launch("train", "--num_processes", "2", "--network_dim=8").ran()
    assert after_image(call)[:2] == ["--num_processes=2", "--num_machines=1"]
    assert after_image(call)[2:6] == [*PROGRAM, "train"] and call[-1] == "--network_dim=8"
    assert "--network" not in call
    assert after_image(place.launch("train", "--num_processes=1").ran())[:3] == PROGRAM
    assert place.launch("train", "--num_processes").status == 2


def test_several_machines(place: Place):
    flags = ["--num_machines=2", "--machine_rank=1", "--main_process_ip=10.0.0.5", "--main_process_port=29501"]
    call = place.launch("train", *flags, NCCL_SOCKET_IFNAME="enp1").ran()
    words = after_image(call)
    assert set(flags) < set(words) and "--num_processes=2" in words and words[5:8] == PROGRAM
    assert options(call, "--network") == ["host"] and "NCCL_SOCKET_IFNAME" in options(call, "--env")
    done = place.launch("train", "--num_machines=2")
    assert done.status == 1 and "--main_process_ip" in done.err


def test_a_secret_is_passed_by_name(place: Place):
    done = place.launch("train", WANDB_API_KEY="sesame")
    assert "WANDB_API_KEY" in options(done.ran(), "--env")
    assert not any("sesame" in word for call in done.calls for word in call) and "sesame" not in done.out + done.err


def test_what_a_link_leads_to_is_mounted_where_it_points(place: Place, tmp_path):
    elsewhere = tmp_path / "big disk"
    elsewhere.mkdir()
    vae = place.root / "models/vae/ae.safetensors"
    shutil.move(vae, elsewhere / "ae.safetensors")
    vae.symlink_to(elsewhere / "ae.safetensors")
    shutil.move(place.root / "models/checkpoints", elsewhere / "checkpoints")
    (place.root / "models/checkpoints").symlink_to(f"../../../{elsewhere.name}/checkpoints")
    volumes = options(place.launch("train").ran(), "--volume")
    assert f"{elsewhere}/ae.safetensors:{elsewhere}/ae.safetensors:ro" in volumes
    assert f"{elsewhere}/checkpoints:/flux/models/../../../{elsewhere.name}/checkpoints:ro" in volumes


@pytest.mark.parametrize("shell", SHELLS)
def test_any_folder_will_do(place: Place, tmp_path, shell: str):
    first = place.launch("train", shell=shell, cwd=place.root).ran()
    other = place.launch("train", shell=shell, cwd=tmp_path).ran()
    assert options(first, "--volume") == options(other, "--volume")


def test_a_terminal_is_passed_on_where_there_is_one(place: Place):
    ours, theirs = pty.openpty()
    environment = {"PATH": str(place.bin), "HOME": str(place.root)}
    script = place.root / "launch_train.sh"
    done = subprocess.run(["sh", script, "--dry-run"], env=environment, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    assert done.returncode == 0 and b"--interactive --tty" in os.read(ours, 10_000)
    os.close(ours)


@BOTH
def test_without_a_container(place: Place, script: str):
    place.environment()
    (place.bin / "docker").unlink()
    dry = place.launch(script, "--native", "--dry-run", "--lowvram")
    assert dry.status == 0, dry.err
    lines = [shlex.split(line) for line in dry.out.splitlines()]
    if script == "train":
        assert lines[0] == ["cd", str(place.root)]
        start = lines[1].index("containers/init.py")
        assert lines[1][start - 1] == f"{place.root}/.venv/bin/python"
        assert lines[1][start + 1 :] == [*PROGRAM, "train", "--config_file=flux_data/train.toml", "--lowvram"]
    else:
        assert lines[0] == ["sh", f"{place.root}/containers/fetch_comfyui.sh", f"{place.root}/.comfyui"]
        assert lines[-1][-5:] == ["--listen", "127.0.0.1", "--port", "8188", "--lowvram"]
    shutil.rmtree(place.root / ".venv")
    done = place.launch(script, "--native")
    assert done.status == 1 and "make -C" in done.err
