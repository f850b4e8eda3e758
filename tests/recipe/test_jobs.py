"""Jobs of the queue done for real: a check, a training that is stopped and goes on, and what the page gets to know."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.kept_logging import logging_kept  # noqa: F401 (a fixture)
from tests.recipe_files import SMALL, Workshop, touching
from trainer.cli.serve import QUEUE, run
from trainer.common.problems import Problems
from trainer.exchange.job_queue import JobQueue

DATASET = """
[[datasets]]
resolution = 64
[[datasets.subsets]]
image_dir = "flux_data/toy"
class_tokens = "tjtoy toy"
"""


@pytest.fixture
def queue(in_tmp: Path, workshop: Workshop) -> JobQueue:
    """A repository's folders, with links to the workshop's models and images."""
    (in_tmp / "flux_data").mkdir()
    (in_tmp / "models").symlink_to(workshop.models.transformer.parents[1])
    (in_tmp / "flux_data/toy").symlink_to(workshop.folder / "toy")
    (in_tmp / "flux_data/data.toml").write_text(DATASET)
    return JobQueue(QUEUE)


def settings(workshop: Workshop, name: str) -> dict[str, object]:
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
    queue.update(job, lambda status: replace(status, state="running", attempts=status.attempts + 1))
    return run([f"--run_job={job}"])


def test_a_stopped_job_goes_on_to_the_same_bits(queue: JobQueue, workshop: Workshop):
    for name in ("whole", "parts"):
        queue.submit("train", settings(workshop, name))
    assert attempt(queue, "whole") == 0
    with touching("stop", 2):
        attempt(queue, "parts")
    loras = Path("models/loras")
    assert not (loras / "parts.safetensors").exists()
    assert attempt(queue, "parts") == 0
    whole, parts = (load_file(loras / f"{name}.safetensors") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys() and all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_check_leaves_its_plan_and_each_image_s_crop(queue: JobQueue, workshop: Workshop):
    job = queue.submit("check", settings(workshop, "tj"))
    assert attempt(queue, job.id) == 0
    result = queue.result(job.id)
    assert "4 steps" in result["summary"]
    assert [Path(image["path"]).name for image in result["images"]] == [f"{number:02}.png" for number in range(5)]
    assert result["images"][0] | {"messages": []} == {
        "path": "flux_data/toy/00.png", "width": 64, "height": 64, "bucket": [64, 64], "resized": [64, 64],
        "crop": [0, 0], "messages": [],
    }  # fmt: skip
    assert json.dumps(result["warnings"])
    plan = result["plan"]
    assert (plan["steps"], plan["epochs"], plan["samples_per_epoch"], plan["checkpoints"]) == (4, 1, 5, 1)
    assert plan["disk_bytes"] > 0 and plan["seconds"] is plan["memory_bytes"] is None, "no GPU, nothing measured"
    assert not Path("runs/tj").exists()


def test_masks_and_captions_are_jobs_too(queue: JobQueue):
    """Their models are not here, which the page gets to know."""
    for kind, words in (("mask", "class_word"), ("caption", "class_tokens")):
        job = queue.submit(kind, {"folder": "toy", words: "tjtoy toy"})
        with pytest.raises(Problems, match=rf"download\.sh --{kind}s"):
            attempt(queue, job.id)
        assert queue.job(job.id).status.problems


def test_the_page_gets_every_problem_of_a_job(queue: JobQueue, workshop: Workshop):
    Path("flux_data/data.toml").write_text(DATASET.replace("flux_data/toy", "flux_data/none"))
    job = queue.submit("train", settings(workshop, "tj") | {"ae": "models/vae/none.safetensors"})
    with pytest.raises(Problems):
        attempt(queue, job.id)
    wheres = " ".join(each["where"] for each in queue.job(job.id).status.problems)
    assert "data.toml" in wheres and "ae" in wheres
