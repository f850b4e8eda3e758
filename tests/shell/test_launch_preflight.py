"""What keeps a container from starting: each problem is printed with its fix, all of them in one message."""

import pytest

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
    assert done.status == 0 and "--gpus" not in done.ran() and "runs on the CPU" in done.err


@pytest.mark.parametrize("words", [["--ae={}"], ["--ae", "{}"], ["info", "{}"]], ids=" ".join)
def test_a_path_that_the_container_cannot_see(place: Place, tmp_path, words: list[str]):
    elsewhere = tmp_path / "ae.safetensors"
    elsewhere.write_bytes(b"weights")
    words = [word.format(elsewhere) for word in words]
    said = refused(place, "train", *words)
    assert f"The container cannot see {elsewhere}." in said and "link it into this folder" in said
    place.environment()
    assert place.launch("train", "--native", *words).status == 0
    elsewhere.unlink()
    assert place.launch("train", *words).status == 0, "what does not exist is for the program to report"


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
    assert enough or (f"Only {free} GiB of memory" in done.err and "drop_caches" in done.err and "process" in done.err)


@pytest.mark.parametrize("words", [[], ["--native"]], ids=["container", "native"])
@pytest.mark.parametrize(("total", "unified"), [("[N/A]", True), ("81559 MiB", False)])
def test_comfyui_is_told_of_unified_memory(place: Place, words: list[str], total: str, unified: bool):
    place.program("nvidia-smi", f"case $* in *memory.total*) echo '{total}' ;; esac")
    place.environment()
    done = place.launch("comfyui", "--dry-run", *words)
    assert done.status == 0, done.err
    assert ("FLUX_UNIFIED_MEMORY=yes" in done.out) == unified == ("weights are held once" in done.err)
    assert "FLUX_UNIFIED_MEMORY" not in place.launch("comfyui", "--dry-run", "--cpu", *words).out


def test_disk(place: Place):
    place.program("df", "printf 'x\\n/dev/x 100 90 1048576 9%% /\\n'")
    said = refused(place, "comfyui")
    assert "has only 1 GiB free, but about 2 GiB is needed" in said and "output/" in said


def test_disk_for_the_image(place: Place):
    place.program("df", "printf 'x\\n/dev/x 100 90 36000000 9%% /\\n'")
    place.program("docker", "case $* in 'image inspect'*) exit 1 ;; esac" + DOCKER)
    assert "docker system prune" in refused(place, "comfyui")


def test_a_folder_with_a_colon(tmp_path):
    place = Place(tmp_path, "a:b")
    assert "colon" in refused(place, "train")


@pytest.mark.parametrize("shell", SHELLS)
def test_all_problems_are_in_one_message(place: Place, shell: str):
    place.program("docker", "echo 'permission denied' >&2; exit 1")
    place.program("ss", "case $* in *:8188) echo 'LISTEN 0 1 *:8188' ;; esac")
    place.program("df", "printf 'x\\n/dev/x 100 90 1048576 9%% /\\n'")
    done = place.launch("comfyui", shell=shell)
    assert done.status == 1 and done.out == ""
    assert done.err.startswith("3 problems found:") and "\n  3. " in done.err and "--skip-checks" in done.err
