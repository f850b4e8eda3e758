"""Jobs of the queue done for real: a check, a training that is stopped and goes on, and what the page gets to know."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.job_queue import DATASET, attempt, settings
from tests.kept_logging import logging_kept  # noqa: F401 (a fixture)
from tests.recipe_files import Workshop, touching
from trainer.cli import serve
from trainer.common.problems import Problems
from trainer.exchange.job_queue import JobQueue
from trainer.exchange.plans import Plans


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


@pytest.mark.usefixtures("queue")
def test_a_plan_s_warnings_name_no_temporary_file(workshop: Workshop, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(serve.os, "nice", lambda _: 0)
    given = {name: value for name, value in settings(workshop, "tj").items() if name != "dataset_config"}
    plans = Plans(serve.QUEUE)
    plan = plans.ask(given, DATASET.replace("tjtoy toy", "xqzvwkxqzvwkxqzvwk toy"), "")
    assert serve.run([f"--answer={plan}"]) == 0
    answer = plans.answer_to(plan) or {}
    wheres = [each["where"] for each in answer["warnings"]]
    assert answer["plan"]["steps"] == 4 and any(where.startswith("the new dataset file:") for where in wheres), answer
    assert plan not in json.dumps(answer)
