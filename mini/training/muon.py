"""Muon (Jordan et al. 2024): momentum, made orthogonal, as the step of a weight matrix."""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer

COEFFICIENTS = (3.4445, -4.775, 2.0315)  # of the quintic iteration, Jordan's
ITERATIONS = 5
RMS = 0.2  # of a step at learning rate 1, as AdamW's (Liu et al. 2025), so that both share their rates


class Muon(Optimizer):
    """torch.optim.Muon with adjust_lr_fn="match_rms_adamw", with matrices of one shape made orthogonal together.

    One after the other, a hundred small matrices are three thousand launches a step, which take longer than the
    gradient. Parameters are [n, m].
    """

    def __init__(self, params: Iterable[Tensor] | Iterable[dict], lr: float, momentum: float, weight_decay: float):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One step with the gradients that are there."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes[parameter.shape].append(parameter)
            for shape, parameters in shapes.items():
                directions = orthogonal(self._directions(parameters, group["momentum"]))
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
                length = -group["lr"] * RMS * max(shape) ** 0.5
                torch._foreach_add_(parameters, list(directions.to(parameters[0].dtype)), alpha=length)

    def _directions(self, parameters: list[Tensor], momentum: float) -> Tensor:
        """Nesterov's look ahead of the averaged gradients, [matrices, n, m]."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        for parameter in parameters:
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        averages = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        torch._foreach_lerp_(averages, gradients, 1 - momentum)
        return torch.stack(gradients).lerp_(torch.stack(averages), momentum)


def orthogonal(matrices: Tensor) -> Tensor:
    """The nearest matrices whose singular values are all about 1 (0.7 to 1.2), [B, n, m], bfloat16."""
    a, b, c = COEFFICIENTS
    x = matrices.bfloat16()
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
