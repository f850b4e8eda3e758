"""Downloads that fail: each failure's own status and words, and what stays on disk."""

import errno
import fcntl
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.fake_hub import PAGE, Cut, FakeHub
from tests.hub_files import DEV, MIB, OTHER_TOKEN, download, models_here, parts_here
from trainer.hub import fetch, patience
from trainer.hub.errors import Status

FLUX = "flux1-dev.safetensors"


# What is different: of the hub, of the environment (None: not set), of the library (a name with dots).
# Then the status, and words that have to be said.
AWAY = "http://127.0.0.1:9"
FAILURES = {
    "not logged in": ({"HF_TOKEN": None}, Status.NOT_LOGGED_IN, "then export HF_TOKEN", f"/{DEV}"),
    "token wrong": ({"HF_TOKEN": OTHER_TOKEN}, Status.TOKEN_WRONG, "the Hub rejects the token", "settings/tokens"),
    "no token at all": ({"HF_TOKEN": OTHER_TOKEN + " é"}, Status.TOKEN_WRONG, "that no token has", "copy it again"),
    "licence": ({"accepted": False}, Status.LICENCE_NOT_ACCEPTED, "licence has not been accepted", f"/{DEV}"),
    "narrow": ({"narrow": True}, Status.TOKEN_TOO_NARROW, "fine-grained token settings", "public gated repos"),
    "page for the list": ({"proxy_page": {"api"}}, Status.NOT_THE_HUB, "proxy", "HTTPS_PROXY"),
    "page for the head": ({"proxy_page": {"head"}}, Status.NOT_THE_HUB, "proxy", "HTTPS_PROXY"),
    "page for the file": ({"proxy_page": {"get"}}, Status.NOT_THE_HUB, "page instead of the file", "HTTPS_PROXY"),
    "page with 403": ({"proxy_page": {"blocked"}}, Status.NOT_THE_HUB, "a web page with status 403", "HTTPS_PROXY"),
    "no network": ({"huggingface_hub.constants.ENDPOINT": AWAY}, Status.NO_NETWORK, "no connection", AWAY),
    "offline": ({"huggingface_hub.constants.HF_HUB_OFFLINE": True}, Status.NO_NETWORK, "HF_HUB_OFFLINE", "unset"),
    "no way to the CDN": ({"cdn": AWAY}, Status.NO_NETWORK, "no connection", AWAY),
    "rate limit": ({"api_statuses": [429] * 100}, Status.HUB_BUSY, "too many requests", "continues where it stopped"),
    "broken": ({"statuses": [503] * 1000}, Status.HUB_BUSY, "error 503", "continues where it stopped"),
    "no repository": ({"files": {}}, Status.NOT_FOUND, "does not exist or is private", f"/{DEV}"),
    "no such file": ({"files": {DEV: {FLUX: b"flux"}}}, Status.NOT_FOUND, "has no ae.safetensors", DEV),
}


def change(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, name: str, value: Any) -> None:
    if "." in name:
        monkeypatch.setattr(name, value)
    elif not name.isupper():
        setattr(hub, name, value)
    elif value is None:
        monkeypatch.delenv(name)
    else:
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("failure", FAILURES)
def test_each_failure_has_its_own_words_and_status(hub, monkeypatch, said, failure):
    """Nothing is left under a final name; and what was whole before stays."""
    changes, status, words, more = FAILURES[failure]
    assert download("--only", "clip_l") == 0
    before = models_here()
    for name, value in changes.items():
        change(hub, monkeypatch, name, value)
    assert download("--only", "ae", "flux") == status
    text = said()
    assert words in text and more in text and re.search(r"^\d problems? found:", text, re.MULTILINE)
    assert models_here() == before | {str(part.relative_to("models")): part.read_bytes() for part in parts_here()}
    assert all(PAGE not in part.read_bytes() for part in parts_here())


def test_a_retry_says_why_when_and_for_how_long(hub, said):
    hub.api_statuses, hub.statuses = [503, 429], [502]
    assert download("--only", "ae") == 0
    text = said()
    assert f"reading the list of files of {DEV}" in text
    assert f"{DEV}: the Hub is not available (error 503); retry 1 of 3 in 0 s, giving up in about 0 s" in text
    assert f"{DEV}: the Hub is busy (too many requests); retry 2 of 3" in text
    assert "ae.safetensors: the Hub is not available (error 502); retry 1 of 3" in text


