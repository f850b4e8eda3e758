"""Measure how fast kohya's sd-scripts trains on this machine, observed from outside like `python -m trainer bench`.

    PYTHON benchmarks/kohya.py SD_SCRIPTS --output kohya.json --pictures_per_step 4 -- FLAGS

PYTHON is the one of sd-scripts' own environment (this file needs only torch), SD_SCRIPTS is its folder, and FLAGS are
those of its flux_train_network.py, which runs unchanged. A step ends when the optimizer's step has ended on the device.
The first three steps are not timed. Set num_repeats in the dataset file so high that the run stays within one epoch.
"""

import argparse
import json
import runpy
import statistics
import sys
import time
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

STARTED = time.time()
WARM_UP = 3  # steps left out
GIB = 2**30


@dataclass(frozen=True)
class Figures:
    """The figures of one training. Times are in seconds; pictures_timed is 0 if it ended within the warm-up."""

    seconds_per_picture: float | None
    lowest: float | None
    highest: float | None
    pictures_timed: int
    first_step: float | None
    torch_allocated_gib: float | None
    device: str
    torch: str
    flags: list[str]


@dataclass
class Clock:
    """Record when each optimizer step ends, in seconds since the start of the process."""

    pictures_per_step: int
    ends: list[float] = field(default_factory=list)

    def step_ended(self, *_: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.time() - STARTED)

    def figures(self, flags: list[str]) -> Figures:
        """The figures of the steps after the warm-up."""
        on_gpu = torch.cuda.is_available()
        timed = self.ends[WARM_UP - 1 :]
        each = [(end - begin) / self.pictures_per_step for begin, end in pairwise(timed)]
        return Figures(
            seconds_per_picture=statistics.median(each) if each else None,
            lowest=min(each, default=None),
            highest=max(each, default=None),
            pictures_timed=len(each) * self.pictures_per_step,
            first_step=self.ends[0] if self.ends else None,
            torch_allocated_gib=torch.cuda.max_memory_allocated() / GIB if on_gpu else None,
            device=torch.cuda.get_device_name() if on_gpu else "cpu",
            torch=str(torch.__version__),
            flags=flags,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sd_scripts", type=Path, metavar="SD_SCRIPTS", help="the folder with flux_train_network.py")
    parser.add_argument("--output", type=Path, required=True, help="JSON file for the figures")
    parser.add_argument("--pictures_per_step", type=int, default=1, help="batch size times accumulation")
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)
    arguments, flags = parser.parse_args(words[:cut]), words[cut + 1 :]
    script = arguments.sd_scripts.resolve() / "flux_train_network.py"
    if not script.is_file():
        parser.error(f"there is no {script}")
    clock, output = Clock(arguments.pictures_per_step), arguments.output.resolve()
    register_optimizer_step_post_hook(clock.step_ended)
    sys.path.insert(0, str(script.parent))
    sys.argv = [str(script), *flags]
    try:
        runpy.run_path(str(script), run_name="__main__")
    finally:
        figures = clock.figures(flags)
        output.write_text(json.dumps(asdict(figures), indent=2) + "\n", encoding="utf-8")
        print(f"{figures.seconds_per_picture} s per image, {figures.pictures_timed} timed; {output}")


if __name__ == "__main__":
    main()
