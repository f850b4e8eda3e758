"""What only a GPU can show: no waiting within a step, compiled blocks, checkpointing, resume on real kernels."""

from itertools import islice
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from benchmarks.random_flux import ModelFiles
from tests.recipe_files import Workshop, make_workshop
from trainer.common.process import StopRequest
from trainer.data.batches import prefetch
from trainer.engine.metrics import Readback
from trainer.engine.requests import Requests
from trainer.engine.run import Run, prepare
from trainer.engine.step import accumulate_gradients
from trainer.preflight.check import make_plan
from trainer.train import clip_gradients, train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: run `make test` on one"),
]
SETTINGS = {"mixed_precision": "bf16", "network_dim": 8, "max_train_steps": 6}


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory, tiny_flux: ModelFiles) -> Workshop:
    return make_workshop(tmp_path_factory.mktemp("gpu"), tiny_flux)


def prepared(workshop: Workshop, place: str, **settings) -> Run:
    config = workshop.config(place, **{**SETTINGS, **settings})
    accelerator = Accelerator(mixed_precision="no")
    plan = make_plan(config)
    folder = workshop.folder / place / "runs" / "tj"
    folder.mkdir(parents=True, exist_ok=True)
    run = prepare(config, accelerator, plan, Requests(folder, StopRequest(), accelerator))
    generator = torch.Generator().manual_seed(0)
    for parameter in run.model.parameters.values():  # up starts at zero, where most gradients vanish
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)
    return run


def gradient_of(run: Run, step: int = 1) -> torch.Tensor:
    batches = prefetch(run.maker, run.own_share(step))
    accumulate_gradients(run.model, batches, len(run.own_share(step)), run.num_images(step), step)
    gradient = torch.cat([parameter.grad.flatten() for parameter in run.model.parameters.values()])
    run.optimizer.zero_grad(set_to_none=True)
    return gradient.double()


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a, b, dim=0))


@pytest.mark.parametrize("optimizer", ["AdamW", "Prodigy", "Lion"])
def test_a_step_never_waits_for_the_device(workshop, optimizer):
    rate = 1.0 if optimizer == "Prodigy" else 1e-4
    run = prepared(workshop, f"sync {optimizer}", optimizer_type=optimizer, learning_rate=rate, ema_decay=0.9)
    readback = Readback(run.model.device, lambda *_: None)
    batches = [batch.to(run.model.device) for step in range(1, 6) for batch in map(run.maker, run.own_share(step))]
    torch.cuda.synchronize()
    feed = iter(batches)
    try:
        for step in range(1, 6):
            if step == 3:  # the first steps allocate, and build tables
                torch.cuda.set_sync_debug_mode("error")
            loss = accumulate_gradients(run.model, islice(feed, 1), 1, 1, step)
            norm = clip_gradients(run.model, 1.0)
            run.optimizer.step()
            run.scheduler.step()
            run.optimizer.zero_grad(set_to_none=True)
            run.ema.update(step)
            readback.push(step, {"loss": loss, "gradient_norm": norm, **run.step_size()})
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_checkpointing_changes_no_gradient(workshop):
    plain = gradient_of(prepared(workshop, "plain"))
    saved = gradient_of(prepared(workshop, "checkpointed", gradient_checkpointing=True))
    assert cosine(plain, saved) > 0.99999
    torch.testing.assert_close(saved.norm(), plain.norm(), rtol=1e-3, atol=0)


def test_compiled_blocks_give_the_eager_gradient(workshop):
    eager = gradient_of(prepared(workshop, "eager", mixed_precision="no"))
    compiled = gradient_of(prepared(workshop, "compiled", mixed_precision="no", torch_compile=True))
    assert cosine(eager, compiled) > 0.9999


@pytest.mark.parametrize("torch_compile", [False, True])
def test_bf16_is_close_to_float32_layer_by_layer(workshop, torch_compile):
    exact = prepared(workshop, "float32", mixed_precision="no")
    rounded = prepared(workshop, f"bf16 {torch_compile}", torch_compile=torch_compile)
    sizes = [parameter.numel() for parameter in exact.model.parameters.values()]
    layers = zip(
        exact.model.parameters, gradient_of(exact).split(sizes), gradient_of(rounded).split(sizes), strict=True
    )
    wrong = {name: cosine(one, other) for name, one, other in layers if not cosine(one, other) > 0.99}
    assert not wrong


@pytest.mark.parametrize("optimizer", ["AdamW", "Prodigy"])
def test_resume_is_bitwise_with_deterministic_algorithms(workshop, monkeypatch, optimizer):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    settings = {**SETTINGS, "deterministic": True, "optimizer_type": optimizer, "gradient_accumulation_steps": 2}
    settings |= {"learning_rate": 1.0 if optimizer == "Prodigy" else 1e-3, "save_every_n_steps": 4, "save_state": True}

    def run_to_end(place: str, **more) -> Path:
        config = workshop.config(place, **{**settings, **more})
        assert train(config, Accelerator(mixed_precision="no")) == 0
        return config.output_dir / "tj.safetensors"

    try:
        straight = run_to_end(f"{optimizer} straight")
        expected = straight.read_bytes()
        state = workshop.folder / f"{optimizer} straight" / "runs" / "tj" / "state-step00000004"
        resumed = run_to_end(f"{optimizer} straight", resume=state)
        assert resumed.read_bytes() == expected
        assert any(tensor.any() for name, tensor in load_file(resumed).items() if "lora_B" in name)
    finally:
        torch.use_deterministic_algorithms(False)
