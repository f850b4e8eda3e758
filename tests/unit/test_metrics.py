"""Numbers from the device: in order, complete, and none delivered twice."""

from types import SimpleNamespace

import pytest
import torch

from trainer.engine.metrics import Numbers, Readback

CPU = torch.device("cpu")


@pytest.fixture
def delivered() -> list[tuple[int, Numbers]]:
    return []


@pytest.fixture
def readback(delivered) -> Readback:
    return Readback(CPU, lambda step, numbers: delivered.append((step, numbers)))


def test_on_the_host_numbers_arrive_at_once(readback, delivered):
    values = {"loss": torch.tensor(0.5), "norm": torch.tensor(2.0, dtype=torch.bfloat16, requires_grad=True)}
    readback.push(7, values, {"learning_rate": 1e-4})
    ((step, numbers),) = delivered
    assert step == 7 and numbers.pop("seconds") >= 0
    assert numbers == {"loss": 0.5, "norm": 2.0, "learning_rate": 1e-4}
    readback.flush()
    assert len(delivered) == 1


def test_numbers_are_those_at_the_time_of_the_push(readback, delivered):
    value = torch.tensor(1.0)
    readback.push(1, {"a": value})
    value.fill_(9)
    readback.push(2, {"a": value})
    assert [numbers["a"] for _, numbers in delivered] == [1.0, 9.0]


def test_numbers_that_are_not_finite_arrive_as_they_are(readback, delivered):
    readback.push(1, {"loss": torch.tensor(float("nan")), "norm": torch.tensor(float("inf"))})
    numbers = delivered[0][1]
    assert numbers["loss"] != numbers["loss"] and numbers["norm"] == float("inf")


def test_a_step_is_timed_from_the_one_before_or_from_a_new_start(delivered, monkeypatch):
    now = 100.0
    monkeypatch.setattr("trainer.engine.metrics.time", SimpleNamespace(perf_counter=lambda: now))
    readback = Readback(CPU, lambda step, numbers: delivered.append((step, numbers)))
    now += 2
    readback.push(1, {"a": torch.zeros(())})
    now += 0.5
    readback.push(2, {"a": torch.zeros(())})
    now += 30  # a checkpoint, say
    readback.start_clock()
    now += 1
    readback.push(3, {"a": torch.zeros(())})
    assert [numbers["seconds"] for _, numbers in delivered] == [2, 0.5, 1]


def test_what_the_receiver_raises_comes_out_of_push():
    def refuse(step: int, _: Numbers) -> None:
        raise ValueError(f"step {step}")

    with pytest.raises(ValueError, match="step 3"):
        Readback(CPU, refuse).push(3, {"a": torch.zeros(())})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_numbers_arrive_one_step_late(delivered):
    readback = Readback(torch.device("cuda"), lambda step, numbers: delivered.append((step, numbers)))
    for step in range(1, 4):
        readback.push(step, {"a": torch.tensor(float(step), device="cuda")})
        assert [s for s, _ in delivered] == list(range(1, step))
    readback.flush()
    assert [(step, numbers["a"]) for step, numbers in delivered] == [(1, 1.0), (2, 2.0), (3, 3.0)]
