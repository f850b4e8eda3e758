"""A file written in the background: one at a time, its errors told, its content that of the moment."""

import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from trainer.checkpoint.background import BackgroundWrite
from trainer.common.problems import Problems
from trainer.lora.file import snapshot_lora, write_lora


def test_training_goes_on_meanwhile_and_the_end_is_noticed_in_the_main_thread():
    saving, gate, told = BackgroundWrite(), threading.Event(), []
    saving.start(lambda: gate.wait(10) and "file", lambda name: told.append((name, threading.current_thread())))
    saving.collect()
    assert not told
    gate.set()
    saving.finish()
    assert told == [("file", threading.main_thread())]
    saving.close()
    assert len(told) == 1


def test_a_second_write_waits_for_the_first():
    saving, order = BackgroundWrite(), []
    for number in range(3):
        saving.start(lambda number=number: number, order.append)
    assert order == [0, 1]
    saving.close()
    assert order == [0, 1, 2]


def test_what_went_wrong_is_raised_once_where_training_looks():
    saving = BackgroundWrite()

    def fail() -> None:
        raise OSError(28, "No space left on device")

    saving.start(fail, lambda _: None)
    with pytest.raises(OSError, match="No space left"):
        saving.finish()
    saving.close()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_copy_is_that_of_the_moment(tmp_path: Path, dtype):
    tensors = {"a.lora_A.weight": torch.ones(2, 4), "a.lora_B.weight": torch.ones(3, 2)}
    stored = snapshot_lora(tmp_path / "x.safetensors", tensors, {"a": 2.0}, dtype)
    for tensor in tensors.values():
        tensor.zero_()
    write_lora(tmp_path / "x.safetensors", stored, {})
    assert all(bool((tensor != 0).all()) for tensor in load_file(tmp_path / "x.safetensors").values())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_not_written(tmp_path: Path, value):
    tensors = {"a.lora_A.weight": torch.ones(2, 4), "a.lora_B.weight": torch.ones(3, 2)}
    tensors["a.lora_B.weight"][1, 1] = value
    with pytest.raises(Problems, match="1 of 2 tensors"):
        snapshot_lora(tmp_path / "x.safetensors", tensors, {"a": 2.0})
