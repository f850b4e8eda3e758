"""A Hugging Face hub on loopback: its API, its redirects to a CDN, its ranges, its refusals, and its bad days.

The statuses, headers and JSON are those that `huggingface_hub` reads; large files are redirected to another origin
(the same on another port), which must never see a token.
"""

import hashlib
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PAGE = b"<!DOCTYPE html><html><body>Access blocked by your company's proxy.</body></html>"


class Request(NamedTuple):
    """What was asked, and how many bytes of a file were sent for it."""

    method: str
    path: str
    range: str | None
    token: str | None
    sent: int


class Cut(NamedTuple):
    """End a body after so many bytes and a silence: with a reset, or as if it were done."""

    after: int
    reset: bool = True
    silence: float | threading.Event = 0.1  # seconds, or until then; a reset takes back what has not been read yet


@dataclass
class FakeHub:
    """Its files and its moods; tests change them while it runs."""

    files: dict[str, dict[str, bytes]]
    token: str = "hf_goodTokenGoodToken"
    gated: set[str] = field(default_factory=set)
    accepted: bool = True
    narrow: bool = False
    proxy_page: set[str] = field(default_factory=set)  # of "api", "head", "get", "blocked"
    statuses: list[int] = field(default_factory=list)  # for the next requests of bytes
    api_statuses: list[int] = field(default_factory=list)
    cuts: dict[str, list[Cut]] = field(default_factory=dict)
    wrong: dict[str, int] = field(default_factory=dict)  # how often to send other bytes
    ranges: bool = True
    seconds_per_chunk: float = 0.0
    fast_bytes: int = 0  # at the beginning of a body, before its chunks take seconds_per_chunk
    requests: list[Request] = field(default_factory=list)
    url: str = ""
    cdn: str = ""

    def sent(self, path: str) -> list[Request]:
        """The requests in which bytes of a file were asked for."""
        return [request for request in self.requests if request.method == "GET" and request.path.endswith(path)]


def is_large(path: str) -> bool:
    return path.endswith((".safetensors", ".model"))


def digest(path: str, content: bytes) -> str:
    """As the hub states it: SHA-256 in LFS, git's SHA-1 elsewhere."""
    if is_large(path):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def serving(hub: FakeHub) -> Iterator[FakeHub]:
    """Serve it while the block runs; `hub.url` is its address, `hub.cdn` where large files are."""

    class Handler(_Handler):
        fake = hub

    servers = [ThreadingHTTPServer(("127.0.0.1", 0), Handler) for _ in range(2)]
    hub.url, hub.cdn = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    for server in servers:
        server.daemon_threads = True
        server.handle_error = lambda *_: None  # a client that goes away is part of the tests
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield hub
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    fake: FakeHub

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self) -> None:
        path = self.path.partition("?")[0]
        if "blocked" in self.fake.proxy_page:
            self.say(403, PAGE, {"Content-Type": "text/html"})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)", path):
            self.api(found[1])
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self.resolve(found[1], found[3])
        elif found := re.fullmatch(r"/cdn/([^/]+/[^/]+)/(.+)", path):
            self.content(found[1], found[2])
        else:
            self.say(404, b"{}")

    def given_token(self) -> str | None:
        header = self.headers.get("Authorization")
        return header.removeprefix("Bearer ") if header else None

    def api(self, repository: str) -> None:
        self.note(0)
        if self.fake.api_statuses:
            self.say(self.fake.api_statuses.pop(0), b"", {"Retry-After": "0"})
        elif "api" in self.fake.proxy_page:
            self.say(200, PAGE, {"Content-Type": "text/html"})
        elif not self.refused(repository, api=True):
            body = {"id": repository, "sha": COMMIT, "siblings": self.siblings(repository)}
            self.say(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def siblings(self, repository: str) -> list[dict[str, object]]:
        listed = []
        for path, content in self.fake.files[repository].items():
            entry: dict[str, object] = {"rfilename": path, "size": len(content), "blobId": digest("x", content)}
            if is_large(path):
                lfs = {"sha256": digest(path, content), "size": len(content), "pointerSize": 134}
                entry |= {"lfs": lfs, "blobId": "f" * 40}
            listed.append(entry)
        return listed

    def refused(self, repository: str, api: bool) -> bool:
        token = self.given_token()
        if token is not None and token != self.fake.token:
            why = "Invalid credentials in Authorization header"
            self.say(401, json.dumps({"error": why}).encode(), {"X-Error-Message": why})
        elif repository not in self.fake.files:
            status = 404 if token else 401
            self.say(status, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"})
        elif api or repository not in self.fake.gated:
            return False
        elif token is None:
            self.gate(401, f"Access to model {repository} is restricted. You must be authenticated to access it.")
        elif not self.fake.accepted:
            self.gate(403, f"Access to model {repository} is restricted and you are not in the authorized list.")
        elif self.fake.narrow:
            why = "Please enable access to public gated repositories in your fine-grained token settings"
            self.say(403, json.dumps({"error": why}).encode(), {"X-Error-Message": why})
        else:
            return False
        return True

    def gate(self, status: int, why: str) -> None:
        self.say(status, why.encode(), {"X-Error-Code": "GatedRepo", "X-Error-Message": why})

    def resolve(self, repository: str, path: str) -> None:
        stage = "head" if self.command == "HEAD" else "get"
        if stage in self.fake.proxy_page:
            self.say(200, PAGE, {"Content-Type": "text/html"})
            return
        if self.refused(repository, api=False):
            return
        content = self.fake.files[repository].get(path)
        if content is None:
            self.say(404, b"Entry not found", {"X-Error-Code": "EntryNotFound"})
        elif is_large(path):
            linked = {"X-Linked-Size": str(len(content)), "X-Linked-Etag": f'"{digest(path, content)}"'}
            where = f"{self.fake.cdn}/cdn/{repository}/{path}?Signature=secretOfTheCdn"
            self.say(302, b"", {"Location": where, "X-Repo-Commit": COMMIT, **linked})
        else:
            self.content(repository, path)

    def content(self, repository: str, path: str) -> None:
        content = self.fake.files[repository][path]
        if self.fake.statuses and self.command == "GET":
            self.say(self.fake.statuses.pop(0), b"", {"Retry-After": "0"})
            self.note(0)
            return
        if self.fake.wrong.get(path, 0) > 0 and self.command == "GET":
            self.fake.wrong[path] -= 1
            content = bytes(byte ^ 255 for byte in content)
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        start = int(asked[1]) if asked and self.fake.ranges else 0
        headers = {"ETag": f'"{digest(path, content)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        cuts = self.fake.cuts.get(path, []) if self.command == "GET" else []
        self.say(206 if start else 200, content[start:], headers, cuts.pop(0) if cuts else None, count=True)

    def say(
        self, status: int, body: bytes, headers: dict[str, str] | None = None, cut: Cut | None = None, count=False
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        part = body if cut is None else body[: cut.after]
        if count:
            self.note(len(part))
        for begin in range(0, len(part), 1 << 16):
            if begin >= self.fake.fast_bytes:
                time.sleep(self.fake.seconds_per_chunk)
            self.wfile.write(part[begin : begin + (1 << 16)])
        self.wfile.flush()
        if cut is not None:
            self.end_connection(cut)

    def end_connection(self, cut: Cut) -> None:
        if isinstance(cut.silence, threading.Event):
            cut.silence.wait()
        else:
            time.sleep(cut.silence)
        if cut.reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def note(self, sent: int) -> None:
        path = self.path.partition("?")[0]
        request = Request(self.command, path, self.headers.get("Range"), self.given_token(), sent)
        self.fake.requests.append(request)
