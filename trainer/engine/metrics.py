"""Loss, gradient norm and step times, copied from the device to the host without making either wait."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

Numbers = dict[str, float]


class Timestamp:
    """A point in the device's queue of work (a CUDA event), or the host's clock if the device is the CPU."""

    def __init__(self, device: torch.device) -> None:
        self.host_time = time.perf_counter()
        self.event = torch.cuda.Event(enable_timing=True) if device.type == "cuda" else None
        if self.event:
            self.event.record()

    def wait(self) -> None:
        """Wait until the device has reached this point."""
        if self.event:
            self.event.synchronize()

    def seconds_since(self, earlier: "Timestamp") -> float:
        """Seconds from the point `earlier` to this one. A GPU must have reached both."""
        if self.event and earlier.event:
            return earlier.event.elapsed_time(self.event) / 1000
        return self.host_time - earlier.host_time


@dataclass(frozen=True)
class _Sent:
    step: int
    names: tuple[str, ...]
    numbers: torch.Tensor
    known: Numbers
    start: Timestamp
    end: Timestamp


class Readback:
    """Delivers each step's numbers one step late, when the device has already computed them.

    deliver: called with the step and its numbers by name. The host therefore never waits for the step that it has just
    launched, the device always has the next step in its queue, and the host runs at most one step ahead. On the CPU
    numbers are delivered at once.
    """

    def __init__(self, device: torch.device, deliver: Callable[[int, Numbers], None]) -> None:
        self.device, self.deliver = device, deliver
        self.waiting: list[_Sent] = []
        self.start_clock()

    def start_clock(self) -> None:
        """Measure the next step's time from now on: call it after saving, sampling or anything else that took time."""
        self.start = Timestamp(self.device)

    def push(self, step: int, values: Mapping[str, torch.Tensor], known: Mapping[str, float] | None = None) -> None:
        """Start copying a step's numbers to the host, and deliver those of the step before.

        values: scalars on the device, by name; known: numbers of this step that the host has already. All are delivered
        together, with "seconds", the step's time on the device.
        """
        numbers = torch.stack([value.detach().float() for value in values.values()])
        if numbers.is_cuda:
            numbers = torch.empty_like(numbers, device="cpu", pin_memory=True).copy_(numbers, non_blocking=True)
        end = Timestamp(self.device)
        self.waiting.append(_Sent(step, tuple(values), numbers, dict(known or {}), self.start, end))
        self.start = end
        while len(self.waiting) > (1 if end.event else 0):
            self._deliver_oldest()

    def flush(self) -> None:
        """Wait for all numbers that were pushed and not delivered yet, and deliver them."""
        while self.waiting:
            self._deliver_oldest()

    def _deliver_oldest(self) -> None:
        sent = self.waiting.pop(0)
        sent.end.wait()
        seconds = {"seconds": sent.end.seconds_since(sent.start)}
        self.deliver(sent.step, dict(zip(sent.names, sent.numbers.tolist(), strict=True)) | sent.known | seconds)
