"""What a step takes is foreseen, what it took is remembered, and a first step that does not fit is survived."""

import json
from dataclasses import replace

import pytest
import torch

import trainer.preflight.memory
import trainer.train
from benchmarks.random_flux import ModelFiles
from tests.full_size import GPU, full_work
from tests.parity.test_transformer import make_transformer
from tests.recipe_files import Finished, Workshop, make_workshop
from trainer.common.problems import Problems
from trainer.lora import projection
from trainer.lora.adapter import add_lora, linear_modules
from trainer.lora.blocks import use_training_blocks
from trainer.memory.bytes import (
    GIB,
    Choice,
    Work,
    blocks_of,
    forward_flops,
    host_bytes,
    kept_bytes,
    step_bytes,
    step_flops,
)
from trainer.memory.record import LAST, Measured, Measuring, find_measured, keep_measured
from trainer.models.transformer import Conditioning, predict_velocity, rotary_table
from trainer.preflight.check import make_plan

CPU = torch.device("cpu")


# The most that tensors took in whole trainings, `python -m trainer bench`: one H200, torch 2.11+cu130, 2026-11-28.
# Adapters in float32 on all linear layers of all blocks, batches recorded; AdamW, or Prodigy and accumulation.
ADAMW, PRODIGY = {"optimizer": 8}, {"optimizer": 14, "accumulates": True}


def recorded_work(optimizer: dict, *size: int, **changes) -> Work:
    """`full_work` with such adapters and an optimizer of so many bytes for each number."""
    work = full_work(*size, trained_itemsize=4, recorded=True, **changes)
    return replace(work, **{**optimizer, "optimizer": optimizer["optimizer"] * work.trained})


@pytest.mark.parametrize(
    ("rank", "pixels", "batch", "precision", "optimizer", "measured"),
    [
        (16, 1024, 1, "bf16", ADAMW, 44.75),
        (16, 1024, 1, "fp8", ADAMW, 48.31),
        (16, 512, 4, "bf16", ADAMW, 52.14),
        (16, 512, 4, "fp8", ADAMW, 56.02),
        (256, 1024, 1, "bf16", PRODIGY, 72.61),
    ],
)
def test_full_size_is_foreseen(rank, pixels, batch, precision, optimizer, measured):
    work = recorded_work(optimizer, rank, pixels, batch=batch)
    found = step_bytes(work, Choice(precision, both_layouts=precision == "fp8")).peak / GIB
    assert found == pytest.approx(measured, rel=0.02)


@pytest.mark.parametrize(
    ("precision", "checkpointed", "swapped", "measured"),
    [("bf16", 45, 36, 20.28), ("fp8", 41, 0, 20.51), ("fp8", 41, 48, 12.63), ("fp8", 49, 51, 8.68)],
)
def test_small_cards_are_foreseen(precision, checkpointed, swapped, measured):
    """Rank 16, 1024 px; one H100 with 23.5, 15.5 or 11.5 GiB left, torch 2.11+cu130, 2026-11-29."""
    choice = Choice(precision, checkpointed=checkpointed, swapped=swapped)
    found = step_bytes(recorded_work(ADAMW), choice).peak / GIB
    assert found == pytest.approx(measured, rel=0.02)


def test_arithmetic_of_full_size():
    """FLUX.1-dev at 1024 px: 59.5 TFLOP of products and 14.9 of attention forward."""
    assert step_flops(full_work(), 0) == pytest.approx(171e12, rel=0.01)
    assert step_flops(full_work(), 57) == pytest.approx(245e12, rel=0.01)
    assert forward_flops(full_work()) == step_flops(full_work(), 57) - step_flops(full_work(), 0)


def counted(transformer, block: torch.nn.Module, batch: int, img_tokens: int, txt_tokens: int, is_double: bool) -> int:
    """What autograd really keeps of one block: bytes of different formats that are no parameters."""
    width = transformer.x_embedder.out_features
    head = transformer.config["attention_head_dim"]
    joined = torch.randn(batch, txt_tokens + img_tokens, width).requires_grad_()
    img, txt = joined[:, txt_tokens:], joined[:, :txt_tokens]
    if is_double:
        img, txt = img.detach().clone().requires_grad_(), txt.detach().clone().requires_grad_()
    rotary = torch.randn(txt_tokens + img_tokens, head), torch.randn(txt_tokens + img_tokens, head)
    shared = {t.untyped_storage().data_ptr() for t in (*transformer.parameters(), *rotary)}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = block(img, txt, torch.randn(batch, width), rotary, None)
    assert outputs
    return sum(t.untyped_storage().nbytes() for address, t in kept.items() if address not in shared)


