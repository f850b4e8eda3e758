"""`Module.to` with a type that a checker accepts."""

from typing import Any, TypeVar

from torch import nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def moved(module: ModuleT, **where: Any) -> ModuleT:
    """`module.to(**where)`: torch's declaration lacks memory_format, and diffusers' wrapper loses the module's type."""
    to: Any = module.to
    return to(**where)
