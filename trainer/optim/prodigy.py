"""Prodigy (Mishchenko and Defazio 2023, arXiv:2306.06101): Adam that estimates its own step size.

The arithmetic and the options are those of the package prodigyopt 1.1.2. What differs is where it runs: every scalar
that depends on data (d, its maximum, numerator, denominator) is a tensor on the device, so a step never synchronizes
with the host, and parameters are processed in chunks of bounded size. On a GPU, two kernels of our own cover most
settings (`trainer/kernels/prodigy.py`).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from trainer.kernels import prodigy as kernel
from trainer.optim.foreach import chunks, flat_copies, gradients, in_float32, with_gradient

Piece = tuple[
    dict[str, Any], list[Tensor], kernel.Chunk | None
]  # a group, some of its parameters, and the same for the kernels


class Prodigy(Optimizer):
    """The Prodigy optimizer (arXiv:2306.06101) without host synchronization. Leave `lr` at 1.

    State per parameter, in float32 whatever the parameter's dtype: `exp_avg` (unless betas[0] is 0), `exp_avg_sq`, `s`;
    and `p0`, the initial value in the parameter's dtype, which a parameter that starts at zero (every LoRA up matrix)
    does not need. `p0` is copied when the optimizer is created, so load weights before. Scalars, 0-dimensional tensors
    in `param_groups[0]`: `d`, `d_max`, `d_hat`, `d_numerator`, `d_denom`, `k`. A step needs two chunks of temporary
    memory (256 MiB), three for parameters that are not float32, and none if a kernel handles it.

    There is one d for all groups: the learning rates of groups must be equal or 0, else a step raises ValueError. A
    group with rate 0 is not changed at all, not even by weight decay. `slice_p` > 1 estimates d from every p-th element
    to save memory, which is an approximation. The other options are those of the package prodigyopt.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.999),
        beta3: float | None = None,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decouple: bool = True,
        use_bias_correction: bool = False,
        safeguard_warmup: bool = False,
        d0: float = 1e-6,
        d_coef: float = 1.0,
        growth_rate: float = math.inf,
        slice_p: int = 1,
    ):
        _check(lr, betas, eps, d0, slice_p)
        defaults = {
            "lr": lr,
            "betas": betas,
            "beta3": math.sqrt(betas[1]) if beta3 is None else beta3,
            "eps": eps,
            "weight_decay": weight_decay,
            "decouple": decouple,
            "use_bias_correction": use_bias_correction,
            "safeguard_warmup": safeguard_warmup,
            "d0": d0,
            "d_coef": d_coef,
            "growth_rate": growth_rate,
            "slice_p": slice_p,
        }
        super().__init__(params, defaults)
        self._start()

    @property
    def d(self) -> Tensor:
        """The estimated step size, a 0-dimensional tensor on the parameters' device."""
        return self.param_groups[0]["d"]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters that have a gradient, and `d`. Returns the closure's loss, or None without a closure.

        Raises ValueError if groups have different learning rates other than 0.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        lr = self._common_learning_rate()
        if lr > 0.0:
            dlr = self.d * (lr * self._bias_correction())
            pieces = list(self._pieces())
            moved = self._accumulate(pieces, dlr)
            self._move(pieces, torch.where(moved, dlr, 0.0))
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state as torch's optimizers do, but keep its dtypes and move scalars to the parameters' device."""
        super().load_state_dict(state_dict)
        parameters = [p for group in self.param_groups for p in group["params"]]
        for index, saved in state_dict["state"].items():
            parameter = parameters[index]
            self.state[parameter] = {name: value.to(parameter.device) for name, value in saved.items()}
        first = self.param_groups[0]
        for name, value in first.items():
            if isinstance(value, Tensor):
                first[name] = value.to(parameters[0].device)

    def _start(self) -> None:
        first = self.param_groups[0]
        device = first["params"][0].device
        precise = torch.float32 if device.type == "mps" else torch.float64
        start = {"d": first["d0"], "d_max": first["d0"], "d_hat": first["d0"]}
        for name in ("d", "d_max", "d_hat", "d_numerator", "d_denom", "k"):
            first[name] = torch.tensor(start.get(name, 0.0), dtype=precise, device=device)
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter] = _start_state(parameter, group)

    def _common_learning_rate(self) -> float:
        rates = {group["lr"] for group in self.param_groups} - {0.0}
        if len(rates) > 1:
            raise ValueError(f"Prodigy has one step size: learning rates must be equal or 0, not {sorted(rates)}")
        return rates.pop() if rates else 0.0

    def _bias_correction(self) -> Tensor | float:
        first = self.param_groups[0]
        if not first["use_bias_correction"]:
            return 1.0
        beta1, beta2 = first["betas"]
        return (1 - beta2 ** (first["k"] + 1)).sqrt() / (1 - beta1 ** (first["k"] + 1))

    def _accumulate(self, pieces: Sequence[Piece], dlr: Tensor) -> Tensor:
        """Update the averages and d. Returns false, on the device, if every gradient so far was zero."""
        sums = [self._average(piece, dlr) for piece in pieces]
        if not sums:
            return torch.zeros_like(dlr, dtype=torch.bool)
        numerator, denominator = torch.stack(sums).sum(0).unbind()
        first = self.param_groups[0]
        numerator = first["d_numerator"] * first["beta3"] + numerator
        moved = denominator > 0
        d_hat = first["d_coef"] * numerator / torch.where(moved, denominator, 1.0)
        d = torch.where(first["d"] == first["d0"], torch.maximum(first["d"], d_hat), first["d"])
        d_max = torch.maximum(first["d_max"], d_hat)
        new = {
            "d": torch.minimum(d_max, d * first["growth_rate"]),
            "d_max": d_max,
            "d_hat": d_hat,
            "d_numerator": numerator,
            "d_denom": denominator,
            "k": first["k"] + 1,
        }
        for name, value in new.items():
            first[name] = torch.where(moved, value, first[name])
        return moved

    def _average(self, piece: Piece, dlr: Tensor) -> Tensor:
        """Update Adam's averages and `s` for one piece. Returns its contribution to numerator and denominator, [2]."""
        group, parameters, chunk = piece
        first, d = self.param_groups[0], self.d
        beta1, beta2 = first["betas"]
        share = d if group["safeguard_warmup"] else dlr
        if chunk:
            top, bottom = kernel.average(chunk, d, share / group["d0"], (beta1, beta2, first["beta3"])).unbind()
            return torch.stack([-top * (dlr / share), bottom])
        grads = gradients(parameters)
        if group["weight_decay"] and not group["decouple"]:
            torch._foreach_add_(grads, parameters, alpha=group["weight_decay"])
        flat, scaled = flat_copies(grads)
        torch._foreach_mul_(scaled, d.float())
        if beta1 > 0:
            torch._foreach_lerp_(self._states("exp_avg", parameters), scaled, 1 - beta1)
        squares = self._states("exp_avg_sq", parameters)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, scaled, scaled, value=1 - beta2)

        if group["slice_p"] > 1:
            flat, scaled = flat_copies([_sliced(x, group) for x in scaled])
        torch._foreach_mul_(scaled, (share / group["d0"]).float())
        s = self._states("s", parameters)
        torch._foreach_mul_(s, first["beta3"])
        torch._foreach_add_(s, scaled)
        denominator = torch.stack(torch._foreach_norm(s, 1)).sum(dtype=d.dtype)
        torch._foreach_mul_(scaled, self._distance(group, parameters))
        return torch.stack([-flat.sum() * (dlr / share), denominator])

    def _distance(self, group: dict[str, Any], parameters: list[Tensor]) -> list[Tensor]:
        """p - p0 for one piece, whose parameters either all started at zero or all did not."""
        here = in_float32([_sliced(p, group) for p in parameters])
        if "p0" not in self.state[parameters[0]]:
            return here
        return list(torch._foreach_sub(here, in_float32(self._states("p0", parameters))))

    def _move(self, pieces: Sequence[Piece], dlr: Tensor) -> None:
        for group, parameters, chunk in pieces:
            decay = group["weight_decay"]
            if chunk:
                kernel.move(chunk, dlr, self.d * group["eps"], dlr * decay)
                continue
            eps = (self.d * group["eps"]).float()
            weights = in_float32(parameters)
            divisors = torch._foreach_sqrt(self._states("exp_avg_sq", parameters))
            torch._foreach_add_(divisors, eps, alpha=1)  # without alpha, torch copies eps to the host
            if decay and group["decouple"]:
                # not multiplied by (1 - decay * dlr): so close to 1, that factor has few significant bits
                torch._foreach_sub_(weights, torch._foreach_mul(weights, (decay * dlr).float()))
            if self.param_groups[0]["betas"][0] > 0:
                directions, length = self._states("exp_avg", parameters), dlr
            else:
                directions, length = in_float32(gradients(parameters)), dlr * self.d
            # a length of 0 makes the divisors infinite, which leaves the weights unchanged
            torch._foreach_div_(divisors, (-length).float())
            torch._foreach_addcdiv_(weights, directions, divisors)
            if weights[0] is not parameters[0]:
                torch._foreach_copy_(parameters, weights)

    def _for_kernel(self, group: dict[str, Any], parameters: list[Tensor]) -> kernel.Chunk | None:
        """Parameters as the kernels take them; None if the kernels do not support the settings or the tensors."""
        coupled = group["weight_decay"] and not group["decouple"]
        if coupled or group["slice_p"] > 1 or self.param_groups[0]["betas"][0] == 0:
            return None
        exp_avg, exp_avg_sq, s = (self._states(name, parameters) for name in ("exp_avg", "exp_avg_sq", "s"))
        starts = self._states("p0", parameters) if "p0" in self.state[parameters[0]] else []
        chunk = kernel.Chunk(parameters, gradients(parameters), exp_avg, exp_avg_sq, s, starts)
        return chunk if kernel.fits(chunk) else None

    def _pieces(self) -> Iterator[Piece]:
        for group in self.param_groups:
            if group["lr"] > 0.0:
                for parameters in chunks(with_gradient(group["params"]), self._kind):
                    yield group, parameters, self._for_kernel(group, parameters)

    def _kind(self, parameter: Tensor) -> tuple[torch.dtype, bool]:
        return parameter.dtype, "p0" in self.state[parameter]

    def _states(self, name: str, parameters: list[Tensor]) -> list[Tensor]:
        return [self.state[parameter][name] for parameter in parameters]


def _start_state(parameter: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
    weight = parameter.detach()
    state = {
        "exp_avg_sq": torch.zeros_like(weight, dtype=torch.float32),
        "s": torch.zeros_like(_sliced(weight, group), dtype=torch.float32),
    }
    if group["betas"][0] > 0:
        state["exp_avg"] = torch.zeros_like(weight, dtype=torch.float32)
    if weight.any():
        state["p0"] = _sliced(weight, group).clone(memory_format=torch.contiguous_format)
    return state


def _sliced(tensor: Tensor, group: dict[str, Any]) -> Tensor:
    step = group["slice_p"]
    return tensor if step == 1 else tensor.reshape(-1)[::step]


def _check(lr: float, betas: tuple[float, float], eps: float, d0: float, slice_p: int) -> None:
    for name, value in (("lr", lr), ("eps", eps), ("d0", d0)):
        if not value > 0:
            raise ValueError(f"{name} must be above 0, not {value}")
    if not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas must be at least 0 and below 1, not {betas}")
    if slice_p < 1:
        raise ValueError(f"slice_p must be at least 1, not {slice_p}")
