"""Requests to a running training: by a signal, by a file touched in the run's folder, or by a shortage of memory."""

import logging
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from accelerate import Accelerator

from trainer.common.process import StopRequest
from trainer.engine.metrics import Numbers, Readback
from trainer.memory.watch import MemoryWatch

log = logging.getLogger(__name__)


class Request(NamedTuple):
    """What a run is asked to do after the current step. save: a LoRA and a state; stop: the same, then end."""

    save: bool = False
    stop: bool = False


class Requests:
    """What users and signals ask of a running training; polled after each step.

    A file runs/NAME/save asks to save; runs/NAME/stop, SIGINT and SIGTERM ask to save and stop. stop: true once a
    signal has come. memory: asks to save and stop too, when the system's memory runs short; None watches nothing.
    """

    def __init__(
        self, run_dir: Path, stop: StopRequest, accelerator: Accelerator, memory: MemoryWatch | None = None
    ) -> None:
        self.run_dir, self.stop, self.accelerator = run_dir, stop, accelerator
        self.memory = memory or MemoryWatch(0)
        self.agreed = Request()
        self.is_to_stop = False
        self.readback = Readback(accelerator.device, self._agree)

    def ask_to_stop(self) -> None:
        """Ask to save and stop from within this process; one process is enough."""
        self.is_to_stop = True

    def poll(self) -> Request:
        """What was asked since the last call, the same in every process. A file is removed when it is seen.

        Every process must call this. Several processes agree through the device. On a GPU they learn the result one
        step later, so that none of them has to wait for it.
        """
        stop = self._touched("stop") or bool(self.stop) or self.memory.is_low() or self.is_to_stop
        own = Request(self._touched("save"), stop)
        if self.accelerator.num_processes == 1:
            return own
        flags = torch.empty(2, device=self.accelerator.device)
        for flag, requested in zip(flags, own, strict=True):
            flag.fill_(requested)  # copying from the host would wait for the device
        dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        self.readback.push(0, {"save": flags[0], "stop": flags[1]})
        agreed, self.agreed = self.agreed, Request()
        return agreed

    def _agree(self, _step: int, flags: Numbers) -> None:
        self.agreed = Request(flags["save"] > 0, flags["stop"] > 0)

    def _touched(self, name: str) -> bool:
        return self.accelerator.is_main_process and _take(self.run_dir / name)


def discard_requests(run_dir: Path) -> None:
    """Remove files `save` and `stop` from a run's folder that were created too late for the previous run.

    Otherwise the next run would obey them.
    """
    for name in Request._fields:
        if _take(run_dir / name):
            log.info("removed %s, left over from an earlier run", run_dir / name)


def _take(file: Path) -> bool:
    """Whether the file was there; it is removed."""
    touched = file.is_file()
    if touched:
        file.unlink()
    return touched
