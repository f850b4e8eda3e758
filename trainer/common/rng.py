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
    """A 63-bit seed computed from the run's seed and the names with SHA-256: same arguments, same seed.

    names: what the random numbers are for, like "flip", epoch, key.
    """
    text = "\x1f".join([str(seed), *(str(name) for name in names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def torch_generator(seed: int, *names: Name) -> "torch.Generator":
    """A new CPU generator, seeded by the run's seed and the names: same arguments, same numbers, whatever the device.

    names: what the numbers are for, like "noise", epoch, key.
    """
    import torch

    return torch.Generator().manual_seed(derive_seed(seed, *names))


def python_random(seed: int, *names: Name) -> random.Random:
    """A new `random.Random`, for choices and shuffles, seeded by the run's seed and the names.

    names: what the numbers are for, like "flip", epoch, key. The same arguments give the same numbers.
    """
    return random.Random(derive_seed(seed, *names))
