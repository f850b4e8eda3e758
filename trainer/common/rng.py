"""Every random draw as a pure function of the seed and of what is drawn for.

Nothing here keeps state, so a resumed run needs no generator blobs: the same names give the same
draw in any process, on any rank, in any order.
"""

import hashlib
import random

import torch

Name = str | int | float


def derive_seed(seed: int, *names: Name) -> int:
    """A 63-bit seed from the run's seed and the names of the draw."""
    text = "\x1f".join([str(seed), *(str(name) for name in names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def torch_generator(seed: int, *names: Name) -> torch.Generator:
    """A fresh CPU generator; CPU, so that the draw is the same on every device."""
    return torch.Generator().manual_seed(derive_seed(seed, *names))


def python_random(seed: int, *names: Name) -> random.Random:
    """A fresh `random.Random` for choices and shuffles."""
    return random.Random(derive_seed(seed, *names))
