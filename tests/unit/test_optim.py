"""Optimizers by name, schedules, and that a step never waits for the host."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.optimization import get_cosine_with_hard_restarts_schedule_with_warmup

from trainer.common.problems import Problems
from trainer.config import TrainConfig
from trainer.optim import foreach
from trainer.optim.build import (
    OptimizerSettings,
    build_optimizer,
    optimizer_notices,
    optimizer_problems,
    rate_problems,
)
from trainer.optim.lion import Lion
from trainer.optim.prodigy import Prodigy
from trainer.optim.schedule import ScheduleSettings, build_lr_scheduler, lr_scheduler_problems

READS_A_TENSOR = {
    "aten::_local_scalar_dense",
    "aten::item",
    "aten::is_nonzero",
    "aten::equal",
    "aten::nonzero",
}


class NoHostReads(TorchDispatchMode):
    """Fails at `.item()`, `bool(tensor)`, `tensor.tolist()` and the like."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func._schema.name not in READS_A_TENSOR, f"{func} waits for the host"
        return func(*args, **(kwargs or {}))


def parameters(dtype=torch.float32) -> list[torch.nn.Parameter]:
    torch.manual_seed(0)
    values = [torch.randn(8, 4), torch.zeros(4, 8), torch.randn(3)]
    return [torch.nn.Parameter(value.to(dtype)) for value in values]


def set_gradients(chosen, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in chosen:
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter)


def chosen_optimizer(**settings) -> OptimizerSettings:
    return TrainConfig(**settings).select(OptimizerSettings)


def chosen_schedule(**settings) -> ScheduleSettings:
    return TrainConfig(**settings).select(ScheduleSettings)


def notices(**settings) -> list[str]:
    return optimizer_notices(chosen_optimizer(**settings))


def problems_of(**settings) -> str:
    return "\n".join(str(problem) for problem in optimizer_problems(chosen_optimizer(**settings)))


def test_the_guard_itself():
    with NoHostReads(), pytest.raises(AssertionError, match="waits"):
        bool(torch.ones(1) > 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("Prodigy", ()),
        ("Prodigy", ("use_bias_correction=True", "safeguard_warmup=True", "weight_decay=0.1", "slice_p=2")),
        ("Prodigy", ("betas=0.0,0.99", "growth_rate=1.02", "decouple=False", "weight_decay=0.1")),
        ("AdamW", ()),
        ("Lion", ("weight_decay=0.1",)),
        ("Adafactor", ()),
    ],
)
def test_a_step_never_waits_for_the_host(name, arguments, dtype):
    config = TrainConfig(optimizer_type=name, optimizer_args=arguments, learning_rate=0.5)
    chosen = parameters(dtype)
    optimizer = build_optimizer(config.select(OptimizerSettings), [{"params": chosen}])
    schedule = build_lr_scheduler(config.select(ScheduleSettings), optimizer, 10)
    before = [parameter.detach().clone() for parameter in chosen]
    for step in range(4):
        set_gradients(chosen, step)
        with NoHostReads():
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
    assert not torch.equal(chosen[1], before[1])
    assert all(parameter.isfinite().all() for parameter in chosen)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["Prodigy", "AdamW", "Lion", "Adafactor"])
def test_a_step_never_synchronises_on_cuda(name):
    chosen = [torch.nn.Parameter(parameter.detach().cuda()) for parameter in parameters()]
    optimizer = build_optimizer(chosen_optimizer(optimizer_type=name), [{"params": chosen}])
    for step in range(4):
        set_gradients(chosen, step)
        torch.cuda.set_sync_debug_mode("error" if step else "default")  # the first step makes state
        try:
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    ("name", "cls"),
    [("prodigy", Prodigy), ("AdamW", torch.optim.AdamW), ("LION", Lion), ("radam", torch.optim.RAdam)],
)
def test_names_are_case_insensitive_and_module_class_works(name, cls):
    optimizer = build_optimizer(chosen_optimizer(optimizer_type=name), [{"params": parameters()}])
    assert type(optimizer) is cls
    path = f"{cls.__module__}.{cls.__name__}"
    assert type(build_optimizer(chosen_optimizer(optimizer_type=path), [{"params": parameters()}])) is cls


