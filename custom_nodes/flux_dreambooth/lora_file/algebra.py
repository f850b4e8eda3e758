"""Smaller LoRAs and sums of LoRAs, on the two factors alone; the full weight change is never formed. Uses torch."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from .modules import LoraModule, with_unit_scale

Progress = Callable[[], object]


def resize(
    modules: Mapping[str, LoraModule],
    rank: int | None = None,
    energy: float | None = None,
    device: Any = "cpu",
    progress: Progress = lambda: None,
) -> tuple[dict[str, LoraModule], float]:
    """Replace each module by its best approximation of lower rank (Eckart-Young), from QR of the factors and an SVD.

    rank: the largest new rank, None for any; energy: the share of each module's squared norm to keep, with as few
    ranks as that takes, None for all; device: where it is computed; progress: called before each module. Returns new
    modules, in float32 on the CPU and of scale 1, and the share of the complete squared norm that was kept. Raises
    ValueError for numbers that are not finite.
    """
    smaller, kept, total = {}, 0.0, 0.0
    for name, module in modules.items():
        progress()
        smaller[name], squares = _truncated(name, module, rank, energy, device)
        kept += sum(squares[: smaller[name].rank])
        total += sum(squares)
    return smaller, kept / (total or 1.0)


def _truncated(
    name: str, module: LoraModule, rank: int | None, energy: float | None, device: Any
) -> tuple[LoraModule, list[float]]:
    import torch

    up = module.up.to(device, torch.float32) * module.scale
    down = module.down.to(device, torch.float32)
    if not bool(up.isfinite().all() and down.isfinite().all()):
        raise ValueError(f"{name} holds numbers that are not finite")
    q_up, r_up = torch.linalg.qr(up)
    q_down, r_down = torch.linalg.qr(down.T)
    left, singular, right = torch.linalg.svd(r_up @ r_down.T)
    squares = singular.double().square().tolist()
    new_rank = chosen_rank(squares, rank, energy)
    root = singular[:new_rank].sqrt()
    new_up = (q_up @ (left[:, :new_rank] * root)).cpu()
    new_down = ((right[:new_rank] * root[:, None]) @ q_down.T).cpu()
    return LoraModule(new_down, new_up, float(new_rank)), squares


def chosen_rank(squares: Sequence[float], rank: int | None, energy: float | None) -> int:
    """The rank to truncate a product to, from its squared singular values in descending order.

    rank: the upper limit; energy: the smallest rank that keeps this share of the sum of squares. None: not limited.
    """
    at_most = min(rank or len(squares), len(squares))
    if energy is None:
        return at_most
    wanted, found = energy * sum(squares) * (1 - 1e-12), 0.0
    for count, square in enumerate(squares[:at_most], start=1):
        found += square
        if found >= wanted:
            return count
    return at_most


def merge(weighted: Iterable[tuple[Mapping[str, LoraModule], float]]) -> dict[str, LoraModule]:
    """The weighted sum of LoRAs, exact: factors are joined, so ranks add up.

    weighted: the modules of each LoRA by canonical names, and its weight. Returns modules by canonical names, all with
    alpha = rank. Raises ValueError when two LoRAs have different shapes for a layer.
    """
    merged: dict[str, LoraModule] = {}
    for modules, weight in weighted:
        for name, module in modules.items():
            module = with_unit_scale(module)
            module = module if weight == 1 else replace(module, up=module.up.float() * weight)
            merged[name] = _joined(name, merged[name], module) if name in merged else module
    return merged


def _joined(name: str, one: LoraModule, other: LoraModule) -> LoraModule:
    import torch

    sizes = [(module.down.shape[1], module.up.shape[0]) for module in (one, other)]
    if sizes[0] != sizes[1]:
        (inputs, outputs), (other_inputs, other_outputs) = sizes
        raise ValueError(
            f"the LoRAs are of different base models: {name} goes from {inputs} to {outputs} in one and from "
            f"{other_inputs} to {other_outputs} in another"
        )
    down, up = torch.cat([one.down, other.down]), torch.cat([one.up, other.up], dim=1)
    return LoraModule(down, up, alpha=float(down.shape[0]))
