"""containers/*.py, which are programs and no package, as modules."""

import importlib.util

from tests.recipe_files import ROOT

CONTAINERS = ROOT / "containers"


def part(name: str):
    """One of containers/*.py as a module."""
    spec = importlib.util.spec_from_file_location(name, CONTAINERS / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