def test_arguments_and_group_rates_reach_the_optimizer():
    config = chosen_optimizer(optimizer_args=("betas=0.8,0.9", "weight_decay=0.5"), learning_rate=2e-4)
    first, *rest = parameters()
    optimizer = build_optimizer(config, [{"params": [first], "lr": 1e-5}, {"params": rest}])
    assert [group["lr"] for group in optimizer.param_groups] == [1e-5, 2e-4]
    assert optimizer.param_groups[1]["betas"] == (0.8, 0.9)
    assert optimizer.param_groups[0]["weight_decay"] == 0.5
    assert optimizer.param_groups[0]["fused"]
    assert not build_optimizer(chosen_optimizer(optimizer_args=("foreach=True",)), [{"params": rest}]).param_groups[0][
        "fused"
    ]


def test_problems_say_what_to_do():
    assert "did you mean prodigy?" in problems_of(optimizer_type="Prodigi")
    assert "did you mean betas?" in problems_of(optimizer_args=("beta=1",))
    assert "accepted: betas" in problems_of(optimizer_args=("zzz=1",))
    assert "not key=value" in problems_of(optimizer_args=("weight_decay",))
    assert "not a Python literal" in problems_of(optimizer_args=("weight_decay=0,1x",))
    assert "given twice" in problems_of(optimizer_args=("eps=1e-8", "eps=1e-7"))
    assert "Invalid beta" in problems_of(optimizer_args=("betas=2.0,0.9",)), "found before any parameter is there"
    assert "use --learning_rate" in problems_of(optimizer_args=("lr=1",))
    assert "install the package that provides nothing_here" in problems_of(optimizer_type="nothing_here.Adam")
    assert "relative_step" in problems_of(optimizer_type="Adafactor", optimizer_args=("relative_step=True",))
    (problem,) = rate_problems(chosen_optimizer(optimizer_type="Prodigy"), [1.0, 0.5])
    assert "one step size" in problem.what
    assert "schedule-free" in problems_of(optimizer_type="schedulefree.AdamWScheduleFree")
    with pytest.raises(Problems, match="Invalid beta"):
        build_optimizer(chosen_optimizer(optimizer_args=("betas=2.0,0.9",)), [{"params": parameters()}])


def test_several_problems_at_once():
    assert len(optimizer_problems(chosen_optimizer(optimizer_args=("a=1", "b", "c=2")))) == 3


def test_missing_bitsandbytes_is_named():
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        assert "adamw8bit" in problems_of(optimizer_type="AdamW8bit")
    else:
        assert problems_of(optimizer_type="AdamW8bit") == ""


def test_notices():
    assert "usually 1" in notices(optimizer_type="Prodigy")[0]
    assert notices(optimizer_type="Prodigy", learning_rate=1.0) == []
    assert "very high" in notices(learning_rate=1.0)[0]


@pytest.mark.parametrize("limit", [2**25, 10])
def test_lion_is_its_formula(limit, monkeypatch):
    monkeypatch.setattr(foreach, "CHUNK_ELEMENTS", limit)
    chosen = parameters()
    expected = [parameter.detach().clone() for parameter in chosen]
    momenta = [torch.zeros_like(parameter) for parameter in chosen]
    optimizer = Lion(chosen, lr=0.01, betas=(0.9, 0.98), weight_decay=0.1)
    for step in range(20):
        set_gradients(chosen, step)
        optimizer.step()
        for p, m, gradient in zip(expected, momenta, [parameter.grad for parameter in chosen], strict=True):
            direction = torch.sign(0.9 * m + 0.1 * gradient)
            p -= 0.01 * (direction + 0.1 * p)
            m.copy_(0.98 * m + 0.02 * gradient)
    for a, b in zip(chosen, expected, strict=True):
        torch.testing.assert_close(a.detach(), b, rtol=1e-5, atol=1e-6)