def test_the_time_until_giving_up_counts_waits_and_slow_attempts(monkeypatch):
    """Five waits of 30 s in all, and attempts that take 10 s each: the message goes down from 80 s to 25 s."""
    clock, lines, waits = [0.0], [], []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        clock[0] += seconds

    def attempt() -> None:
        clock[0] += 10
        raise httpx2.ConnectTimeout("timed out")

    monkeypatch.setattr(patience, "WAITS", (1.0, 2.0, 4.0, 8.0, 15.0))
    monkeypatch.setattr(patience.time, "monotonic", lambda: clock[0])
    with pytest.raises(httpx2.ConnectTimeout):
        patience.patiently(attempt, "ae", lines.append, wait)
    left = [float(line.rpartition("about ")[2].removesuffix(" s")) for line in lines]
    assert left == [80, 69, 57, 43, 25] and waits == [1, 2, 4, 8, 15]
    assert lines[0].startswith("ae: no connection (timed out); retry 1 of 5 in 1 s")


def test_without_a_network_one_repository_is_tried(monkeypatch, said):
    """Each repository is on the same server: waiting for it once is enough."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", AWAY)
    assert download() == Status.NO_NETWORK
    text = said()
    assert text.count("reading the list of files") == 1 and text.count("retry ") == 3 and "1 problem found" in text


def test_everything_that_stands_against_it_is_said_at_once(hub, said):
    hub.accepted = False
    mine = Path("models/text_encoders/clip_l.safetensors")
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    assert download() in (Status.LICENCE_NOT_ACCEPTED, Status.IN_THE_WAY)
    assert "2 problems found" in said() and not any(request.sent for request in hub.requests)


def test_public_files_need_no_login(monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    assert download("--only", "clip_l", "t5xxl") == 0


# the disk


def test_too_little_room_is_said_before_a_byte_is_fetched(hub, monkeypatch, said):
    monkeypatch.setattr("trainer.common.disk.free_disk_bytes", lambda _: 3 * MIB)
    assert download() == Status.DISK_FULL
    assert "needed, 0.00 GB free" in said() and not any(request.sent for request in hub.requests)


def test_a_disk_that_fills_up_keeps_what_came(hub, monkeypatch, said):
    write = fetch._write_all

    def write_until_full(part, chunk):
        if os.fstat(part.fileno()).st_size > MIB and FLUX in str(part.name):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(part, chunk)

    monkeypatch.setattr(fetch, "_write_all", write_until_full)
    assert download() == Status.DISK_FULL
    assert "the disk is full" in said() and len(models_here()) == 9
    kept = parts_here()[0].stat().st_size
    assert kept > MIB
    monkeypatch.setattr(fetch, "_write_all", write)
    hub.requests.clear()
    assert download() == 0
    assert sum(request.sent for request in hub.sent(FLUX)) == len(hub.files[DEV][FLUX]) - kept


@pytest.mark.skipif(os.geteuid() != 0, reason="root mounts a small disk for it: run as root")
def test_a_disk_that_is_really_full(hub, monkeypatch, said, tmp_path):
    """It was empty enough when it was looked at; then another program took the room."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", disk], capture_output=True).returncode:
        pytest.skip("no right to mount a tmpfs: run with CAP_SYS_ADMIN")
    flux = ("--only", "flux", "--models_dir", str(disk))
    try:
        assert download(*flux) == Status.DISK_FULL and not any(request.sent for request in hub.requests)
        with monkeypatch.context() as patched:
            patched.setattr("trainer.common.disk.free_disk_bytes", lambda _: 1 << 30)
            assert download(*flux) == Status.DISK_FULL
        assert "the disk is full" in said()
        [part] = disk.rglob("*.part")
        kept = part.stat().st_size
        assert kept > MIB and not (disk / "checkpoints" / FLUX).exists()
        subprocess.run(["mount", "-o", "remount,size=8m", disk], check=True)
        hub.requests.clear()
        assert download(*flux) == 0
        assert sum(request.sent for request in hub.sent(FLUX)) == len(hub.files[DEV][FLUX]) - kept
        assert (disk / "checkpoints" / FLUX).read_bytes() == hub.files[DEV][FLUX]
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_file_where_a_folder_should_be():
    Path("models").write_bytes(b"")
    assert download("--only", "ae") == Status.NOT_WRITABLE
    assert Path("models").read_bytes() == b""


def test_two_downloads_of_one_file(hub):
    hub.cuts[FLUX] = [Cut(MIB)] + [Cut(0)] * 4
    assert download("--only", "flux") == Status.NO_NETWORK
    with parts_here()[0].open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert download("--only", "flux") == Status.ANOTHER_DOWNLOAD
    assert parts_here()[0].stat().st_size == MIB