ALL = {"": 4}
PARTS = ({"attn": 4}, {"ff.": 4, "proj_mlp": 4}, {"to_q": 16, "proj_out": 2, "net.2": 2}, {"norm": 4, "to_out": 8})


@pytest.mark.parametrize("chosen", [ALL, *PARTS], ids=str)
@pytest.mark.parametrize("batch", [1, 3])
def test_kept_bytes_are_what_autograd_keeps(chosen, batch, monkeypatch):
    """In float32, where the CPU's kernels keep what the GPU's do."""
    monkeypatch.setattr(projection, "_recomputes_gelu", lambda _x: True)
    transformer = make_transformer()
    use_training_blocks(transformer)
    names = linear_modules(transformer)
    ranks = {name: rank for name in names for part, rank in chosen.items() if part in name}
    add_lora(transformer, ranks, None, seed=0)
    blocks, outside = blocks_of(make_transformer(), ranks)
    work = Work(blocks, outside, 96, 24, batch, 4, sum(b.adapter for b in blocks), 4, 0, False, compiled=False)
    modules = (*transformer.transformer_blocks, *transformer.single_transformer_blocks)
    for block, module in zip(blocks, modules, strict=True):
        found = counted(transformer, module, batch, 96, 24, block.is_double)
        assert kept_bytes(block, work) == pytest.approx(found, rel=0.1)


def test_a_double_block_frees_more_for_the_same_arithmetic():
    work = full_work()
    single, double = work.blocks[-1], work.blocks[0]
    assert double.is_double and not single.is_double
    assert kept_bytes(double, work) > 1.1 * kept_bytes(single, work)
    assert step_flops(work, 20) - step_flops(work, 19) == pytest.approx(step_flops(work, 1) - step_flops(work, 0))


def test_more_recomputed_or_swapped_takes_less():
    work = full_work()
    peaks = [step_bytes(work, Choice(checkpointed=count)).peak for count in range(57)]
    assert peaks == sorted(peaks, reverse=True)
    bases = [step_bytes(work, Choice(checkpointed=57, swapped=count)).peak for count in range(2, 38)]
    assert bases == sorted(bases, reverse=True) and bases[-1] < peaks[-1] - 8 * GIB
    assert host_bytes(work, Choice(swapped=55)) / GIB > 20
    precisions = [step_bytes(work, Choice(precision)).base for precision in ("bf16", "fp8", "nf4")]
    assert precisions[0] > 1.9 * precisions[1] > 1.9 * 1.6 * precisions[2]


# --- what was measured


def test_a_record_is_kept_and_found_again(tmp_path, caplog):
    assert find_measured(tmp_path, "a") is None
    keep_measured(tmp_path, "b", Measured(1.0, 2.0, 3.0, "2026-01-01"))
    watching = Measuring(tmp_path, "a", planned_bytes=int(50.1 * GIB))
    with caplog.at_level("INFO"):
        for step in range(1, 3 * LAST):
            watching.step(9.0 if step < 4 else 0.4, 51.0)
    found = find_measured(tmp_path, "a")
    assert found and (found.seconds_per_picture, found.peak_gib) == (0.4, 51.0)
    assert find_measured(tmp_path, "b")
    assert caplog.text.count("planned 50.1 GiB, took 51.0") == 1


@pytest.mark.parametrize("text", ["", "[]", '{"a": 3}', '{"a": {"other": 1}}'])
def test_a_record_that_is_not_ours_is_no_record(tmp_path, text):
    (tmp_path / "measured.json").write_text(text)
    assert find_measured(tmp_path, "a") is None
    keep_measured(tmp_path, "a", Measured(1.0, 2.0, 3.0, "2026-01-01"))
    assert find_measured(tmp_path, "a") and json.loads((tmp_path / "measured.json").read_text())


# --- checkpointing


@pytest.mark.parametrize("checkpointed", [1, 2, 3, True])
def test_recomputed_blocks_change_no_bit(checkpointed):
    transformer = make_transformer()
    add_lora(transformer, dict.fromkeys(linear_modules(transformer), 2), None, seed=0)
    trained = [p for p in transformer.parameters() if p.requires_grad]
    for index, parameter in enumerate(trained):
        torch.nn.init.normal_(parameter, 0, 0.1, generator=torch.Generator().manual_seed(index))
    text = Conditioning(torch.randn(2, 5, 24), torch.randn(2, 20))
    noisy, rotary = torch.randn(2, 4, 4, 6), rotary_table(transformer, 4, 6, 5, CPU)

    def gradients(count: int | bool) -> tuple[torch.Tensor, ...]:
        velocity = predict_velocity(transformer, noisy, torch.tensor([0.8, 0.2]), text, 1.0, rotary, count)
        return torch.autograd.grad(velocity.square().sum(), trained)

    assert all(torch.equal(a, b) for a, b in zip(gradients(0), gradients(checkpointed), strict=True))


