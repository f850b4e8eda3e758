"""The route that tells what a training would take, before it is put into the queue; the waiting trainer counts it.

docs/reference/workbench.md of the project describes it.
"""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .answers import PREFIX, answers, our_body, text_of
from .dataset_files import DATA, DatasetFiles
from .exchange.allowed import QUEUE
from .exchange.files import read_file
from .exchange.job_file import MAX_JOB
from .exchange.plans import Plans
from .image_folders import ImageFolders
from .routes_jobs import MAX_NAME, Jobs

UNNAMED = "unnamed LoRA"  # a training whose name is not written yet
ABSENT, WAITING, DONE = "absent", "waiting", "done"


def add_routes(routes: Any, runs: Path, data: Path) -> None:
    """routes: aiohttp's RouteTableDef. runs, data: the folders runs/ and flux_data/, which need not exist."""
    folders = ImageFolders(data)
    plans = RunPlans(Jobs(runs, DatasetFiles(data, folders), folders))

    @routes.post(PREFIX + "/plan")
    @answers
    async def plan(request: Any) -> Any:
        return await asyncio.to_thread(plans.ask, await our_body(request))


class RunPlans:
    """The plans of trainings that are not in the queue yet."""

    def __init__(self, jobs: Jobs):
        self.jobs, self.plans = jobs, Plans(jobs.runs / QUEUE)

    def ask(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """What a training would take, or that it is being counted. Raises ValueError, LookupError and OSError.

        body: as of a job, with `new_dataset` instead of `dataset` if that is not written yet, and `instead_of`, the
        plan that is no longer needed.
        """
        new = body.get("new_dataset")
        if new is not None and not isinstance(new, dict):
            raise ValueError("new_dataset must be a table.")
        dataset = None if new is None else self.jobs.files.dataset_text(new)
        named = {
            "output_name": body.get("output_name") or UNNAMED,
            "dataset": body.get("dataset") if new is None else None,
        }
        settings = self.jobs.training({**body, **named}, needs_dataset=new is None)
        if new is not None:
            settings.pop("dataset_config", None)
        mark = self._mark(settings, new)
        if (before := body.get("instead_of")) and before != self.plans.id_of(settings, dataset, mark):
            self.plans.withdraw(text_of(body, "instead_of", MAX_NAME))
        if self.jobs.queue.serving() is None:
            return {"id": None, "state": ABSENT}
        plan = self.plans.ask(settings, dataset, mark)
        held = self.plans.answer_to(plan)
        return {"id": plan, "state": WAITING} if held is None else {"id": plan, "state": DONE, **held}

    def _mark(self, settings: Mapping[str, Any], new: Mapping[str, Any] | None) -> str:
        """Stands for the images, the dataset file, and what earlier jobs have left."""
        file = settings.get("dataset_config")
        subsets = new["subsets"] if new is not None else self._subsets(file)
        images = self.jobs.folders.mark(str(each.get("folder")) for each in subsets)
        ended = max((job.status.ended or 0 for job in self.jobs.queue.jobs()), default=0)
        held = b"" if new is not None else read_file(self.jobs.files.root / str(file).removeprefix(f"{DATA}/"), MAX_JOB)
        return f"{images} {ended} {held!r}"

    def _subsets(self, file: Any) -> list[dict[str, Any]]:
        return next((each["subsets"] for each in self.jobs.files.datasets() if each["file"] == file), [])
