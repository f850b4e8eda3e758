"""Downloads that are cut off: the next request, or the next run, goes on from there, and bytes are counted."""

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.fake_hub import Cut, FakeHub
from tests.hub_files import DEV, MIB, TEXT_ENCODERS, download, models_here, parts_here
from tests.recipe_files import PATIENCE, environment
from trainer.hub.errors import Status
from trainer.hub.wanted import KEYS

FLUX = "flux1-dev.safetensors"


# resuming, bytes counted


def test_a_reset_in_the_middle_goes_on_where_it_was(hub):
    whole = len(hub.files[DEV][FLUX])
    hub.cuts[FLUX] = [Cut(MIB), Cut(2 * MIB), Cut(1000)]
    assert download("--only", "flux") == 0
    requests = hub.sent(FLUX)
    ranges = [request.range for request in requests]
    assert ranges == [None, f"bytes={MIB}-", f"bytes={3 * MIB}-", f"bytes={3 * MIB + 1000}-"]
    assert sum(request.sent for request in requests) == whole
    assert models_here() == {f"checkpoints/{FLUX}": hub.files[DEV][FLUX]}


def test_an_answer_that_ends_early_is_not_taken_for_whole(hub):
    hub.cuts[FLUX] = [Cut(MIB, reset=False)]
    assert download("--only", "flux") == 0
    assert sum(request.sent for request in hub.sent(FLUX)) == len(hub.files[DEV][FLUX])


def test_a_silent_server_is_asked_again(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 2)
    complete = threading.Event()
    hub.cuts[FLUX] = [Cut(MIB, silence=complete)]
    assert download("--only", "flux") == 0
    complete.set()
    assert sum(request.sent for request in hub.sent(FLUX)) == len(hub.files[DEV][FLUX])


def test_the_next_run_goes_on_where_the_last_one_gave_up(hub):
    hub.cuts[FLUX] = [Cut(MIB)] + [Cut(0)] * 4
    assert download("--only", "flux") == Status.NO_NETWORK
    [part] = parts_here()
    assert part.stat().st_size == MIB and models_here().keys() == {str(part.relative_to("models"))}
    hub.requests.clear()
    assert download("--only", "flux") == 0
    assert [request.range for request in hub.sent(FLUX)][-1] == f"bytes={MIB}-"
    assert sum(request.sent for request in hub.sent(FLUX)) == len(hub.files[DEV][FLUX]) - MIB
    assert not parts_here()


def test_a_server_without_ranges_starts_anew_and_ends_right(hub):
    hub.ranges = False
    hub.cuts[FLUX] = [Cut(MIB)]
    assert download("--only", "flux") == 0
    assert models_here() == {f"checkpoints/{FLUX}": hub.files[DEV][FLUX]}


def test_a_proxy_page_on_the_way_costs_no_byte_of_the_part(hub):
    hub.cuts[FLUX] = [Cut(MIB)] + [Cut(0)] * 4
    assert download("--only", "flux") == Status.NO_NETWORK
    [part] = parts_here()
    before = part.read_bytes()
    hub.proxy_page = {"get"}
    assert download("--only", "flux") == Status.NOT_THE_HUB
    assert part.read_bytes() == before


def test_a_busy_hub_is_asked_again(hub):
    hub.api_statuses, hub.statuses = [503, 429], [429, 502]
    assert download("--only", "ae") == 0


# wrong bytes


def test_wrong_bytes_are_fetched_once_more(hub):
    hub.wrong[FLUX] = 1
    assert download("--only", "flux") == 0
    assert models_here() == {f"checkpoints/{FLUX}": hub.files[DEV][FLUX]}


def test_wrong_bytes_never_get_the_name(hub, said):
    hub.wrong[FLUX] = 10
    assert download() == Status.WRONG_BYTES
    assert FLUX in said() and not parts_here()
    found = models_here()
    assert f"checkpoints/{FLUX}" not in found and len(found) == 8, "the others are whole and kept"
    hub.wrong.clear()
    hub.requests.clear()
    assert download() == 0
    assert {request.path for request in hub.requests if request.sent} == {f"/cdn/{DEV}/{FLUX}"}


def test_a_part_that_was_damaged_is_fetched_anew(hub):
    hub.cuts[FLUX] = [Cut(MIB)] + [Cut(0)] * 4
    assert download("--only", "flux") == Status.NO_NETWORK
    parts_here()[0].write_bytes(bytes(MIB))
    assert download("--only", "flux") == 0
    assert models_here() == {f"checkpoints/{FLUX}": hub.files[DEV][FLUX]}


# being stopped, as a program


def program(hub: FakeHub, *argv: str, **more: str) -> subprocess.Popen[str]:
    inside = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_TOKEN": hub.token, "HF_HUB_DISABLE_TELEMETRY": "1"}
    command = [sys.executable, "-m", "trainer", "download", *argv]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=environment() | inside | more, **pipes)


def wait_for(condition, seconds: float = PATIENCE) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_stopped_and_started_again(hub, number, status):
    hub.fast_bytes, hub.seconds_per_chunk = 3 * MIB, 1  # the rest takes a quarter of a minute
    process = program(hub, "--only", "flux")
    wait_for(lambda: parts_here() and parts_here()[0].stat().st_size > MIB)
    process.send_signal(number)
    text = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == status and "Traceback" not in text and hub.token not in text
    assert status < 0 or "run it again to continue where it stopped" in text
    [part] = parts_here()
    kept = part.stat().st_size
    hub.seconds_per_chunk = 0
    hub.requests.clear()
    assert download("--only", "flux") == 0
    assert sum(request.sent for request in hub.sent(FLUX)) == len(hub.files[DEV][FLUX]) - kept


def test_as_a_program_with_all_that_the_library_would_log(hub):
    """The token is in neither the output nor the arguments, even when the library is told to log everything."""
    process = program(hub, HF_DEBUG="1", HF_HUB_VERBOSITY="debug")
    text = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == 0, text
    assert hub.token not in text and "complete: models/checkpoints" in text
    record = json.loads(Path("models/.download/record.json").read_text())
    assert len(record) == 9 and hub.token not in json.dumps(record)


def test_files_arrive_at_the_same_time(hub):
    hub.seconds_per_chunk = 0.01
    assert download("--only", *KEYS) == 0
    first_bytes = [request for request in hub.requests if request.sent]
    assert {TEXT_ENCODERS in request.path for request in first_bytes[:4]} == {True, False}
