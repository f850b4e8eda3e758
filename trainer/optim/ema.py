"""An exponential moving average of the adapter's weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from trainer.optim.foreach import chunks, in_float32


class Ema:
    """Exponential moving averages, in float32, of `parameters` (name -> tensor), on the parameters' device.

    The decay of step n is min(decay, (1 + n) / (10 + n)), as in TensorFlow's ExponentialMovingAverage, so that the
    initial values are forgotten quickly. Save from `averages`; use `swapped` for sampling and validation.
    """

    def __init__(self, parameters: Mapping[str, Tensor], decay: float):
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be at least 0 and below 1, not {decay}")
        self.decay = decay
        self.parameters = {name: parameter.detach() for name, parameter in parameters.items()}
        self.averages = {name: p.to(torch.float32, copy=True) for name, p in self.parameters.items()}
        self._average_of = {p: self.averages[name] for name, p in self.parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the averages towards the parameters after an optimizer step. step: its number, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for chunk in chunks(self.parameters.values(), lambda p: p.dtype):
            averages = [self._average_of[parameter] for parameter in chunk]
            torch._foreach_lerp_(averages, in_float32(chunk), 1 - decay)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """In this context the parameters hold the averages; then they are restored exactly, from CPU memory."""
        kept = {name: p.to("cpu", copy=True) for name, p in self.parameters.items()}
        try:
            self._fill(self.averages)
            yield
        finally:
            self._fill(kept)

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by name, not copied."""
        return dict(self.averages)

    @torch.no_grad()
    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy saved averages into this object's. Asserts that the names are the same."""
        assert set(tensors) == set(self.averages), "averages of other parameters"
        for name, average in self.averages.items():
            average.copy_(tensors[name])

    @torch.no_grad()
    def _fill(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])
