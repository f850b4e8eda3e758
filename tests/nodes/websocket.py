"""A websocket client of a few lines (RFC 6455), enough to listen to ComfyUI: text and binary frames, ping, close."""

import base64
import json
import os
import socket
import struct
from typing import Any

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


class WebSocket:
    """An open connection; `receive` gives a dict for text (JSON) and bytes for binary messages."""

    def __init__(self, port: int, path: str, timeout: float = 60.0):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout)
        key = base64.b64encode(os.urandom(16)).decode()
        lines = f"GET {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", "Upgrade: websocket", "Connection: Upgrade"
        request = "\r\n".join([*lines, f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13", "", ""])
        self.socket.sendall(request.encode())
        self.stream = self.socket.makefile("rb")
        status = self.stream.readline()
        assert b" 101 " in status, status
        while self.stream.readline().strip():
            pass

    def receive(self) -> dict[str, Any] | bytes:
        """The next message. Raises ConnectionError when the server closes, TimeoutError when nothing comes."""
        message, first = b"", None
        while True:
            kind, final, payload = self._frame()
            if kind == PING:
                self._send(PONG, payload)
                continue
            if kind == CLOSE:
                raise ConnectionError("the server closed the websocket")
            if kind == PONG:
                continue
            first, message = first or kind, message + payload
            if final:
                return json.loads(message) if first == TEXT else message

    def close(self) -> None:
        self.stream.close()
        self.socket.close()

    def __enter__(self) -> "WebSocket":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _frame(self) -> tuple[int, bool, bytes]:
        head = self._read(2)
        length = head[1] & 127
        if length >= 126:
            length = int.from_bytes(self._read(2 if length == 126 else 8))
        return head[0] & 15, bool(head[0] & 128), self._read(length)

    def _read(self, count: int) -> bytes:
        data = self.stream.read(count)
        if len(data) != count:
            raise ConnectionError("the server is gone")
        return data

    def _send(self, kind: int, payload: bytes) -> None:
        """A client's frames are masked; ours are pongs, shorter than 126 bytes."""
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))
        self.socket.sendall(struct.pack("!BB", 128 | kind, 128 | len(payload)) + mask + masked)
