"""Each test of a launcher gets a repository of its own, in a path with spaces."""

from pathlib import Path

import pytest

from tests.shell.recorder import Place


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "a b")
