"""The waiting trainer with stand-ins for jobs' processes: order, requests to stop, ends, restarts, faults."""

import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tests.waiting_trainer import DONE, HANGS, PATIENCE, Serving, train, wait_until
from trainer.common.problems import Problems
from trainer.exchange import files
from trainer.exchange.job_queue import JobQueue
from trainer.serving import comfyui, server
from trainer.serving.command import arguments_of
from trainer.serving.server import Server


@pytest.fixture
def queue(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> JobQueue:
    monkeypatch.setattr(server, "POLL", 0.01)
    monkeypatch.setattr(server, "AGAIN", 0.01)
    assert in_tmp == Path.cwd()
    return JobQueue(Path("runs/queue"))


def test_jobs_run_one_at_a_time_in_their_order(queue: JobQueue):
    train(queue, "a", "b", "c")
    queue.move("c", "b")
    with Serving(queue, DONE) as serving:
        jobs = [serving.wait_for(name, "finished") for name in "acb"]
        assert queue.serving()
    times = [(job.status.started, job.status.ended) for job in jobs]
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(times))
    assert [job.status.exit_code for job in jobs] == [0, 0, 0] and queue.serving() is None


def test_a_job_that_fails_keeps_its_messages_and_the_next_one_runs(queue: JobQueue):
    train(queue, "bad", "good")
    code = lambda job: DONE if job.id == "good" else "print('one'); print('two: why'); raise SystemExit(1)"  # noqa: E731
    with Serving(queue, code) as serving:
        bad, _ = serving.wait_for("bad", "failed"), serving.wait_for("good", "finished")
    assert bad.status.message == "two: why" and queue.log("bad", 0, 99)[0] == b"one\ntwo: why\n"
    assert bad.status.exit_code == 1


def test_settings_that_are_not_valid_fail_at_once_while_another_job_waits(queue: JobQueue):
    train(queue, "good")
    queue.submit("train", {"output_name": "bad", "network_dimm": 3, "ae": "/etc/passwd", "network_dim": "x"})
    queue.pause(True)
    with Serving(queue, DONE) as serving:
        bad = serving.wait_for("bad", "failed")
        assert queue.job("good").status.state == "waiting"
        queue.pause(False)
        serving.wait_for("good", "finished")
    whats = {each["where"].split(": ")[-1]: each["what"] for each in bad.status.problems}
    assert whats.keys() == {"network_dimm", "ae", "network_dim"} and "models/" in whats["ae"]
    assert b"network_dimm" in queue.log("bad", 0, 9999)[0]


