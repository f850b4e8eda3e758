"""The route of a run's report.html, a page that `trainer compare` wrote into a folder whose content is not trusted.

The browser is told to give the page no scripts, no network and no origin of its own, so that nothing in it can act on
ComfyUI. The answer is sent by the handler itself: ComfyUI's --disable-api-nodes replaces that header in answers that
are not sent yet.
"""

import asyncio
from pathlib import Path
from typing import Any

from . import run_files
from .answers import PREFIX, answers
from .exchange.files import read_file
from .findings import REPORT

MAX_REPORT = 64 * 2**20
HEADERS = {
    "Content-Security-Policy": "sandbox; default-src 'none'; img-src data:; style-src 'unsafe-inline';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def add_routes(routes: Any, runs: Path) -> None:
    """routes: aiohttp's RouteTableDef. runs: the folder runs/, which need not exist."""

    @routes.get(PREFIX + "/runs/{run}/report")
    @answers
    async def report(request: Any) -> Any:
        from aiohttp import web

        data = await asyncio.to_thread(read_report, runs, request.match_info["run"])
        answer = web.StreamResponse(headers={"Content-Type": "text/html; charset=utf-8", **HEADERS})
        await answer.prepare(request)
        await answer.write(data)
        await answer.write_eof()
        return answer


def read_report(runs: Path, name: str) -> bytes:
    """A run's report.html. Raises LookupError if there is none."""
    try:
        data = read_file(run_files.run_folder(runs, name) / REPORT, MAX_REPORT + 1)
    except OSError:
        raise LookupError(f"The checkpoints of {name} have not been compared.") from None
    if len(data) > MAX_REPORT:
        raise LookupError(f"The report of {name} is too large to be shown here; open it from {REPORT}.")
    return data