def rates(total: int, **settings) -> list[float]:
    config = chosen_schedule(learning_rate=1.0, **settings)
    optimizer = torch.optim.SGD(parameters(), lr=1.0)
    schedule = build_lr_scheduler(config, optimizer, total)
    found = []
    for _ in range(total):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_cosine_with_restarts_and_warmup():
    found = rates(100, lr_scheduler="cosine_with_restarts", lr_warmup_steps=10, lr_scheduler_num_cycles=3)
    optimizer = torch.optim.SGD(parameters(), lr=1.0)
    reference = get_cosine_with_hard_restarts_schedule_with_warmup(optimizer, 10, 100, 3).lr_lambdas[0]
    assert found == pytest.approx([reference(step) for step in range(100)])
    assert found[0] == 0 and found[10] == 1 and found[40] == pytest.approx(1) and found[39] < 0.01


def test_playbook_schedule_is_a_plain_cosine():
    found = rates(500, lr_scheduler="cosine_with_restarts")
    assert found == pytest.approx([0.5 * (1 + math.cos(math.pi * step / 500)) for step in range(500)])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"lr_scheduler": "constant"}, {0: 1, 99: 1}),
        ({"lr_scheduler": "constant_with_warmup", "lr_warmup_steps": 0.1}, {0: 0, 5: 0.5, 10: 1, 99: 1}),
        ({"lr_scheduler": "linear", "lr_warmup_steps": 50}, {25: 0.5, 50: 1, 75: 0.5}),
        ({"lr_scheduler": "cosine"}, {0: 1, 50: 0.5}),
        ({"lr_scheduler": "polynomial", "lr_scheduler_power": 2.0}, {0: 1, 50: 0.25}),
        ({"lr_scheduler": "inverse_sqrt", "lr_scheduler_timescale": 30}, {0: 1, 90: 0.5}),
        ({"lr_scheduler": "cosine_with_min_lr", "lr_scheduler_min_lr_ratio": 0.2}, {0: 1, 50: 0.6}),
        ({"lr_scheduler": "warmup_stable_decay", "lr_decay_steps": 0.2}, {0: 1, 79: 1, 90: 0.5}),
    ],
    ids=lambda value: value.get("lr_scheduler", ""),
)
def test_schedules(settings, expected):
    found = rates(100, **settings)
    assert {step: found[step] for step in expected} == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"lr_warmup_steps": 5}, "constant_with_warmup"),
        ({"lr_scheduler": "cosine", "lr_warmup_steps": 200}, "do not fit"),
        ({"lr_scheduler": "cosine", "lr_decay_steps": 5}, "warmup_stable_decay"),
        ({"lr_scheduler": "warmup_stable_decay"}, "--lr_decay_steps"),
    ],
)
def test_schedule_problems(settings, words):
    (problem,) = lr_scheduler_problems(chosen_schedule(**settings), 100)
    assert words in str(problem)


@pytest.mark.parametrize(("flag", "rates"), [("--learning_rate", {}), ("--unet_lr", {"learning_rate": 1e-4})])
def test_the_rate_that_counts_is_the_transformers(flag, rates):
    def with_rate(rate, **settings) -> dict:
        return {**({**rates, "unet_lr": rate} if rates else {"learning_rate": rate}), **settings}

    assert notices(**with_rate(1.0))[0].startswith(flag) and not notices(**with_rate(1e-4))
    assert flag in notices(**with_rate(1e-4, optimizer_type="Prodigy"))[0]
    assert not notices(**with_rate(1.0, optimizer_type="Prodigy"))
    (problem,) = lr_scheduler_problems(chosen_schedule(**with_rate(1e-8, lr_scheduler="polynomial")), 100)
    assert problem.where == flag


def test_polynomial_starts_at_the_transformers_rate():
    config = TrainConfig(learning_rate=1e-8, unet_lr=1e-3, lr_scheduler="polynomial")
    schedule = config.select(ScheduleSettings)
    assert not lr_scheduler_problems(schedule, 100)
    groups = [{"params": parameters(), "lr": config.transformer_lr}]
    optimizer = build_optimizer(config.select(OptimizerSettings), groups)
    assert build_lr_scheduler(schedule, optimizer, 100).get_last_lr() == [1e-3]
