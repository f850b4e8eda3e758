"""Logging as it was before a test ran the command line, which sets it up anew."""

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def logging_kept() -> Iterator[None]:
    """Import it into a module of tests; handlers that other tests have left are taken off first."""
    root = logging.getLogger()
    handlers = [handler for handler in root.handlers if type(handler) is not logging.StreamHandler]
    root.handlers[:], level = handlers, root.level
    yield
    root.handlers[:], root.level = handlers, level
