"""A real ComfyUI on a processor, with this project's nodes, for tests.

    server = ComfyServer(folder)            # folder becomes ComfyUI's base directory
    with server:
        result = server.run(prompt)         # API format; waits
        result.outputs["9"]["images"], result.pictures(server)

COMFYUI_DIR is a checkout of a ComfyUI that is supported, COMFYUI_PYTHON its interpreter (this one if not set), and
COMFYUI_FRONTEND the `static` folder of another release of the package comfyui-frontend-package.
"""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.random_flux import write_model_files
from tests.nodes.model_files import write_mini
from tests.nodes.websocket import WebSocket
from tests.recipe_files import PATIENCE

ROOT = Path(__file__).parents[2]
RUN = Path(__file__).with_name("run_comfyui.py")
PACK = ROOT / "custom_nodes/flux_dreambooth"
COMFYUI = os.environ.get("COMFYUI_DIR")
FRONTEND = os.environ.get("COMFYUI_FRONTEND")
NO_COMFYUI = (
    "ComfyUI is not here: git clone --branch v0.33.0 https://github.com/comfyanonymous/ComfyUI, "
    "pip install -r ComfyUI/requirements.txt, then set COMFYUI_DIR=ComfyUI and COMFYUI_PYTHON"
)
Prompt = dict[str, dict[str, Any]]


class Refused(Exception):
    """The server answered with an error; `status` and `answer` (JSON or text) say what."""

    def __init__(self, status: int, answer: Any):
        super().__init__(f"{status}: {json.dumps(answer)[:3000]}")
        self.status, self.answer = status, answer


@dataclass
class Result:
    """What became of a prompt."""

    prompt_id: str
    status: str  # success or error
    outputs: dict[str, dict[str, Any]]  # of each output node: images, text …
    messages: list[Any] = field(default_factory=list)  # ComfyUI's [[kind, facts], …]

    @property
    def error(self) -> str:
        """The message of the exception that ended it, or an empty text."""
        return next((facts["exception_message"] for kind, facts in self.messages if kind == "execution_error"), "")

    @property
    def interrupted(self) -> bool:
        return any(kind == "execution_interrupted" for kind, _ in self.messages)

    @property
    def cached(self) -> list[str]:
        """The ids of the nodes that were not run again."""
        return next((facts["nodes"] for kind, facts in self.messages if kind == "execution_cached"), [])

    def pictures(self, server: "ComfyServer", node: str | None = None) -> list[Image.Image]:
        """The pictures of one node, or of all, in order."""
        nodes = [node] if node else list(self.outputs)
        assert self.outputs.keys() >= {*nodes}, f"{self.status}: {self.error or self.messages}"
        return [server.view(image) for each in nodes for image in self.outputs[each].get("images", [])]


