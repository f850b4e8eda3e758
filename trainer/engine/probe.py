"""What each optimizer step did to the adapter: how far it moved the weights, and whether it moved them downhill.

The numbers come from a sample of the adapter's weights, so that they cost next to nothing, and stay on the device.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

MAX_TENSORS = 96
MAX_ELEMENTS = 1 << 21  # 8 MiB of float32, of which the probe keeps four


class StepProbe:
    """Follows a fixed sample of the adapter's weights through the optimizer steps, without changing anything.

    It watches the first elements of at most 96 tensors, of layers that are evenly spaced. Call `see_gradient` when a
    step's gradients are complete and not clipped yet, `see_update` after the optimizer's step, then `numbers`.

    The central number is `slope`: the new gradient times the *previous* update. The gradient comes from other images
    and other noise than those that the update was made from, so this is an unbiased estimate of how much the previous
    update changed the loss, to first order; it is the negative of what Baydin et al. 2018 (arXiv:1703.04782) call the
    hypergradient of the learning rate. Its sum over steps is the change of the loss since the start. Unlike the loss
    itself, it does not fluctuate with each step's images and timesteps.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], alphas: Mapping[str, float]) -> None:
        """Choose the sample. parameters, alphas: the adapter's, by their names in the LoRA file."""
        names = _evenly(list(parameters))
        self._tensors = [parameters[name] for name in names]
        share = min(1.0, MAX_ELEMENTS / sum(each.numel() for each in self._tensors))
        self._sizes = [max(1, math.floor(share * each.numel())) for each in self._tensors]
        total = sum(each.numel() for each in parameters.values())
        self._share = sum(self._sizes) / total
        self._weights, self._gradient = self._buffer(), self._buffer()
        self._move = torch.zeros_like(self._weights)
        self._factors = torch.cat(
            [
                torch.full((size,), _factor(name, parameters[name], alphas))
                for name, size in zip(names, self._sizes, strict=True)
            ]
        ).to(self._weights.device)
        self._ups = sum(size for name, size in zip(names, self._sizes, strict=True) if _is_up(name))
        zero = torch.zeros((), device=self._weights.device)
        self._slope = self._alignment = self._length = self._strength = zero
        self._read(self._tensors, self._weights)

    @torch.no_grad()
    def see_gradient(self) -> None:
        """Measure the previous update with the gradients that are in `.grad` now, before they are clipped."""
        self._read([each.grad for each in self._tensors], self._gradient)
        product = torch.dot(self._gradient, self._move)
        self._slope = product / self._share
        lengths = self._gradient.norm() * self._move.norm()
        self._alignment = product / lengths.clamp_min(torch.finfo(torch.float32).tiny)

    @torch.no_grad()
    def see_update(self) -> None:
        """Measure how far the optimizer has just moved the weights, and how strong the adapter has become."""
        self._move.copy_(self._weights)
        self._read(self._tensors, self._weights)
        torch.sub(self._weights, self._move, out=self._move)
        self._length = self._move.square().mean().sqrt()
        self._strength = (self._weights * self._factors).square().sum().div(max(1, self._ups)).sqrt()

    def numbers(self) -> dict[str, Tensor]:
        """The step's numbers, scalars on the device, by the names that log.jsonl has.

        slope: first-order change of the loss by the previous update, for the complete adapter. alignment: the cosine
        between the gradient and the previous update; negative while updates lead downhill. update_rms: the root mean
        square of the weights' last change. strength: the root mean square of a weight's change by the adapter, as a
        share of what a linear layer's weights usually have.
        """
        return {
            "slope": self._slope,
            "alignment": self._alignment,
            "update_rms": self._length,
            "strength": self._strength,
        }

    def _buffer(self) -> Tensor:
        return torch.zeros(sum(self._sizes), device=self._tensors[0].device)

    def _read(self, tensors: Sequence[Tensor | None], target: Tensor) -> None:
        """Copy the watched elements of `tensors` into `target`; a missing tensor counts as zeros."""
        parts = target.split(self._sizes)
        found = [(part, each) for part, each in zip(parts, tensors, strict=True) if each is not None]
        if len(found) < len(parts):
            target.zero_()
        if found:
            targets, sources = zip(*found, strict=True)
            torch._foreach_copy_(
                list(targets),
                [each.detach().reshape(-1)[: len(part)] for part, each in zip(targets, sources, strict=True)],
            )


def _evenly(names: list[str]) -> list[str]:
    """At most MAX_TENSORS of the names, of layers that are evenly spaced, with both tensors of each."""
    layers = list(dict.fromkeys(_layer(name) for name in names))
    count = min(len(layers), MAX_TENSORS // 2)
    chosen = {layers[index * len(layers) // count] for index in range(count)}
    return [name for name in names if _layer(name) in chosen]


def _layer(name: str) -> str:
    return name.split(".lora_")[0]


def _is_up(name: str) -> bool:
    return ".lora_B." in name


def _factor(name: str, parameter: nn.Parameter, alphas: Mapping[str, float]) -> float:
    """For an up projection, what makes of its root mean square that of the adapter, as a share of a layer's weights.

    With a down projection as it starts, uniform with variance 1 / (3 K), a product of rank r has the variance
    r * rms^2 / (3 K); a linear layer with K inputs usually has weights of variance 1 / (3 K) too. Zero for others.
    """
    if not _is_up(name):
        return 0.0
    rank = parameter.shape[1]
    return alphas[_layer(name)] / rank * math.sqrt(rank)
