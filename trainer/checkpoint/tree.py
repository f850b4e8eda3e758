"""Nested state (dicts, lists, tuples, scalars, tensors) as JSON and a dict of tensors, exactly.

JSON has no tuples, infinities or keys other than strings: these are written as tagged objects.
"""

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass
class TreeWriter:
    """Turns nested dicts, lists, tuples, scalars and tensors into plain JSON, and collects the tensors.

    tensors: those collected, by name: the path at which each first occurs, such as "optimizer/state/0/exp_avg".
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)  # by identity: one tensor is written once

    def encode(self, value: Any, path: str) -> Any:
        """`value` as plain JSON, in which each tensor is replaced by its name; the tensors go into `self.tensors`.

        path: where `value` belongs, such as "optimizer", with which the names begin. Raises TypeError for a type that
        could not be restored exactly.
        """
        if isinstance(value, Tensor):
            return {"tensor": self._name(value, path)}
        if value is None or type(value) in (bool, int, str):
            return value
        if type(value) is float:
            return value if math.isfinite(value) else {"float": repr(value)}
        if type(value) in (list, tuple):
            items = [self.encode(item, f"{path}/{index}") for index, item in enumerate(value)]
            return items if type(value) is list else {"tuple": items}
        if type(value) in (dict, OrderedDict):
            pairs = [[self.encode(key, path), self.encode(item, f"{path}/{key}")] for key, item in value.items()]
            return {"dict": pairs}
        kind = f"{type(value).__module__}.{type(value).__name__}"
        raise TypeError(f"{path} is a {kind}, which cannot be saved exactly")

    def _name(self, tensor: Tensor, path: str) -> str:
        if id(tensor) not in self.names:
            assert path not in self.tensors, f"two tensors at {path}"
            self.tensors[path], self.names[id(tensor)] = tensor, path
        return self.names[id(tensor)]


def decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The nested value that `TreeWriter.encode` turned into `value`. tensors: by the names that it gave them."""
    if isinstance(value, list):
        return [decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    ((mark, content),) = value.items()
    if mark == "tensor":
        return tensors[content]
    if mark == "float":
        return float(content)
    if mark == "tuple":
        return tuple(decode(item, tensors) for item in content)
    assert mark == "dict", mark
    return {decode(key, tensors): decode(item, tensors) for key, item in content}
