"""Modules on their devices, with their types kept."""

from typing import Any, TypeVar

from torch import nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def moved(module: ModuleT, **where: Any) -> ModuleT:
    """`module.to(**where)`, which torch declares without memory_format and diffusers wraps without its type."""
    to: Any = module.to
    return to(**where)
