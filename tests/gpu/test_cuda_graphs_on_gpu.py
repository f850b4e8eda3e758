"""Recorded gradients: the same training, from graphs that share their memory."""

import json
import os
import signal

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from benchmarks.random_flux import ModelFiles
from tests.recipe_files import Workshop, make_workshop, started, wait_for
from trainer import train as training
from trainer.engine import build as model_setup
from trainer.engine.run import Run
from trainer.models.attention import choose_attention

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: run `make test` on one"),
]
COMPILED = 240  # seconds: graphs of two sizes, forward and backward, which nobody has compiled before
TWO_SIZES = """
[[datasets]]
resolution = 64

[[datasets.subsets]]
image_dir = "{folder}/toy"
class_tokens = "tjtoy toy"

[[datasets]]
resolution = 96
batch_size = 2

[[datasets.subsets]]
image_dir = "{folder}/toy"
class_tokens = "tjtoy toy"
custom_attributes = { diff_output_preservation = true }
"""


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory, tiny_flux: ModelFiles) -> Workshop:
    made = make_workshop(tmp_path_factory.mktemp("graphs"), tiny_flux)
    made.dataset(TWO_SIZES, "two.toml")
    return made


Trained = tuple[dict[str, torch.Tensor], list[float], Run]


def trained(workshop: Workshop, place: str, monkeypatch, **settings) -> Trained:
    """The LoRA, each step's loss, and the run."""
    runs: list[Run] = []
    prepare = training.prepare
    # chosen by timing it might be another kernel in each of two trainings that are compared
    monkeypatch.setattr(model_setup, "choose_attention", lambda *given: choose_attention(*given[:-1], timed=False))
    monkeypatch.setattr(training, "prepare", lambda *all: runs.append(prepare(*all)) or runs[-1])
    settings = {"mixed_precision": "bf16", "max_train_steps": 20, "log_every": 1} | settings
    config = workshop.config(place, dataset_config=workshop.folder / "two.toml", **settings)
    try:
        assert training.train(config, Accelerator(mixed_precision="no")) == 0
    finally:
        torch.use_deterministic_algorithms(False)
    lines = map(json.loads, (config.run_dir / "tj" / "log.jsonl").read_text(encoding="utf-8").splitlines())
    losses = [line["loss"] for line in lines if "loss" in line and "gradient_norm" in line]
    return load_file(config.output_dir / "tj.safetensors"), losses, runs[0]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"torch_compile": True, "gradient_accumulation_steps": 3},
        {"gradient_checkpointing": True, "optimizer_type": "Prodigy", "learning_rate": 1.0},
        {"validate_every_n_steps": 7, "ema_decay": 0.9},
        {"base_precision": "fp8", "torch_compile": True},
        {"blocks_to_swap": 1, "checkpoint_blocks": 2, "validate_every_n_steps": 7},
        {"blocks_to_swap": 2, "base_precision": "fp8", "torch_compile": True},
        {"blocks_to_swap": 2, "network_args": ["train_blocks=single"], "torch_compile": True},
    ],
    ids=["eager", "compiled", "checkpointed", "validated", "fp8", "swapped", "swapped-fp8", "later blocks"],
)
def test_a_recorded_training_is_the_same_training(workshop, monkeypatch, settings):
    name = "-".join(map(str, settings)) or "plain"
    settings = settings | {"deterministic": "base_precision" not in settings}
    plain, losses, _ = trained(workshop, f"{name} launched", monkeypatch, **settings, cuda_graphs=False)
    recorded, same_losses, run = trained(workshop, f"{name} recorded", monkeypatch, **settings)
    assert run.graphs is not None and not run.graphs.is_broken and run.graphs.holds_gradients
    assert len(losses) == len(same_losses) == 20
    torch.testing.assert_close(torch.tensor(same_losses), torch.tensor(losses), rtol=2e-3, atol=1e-4)
    for key in plain:
        torch.testing.assert_close(recorded[key].float(), plain[key].float(), rtol=0.05, atol=2e-3)


def test_a_replay_asks_the_host_for_little(workshop, monkeypatch):
    """One launch in place of hundreds."""
    _, _, run = trained(workshop, "launches", monkeypatch, max_train_steps=12)
    batch = run.maker(run.own_share(12)[0]).to(run.model.device)
    assert run.graphs is not None
    run.graphs(run.model, batch)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run.graphs(run.model, batch)
        torch.cuda.synchronize()
    launches = sum(event.count for event in profile.key_averages() if "LaunchKernel" in event.key)
    graphs = sum(event.count for event in profile.key_averages() if "GraphLaunch" in event.key)
    assert graphs == 1 and launches < 30


def test_a_recorded_training_ends_when_all_its_processes_are_told_to(workshop):
    """As a service manager tells them: the compiler's helpers get the signal too."""
    settings = {"mixed_precision": "bf16", "torch_compile": True, "max_train_steps": 100_000, "log_every": 1}
    settings["dataset_config"] = workshop.folder / "two.toml"
    log = workshop.config("told", **settings).run_dir / "tj" / "log.jsonl"
    with started(workshop.command("told", **settings), fresh=True, ACCELERATE_USE_CPU="false") as process:
        wait_for(
            lambda: log.exists() and log.read_text(encoding="utf-8").count('"kind": "step"') > 30, process, COMPILED
        )
        os.killpg(process.pid, signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 143 and "recorded as CUDA graphs" in output, output
