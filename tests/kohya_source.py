"""Functions of kohya's sd-scripts, compiled from its files without importing what they do not use."""

import ast
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def kohya_functions(file: str, *names: str, **space: Any) -> list[Callable]:
    """The named functions of library/`file`, in that order; `space`: the globals that they need.

    Skips the test where SD_SCRIPTS_DIR is not set.
    """
    folder = os.environ.get("SD_SCRIPTS_DIR")
    if not folder:
        pytest.skip("git clone https://github.com/kohya-ss/sd-scripts and set SD_SCRIPTS_DIR=sd-scripts")
    tree = ast.parse((Path(folder) / "library" / file).read_text(encoding="utf-8"))
    nodes: list[ast.stmt] = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in names]
    for node in nodes:
        assert isinstance(node, ast.FunctionDef)
        for argument in node.args.args:
            argument.annotation = None
        node.returns = None
    exec(compile(ast.Module(nodes, []), file, "exec"), space)
    return [space[name] for name in names]
