"""What a run is asked to do while it goes, and how several processes agree on it."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate import Accelerator

from tests.recipe_files import ROOT, environment
from trainer.common.process import StopRequest
from trainer.engine.requests import Request, Requests, discard_requests


@pytest.fixture
def stop() -> StopRequest:
    return StopRequest()


@pytest.fixture
def requests(tmp_path: Path, stop: StopRequest) -> Requests:
    return Requests(tmp_path, stop, Accelerator(cpu=True))


def test_nothing_is_asked(requests):
    assert requests.poll() == Request(save=False, stop=False)


@pytest.mark.parametrize(("name", "expected"), [("save", Request(save=True)), ("stop", Request(stop=True))])
def test_a_touched_file_is_obeyed_once_and_taken_away(requests, tmp_path, name, expected):
    (tmp_path / name).touch()
    assert requests.poll() == expected
    assert list(tmp_path.iterdir()) == []
    assert requests.poll() == Request()


def test_both_at_once(requests, tmp_path):
    (tmp_path / "save").touch()
    (tmp_path / "stop").touch()
    assert requests.poll() == Request(save=True, stop=True)


def test_a_folder_of_that_name_is_no_request(requests, tmp_path):
    (tmp_path / "save").mkdir()
    assert requests.poll() == Request() and (tmp_path / "save").is_dir()


def test_requests_of_an_earlier_run_are_discarded_and_logged(requests, tmp_path, caplog):
    (tmp_path / "stop").touch()
    (tmp_path / "notes").touch()
    with caplog.at_level("INFO"):
        discard_requests(tmp_path)
    assert requests.poll() == Request() and [path.name for path in tmp_path.iterdir()] == ["notes"]
    assert caplog.messages == [f"removed {tmp_path / 'stop'}, left over from an earlier run"]


def test_a_signal_asks_to_stop(requests, stop):
    stop.signal = signal.SIGTERM
    assert requests.poll() == Request(stop=True)


TWO_PROCESSES = """
import sys
from pathlib import Path
import torch.distributed as dist
from accelerate import Accelerator
from trainer.engine.requests import Requests
from trainer.common.process import StopRequest
accelerator, stop = Accelerator(cpu=True), StopRequest()
folder = Path(sys.argv[1])
requests = Requests(folder, stop, accelerator)
answered = []
for step in range(4):
    if accelerator.is_main_process and step == 1:
        (folder / "save").touch()
    if not accelerator.is_main_process and step == 2:
        stop.signal = 15  # a signal may reach one process alone
    answered.append(tuple(requests.poll()))
(folder / f"{accelerator.process_index}.txt").write_text(repr(answered))
accelerator.end_training()
"""


def test_two_processes_agree(tmp_path):
    script = tmp_path / "agree.py"
    script.write_text(TWO_PROCESSES)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    done = subprocess.run([*command, str(tmp_path)], env=environment(), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    answers = {(tmp_path / f"{index}.txt").read_text() for index in range(2)}
    quiet, save, stopping = (False, False), (True, False), (False, True)
    assert len(answers) == 1
    answered = eval(answers.pop())
    # on the CPU numbers arrive within the poll; on a GPU one step later
    assert answered in ([quiet, save, stopping, stopping], [quiet, quiet, save, stopping])