def test_a_file_put_there_by_hand_is_taken_once_it_is_complete_and_again_when_it_is_corrected(
    queue: JobQueue, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(server, "SETTLED", 0.3)
    queue.folder.mkdir(parents=True)
    with Serving(queue, DONE) as serving, (queue.folder / "hand.toml").open("w") as file:
        file.write('output_name = "ha')
        file.flush()
        time.sleep(0.1)
        file.write('nd"\nnetwork_dimm = 4\n')
        file.flush()
        assert "network_dimm" in serving.wait_for("hand", "failed").status.problems[0]["where"]
        time.sleep(0.05)
        (queue.folder / "hand.toml").write_text('output_name = "hand"\nnetwork_dim = 4\n')
        serving.wait_for("hand", "finished")


def test_a_queue_has_one_trainer(queue: JobQueue):
    with Serving(queue, DONE):
        wait_until(queue.serving)
        with pytest.raises(Problems, match="another trainer"):
            Server(queue, lambda _: [], print).serve()


def test_a_full_disk_starts_nothing_and_ends_nothing(queue: JobQueue, monkeypatch: pytest.MonkeyPatch):
    train(queue, "a")
    free, full = files.os.replace, threading.Event()
    full.set()

    def replace(*paths: Path) -> None:
        if full.is_set():
            raise OSError(28, "No space left on device")
        free(*paths)

    monkeypatch.setattr(files.os, "replace", replace)
    with Serving(queue, DONE) as serving:
        wait_until(lambda: any("No space left" in line for line in serving.said))
        assert not Path("models/loras/a.safetensors").exists()
        full.clear()
        serving.wait_for("a", "finished")


def test_a_disk_that_stays_full_does_not_keep_the_trainer_from_stopping(
    queue: JobQueue, monkeypatch: pytest.MonkeyPatch
):
    train(queue, "a")
    with monkeypatch.context() as patch, Serving(queue, HANGS) as serving:
        wait_until(lambda: queue.log("a", 0, 99)[1])
        patch.setattr(files.os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        serving.server.stop.set()
        serving.thread.join(PATIENCE)
        assert not serving.thread.is_alive() and queue.job("a").status.state == "running"
    with Serving(queue, DONE) as serving:
        assert serving.wait_for("a", "finished").status.attempts == 2


def test_a_job_whose_file_is_moved_away_may_finish(queue: JobQueue):
    train(queue, "a", "b")
    code = lambda job: DONE if job.id == "b" else "import time; print(1, flush=True); time.sleep(0.3)"  # noqa: E731
    with Serving(queue, code) as serving:
        wait_until(lambda: queue.log("a", 0, 99)[1])
        (queue.folder / "a.toml").unlink()
        serving.wait_for("b", "finished")
    assert any("its file is gone" in line for line in serving.said)


@pytest.fixture
def fake_comfyui() -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Its address, the requests that it got, and the queues that it will answer with, the last one for ever."""
    asked: list[str] = []
    queues: list[list[str]] = [[]]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(json.dumps({"queue_running": queues.pop(0) if len(queues) > 1 else queues[0]}).encode())

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.answer(b"")

        def answer(self, body: bytes) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    listener = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listener.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{listener.server_port}", asked, queues
    listener.shutdown()
    thread.join()
    listener.server_close()


def test_comfyui_finishes_its_image_and_frees_its_models_first(queue: JobQueue, fake_comfyui, monkeypatch):
    url, asked, queues = fake_comfyui
    queues[:] = [["a prompt"], ["a prompt"], []]
    monkeypatch.setattr(server, "FREEING", 0)
    train(queue, "a")
    with Serving(queue, DONE, comfyui_url=url, has_gpu=True) as serving:
        serving.wait_for("a", "finished")
    assert asked == ["/queue", "/queue", "/queue", "/free"]
    waits = next(line for line in serving.said if "waits for the images" in line)
    assert serving.said.index(waits) < serving.said.index(f"ComfyUI at {url} was asked to free its models.")


def test_without_comfyui_the_job_starts_and_says_so(queue: JobQueue):
    train(queue, "a")
    with Serving(queue, DONE, comfyui_url="http://127.0.0.1:9", has_gpu=False) as serving:
        serving.wait_for("a", "finished")
    assert "No ComfyUI runs at http://127.0.0.1:9." in serving.said


def test_what_holds_the_gpu_is_said_in_words(in_tmp: Path, monkeypatch: pytest.MonkeyPatch):
    smi = in_tmp / "nvidia-smi"
    smi.write_text('#!/bin/sh\ncase $1 in *apps*) echo "7, python3, 512 MiB" ;; *) echo "600 MiB, 24000 MiB" ;; esac\n')
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{in_tmp}:{os.environ['PATH']}")
    assert comfyui.gpu_memory() == "GPU 0: 600 MiB of 24000 MiB in use; python3 (process 7) 512 MiB"
    smi.write_text("#!/bin/sh\nexit 9\n")
    assert comfyui.gpu_memory() == ""


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "http://a/path", "http://u:p@h", "127.0.0.1:8188", "http://h:x", ""]
)
def test_an_address_is_that_of_a_server(url: str):
    assert comfyui.address_problem(url) and not comfyui.address_problem(comfyui.DEFAULT)


def test_work_on_a_folder_becomes_a_command_without_loose_words(queue: JobQueue):
    Path("flux_data/my dog").mkdir(parents=True)
    job = queue.submit("mask", {"folder": "my dog", "class_word": "--output=/etc", "redo": True})
    path = queue.path(job.id, ".toml")
    assert arguments_of(job, path) == ["mask", "flux_data/my dog", "--class_word=--output=/etc", "--redo"]
    queue.act(job.id, "cancel")
    job = queue.submit("caption", {"folder": "my dog", "class_tokens": "tj dog"})
    assert arguments_of(job, path) == ["caption", "flux_data/my dog", "--class_tokens=tj dog"]
    Path("runs/a b").mkdir()
    Path("runs/a b/config.toml").touch()
    job = queue.submit("compare", {"run": "a b"})
    assert arguments_of(job, path) == ["compare", "runs/a b"]
    job = queue.submit("compare", {"run": "../a b"})
    with pytest.raises(Problems, match="no such run"):
        arguments_of(job, path)
    for settings in (
        {"folder": "../my dog", "class_word": "dog"}, {"folder": "-x", "class_word": "dog"}, {"folder": "my dog"},
        {"folder": "none", "class_word": "dog"}, {"folder": "my dog", "class_word": "dog", "output": "/etc"},
        {"folder": ".", "class_word": "dog"}, {"folder": 3, "class_word": 4},
    ):  # fmt: skip
        job = queue.submit("mask", settings | {"redo": False})
        with pytest.raises(Problems):
            arguments_of(job, path)
        queue.act(job.id, "cancel")


def test_waiting_imports_no_torch():
    code = "import sys, trainer.cli.serve; sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'PIL')))"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(root)}).returncode == 0