# --- out of memory


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory, tiny_flux: ModelFiles) -> Workshop:
    return make_workshop(tmp_path_factory.mktemp("memory"), tiny_flux)


SETTINGS = {"network_dim": 1, "max_train_steps": 2, "save_precision": "float", "gradient_accumulation_steps": 2}
SETTINGS["t5xxl_max_token_length"] = 64  # so that activations are a part of the memory that a smaller plan can save


@pytest.fixture
def on_gpu(monkeypatch):
    """The CPU taken for a GPU with room for all; what really fits is for the test to say."""
    monkeypatch.setattr(trainer.preflight.memory, "query_device", lambda _device: GPU)


def same(one: Finished, other: Finished) -> bool:
    found, expected = one.tensors(), other.tensors()
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def fails(monkeypatch, name: str, too_large, after: bool = False) -> list[tuple[int, int]]:
    """Let a function of the loop run out of memory while the plan is too large; the plans that were tried."""
    right, tried = getattr(trainer.train, name), []

    def failing(run, *arguments):
        plan = run.memory.choice
        tried.append((plan.checkpointed, plan.swapped))
        result = right(run, *arguments) if after or not too_large(plan) else None
        if too_large(plan):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return result

    monkeypatch.setattr(trainer.train, name, failing)
    return tried


@pytest.mark.usefixtures("on_gpu")
@pytest.mark.parametrize(("half", "after"), [("compute_gradient", False), ("compute_gradient", True), ("update", True)])
def test_a_first_step_that_does_not_fit_goes_on_as_if_planned_so(workshop, monkeypatch, half, after, caplog):
    tried = fails(monkeypatch, half, lambda choice: choice.checkpointed < 2, after)
    found = workshop.train(f"{half} {after}", **SETTINGS)
    monkeypatch.undo()
    checkpointed, swapped = tried[-1]
    assert tried[0] == (0, 0) and checkpointed >= 2 and "trying again with" in caplog.text
    planned = workshop.train(
        f"planned {half} {after}", **SETTINGS, checkpoint_blocks=checkpointed, blocks_to_swap=swapped
    )
    assert same(found, planned)


@pytest.mark.usefixtures("on_gpu")
def test_a_later_step_that_does_not_fit_is_a_problem_that_names_flags(workshop, monkeypatch):
    steps = []
    fails(monkeypatch, "compute_gradient", lambda _: steps.append(1) or len(steps) > 2)
    with pytest.raises(Problems, match=r"step 2: out of memory\n.*--checkpoint_blocks=\d+ --blocks_to_swap"):
        workshop.train("later", **SETTINGS)


@pytest.mark.usefixtures("on_gpu")
def test_nothing_smaller_is_a_problem(workshop, monkeypatch):
    fails(monkeypatch, "compute_gradient", lambda _: True)
    with pytest.raises(Problems, match="first step: out of memory"):
        workshop.train("hopeless", **SETTINGS)


@pytest.mark.usefixtures("on_gpu")
@pytest.mark.parametrize(("flags", "asked"), [({}, 0), ({"blocks_to_swap": 1}, 1)])
def test_it_is_looked_for_only_where_blocks_are_swapped(workshop, monkeypatch, flags, asked):
    found = []
    monkeypatch.setattr(trainer.preflight.memory, "with_faster", lambda plan, allowed: found.append(allowed) or plan)
    make_plan(workshop.config("faster", **SETTINGS, **flags))
    assert len(found) == asked


def test_on_the_cpu_nothing_is_planned_or_said(workshop):
    plan = make_plan(workshop.config("cpu", **SETTINGS))
    assert plan.memory.device is None and plan.memory.choice == Choice() and "memory:" not in plan.summary()


def test_swapped_and_recomputed_runs_write_the_same_file(workshop):
    plain = workshop.train("plain", **SETTINGS)
    other = workshop.train("other", **SETTINGS, checkpoint_blocks=1, blocks_to_swap=2)
    assert same(plain, other)
