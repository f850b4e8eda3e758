"""The routes for images, captions and jobs on a real ComfyUI server: our page, another site's, a hostile client."""

import http.client
import io
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from PIL import Image

from benchmarks.random_flux import model_files
from tests.nodes.server import COMFYUI, NO_COMFYUI, ComfyServer
from tests.nodes.workbench import encoded
from tests.recipe_files import PATIENCE, read_until, started, wait_for

pytestmark = [pytest.mark.comfyui, pytest.mark.skipif(not COMFYUI, reason=NO_COMFYUI)]
ROUTES = "/flux_dreambooth"
Headers = dict[str, str]
OURS = {"X-Flux-DreamBooth": "1", "Content-Type": "application/json"}
IMAGE = {"X-Flux-DreamBooth": "1", "Content-Type": "image/png"}
POSTS = (
    "/data", "/data/dog/images?name=a.png", "/data/dog/captions", "/data/dog/replace", "/data/dog/undo", "/datasets",
    "/data/dog/masks?image=one.png", "/plan", "/presets", "/presets/file?name=x.toml", "/jobs", "/jobs/tj/cancel",
    "/jobs/tj/move", "/jobs_paused",
)  # fmt: skip


def send(server: ComfyServer, method: str, path: str, body: Any = None, headers: Headers = OURS) -> tuple[int, Any]:
    """Status and content; the path goes out as it is. body: JSON unless it is bytes."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    connection.request(method, ROUTES + path, data, headers if method == "POST" else {})
    answer = connection.getresponse()
    content = answer.read()
    kind = answer.getheader("Content-Type", "")
    return answer.status, json.loads(content) if kind.startswith("application/json") else content


def done(server: ComfyServer, path: str, body: Any = None, headers: Headers = OURS) -> Any:
    """The content of an answer that has to be 200. A GET without a body."""
    status, content = send(server, "GET" if body is None else "POST", path, body, headers)
    assert status == 200, content
    return content


def files_of(server: ComfyServer) -> list[str]:
    found = [*(server.folder / "flux_data").rglob("*"), *(server.folder / "runs").rglob("*")]
    return sorted(str(path.relative_to(server.folder)) for path in found)


@pytest.fixture(scope="session")
def concept(comfyui: ComfyServer) -> Path:
    """The concept dog with one image, as the page makes it."""
    done(comfyui, "/data", {"name": "dog"})
    done(comfyui, "/data/dog/images?name=one.png", encoded(), IMAGE)
    return comfyui.folder / "flux_data/dog"


@pytest.mark.usefixtures("concept")
@pytest.mark.parametrize("path", POSTS)
def test_another_site_s_page_can_do_nothing(comfyui: ComfyServer, path: str):
    before = files_of(comfyui)
    own = f"http://127.0.0.1:{comfyui.port}"
    for change in (
        {"X-Flux-DreamBooth": ""}, {"Origin": "http://evil.example"}, {"Origin": "null"},
        {"Origin": own.replace("127.0.0.1", "127.0.0.1.evil.example")},
        {"Origin": f"http://127.0.0.1:{comfyui.port + 1}"},
        {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"},
    ):  # fmt: skip
        status, _ = send(comfyui, "POST", path, b"{}", OURS | change)
        assert status == 403, change
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        assert send(comfyui, "POST", path, b"{}", {"Content-Type": kind})[0] == 403
        if "?" not in path:  # no upload
            assert send(comfyui, "POST", path, b"{}", OURS | {"Content-Type": kind})[0] == 400
    assert send(comfyui, "GET", path, None)[0] in (200, 400, 404, 405)
    assert files_of(comfyui) == before


@pytest.mark.usefixtures("concept")
@pytest.mark.parametrize("name", ["..", "../dog", "/etc", "a\0b", ".captions", "x" * 3000, "none", "dog/../dog"])
def test_no_name_leads_out(comfyui: ComfyServer, name: str):
    before = files_of(comfyui)
    for written in (quote(name, safe=""), quote(name)):
        for form in ("/data/{}", "/data/{}/images/one.png", "/data/dog/images/{}", "/jobs/{}", "/jobs/{}/log"):
            status, body = send(comfyui, "GET", form.format(written))
            assert status in (400, 403, 404), (form, status, body)
        for form in ("/data/{}/images?name=a.png", "/data/{}/undo", "/jobs/{}/cancel", "/jobs/{}/move"):
            status, body = send(comfyui, "POST", form.format(written), b"{}")
            assert status in (400, 403, 404, 405), (form, status, body)
    assert files_of(comfyui) == before


def test_images_go_in_and_are_shown(comfyui: ComfyServer, concept: Path):
    origin = {"Origin": f"http://127.0.0.1:{comfyui.port}", "Sec-Fetch-Site": "same-origin"}
    photo = encoded(7, (800, 400), "JPEG")
    sent = done(comfyui, f"/data/dog/images?name={quote('../IMG 1.PNG')}", photo, IMAGE | origin)
    assert sent == {"file": "IMG 1.jpg", "width": 800, "height": 400, "existing": False}
    assert (concept / "IMG 1.jpg").read_bytes() == photo
    assert done(comfyui, "/data/dog/images?name=again.jpg", photo, IMAGE)["existing"]
    found = done(comfyui, "/data/dog")
    image = next(each for each in found["images"] if each["file"] == "IMG 1.jpg")
    shown = done(comfyui, f"/data/dog/images/{quote('IMG 1.jpg')}?side=256&version={image['version']}")
    assert Image.open(io.BytesIO(shown)).size == (256, 128)
    assert [each["name"] for each in done(comfyui, "/data")["concepts"]] == ["dog"]
    for body in (b"<svg onload=x>", b"", b"\x89PNG\r\n\x1a\n" + b"\0" * 99):
        status, answer = send(comfyui, "POST", "/data/dog/images?name=x.png", body, IMAGE)
        assert status == 400 and "error" in answer
    assert send(comfyui, "POST", "/data/dog/images?name=x", b"x", IMAGE | {"Content-Length": str(2**40)})[0] == 413
    assert send(comfyui, "GET", "/data/dog/images/one.png?side=99999")[0] == 400


def test_captions_of_two_browsers(comfyui: ComfyServer, concept: Path):
    first = done(comfyui, "/data/dog/captions", {"file": "one.png", "text": "tjdog dog", "was": None})
    assert first == {"file": "one.png", "caption": "tjdog dog", "can_undo": True}
    status, answer = send(comfyui, "POST", "/data/dog/captions", {"file": "one.png", "text": "other", "was": None})
    assert status == 409 and answer["caption"] == "tjdog dog"
    changes = done(comfyui, "/data/dog/replace", {"find": "dog", "replace": "cat", "preview": True})["changes"]
    assert changes == [{"file": "one.png", "before": "tjdog dog", "after": "tjcat cat"}]
    done(comfyui, "/data/dog/undo", {})
    assert (concept / "one.txt").read_text() == ""
    assert send(comfyui, "POST", "/data/dog/undo", {})[0] == 409
    for body in ({"file": 3, "text": ""}, {"text": "x"}, {"file": "one.png", "text": "x" * 9000}, b"[]", b"[" * 9999):
        assert send(comfyui, "POST", "/data/dog/captions", body)[0] == 400


@pytest.mark.usefixtures("concept")
def test_jobs_are_submitted_ordered_and_stopped(comfyui: ComfyServer):
    subset = {"folder": "dog", "class_tokens": "tjdog dog"}
    file = done(comfyui, "/datasets", {"name": "dogs", "subsets": [subset]})["file"]
    preset = done(comfyui, "/presets", {"name": "quick", "settings": {"max_train_steps": 5}})["file"]
    assert [each["file"] for each in done(comfyui, "/datasets")["datasets"]] == [file]
    assert done(comfyui, "/presets")["presets"][0]["settings"] == {"max_train_steps": 5}
    for number in range(20):
        body = {"kind": "train", "output_name": f"n{number}", "dataset": file, "preset": preset}
        assert done(comfyui, "/jobs", body)["job"]["id"] == f"n{number}"
    assert done(comfyui, "/jobs/n19/move", {"before": "n0"})["jobs"][0]["id"] == "n19"
    assert done(comfyui, "/jobs/n0/pause", {})["job"]["state"] == "paused"
    assert done(comfyui, "/jobs_paused", {"paused": True}) == {"paused": True}
    found = done(comfyui, "/jobs")
    assert found["serving"] is None and found["paused"] and len(found["jobs"]) == 20
    assert done(comfyui, "/jobs/n1")["settings"]["max_train_steps"] == 5
    assert done(comfyui, "/jobs/n1/log") == {"text": "", "next": 0, "size": 0}
    for number in range(20):
        assert done(comfyui, f"/jobs/n{number}/cancel", {})["job"]["state"] == "cancelled"
    refused = body | {"settings": {"output_dir": "/etc", "overwrite": True}}
    status, answer = send(comfyui, "POST", "/jobs", refused)
    assert status == 400 and [each["where"] for each in answer["problems"]] == ["output_dir", "overwrite"]
    assert send(comfyui, "POST", "/jobs/n1/delete", {})[0] == 404
    assert send(comfyui, "POST", "/jobs/n1/cancel", {})[0] == 409


def begin_upload(server: ComfyServer, concept: str, data: bytes) -> socket.socket:
    """Send the first half of an image."""
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE)
    head = f"POST {ROUTES}/data/{concept}/images?name=half.png HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n"
    head += f"X-Flux-DreamBooth: 1\r\nContent-Length: {len(data)}\r\n\r\n"
    connection.sendall(head.encode() + data[: len(data) // 2])
    time.sleep(0.1)
    return connection


def test_a_browser_that_goes_away_leaves_nothing(comfyui: ComfyServer, concept: Path):
    before = sorted(concept.iterdir())
    for _ in range(8):  # more than are taken at the same time
        begin_upload(comfyui, "dog", encoded(99)).close()
    assert sorted(concept.iterdir()) == before
    done(comfyui, "/data/dog/images?name=after.png", encoded(55), IMAGE)
    assert (concept / "after.png").is_file()


ALONE = """
import sys
from pathlib import Path
from aiohttp import web
from custom_nodes.flux_dreambooth import routes_data
routes, app = web.RouteTableDef(), web.Application()
routes_data.add_routes(routes, Path(sys.argv[1]))
app.add_routes(routes)
web.run_app(app, host="127.0.0.1", port=int(sys.argv[2]), print=lambda *_: print("ready", flush=True))
"""


def test_a_server_killed_in_the_middle_of_an_upload_leaves_nothing(tmp_path: Path):
    """The routes without the rest of ComfyUI, which takes long to start."""
    (tmp_path / "cat").mkdir()
    server = ComfyServer(tmp_path)
    command = [os.environ.get("COMFYUI_PYTHON", sys.executable), "-c", ALONE, str(tmp_path), str(server.port)]
    with started(command) as process:
        read_until("ready", process)
        waiting = [begin_upload(server, "cat", encoded(1)) for _ in range(4)]
        assert send(server, "POST", "/data/cat/images?name=fifth.png", encoded(2), IMAGE)[0] == 503
        process.kill()
        process.wait()
    for connection in waiting:
        connection.close()
    assert list((tmp_path / "cat").iterdir()) == []


def has_ended(server: ComfyServer, job: str) -> bool:
    time.sleep(0.2)
    return done(server, f"/jobs/{job}")["job"]["state"] not in ("waiting", "running")


def test_from_dropped_images_to_a_lora_without_a_terminal(comfyui: ComfyServer):
    """The page's requests, a trainer that waits, and a random FLUX: upload, train, and the run in the Training tab."""
    done(comfyui, "/data", {"name": "bird"})
    for shade in (20, 200):
        done(comfyui, f"/data/bird/images?name={shade}.png", encoded(shade, (64, 64)), IMAGE)
    subset = {"folder": "bird", "class_tokens": "tjbird bird"}
    file = done(comfyui, "/datasets", {"name": "birds", "subsets": [subset], "general": {"resolution": 64}})["file"]
    base, found = comfyui.folder, model_files(comfyui.folder / "models")
    held = {"pretrained_model_name_or_path": found.transformer, "clip_l": found.clip_l, "t5xxl": found.t5xxl}
    held |= {"ae": found.ae, "tokenizer_dir": found.tokenizer_dir}
    paths = {name: path.relative_to(base).as_posix() for name, path in held.items()}
    small = {"t5xxl_max_token_length": 32, "mixed_precision": "no", "network_dim": 4, "log_with": "none"}
    body = {"output_name": "tjbird", "dataset": file, "settings": {**paths, **small, "max_train_steps": 2}}
    done(comfyui, "/jobs_paused", {"paused": False})
    job = done(comfyui, "/jobs", body | {"kind": "train"})["job"]["id"]
    command = [sys.executable, "-m", "trainer", "serve", "--comfyui", comfyui.url]
    with started(command, base, CUDA_VISIBLE_DEVICES="") as process:
        wait_for(lambda: has_ended(comfyui, job), process)
        assert done(comfyui, "/jobs")["serving"]["since"]
        process.send_signal(signal.SIGINT)
        output = process.communicate(timeout=PATIENCE)[0]
    assert done(comfyui, f"/jobs/{job}")["job"]["state"] == "finished", done(comfyui, f"/jobs/{job}/log")["text"]
    assert f"ComfyUI at {comfyui.url} was asked to free its models." in output
    assert done(comfyui, "/runs/tjbird")["state"] == "finished" and (comfyui.loras / "tjbird.safetensors").is_file()
