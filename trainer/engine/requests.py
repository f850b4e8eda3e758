"""What a run is asked to do while it goes: by a signal, or by a file touched in its folder."""

import logging
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from accelerate import Accelerator

from trainer.common.process import StopRequest
from trainer.engine.metrics import Numbers, Readback

log = logging.getLogger(__name__)


class Wish(NamedTuple):
    """Save a LoRA and a state now; stop after saving them."""

    save: bool = False
    stop: bool = False


class Control:
    """Looks once a step: `touch runs/NAME/save` saves now; `runs/NAME/stop`, SIGINT and SIGTERM save and stop."""

    def __init__(self, run_dir: Path, stop: StopRequest, accelerator: Accelerator) -> None:
        self.run_dir, self.stop, self.accelerator = run_dir, stop, accelerator
        self.agreed = Wish()
        self.readback = Readback(accelerator.device, self._agree)

    def poll(self) -> Wish:
        """This step's wish, the same in every process.

        Several processes agree through the device, and on a GPU learn the answer one step later, so
        that none of them has to wait for it.
        """
        own = Wish(self._touched("save"), self._touched("stop") or bool(self.stop))
        if self.accelerator.num_processes == 1:
            return own
        flags = torch.empty(2, device=self.accelerator.device)
        for flag, wished in zip(flags, own, strict=True):
            flag.fill_(wished)  # a copy from the host would wait for the device
        dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        self.readback.push(0, {"save": flags[0], "stop": flags[1]})
        agreed, self.agreed = self.agreed, Wish()
        return agreed

    def _agree(self, _step: int, flags: Numbers) -> None:
        self.agreed = Wish(flags["save"] > 0, flags["stop"] > 0)

    def _touched(self, name: str) -> bool:
        return self.accelerator.is_main_process and _take(self.run_dir / name)


def forget_wishes(run_dir: Path) -> None:
    """Take away what came too late for the run before, so that the next one does not obey it."""
    for name in Wish._fields:
        if _take(run_dir / name):
            log.info("%s was left from an earlier run and is removed", run_dir / name)


def _take(file: Path) -> bool:
    """Whether somebody touched it; it is gone then."""
    touched = file.is_file()
    if touched:
        file.unlink()
    return touched
