"""Routes for the queue of jobs, which a trainer takes from runs/queue/. ComfyUI itself starts no training.

docs/reference/workbench.md of the project describes them.
"""

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import run_files
from .answers import PREFIX, answers, our_body, picture, text_of
from .dataset_files import DatasetFiles, require_allowed
from .exchange.allowed import QUEUE
from .exchange.job_file import CHECK, COMPARE, KINDS, MASK, TRAIN, UNUSABLE_HINT, USUAL_NAME, WORK
from .exchange.job_queue import Job, JobQueue
from .exchange.status import FINISHED
from .image_folders import ImageFolders

LOG_BYTES = 64 * 2**10  # in one answer
LOG_END = 16 * 2**10
MAX_NAME = 300
MAX_SETTINGS = 200


def add_routes(routes: Any, runs: Path, data: Path) -> None:
    """routes: aiohttp's RouteTableDef. runs, data: the folders runs/ and flux_data/, which need not exist."""
    folders = ImageFolders(data)
    jobs = Jobs(runs, DatasetFiles(data, folders), folders)

    @routes.get(PREFIX + "/jobs")
    @answers
    async def overview(_request: Any) -> Any:
        return await asyncio.to_thread(jobs.overview)

    @routes.post(PREFIX + "/jobs")
    @answers
    async def submit(request: Any) -> Any:
        return await asyncio.to_thread(jobs.submit, await our_body(request))

    @routes.get(PREFIX + "/jobs/{job}")
    @answers
    async def details(request: Any) -> Any:
        return await asyncio.to_thread(jobs.details, request.match_info["job"])

    @routes.get(PREFIX + "/jobs/{job}/log")
    @answers
    async def log(request: Any) -> Any:
        start = request.query.get("from", "0")
        if start != "-1" and not (start.isdecimal() and len(start) < 16):
            raise ValueError("from must be a number of bytes, or -1.")
        return await asyncio.to_thread(jobs.log, request.match_info["job"], int(start))

    @routes.post(PREFIX + "/jobs/{job}/move")
    @answers
    async def move(request: Any) -> Any:
        body = await our_body(request)
        before = None if body.get("before") is None else text_of(body, "before", MAX_NAME)
        return await asyncio.to_thread(jobs.move, request.match_info["job"], before)

    @routes.post(PREFIX + "/jobs/{job}/{action}")
    @answers
    async def act(request: Any) -> Any:
        await our_body(request)
        where = request.match_info
        return await asyncio.to_thread(jobs.act, where["job"], where["action"])

    @routes.post(PREFIX + "/jobs_paused")
    @answers
    async def pause(request: Any) -> Any:
        paused = (await our_body(request)).get("paused")
        if not isinstance(paused, bool):
            raise ValueError("paused must be true or false.")
        await asyncio.to_thread(jobs.queue.pause, paused)
        return {"paused": paused}

    @routes.get(PREFIX + "/runs/{run}/sheets/{sheet}")
    @answers
    async def sheet(request: Any) -> Any:
        where = request.match_info
        return picture(await asyncio.to_thread(run_files.sheet, runs, where["run"], where["sheet"]), "image/jpeg", 0)


