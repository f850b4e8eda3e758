"""Numbers from the device to the host without making either wait for the other."""

from collections.abc import Callable, Mapping

import torch

Numbers = dict[str, float]


class Readback:
    """Delivers each step's numbers one step late, when the device has long computed them.

    So the host never waits for the step that it has just launched, the device always has a step in
    hand, and the host runs at most one step ahead. On the CPU numbers arrive at once.
    """

    def __init__(self, deliver: Callable[[int, Numbers], None]) -> None:
        self.deliver = deliver
        self.waiting: list[tuple[int, list[str], torch.Tensor, torch.cuda.Event | None, Numbers]] = []

    def push(self, step: int, values: Mapping[str, torch.Tensor], known: Mapping[str, float] | None = None) -> None:
        """Start copying scalars from the device, and deliver the step before.

        known: numbers of this step that the host has already; delivered with the rest.
        """
        numbers = torch.stack([value.detach().float() for value in values.values()])
        event = None
        if numbers.is_cuda:
            numbers = torch.empty_like(numbers, device="cpu", pin_memory=True).copy_(numbers, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self.waiting.append((step, list(values), numbers, event, dict(known or {})))
        while len(self.waiting) > (1 if event else 0):
            self._deliver_oldest()

    def flush(self) -> None:
        """Wait for, and deliver, all that is outstanding."""
        while self.waiting:
            self._deliver_oldest()

    def _deliver_oldest(self) -> None:
        step, names, numbers, event, known = self.waiting.pop(0)
        if event is not None:
            event.synchronize()
        self.deliver(step, dict(zip(names, numbers.tolist(), strict=True)) | known)
