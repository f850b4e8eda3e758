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
    if not torch.cuda.is_available():
        print("there is no GPU whose memory could be held", file=sys.stderr)
        return 2
    torch.empty(1, device="cuda")  # so that the memory of this process's own context counts as taken
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
