"""The processes of a stage, one per GPU, and its time limit."""

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
    """This process among those of the stage. Without others, every method acts on a group of one.

    Every process has its own images and random numbers. Gradients are averaged over the processes, so their weights
    stay equal, bit for bit.
    """

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @classmethod
    def from_environment(cls) -> "Distributed":
        """Join the process group that `torchrun` set up, on this process's own GPU if there is one."""
        rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        device = torch.device("cpu")
        if torch.cuda.is_available():
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            set_up_cuda(device)
        if world > 1 and not dist.is_initialized():
            os.environ.setdefault(
                "NCCL_NVLS_ENABLE", "0"
            )  # multicast has no benefit here, and not every host supports it
            if device.type == "cuda":
                dist.init_process_group("nccl", device_id=device)
            else:
                dist.init_process_group("gloo")
        return cls(rank, world, device)

    @property
    def is_main(self) -> bool:
        """Whether this is the process that prints and writes shared files."""
        return self.rank == 0

    @property
    def machine(self) -> dict[str, str | int]:
        """What the stage runs on: device name, number of processes, torch version."""
        on_gpu = self.device.type == "cuda"
        name = torch.cuda.get_device_name(self.device) if on_gpu else f"CPU ({platform.machine()})"
        return {"device": name, "processes": self.world, "torch": torch.__version__}

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace the gradients by their mean over all processes, in one all-reduce.

        The order of the parameters must be the same in every process.
        """
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
        """The elementwise mean over all processes; every process gets the same result."""
        if self.world == 1:
            return values
        total = values.clone()
        dist.all_reduce(total)
        return total / self.world

    def any(self, here: bool) -> bool:
        """Whether `here` is true in at least one process; every process gets the same result."""
        if self.world == 1:
            return here
        return self.mean(torch.tensor(float(here), device=self.device)).item() > 0

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.world > 1:
            self.any(False)

    def say(self, text: str) -> None:
        """Print a line, in the main process only."""
        if self.is_main:
            print(text, flush=True)


def set_up_cuda(device: torch.device) -> None:
    """Speed settings for all stages. cuDNN's attention is disabled: its backward is wrong in torch 2.11."""
    torch.cuda.set_device(device)
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cuda.enable_cudnn_sdp(False)


@dataclass(frozen=True)
class Budget:
    """The time after which a stage saves its state and stops; None means no limit."""

    minutes: float | None = None
    start: float = field(default_factory=time.monotonic)

    def spent(self) -> bool:
        """Whether this process's time is used up; use `Distributed.any` where all processes must agree."""
        return self.minutes is not None and self.seconds() > 60 * self.minutes

    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.start
