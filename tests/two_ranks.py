"""Two processes that train together as torchrun starts them, but forked, so that they import nothing anew.

`python tests/two_ranks.py train …` is `python -m trainer train …` in both.
"""

import os
import socket
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.multiprocessing as processes

from trainer.__main__ import main


def run_both(program: Callable[..., int], *arguments: Any) -> None:
    """Call it in both processes. Raises `ProcessRaisedException` if one does not return 0."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    processes.start_processes(_run_one, (port, program, *arguments), nprocs=2, start_method="fork")


def _run_one(rank: int, port: int, program: Callable[..., int], *arguments: Any) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    assert program(*arguments) == 0


if __name__ == "__main__":
    run_both(main, sys.argv[1:])