class Jobs:
    """The queue for the browser; each method answers with plain JSON values."""

    def __init__(self, runs: Path, files: DatasetFiles, folders: ImageFolders):
        self.runs, self.files, self.folders = runs, files, folders
        self.queue = JobQueue(runs / QUEUE)

    def overview(self) -> dict[str, Any]:
        """All jobs, and whether a trainer takes them."""
        return {
            "found": self.runs.is_dir(),
            "writable": self.runs.is_dir() and os.access(self.runs, os.W_OK | os.X_OK),
            "serving": self.queue.serving(),
            "paused": self.queue.paused,
            "jobs": [self._as_json(job) for job in self.queue.jobs()],
            "left_out": self.queue.left_out(),
        }

    def details(self, job: str) -> dict[str, Any]:
        """One job with its settings and what it has found. Raises LookupError."""
        found = self.queue.job(job)
        settings = {name: value for name, value in found.settings.items() if _is_plain(value)}
        sheets = run_files.sheets_of(self.runs, found.name) if found.kind in (TRAIN, CHECK) else []
        return {
            "job": self._as_json(found),
            "settings": settings,
            "result": self.queue.result(job) if found.status.state == FINISHED else None,
            "sheets": sheets,
        }

    def log(self, job: str, start: int) -> dict[str, Any]:
        """A part of what a job has printed. start: -1 for its end. Raises LookupError."""
        self.queue.job(job)
        data, size = self.queue.log(job, -LOG_END if start < 0 else start, LOG_BYTES)
        begin = max(0, size - LOG_END) if start < 0 else start
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            if error.reason == "unexpected end of data" and error.start > 0:
                data = data[: error.start]  # a character that the part cuts; the next part has it
            text = data.decode("utf-8", "replace")
        return {"text": text, "next": begin + len(data), "size": size}

    def submit(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Add a job. Raises ValueError, LookupError, `NotPossible` and OSError."""
        kind = body.get("kind")
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}.")
        settings = self._work(body, kind) if kind in WORK else self.training(body)
        return {"job": self._as_json(self.queue.submit(kind, settings))}

    def act(self, job: str, action: str) -> dict[str, Any]:
        """Pause, resume or cancel. Raises LookupError, `NotPossible` and OSError."""
        if action not in ("pause", "resume", "cancel"):
            raise LookupError(f"A job cannot be asked to {action!r}.")
        return {"job": self._as_json(self.queue.act(job, action))}

    def move(self, job: str, before: str | None) -> dict[str, Any]:
        """Change the order of jobs that wait. Raises LookupError, `NotPossible` and OSError."""
        self.queue.move(job, before)
        return {"jobs": [self._as_json(each) for each in self.queue.jobs()]}

    def training(self, body: Mapping[str, Any], needs_dataset: bool = True) -> dict[str, Any]:
        """The settings of a training: the preset's, and those in addition to it. Raises ValueError and LookupError."""
        settings, preset, dataset = body.get("settings", {}), body.get("preset"), body.get("dataset")
        if not isinstance(settings, dict) or len(settings) > MAX_SETTINGS:
            raise ValueError("settings must be a table of settings by name.")
        held = self.files.preset(preset) if isinstance(preset, str) else {}
        settings = {**held, **settings, "output_name": body.get("output_name")}
        if dataset is not None:
            settings["dataset_config"] = dataset
        require_allowed(settings)
        if needs_dataset and not self.files.has_dataset(str(settings.get("dataset_config"))):
            raise LookupError(f"There is no dataset file {settings.get('dataset_config')!r}.")
        return settings

    def _work(self, body: Mapping[str, Any], kind: str) -> dict[str, Any]:
        if kind == COMPARE:
            return {"run": run_files.run_folder(self.runs, text_of(body, "run", MAX_NAME)).name}
        folder = self.folders.folder(text_of(body, "folder", MAX_NAME)).name
        words = "class_word" if kind == MASK else "class_tokens"
        text = text_of(body, words, MAX_NAME).strip()
        if not text or not text.isprintable():
            raise ValueError(f"{words} must be one line of text.")
        redo = body.get("redo", False)
        if not isinstance(redo, bool):
            raise ValueError("redo must be true or false.")
        return {"folder": folder, words: text, "redo": redo}

    def _as_json(self, job: Job) -> dict[str, Any]:
        status = job.status
        name = job.name or USUAL_NAME
        has_run = job.kind in (TRAIN, COMPARE) and (self.runs / name).is_dir() and "/" not in name
        problems = list(status.problems)
        if job.problem:
            problems = [{"where": f"{job.id}.toml", "what": job.problem, "hint": UNUSABLE_HINT}]
        return {
            "id": job.id,
            "kind": job.kind,
            "output_name": name if job.kind in (TRAIN, CHECK) else None,
            "folder": job.settings.get("folder") if job.kind in WORK else None,
            "state": status.state,
            "asked": status.asked,
            "attempts": status.attempts,
            "submitted": status.submitted,
            "started": status.started,
            "ended": status.ended,
            "exit_code": status.exit_code,
            "message": status.message,
            "problems": problems,
            "can": status.can,
            "run": name if has_run else None,
        }


def _is_plain(value: Any) -> bool:
    """Whether JSON can hold it as it is: no date, no table."""
    return isinstance(value, str | int | float | list)
