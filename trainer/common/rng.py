"""Random numbers as pure functions of the run's seed and of what they are for.

Nothing here keeps state, so a resumed run needs no saved generators: the same names give the same
numbers in any process, on any rank, in any order.
"""

import hashlib
import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

Name = str | int | float


def derive_seed(seed: int, *names: Name) -> int:
    """A 63-bit seed: SHA-256 of the run's seed and of the names that say what the numbers are for."""
    text = "\x1f".join([str(seed), *(str(name) for name in names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def torch_generator(seed: int, *names: Name) -> "torch.Generator":
    """A fresh generator on the CPU, so that the numbers are the same whatever device the run uses."""
    import torch

    return torch.Generator().manual_seed(derive_seed(seed, *names))


def python_random(seed: int, *names: Name) -> random.Random:
    """A fresh `random.Random`, for choices and shuffles."""
    return random.Random(derive_seed(seed, *names))
