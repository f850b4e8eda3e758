"""What torch.compile's inductor needs on a CPU, and a mark for the tests that use it."""

import os
import shutil
import sysconfig
from pathlib import Path

import pytest

COMPILER = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
HEADERS = (Path(sysconfig.get_paths()["include"]) / "Python.h").exists()
needs_inductor = pytest.mark.skipif(
    not (COMPILER and HEADERS), reason="inductor needs a C++ compiler and Python's headers: g++, python3-dev"
)
