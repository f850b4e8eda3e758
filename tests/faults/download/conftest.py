"""Each test of a failing download has a hub of its own, and nothing that it prints is a secret."""

import pytest

from tests.fake_hub import FakeHub
from tests.hub_files import OTHER_TOKEN, reachable

SECRETS = (OTHER_TOKEN, "Signature", "Traceback")


@pytest.fixture(autouse=True)
def hub(tmp_path, monkeypatch):
    with reachable(monkeypatch, tmp_path) as fake:
        yield fake


@pytest.fixture(autouse=True)
def said(hub: FakeHub, capfd):
    """All that was printed so far; secrets are never in it."""
    printed = []

    def read() -> str:
        printed.extend(capfd.readouterr())
        return "".join(printed)

    yield read
    assert not [secret for secret in (*SECRETS, hub.token) if secret in read()]
