"""How a route answers: JSON for what a handler returns or raises, and what a request must be to be served.

A POST of another site's page is refused: it has another Origin, and it cannot say that it is JSON or carry a header of
its own without asking first, which ComfyUI's server does not allow.
"""

import asyncio
import errno
import json
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import quote

from .exchange.job_queue import NotPossible
from .runs import NotNow

PREFIX = "/flux_dreambooth"
MAX_BODY = 64 * 2**10
HEADER = "X-Flux-DreamBooth"
FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
CHUNK = 2**16
SLOWEST = 120.0  # seconds that an upload may take
DEFAULT_PORTS = {"http": 80, "https": 443}


class Forbidden(Exception):
    """A request that may come from another site's page."""


class TooLarge(Exception):
    """A body larger than the route takes."""


class Busy(Exception):
    """As many uploads as are taken at once; the client repeats it."""


class Conflict(Exception):
    """A request that does not fit what is there by now; `more` goes into the answer."""

    def __init__(self, message: str, **more: Any):
        super().__init__(message)
        self.more = more


class Invalid(ValueError):
    """A request with several mistakes; `problems` goes into the answer."""

    def __init__(self, message: str, problems: list[dict[str, str]]):
        super().__init__(message)
        self.problems = problems


def answers(handler: Callable[[Any], Awaitable[Any]]) -> Callable[[Any], Awaitable[Any]]:
    """Send what a handler returns as JSON, and what it raises as an error that the browser can show."""
    from aiohttp import web

    async def answer(request: Any) -> Any:
        try:
            result = await handler(request)
        except Exception as error:
            found = _as_error(error)
            if found is None:
                raise
            status, content = found
            return web.json_response(content, status=status)
        if isinstance(result, web.StreamResponse):
            return result
        return web.json_response(result, headers={"Cache-Control": "no-store"})

    return answer


def _as_error(error: Exception) -> tuple[int, dict[str, Any]] | None:
    """Status and content of the answer to an exception; None if it is a fault of ours."""
    statuses = ((Forbidden, 403), (TooLarge, 413), (Busy, 503), (NotNow, 409), (NotPossible, 409))
    for kind, status in statuses:
        if isinstance(error, kind):
            return status, {"error": str(error)}
    if isinstance(error, Conflict):
        return 409, {"error": str(error), **error.more}
    if isinstance(error, LookupError):
        return 404, {"error": str(error.args[0] if error.args else error)}
    if isinstance(error, Invalid):
        return 400, {"error": str(error), "problems": error.problems}
    if isinstance(error, ValueError):
        return 400, {"error": str(error)}
    if isinstance(error, OSError):
        if error.errno in FULL:
            return 507, {"error": "The disk is full. Nothing was changed."}
        return 500, {"error": error.strerror or "The file cannot be read."}
    return None


def require_same_origin(request: Any) -> None:
    """Raises `Forbidden` for a request that a browser sends for another site's page. Programs send no Origin."""
    origin = request.headers.get("Origin")
    if origin is not None and not _is_at(origin, request.host):
        raise Forbidden("Requests of other sites' pages are refused.")
    if request.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
        raise Forbidden("Requests of other sites' pages are refused.")


def _is_at(origin: str, host: str) -> bool:
    """Whether a page's Origin is the server that the request names as its Host."""
    found = re.fullmatch(r"(https?)://([^/?#@\s]+)", origin)
    if found is None:
        return False
    usual = f":{DEFAULT_PORTS[found[1]]}"
    return found[2].lower().removesuffix(usual) == host.lower().removesuffix(usual)


def require_ours(request: Any) -> None:
    """Raises `Forbidden` unless the request comes from our page, or from a program that knows these routes."""
    require_same_origin(request)
    if request.headers.get(HEADER) != "1":
        raise Forbidden(f"The header {HEADER}: 1 is missing.")


async def json_body(request: Any, limit: int = MAX_BODY) -> dict[str, Any]:
    """The JSON object in a request's body. Raises ValueError if it is no object or too large, and `Forbidden`."""
    require_same_origin(request)
    if request.content_type != "application/json":
        raise ValueError("Send JSON, with Content-Type: application/json.")
    data = await _read(request, limit)
    if data is None:
        raise ValueError(f"The body is larger than {limit:,} bytes.")
    try:
        body = json.loads(data or b"{}")
    except RecursionError:
        body = None
    if not isinstance(body, dict):
        raise ValueError("The body must be a JSON object.")
    return body


async def our_body(request: Any, limit: int = MAX_BODY) -> dict[str, Any]:
    """As `json_body`, for a route that needs our header."""
    require_ours(request)
    return await json_body(request, limit)


async def upload(request: Any, limit: int) -> bytes:
    """The bytes in a request's body. Raises `TooLarge`, and ValueError if they come too slowly."""
    if (request.content_length or 0) > limit:
        raise TooLarge(f"The file is larger than {limit:,} bytes.")
    try:
        data = await asyncio.wait_for(_read(request, limit), SLOWEST)
    except TimeoutError:  # not the built-in one in Python 3.10
        raise ValueError(f"The file did not come within {SLOWEST:.0f} seconds.") from None
    if data is None:
        raise TooLarge(f"The file is larger than {limit:,} bytes.")
    return data


async def _read(request: Any, limit: int) -> bytes | None:
    """The body, or None if it is larger than `limit` bytes."""
    data = bytearray()
    async for chunk in request.content.iter_chunked(CHUNK):
        data += chunk
        if len(data) > limit:
            return None
    return bytes(data)


def picture(data: bytes, kind: str = "image/png", seconds: int = 60) -> Any:
    """An image as an answer, which the browser may keep for a while."""
    from aiohttp import web

    headers = {"Cache-Control": f"private, max-age={seconds}", "X-Content-Type-Options": "nosniff"}
    headers["Cross-Origin-Resource-Policy"] = "same-origin"  # no other site's page shows it
    return web.Response(body=data, content_type=kind, headers=headers)


def as_download(data: bytes, name: str) -> Any:
    """A file as an answer, which the browser stores and never shows."""
    from aiohttp import web

    disposition = f"attachment; filename*=UTF-8''{quote(name)}"
    headers = {"Content-Disposition": disposition, "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    return web.Response(body=data, content_type="application/octet-stream", headers=headers)


def text_of(body: Mapping[str, Any], key: str, limit: int, usual: str | None = None) -> str:
    """A text in a request's body. Raises ValueError if it is missing (and there is no usual one), none, or too long."""
    value = body.get(key, usual)
    if not isinstance(value, str):
        raise ValueError(f"{key} must be a text.")
    if len(value) > limit:
        raise ValueError(f"{key} has more than {limit:,} characters.")
    return value
