"""One run and all that it holds: made from a plan, before the first step."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from trainer.batches import BatchMaker
from trainer.cache import Encoded, TensorCache, fill_cache
from trainer.checkpoints import run_dir
from trainer.config import TrainConfig
from trainer.control import Control
from trainer.data.dataset import Draw
from trainer.log import RunLog
from trainer.model_setup import load_adapted_model, parameter_groups
from trainer.optim.build import build_lr_scheduler, build_optimizer
from trainer.optim.ema import Ema
from trainer.optim.prodigy import Prodigy
from trainer.plan import Plan
from trainer.resume import Progress, find_state
from trainer.runtime import phase
from trainer.state.save import restore
from trainer.step import AdaptedModel


@dataclass
class Run:
    """Everything that one training run holds while it goes."""

    config: TrainConfig
    accelerator: Accelerator
    plan: Plan
    maker: BatchMaker
    model: AdaptedModel
    optimizer: Optimizer
    scheduler: LRScheduler
    ema: Ema | None
    progress: Progress
    control: Control
    log: RunLog
    last_checkpoint: Path | None = None

    def own_share(self, step: int) -> Sequence[tuple[Draw, ...]]:
        """The batches of a step's group that this process sees."""
        return self.plan.group(step)[self.accelerator.process_index :: self.accelerator.num_processes]

    def num_pictures(self, step: int) -> int:
        """How many pictures a step's group has, over all processes."""
        return sum(len(draws) for draws in self.plan.group(step))

    def step_size(self) -> dict[str, torch.Tensor]:
        """Prodigy's own estimate of the step size, where it is the optimizer."""
        return {"prodigy_d": self.optimizer.d} if isinstance(self.optimizer, Prodigy) else {}


def prepare(config: TrainConfig, accelerator: Accelerator, plan: Plan, control: Control) -> Run:
    """Encode what the cache lacks, load the model, build the optimizer, restore a state."""
    found = None
    if config.resume:
        with phase("state read and checked"):
            found = find_state(config, plan)
    tokenizers, cache = plan.tokenizers, TensorCache(plan.cache_dir)
    with phase("latents and text in the cache"):
        fill_cache(config, plan.data, plan.captions, tokenizers, plan.keys, cache, accelerator)
    with phase("transformer loaded and adapted"):
        model = load_adapted_model(config, plan, tokenizers, accelerator)
    optimizer = build_optimizer(config, parameter_groups(config, model, plan))
    scheduler = build_lr_scheduler(config, optimizer, plan.schedule.total_steps)
    ema = Ema(model.parameters, config.ema_decay) if config.ema_decay else None
    progress = Progress.new(config)
    if found:
        state, progress = found
        with phase(f"{state.folder} restored"):
            restore(
                state,
                parameters=model.parameters,
                optimizer=optimizer,
                scheduler=scheduler,
                ema=ema,
                keep_settings=config.resume_anyway,
            )
    return Run(
        config=config,
        accelerator=accelerator,
        plan=plan,
        maker=BatchMaker(config, Encoded(cache, plan.keys), tokenizers, pin=accelerator.device.type == "cuda"),
        model=model,
        optimizer=optimizer,
        scheduler=scheduler,
        ema=ema,
        progress=progress,
        control=control,
        log=RunLog(config, accelerator, run_dir(config), plan.schedule.total_steps, progress.step),
    )
