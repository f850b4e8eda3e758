"""One run and all that it holds: made from a plan, before the first step."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from trainer.checkpoint.background import BackgroundWrite
from trainer.checkpoint.naming import run_dir
from trainer.checkpoint.state import State, restore
from trainer.common.process import phase
from trainer.config import TrainConfig
from trainer.data.batches import BatchMaker
from trainer.data.cache import Encoded, TensorCache, fill_cache
from trainer.data.dataset import Draw
from trainer.engine.build import load_adapted_model, parameter_groups
from trainer.engine.cuda_graphs import GradientGraphs, kinds_of, why_not
from trainer.engine.eta import due_tasks
from trainer.engine.log import RunLog
from trainer.engine.requests import Control
from trainer.engine.step import AdaptedModel, clear_gradients
from trainer.memory.choose import MemoryPlan
from trainer.memory.record import Measuring
from trainer.optim.build import OptimizerSettings, build_optimizer
from trainer.optim.ema import Ema
from trainer.optim.prodigy import Prodigy
from trainer.optim.schedule import ScheduleSettings, build_lr_scheduler
from trainer.preflight.memory import measured_key
from trainer.preflight.plan import Plan
from trainer.preflight.resume import Progress, find_state

log = logging.getLogger(__name__)


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
    graphs: GradientGraphs | None = None
    last_checkpoint: Path | None = None
    saving: BackgroundWrite = field(default_factory=BackgroundWrite)
    measuring: Measuring | None = None

    def own_share(self, step: int) -> Sequence[tuple[Draw, ...]]:
        """The batches of a step's group that this process sees."""
        return self.plan.group(step)[self.accelerator.process_index :: self.accelerator.num_processes]

    def num_pictures(self, step: int) -> int:
        """How many pictures a step's group has, over all processes."""
        return sum(len(draws) for draws in self.plan.group(step))

    @property
    def memory(self) -> MemoryPlan:
        """What is recomputed, swapped and in which precision the base is."""
        return self.plan.memory

    @property
    def optimizer_bytes_to_come(self) -> int:
        """What the optimizer has yet to allocate, as planned; the averages are there from the start."""
        there = [x for state in self.optimizer.state.values() for x in state.values() if isinstance(x, torch.Tensor)]
        averages = 0 if self.ema is None else 4 * self.memory.work.trained
        return self.memory.work.optimizer - averages - sum(x.numel() * x.element_size() for x in there)

    @property
    def is_warming_up(self) -> bool:
        """Whether later steps will be faster, since their batches are recorded."""
        return self.graphs is not None and not self.graphs.is_settled

    def clear_gradients(self) -> None:
        """Forget those of the step that is done."""
        clear_gradients(self.model.parameters.values(), self.graphs is not None and self.graphs.holds_gradients)

    def make_room(self) -> None:
        """Give back the memory that a step needs and that is free between steps."""
        if self.graphs:
            self.graphs.release()

    def record_no_more(self) -> None:
        """Launch every kernel by itself from now on."""
        self.make_room()
        self.graphs = None

    def let_go(self) -> None:
        """Drop the model and the optimizer."""
        del self.model, self.optimizer, self.scheduler, self.ema
        self.graphs = None

    def load_again(self, memory: MemoryPlan) -> None:
        """Model and optimizer as they were before the first step, with another memory plan."""
        self.plan = replace(self.plan, memory=memory)
        found = find_state(self.config, self.plan)[0] if self.config.resume else None
        self.model, self.optimizer, self.scheduler, self.ema = _load(self.config, self.accelerator, self.plan, found)
        self.graphs = _graphs(self.config, self.model, self.plan)
        self.measuring = _measuring(self.plan, self.accelerator)

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
    state, progress = found or (None, Progress.new(config))
    model, optimizer, scheduler, ema = _load(config, accelerator, plan, state)
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
        log=RunLog(
            config,
            accelerator,
            run_dir(config),
            plan.schedule.total_steps,
            progress.step,
            due_tasks(config, plan.schedule),
        ),
        graphs=_graphs(config, model, plan),
        measuring=_measuring(plan, accelerator),
    )


def _load(
    config: TrainConfig, accelerator: Accelerator, plan: Plan, state: State | None
) -> tuple[AdaptedModel, Optimizer, LRScheduler, Ema | None]:
    """Model, optimizer, schedule and averages as they are before the first step, or as a state has them."""
    with phase("transformer loaded and adapted"):
        model = load_adapted_model(config, plan, plan.tokenizers, accelerator)
    optimizer = build_optimizer(config.select(OptimizerSettings), parameter_groups(config, model, plan))
    scheduler = build_lr_scheduler(config.select(ScheduleSettings), optimizer, plan.schedule.total_steps)
    ema = Ema(model.parameters, config.ema_decay) if config.ema_decay else None
    if state:
        with phase(f"{state.folder} restored"):
            restore(
                state,
                parameters=model.parameters,
                optimizer=optimizer,
                scheduler=scheduler,
                ema=ema,
                keep_settings=config.resume_anyway,
            )
    if accelerator.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(accelerator.device)
    return model, optimizer, scheduler, ema


def _graphs(config: TrainConfig, model: AdaptedModel, plan: Plan) -> GradientGraphs | None:
    reason = why_not(config, model)
    if reason is None:
        return GradientGraphs(kinds_of(plan.data.batches(0)))
    if model.device.type == "cuda":
        log.info("batches are not recorded as CUDA graphs: %s", reason)
    return None


def _measuring(plan: Plan, accelerator: Accelerator) -> Measuring | None:
    if accelerator.device.type != "cuda" or not accelerator.is_main_process:
        return None
    return Measuring(plan.cache_dir, measured_key(plan), plan.memory.bytes.peak)
