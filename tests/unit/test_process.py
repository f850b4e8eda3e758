"""One run per folder, signals that let a step finish, logs without secrets."""

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.kept_logging import logging_kept  # noqa: F401 (a fixture)
from tests.recipe_files import PATIENCE, ROOT, environment
from trainer.common.devices import computes_bf16
from trainer.common.problems import Problem, Problems
from trainer.common.process import StopRequest, run_lock, set_up_determinism, set_up_logging

TOKEN = "hf_" + "AbCdEfGh1234567890"  # made up


def test_a_second_run_of_the_same_name_is_refused(tmp_path):
    folder = tmp_path / "runs" / "tj"
    with run_lock(folder):
        with pytest.raises(Problems, match="another training") as found, run_lock(folder):
            pytest.fail("two runs held one folder")
        assert found.value.problems[0].where == str(folder) and "--output_name" in found.value.problems[0].hint
        with run_lock(tmp_path / "runs" / "other"):
            pass
    with run_lock(folder):
        pass


HOLD_LOCK = """
import sys, time
from pathlib import Path
from trainer.common.process import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(1000)  # until it is killed
"""


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def test_a_lock_ends_with_its_process_however_that_ends(tmp_path):
    process = start(HOLD_LOCK, tmp_path)
    assert first_line(process) == "held"
    with pytest.raises(Problems), run_lock(tmp_path):
        pytest.fail("two processes held one folder")
    process.kill()
    process.wait()
    with run_lock(tmp_path):
        pass


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_is_remembered(number, status, capsys):
    former = signal.getsignal(number)
    with StopRequest().listening() as stop:
        assert not stop and stop.exit_code == 0
        os.kill(os.getpid(), number)
        assert stop and stop.exit_code == status
    assert signal.getsignal(number) == former
    assert signal.Signals(number).name in capsys.readouterr().err


def test_handlers_are_put_back_after_an_error():
    former = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RuntimeError), StopRequest().listening():
        raise RuntimeError
    assert signal.getsignal(signal.SIGTERM) == former


LISTEN = """
import time
from trainer.common.process import StopRequest
with StopRequest().listening() as stop:
    print("listening", flush=True)
    while not stop:
        time.sleep(0.01)
    print("finishing", flush=True)
    time.sleep(1000)  # until it is killed
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_ends_at_once(number):
    process = start(LISTEN)
    assert first_line(process) == "listening"
    process.send_signal(number)
    assert first_line(process) == "finishing"
    process.send_signal(number)
    assert process.wait(timeout=PATIENCE) == -number


def test_tokens_never_reach_the_log(capsys):
    set_up_logging()
    log = logging.getLogger("trainer.anything")
    log.info("download with %s from %s", TOKEN, "the hub")
    log.warning(f"token={TOKEN}, done")
    log.error("a mapping %(key)s", {"key": TOKEN})
    log.info("hf_ and shelf_life are words")
    try:
        raise ValueError(f"refused {TOKEN}")
    except ValueError:
        log.exception("failed")
    text = capsys.readouterr().err
    assert TOKEN not in text and "AbCdEfGh" not in text
    assert "download with [secret] from the hub" in text and "token=[secret], done" in text
    assert "hf_ and shelf_life are words" in text and "refused [secret]" in text


def test_other_processes_only_warn(capsys):
    set_up_logging(is_main_process=False)
    logging.getLogger("trainer").info("quiet")
    logging.getLogger("trainer").warning("loud")
    assert capsys.readouterr().err == "loud\n"


def test_determinism_refuses_what_is_not(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    try:
        set_up_determinism()
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(False)
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


def test_the_lock_leaves_a_folder_that_can_be_looked_at(tmp_path: Path):
    with run_lock(tmp_path / "a" / "b"):
        assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == [".lock"]


def test_tokens_never_reach_a_report_of_problems():
    problem = Problem(f"--x={TOKEN}", f"unknown {TOKEN}", f"not {TOKEN}")
    assert str(problem) == "--x=[secret]: unknown [secret]\n    -> not [secret]"
    assert TOKEN not in str(Problems([problem]))


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx2": True, "avx512_bf16": True, "amx_bf16": False}, True),
        ({"amx_bf16": True}, True),
        ({"avx2": True, "avx512_bf16": False}, False),
        ({}, False),
    ],
)
def test_a_cpu_computes_in_bf16_where_it_has_instructions_for_it(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert computes_bf16(torch.device("cpu")) == expected
    assert computes_bf16(torch.device("cuda"))


def test_a_torch_that_does_not_tell_computes_in_float32(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not computes_bf16(torch.device("cpu"))