class ComfyServer:
    """ComfyUI in a process of its own. Loopback only; the log is in `folder`/log."""

    def __init__(self, folder: Path, *arguments: str, environment: dict[str, str] | None = None):
        self.folder, self.arguments = folder, arguments
        self.environment = environment or {}
        self.port = free_port()
        self.process: subprocess.Popen | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def loras(self) -> Path:
        return self.folder / "models/loras"

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def start(self, timeout: float = PATIENCE) -> "ComfyServer":
        """Starts and waits until it answers. Raises AssertionError with the log's end when it does not."""
        assert COMFYUI, NO_COMFYUI
        python = os.environ.get("COMFYUI_PYTHON", sys.executable)
        where = ["--base-directory", self.folder, "--database-url", f"sqlite:///{self.folder}/comfyui.db"]
        options = ["--cpu", "--port", self.port, "--disable-auto-launch", "--disable-api-nodes", *where]
        options += ["--front-end-root", FRONTEND] if FRONTEND else []
        command = [python, RUN, COMFYUI, *options, *self.arguments]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | self.environment
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [str(word) for word in command], stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=self.folder
            )
        end = time.monotonic() + timeout
        while not self.answers():
            assert self.process.poll() is None and time.monotonic() < end, self.log[-4000:]
            time.sleep(0.1)
        return self

    def stop(self) -> None:
        if self.process is None:
            return
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def __enter__(self) -> "ComfyServer":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def answers(self) -> bool:
        try:
            return bool(self.get("/system_stats"))
        except (OSError, Refused):
            return False

    def request(self, path: str, body: Any = None, method: str | None = None, user: str | None = None) -> bytes:
        """body: sent as JSON, makes it a POST. user: one of --multi-user. Raises Refused on an error status."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} | ({"Comfy-User": user} if user else {})
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace")
            try:
                raise Refused(error.code, json.loads(text)) from None
            except ValueError:
                raise Refused(error.code, text) from None

    def get(self, path: str, user: str | None = None) -> Any:
        """An answer in JSON; user: one of --multi-user."""
        return json.loads(self.request(path, user=user))

    def post(self, path: str, body: Any = None, user: str | None = None) -> Any:
        """An answer in JSON, None when it is empty; user: one of --multi-user."""
        answer = self.request(path, {} if body is None else body, user=user)
        return json.loads(answer) if answer else None

    def object_info(self, node: str | None = None) -> dict[str, Any]:
        """Every node's description, or one's."""
        return self.get(f"/object_info/{node}")[node] if node else self.get("/object_info")

    def queue(self, prompt: Prompt, client_id: str | None = None) -> str:
        """Returns the prompt's id. Raises Refused when the graph is not valid."""
        body: dict[str, Any] = {"prompt": prompt} | ({"client_id": client_id} if client_id else {})
        return self.post("/prompt", body)["prompt_id"]

    def wait(self, prompt_id: str, timeout: float = PATIENCE) -> Result:
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            assert self.process is not None and self.process.poll() is None, self.log[-4000:]
            if entry := self.get(f"/history/{prompt_id}").get(prompt_id):
                status = entry["status"]
                return Result(prompt_id, status["status_str"], entry["outputs"], status["messages"])
            time.sleep(0.05)
        raise AssertionError(f"prompt {prompt_id} did not end in {timeout} s\n{self.log[-3000:]}")

    def run(self, prompt: Prompt, timeout: float = PATIENCE) -> Result:
        return self.wait(self.queue(prompt), timeout)

    def run_listening(self, prompt: Prompt, timeout: float = PATIENCE) -> tuple[Result, list[Any]]:
        """The result, and all that came over the websocket until the prompt ended (dicts, and bytes of previews)."""
        client = uuid.uuid4().hex
        with self.listen(client, timeout) as messages:
            prompt_id, heard = self.queue(prompt, client), []
            while True:
                message = messages.receive()
                heard.append(message)
                ended = isinstance(message, dict) and message["type"] in ENDINGS
                if ended and message["data"].get("prompt_id") == prompt_id:
                    return self.wait(prompt_id, timeout), heard

    def listen(self, client_id: str, timeout: float = PATIENCE) -> WebSocket:
        return WebSocket(self.port, f"/ws?clientId={client_id}", timeout)

    def interrupt(self) -> None:
        self.post("/interrupt")

    def view(self, image: dict[str, str]) -> Image.Image:
        """One entry of an output's `images`."""
        query = urllib.parse.urlencode({key: image[key] for key in ("filename", "subfolder", "type")})
        return Image.open(io.BytesIO(self.request(f"/view?{query}"))).convert("RGB")


ENDINGS = ("execution_success", "execution_error", "execution_interrupted")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def prepare_base(folder: Path, *packs: Path) -> Path:
    """Make ComfyUI's base directory: models/mini and the names of FLUX.1-dev (all small), our nodes, and `packs`."""
    models = folder / "models"
    for name in ("loras", "mini"):
        (models / name).mkdir(parents=True, exist_ok=True)
    for name in ("custom_nodes", "input", "output", "user/default/workflows", "runs", "flux_data"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    write_model_files(models, "tiny")
    write_mini(models / "mini", ROOT / "models/mini", models)
    for pack in (PACK, *packs):
        (folder / "custom_nodes" / pack.name).symlink_to(pack)
    return folder
