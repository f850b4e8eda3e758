"""The processes of a stage, one a GPU, and the time that a stage may take."""

import os
import platform
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Distributed:
    """This process among those of the stage; alone, every method is that of a group of one.

    Every process keeps its own pictures and draws its own random numbers; what they share is the average of their
    gradients, so their weights stay the same bit for bit.
    """

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @classmethod
    def from_environment(cls) -> "Distributed":
        """Join the group that `torchrun` describes, on this process's own GPU where there is one."""
        rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        device = torch.device("cpu")
        if torch.cuda.is_available():
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            set_up_cuda(device)
        if world > 1 and not dist.is_initialized():
            os.environ.setdefault("NCCL_NVLS_ENABLE", "0")  # multicast gains nothing here and not every host has it
            if device.type == "cuda":
                dist.init_process_group("nccl", device_id=device)
            else:
                dist.init_process_group("gloo")
        return cls(rank, world, device)

    @property
    def is_main(self) -> bool:
        """Whether this is the process that prints and writes what is written once."""
        return self.rank == 0

    @property
    def machine(self) -> dict[str, str | int]:
        """What the stage runs on: device, processes, torch."""
        on_gpu = self.device.type == "cuda"
        name = torch.cuda.get_device_name(self.device) if on_gpu else f"CPU ({platform.machine()})"
        return {"device": name, "processes": self.world, "torch": torch.__version__}

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace the gradients by their mean over all processes, in one message; the parameters' order must agree."""
        if self.world == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.world
        means = flat.split([gradient.numel() for gradient in gradients])
        shaped = [mean.view(gradient.shape) for mean, gradient in zip(means, gradients, strict=True)]
        torch._foreach_copy_(gradients, shaped)

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all processes, elementwise; the same on each of them."""
        if self.world == 1:
            return values
        total = values.clone()
        dist.all_reduce(total)
        return total / self.world

    def any(self, here: bool) -> bool:
        """Whether it is so in at least one process; all of them get the same answer."""
        if self.world == 1:
            return here
        return self.mean(torch.tensor(float(here), device=self.device)).item() > 0

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.world > 1:
            self.any(False)

    def say(self, text: str) -> None:
        """Print a line, in the main process alone."""
        if self.is_main:
            print(text, flush=True)


def set_up_cuda(device: torch.device) -> None:
    """Speed settings of all stages. cuDNN's attention is off: its backward is wrong in torch 2.11."""
    torch.cuda.set_device(device)
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cuda.enable_cudnn_sdp(False)


@dataclass(frozen=True)
class Budget:
    """The minutes that a stage may take before it saves its state and stops; None is without end."""

    minutes: float | None = None
    start: float = field(default_factory=time.monotonic)

    def spent(self) -> bool:
        """Whether this process's minutes are over; ask `Distributed.any` where the processes must agree."""
        return self.minutes is not None and self.seconds() > 60 * self.minutes

    def seconds(self) -> float:
        """Seconds since the stage began."""
        return time.monotonic() - self.start
