"""Run a command while this process holds all of a GPU's free memory but the given amount.

    python -m benchmarks.hold GIB COMMAND...

It shows what a smaller card's memory makes of a plan; the compute and the bus stay those of the GPU at hand.
"""

import subprocess
import sys
from collections.abc import Sequence

import torch

GIB = 2**30


def main(argv: Sequence[str]) -> int:
    """Hold, run, and return the command's exit status."""
    if len(argv) < 2:
        print(__doc__)
        return 2
    torch.cuda.init()
    torch.empty(1, device="cuda")
    free, total = torch.cuda.mem_get_info()
    taken = free - int(float(argv[0]) * GIB)
    held = torch.empty(max(taken, 0), dtype=torch.uint8, device="cuda")
    left, _ = torch.cuda.mem_get_info()
    print(f"{left / GIB:.2f} of {total / GIB:.1f} GiB left", flush=True)
    status = subprocess.run(argv[1:], check=False).returncode
    del held
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
