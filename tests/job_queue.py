"""A queue of real trainings of the random FLUX, done in the test's own process."""

import time
from dataclasses import replace

from tests.recipe_files import SMALL, Workshop
from trainer.cli.serve import run
from trainer.exchange.job_queue import JobQueue

DATASET = """
[[datasets]]
resolution = 64
[[datasets.subsets]]
image_dir = "flux_data/toy"
class_tokens = "tjtoy toy"
"""


def settings(workshop: Workshop, name: str) -> dict[str, object]:
    """Those of a training of four steps."""
    models = workshop.models.transformer.parents[1]
    files = {
        "pretrained_model_name_or_path": workshop.models.transformer,
        "clip_l": workshop.models.clip_l,
        "t5xxl": workshop.models.t5xxl,
        "ae": workshop.models.ae,
        "tokenizer_dir": workshop.models.tokenizer_dir,
    }
    paths = {key: f"models/{path.relative_to(models).as_posix()}" for key, path in files.items()}
    more = {"dataset_config": "flux_data/data.toml", "cache_dir": "flux_data/.cache", "max_train_steps": 4}
    return {**paths, **more, **SMALL, "output_name": name}


def attempt(queue: JobQueue, job: str) -> int:
    """What the waiting trainer does before and in the job's process."""
    now = {"state": "running", "started": time.time()}
    queue.update(job, lambda status: replace(status, attempts=status.attempts + 1, **now))
    return run([f"--run_job={job}"])
