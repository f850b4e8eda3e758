"""`python -m trainer` that stands still after its n-th backward pass: `python tests/held_run.py N train …`.

It then says HELD and waits to be killed, so that a test knows where in a step the kill comes, however busy the machine.
"""

import signal
import sys
from collections.abc import Callable
from typing import Any

import torch

from trainer.__main__ import main

HELD = "held after a backward pass"


def hold_after(number: int) -> None:
    """Let this process wait for signals for good once that many backward passes have ended."""
    backward: Callable[..., None] = torch.Tensor.backward
    ended = 0

    def counted(*arguments: Any, **options: Any) -> None:
        nonlocal ended
        backward(*arguments, **options)
        ended += 1
        if ended == number:
            print(HELD, flush=True)
            while True:
                signal.pause()

    torch.Tensor.backward = counted


if __name__ == "__main__":
    hold_after(int(sys.argv.pop(1)))
    sys.exit(main(sys.argv[1:]))
