"""Lion (Chen et al. 2023, arXiv:2302.06675): steps in the direction of the sign of a momentum."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from trainer.optim.foreach import chunks, gradients, with_gradient


class Lion(Optimizer):
    """The Lion optimizer (arXiv:2302.06675). A tenth of AdamW's learning rate is usual.

    Keeps one momentum per parameter, in the parameter's dtype. Weight decay is decoupled. A step needs one chunk of
    temporary memory (128 MiB of float32) and never synchronizes with the host.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ):
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must be at least 0 and below 1, not {betas}")
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters that have a gradient. Returns the closure's loss, or None without a closure."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameters in chunks(with_gradient(group["params"]), lambda p: p.dtype):
                self._move(group, parameters)
        return loss

    def _move(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        lr, (beta1, beta2) = group["lr"], group["betas"]
        grads = gradients(parameters)
        momenta = [self._momentum(parameter) for parameter in parameters]
        signs = torch._foreach_lerp(momenta, grads, 1 - beta1)
        torch._foreach_sign_(signs)
        torch._foreach_mul_(parameters, 1 - lr * group["weight_decay"])
        torch._foreach_add_(parameters, signs, alpha=-lr)
        torch._foreach_lerp_(momenta, grads, 1 - beta2)

    def _momentum(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "exp_avg" not in state:
            state["exp_avg"] = torch.zeros_like(parameter)
        return state["exp_avg"]
