"""A loss that can be compared: the same pictures, timesteps and noise every time.

The training loss is too noisy to judge by, because each step draws its own timesteps. Here each
picture is seen at fixed quantiles of the timestep distribution with noise fixed by the seed, so two
numbers of one run, or of two runs on the same pictures, differ only by what the adapter learned.
"""

from collections.abc import Callable, Sequence

import torch

from trainer.data.batches import Batch, BatchMaker
from trainer.data.dataset import Draw

QUANTILES = torch.tensor([0.125, 0.375, 0.625, 0.875], dtype=torch.float64)


@torch.no_grad()
def validation_loss(
    draws: Sequence[Draw], maker: BatchMaker, losses_of: Callable[[Batch], torch.Tensor]
) -> dict[str, float]:
    """The mean loss over pictures, in all and per quantile: {"loss": …, "loss_q125": …, …}.

    losses_of maps a batch to its unweighted losses, [B].
    """
    rows = torch.stack([losses_of(maker.at_quantiles(draw, QUANTILES)).float().cpu() for draw in draws])
    means = rows.mean(0)
    per_quantile = {f"loss_q{round(1000 * float(q))}": float(m) for q, m in zip(QUANTILES, means, strict=True)}
    return {"loss": float(means.mean()), **per_quantile}
