"""A loss that can be compared between steps and runs: the same images, timesteps and noise every time.

The training loss is too noisy for that, because each step draws its own timesteps. Here each image is seen at fixed
quantiles of the timestep distribution, with noise fixed by the seed. Two numbers of one run, or of two runs on the same
images, therefore differ only by what the adapter has learned.
"""

from collections.abc import Callable, Sequence

import torch

from trainer.data.batches import Batch, BatchMaker
from trainer.data.dataset import Draw
from trainer.engine.run import Run

QUANTILES = torch.tensor([0.125, 0.375, 0.625, 0.875], dtype=torch.float64)


def validate(run: Run) -> None:
    """Log the validation loss over the held-out images or, if there are none, over the training images.

    Only the main process computes it, on at most --max_validation_steps images; the others wait.
    """
    with run.pause("validation"):
        if run.accelerator.is_main_process:
            draws = _evenly(run.plan.data.validation_draws(), run.config.max_validation_steps)
            with run.as_saved():
                losses = validation_loss(draws, run.maker, lambda batch: run.model.losses(batch.to(run.model.device)))
            run.guard.see_validation(run.progress.step, losses["loss"])
            run.log.event("validation", run.progress.step, **losses)
        run.accelerator.wait_for_everyone()


def _evenly(draws: Sequence[Draw], limit: int | None) -> list[Draw]:
    """At most `limit` of them (None: all), evenly spaced, so that every concept is represented."""
    count = min(len(draws), limit or len(draws))
    return [draws[index * len(draws) // count] for index in range(count)]


@torch.no_grad()
def validation_loss(
    draws: Sequence[Draw], maker: BatchMaker, losses_of: Callable[[Batch], torch.Tensor]
) -> dict[str, float]:
    """The mean loss over images, overall and per timestep quantile: {"loss": …, "loss_q125": …, …}.

    draws: the images; maker: makes a batch of each at fixed timesteps and noise; losses_of: maps a batch to its
    unweighted losses, [B].
    """
    rows = torch.stack([losses_of(maker.at_quantiles(draw, QUANTILES)).float().cpu() for draw in draws])
    means = rows.mean(0)
    per_quantile = {f"loss_q{round(1000 * float(q))}": float(m) for q, m in zip(QUANTILES, means, strict=True)}
    return {"loss": float(means.mean()), **per_quantile}
