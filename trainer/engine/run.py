"""A run and everything that it holds: prepared from a plan before the first step."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from trainer.checkpoint.background import BackgroundWrite
from trainer.checkpoint.naming import run_dir
from trainer.checkpoint.run_log import read_log
from trainer.checkpoint.state import State, restore
from trainer.common.process import phase
from trainer.comparison.compare import Comparer
from trainer.config import TrainConfig
from trainer.data.batches import BatchMaker, BatchSettings
from trainer.data.cache import TensorCache
from trainer.data.dataset import Draw
from trainer.data.encoding import fill_cache
from trainer.engine.build import load_adapted_model, parameter_groups
from trainer.engine.cuda_graphs import GradientGraphs, free_device_bytes, kinds_of, why_not
from trainer.engine.eta import pause_steps
from trainer.engine.guard import Guard
from trainer.engine.log import RunLog
from trainer.engine.probe import StepProbe
from trainer.engine.requests import Requests
from trainer.engine.step import AdaptedModel, clear_gradients
from trainer.guard.history import read_history
from trainer.memory.choose import MemoryPlan
from trainer.memory.record import Measuring
from trainer.memory.watch import floor_bytes
from trainer.models.weights import shares_host_memory
from trainer.optim.build import OptimizerSettings, build_optimizer
from trainer.optim.ema import Ema
from trainer.optim.prodigy import Prodigy
from trainer.optim.schedule import ScheduleSettings, build_lr_scheduler
from trainer.preflight.memory import measured_key
from trainer.preflight.plan import RunPlan
from trainer.preflight.resume import Progress, find_state

log = logging.getLogger(__name__)


@dataclass
class Run:
    """A training run in progress: its model, optimizer, data, log and files.

    maker: makes batches from the cache; ema: the moving average, if there is one; progress: steps and time so far;
    requests: what users and signals ask of it; probe: measures what each step does to the adapter; guard: judges the
    numbers; graphs: recorded gradients, if batches run as CUDA graphs; last_checkpoint: the LoRA file that was written
    last; saving: the background thread that writes LoRA files; measuring: records speed and memory for the next plan,
    on a GPU; comparer: measures likeness, bleed and drift, once it was needed.
    """

    config: TrainConfig
    accelerator: Accelerator
    plan: RunPlan
    maker: BatchMaker
    model: AdaptedModel
    optimizer: Optimizer
    scheduler: LRScheduler
    ema: Ema | None
    progress: Progress
    requests: Requests
    log: RunLog
    probe: StepProbe
    guard: Guard
    graphs: GradientGraphs | None = None
    last_checkpoint: Path | None = None
    saving: BackgroundWrite = field(default_factory=BackgroundWrite)
    measuring: Measuring | None = None
    comparer: Comparer | None = None

    def own_share(self, step: int) -> Sequence[tuple[Draw, ...]]:
        """The batches of optimizer step `step` that this process trains on, each as a tuple of draws."""
        return self.plan.group(step)[self.accelerator.process_index :: self.accelerator.num_processes]

    def num_images(self, step: int) -> int:
        """The number of images in optimizer step `step`, over all processes."""
        return sum(len(draws) for draws in self.plan.group(step))

    @property
    def memory(self) -> MemoryPlan:
        """Which blocks are recomputed or swapped, and the precision of the base model."""
        return self.plan.memory

    @property
    def optimizer_bytes_to_come(self) -> int:
        """Bytes that the optimizer will still allocate for its state, as planned.

        The moving average is not counted: it is allocated from the start.
        """
        state = [x for state in self.optimizer.state.values() for x in state.values() if isinstance(x, torch.Tensor)]
        averages = 0 if self.ema is None else 4 * self.memory.work.trained
        return self.memory.work.optimizer - averages - sum(x.numel() * x.element_size() for x in state)

    @property
    def is_warming_up(self) -> bool:
        """Whether later steps will be faster, because their batches will be recorded as CUDA graphs."""
        return self.graphs is not None and not self.graphs.is_settled

    def clear_gradients(self) -> None:
        """Clear the gradients after an optimizer step; in place if CUDA graphs write to them, else freed."""
        clear_gradients(self.model.parameters.values(), self.graphs is not None and self.graphs.holds_gradients)

    def release_graphs(self) -> None:
        """Release the memory of recorded CUDA graphs; batches will be recorded again."""
        if self.graphs:
            self.graphs.release()

    def disable_graphs(self) -> None:
        """Launch every kernel separately from now on, without CUDA graphs."""
        self.release_graphs()
        self.graphs = None

    @contextmanager
    def pause(self, kind: str) -> Iterator[None]:
        """In this context training pauses: its time is logged and counts for the estimate of the time left.

        kind: "checkpoint", "sample" or "validation".
        """
        start = time.perf_counter()
        yield
        self.log.paused(kind, self.progress.step, time.perf_counter() - start)

    @contextmanager
    def as_saved(self) -> Iterator[None]:
        """In this context the adapter has the values that would be saved (averaged, with EMA) and no dropout.

        The model runs uncompiled. The memory of recorded CUDA graphs is released; they are recorded again later.
        """
        self.release_graphs()
        self.model.train(False)
        try:
            with self.ema.swapped() if self.ema else nullcontext(), torch.compiler.set_stance("force_eager"):
                yield
        finally:
            self.model.train(True)

    def release_memory(self) -> None:
        """Drop the model, the optimizer, the moving average and the CUDA graphs; `reload` creates them again."""
        del self.model, self.optimizer, self.scheduler, self.ema, self.probe
        self.graphs = None

    def reload(self, memory: MemoryPlan) -> None:
        """Load model and optimizer again as they were before this run's first step, with another memory plan.

        With --resume, that is as the saved state has them.
        """
        self.plan = replace(self.plan, memory=memory)
        found = find_state(self.config, self.plan)[0] if self.config.resume else None
        self.model, self.optimizer, self.scheduler, self.ema = _load(self.config, self.accelerator, self.plan, found)
        self.probe = StepProbe(self.model.parameters, self.model.alphas)
        self.graphs = _graphs(self.config, self.model, self.plan)
        self.measuring = _measuring(self.plan, self.accelerator)

    def step_size(self) -> dict[str, torch.Tensor]:
        """The step size that Prodigy has found, {"prodigy_d": scalar on the device}; {} for other optimizers."""
        return {"prodigy_d": self.optimizer.d} if isinstance(self.optimizer, Prodigy) else {}

    def close(self) -> None:
        """Wait for files that are being written, then close the log, even if writing failed."""
        try:
            self.saving.close()
        finally:
            self.log.close()


def prepare(config: TrainConfig, accelerator: Accelerator, plan: RunPlan, requests: Requests) -> Run:
    """Get a run ready for its first step: fill the cache, load the model, build the optimizer and open the log.

    With --resume, adapter, optimizer and progress are restored from the state that it names. Raises `Problems` if the
    run cannot continue that state.
    """
    found = None
    if config.resume:
        with phase("state read and checked"):
            found = find_state(config, plan)
    tokenizers, cache = plan.tokenizers, TensorCache(plan.cache_dir)
    with phase("latents and text in the cache"):
        encoded = fill_cache(config, plan.data, plan.captions, tokenizers, plan.keys, cache, accelerator)
    state, progress = found or (None, Progress.new(config))
    model, optimizer, scheduler, ema = _load(config, accelerator, plan, state)
    total_steps, pauses = plan.schedule.total_steps, pause_steps(config, plan.schedule)
    log_file = run_dir(config) / "log.jsonl"
    earlier = read_log(log_file) if progress.step else []
    history = read_history(earlier, total_steps, bool(plan.data.held_out), until=progress.step)
    run_log = RunLog(config, accelerator, run_dir(config), total_steps, progress.step, pauses)
    return Run(
        config=config,
        accelerator=accelerator,
        plan=plan,
        maker=BatchMaker(
            config.select(BatchSettings),
            encoded,
            tokenizers,
            pin=accelerator.device.type == "cuda",
            class_caption=plan.class_caption,
        ),
        model=model,
        optimizer=optimizer,
        scheduler=scheduler,
        ema=ema,
        progress=progress,
        requests=requests,
        log=run_log,
        probe=StepProbe(model.parameters, model.alphas),
        guard=Guard(config, run_log, history),
        graphs=_graphs(config, model, plan),
        measuring=_measuring(plan, accelerator),
    )


def _load(
    config: TrainConfig, accelerator: Accelerator, plan: RunPlan, state: State | None
) -> tuple[AdaptedModel, Optimizer, LRScheduler, Ema | None]:
    """Model, optimizer, schedule and averages as before the first step, or as the state has them."""
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


def _graphs(config: TrainConfig, model: AdaptedModel, plan: RunPlan) -> GradientGraphs | None:
    reason = why_not(config, model)
    if reason is None:
        floor = floor_bytes(config.min_free_memory, model.device) if shares_host_memory(model.device) else 0
        kinds = kinds_of(plan.data.batches(0), plan.class_caption)
        return GradientGraphs(kinds, free=lambda device: free_device_bytes(device) - floor)
    if model.device.type == "cuda":
        log.info("CUDA graph capture disabled, running eagerly: %s", reason)
    return None


def _measuring(plan: RunPlan, accelerator: Accelerator) -> Measuring | None:
    if accelerator.device.type != "cuda" or not accelerator.is_main_process:
        return None
    return Measuring(plan.cache_dir, measured_key(plan), plan.memory.bytes.peak)
