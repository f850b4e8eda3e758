"""Sharing a GPU with ComfyUI: ask it to free its models, wait while it generates, and say what still holds the GPU."""

import json
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence

TIMEOUT = 5.0  # seconds
MAX_ANSWER = 2**20
DEFAULT = "http://127.0.0.1:8188"
_USERS = ("--query-compute-apps=pid,process_name,used_memory", "--format=csv,noheader")
_MEMORY = ("--query-gpu=memory.used,memory.total", "--format=csv,noheader")


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        return None


_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirects)


def address_problem(url: str) -> str | None:
    """Why a text is not the address of a ComfyUI, as the rest of a sentence; None if it is one."""
    try:
        parts = urllib.parse.urlsplit(url)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.path in ("", "/")
        is_address = is_address and not (parts.query or parts.fragment or parts.username or parts.password)
        _ = parts.port
    except ValueError:
        is_address = False
    return None if is_address else f"{url!r} is not an address such as {DEFAULT}"


def is_generating(url: str) -> bool:
    """Whether ComfyUI works on a prompt now; False if it does not answer."""
    try:
        held = json.loads(_ask(url, "/queue"))
        return bool(held["queue_running"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def ask_to_free(url: str) -> str:
    """Ask ComfyUI to unload its models; returns in one sentence what came of it."""
    body = json.dumps({"unload_models": True, "free_memory": True}).encode()
    try:
        _ask(url, "/free", body)
    except urllib.error.HTTPError as error:
        return f"ComfyUI at {url} did not free its models: it answered {error.code} {error.reason}."
    except (OSError, ValueError) as error:
        if isinstance(getattr(error, "reason", error), ConnectionRefusedError):
            return f"No ComfyUI runs at {url}."
        return f"ComfyUI at {url} could not be asked to free its models: {getattr(error, 'reason', error)}."
    return f"ComfyUI at {url} was asked to free its models."


def _ask(url: str, path: str, body: bytes | None = None) -> bytes:
    request = urllib.request.Request(url.rstrip("/") + path, body, {"Content-Type": "application/json"})
    with _OPENER.open(request, timeout=TIMEOUT) as answer:
        return answer.read(MAX_ANSWER)


def gpu_memory() -> str:
    """What holds the GPUs' memory, in words; "" on a computer without nvidia-smi."""
    memory = _nvidia_smi(_MEMORY)
    if memory is None:
        return ""
    used = "; ".join(f"GPU {index}: {line.replace(', ', ' of ')} in use" for index, line in enumerate(memory))
    users = _nvidia_smi(_USERS) or []
    names = [line.split(", ") for line in users]
    held = [f"{name} (process {process}) {size}" for process, name, size in (each for each in names if len(each) == 3)]
    return f"{used or 'the GPU does not say how much of its memory is in use'}" + (
        f"; {', '.join(held)}" if held else "; no process is listed"
    )


def _nvidia_smi(arguments: Sequence[str]) -> list[str] | None:
    try:
        done = subprocess.run(["nvidia-smi", *arguments], capture_output=True, text=True, timeout=10, errors="replace")
    except (OSError, subprocess.TimeoutExpired):
        return None
    return [line.strip() for line in done.stdout.splitlines() if line.strip()] if done.returncode == 0 else None
