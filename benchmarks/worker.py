"""One real training, watched: the process that the bench starts for each setting.

    python -m benchmarks.worker JOB.json

It runs `trainer.train.train` as it is and observes it from outside: the optimizer's steps through torch's
hooks, memory through torch's counters, the last steps through torch's profiler. `train` hands over the run
that it has prepared, so that the worker can read at the end what the run has chosen.
"""

import json
import resource
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.kernels import OPTIMIZER_MARK, read_trace
from benchmarks.kinds import kinds_of_steps
from trainer.common.files import write_json
from trainer.common.process import set_up_logging
from trainer.config import parse_config
from trainer.engine.cuda_graphs import why_not
from trainer.engine.log import accelerator_arguments
from trainer.engine.metrics import Timestamp
from trainer.engine.run import Run
from trainer.memory.choose import expected_seconds
from trainer.train import train

GIB = 2**30
SYNCHRONIZES = "called a synchronizing CUDA operation"  # torch's warning in the debug mode for synchronizations


@dataclass(frozen=True)
class Job:
    """The task of a worker. Steps are optimizer steps; the profiled ones come last and are not timed.

    A LoRA is saved after them, before one more step, so that writing it does not disturb the measurement.

    pictures_per_step: of one process. low_rank_side: see `benchmarks.kernels.classify`.
    """

    flags: tuple[str, ...]
    warm_up: int
    measured: int
    profiled: int
    pictures_per_step: int
    low_rank_side: int
    folder: Path

    @property
    def steps(self) -> int:
        """All steps except the one after the save."""
        return self.warm_up + self.measured + self.profiled

    @property
    def result(self) -> Path:
        return self.folder / "result.json"

    def write(self) -> Path:
        """Write the job to its folder; returns the file."""
        path = self.folder / "job.json"
        write_json(path, {**asdict(self), "folder": str(self.folder)})
        return path

    @classmethod
    def read(cls, path: Path) -> "Job":
        values = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**values, "flags": tuple(values["flags"]), "folder": Path(values["folder"])})


@dataclass
class Observer:
    """Observes a run at its optimizer steps.

    run: the observed run, once it is ready. launches: "recorded" if the timed steps ended with replayed CUDA graphs,
    else why not. synchronizations: the places that made the host wait for the GPU in the timed steps, and how often.
    """

    job: Job
    device: torch.device
    step: int = 0
    first_step_at: float | None = None
    device_gib: float = 0.0
    processor: float = 0.0
    spans: list[tuple[Timestamp, Timestamp]] = field(default_factory=list)
    run: Run | None = None
    profiler: profile | None = None
    launches: str = ""
    synchronizations: Counter[str] = field(default_factory=Counter)
    timed: ExitStack = field(default_factory=ExitStack)

    def observe(self, run: Run) -> None:
        """Take the run that is about to begin."""
        self.run = run

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Observe the optimizer's steps while the block runs."""
        handles = [
            register_optimizer_step_pre_hook(lambda *_: self._before()),
            register_optimizer_step_post_hook(lambda *_: self._after()),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _before(self) -> None:
        self.mark = record_function(OPTIMIZER_MARK)
        self.mark.__enter__()
        self.begin = Timestamp(self.device)

    def _after(self) -> None:
        self.spans.append((self.begin, Timestamp(self.device)))
        self.mark.__exit__(None, None, None)
        self.step += 1
        if self.step == 1:
            self.spans[0][1].wait()
            self.first_step_at = time.time()
        if (
            self.step <= self.job.warm_up and self.device.type == "cuda"
        ):  # reserved memory stays reserved, so later steps add nothing
            free, total = torch.cuda.mem_get_info(self.device)
            self.device_gib = max(self.device_gib, (total - free) / GIB)
        if self.step in (self.job.warm_up, self.job.warm_up + self.job.measured):
            self.processor = time.process_time() - self.processor
        if self.step == self.job.warm_up and self.device.type == "cuda":
            self.timed.enter_context(counting_synchronizations(self.synchronizations))
        elif self.step == self.job.warm_up + self.job.measured:
            self.timed.close()
            self.launches = self._launches()
        if self.job.profiled and self.step == self.job.warm_up + self.job.measured:
            self._start_profiler()
        elif self.profiler and self.step == self.job.steps:
            self._synchronise()
            self.profiler.stop()

    def _launches(self) -> str:
        assert self.run
        graphs = self.run.graphs
        if graphs is None:
            return why_not(self.run.config, self.run.model) or "recording is off"
        return "recorded" if graphs.holds_gradients else "recording failed" if graphs.is_broken else "not recorded yet"

    def _start_profiler(self) -> None:
        assert self.run
        self.run.disable_graphs()  # a replayed kernel does not say which operator it belongs to
        self._synchronise()  # kernels of earlier steps stay out of the trace
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.device.type == "cuda" else [])]
        self.profiler = profile(activities=activities, record_shapes=True)
        self.profiler.start()

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def optimizer_seconds(self) -> list[float]:
        """Seconds of the optimizer in each measured step."""
        measured = self.spans[self.job.warm_up : self.job.warm_up + self.job.measured]
        for _, end in measured:
            end.wait()
        return [end.seconds_since(begin) for begin, end in measured]

    def breakdown(self) -> dict[str, Any] | None:
        """The breakdown of the profiled steps, as JSON; None if there is none."""
        if self.profiler is None or self.step < self.job.steps:
            return None
        trace = self.job.folder / "trace.json"
        self.profiler.export_chrome_trace(str(trace))
        pictures = self.job.profiled * self.job.pictures_per_step
        found = read_trace(trace, pictures, self.job.low_rank_side, self.device.type == "cuda")
        return found.as_json() if found else None


@contextmanager
def counting_synchronizations(found: Counter[str]) -> Iterator[None]:
    """While the block runs, count by source line the operations that make the host wait for the GPU.

    Waiting for an event is not counted: training waits for the step before the last one that it launched.
    """
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)
            places = [
                f"{Path(each.filename).name}:{each.lineno}" for each in caught if SYNCHRONIZES in str(each.message)
            ]
            found.update(places)


def run(job: Job) -> int:
    """Run the job's training; the main process writes what it observed. Returns the training's exit status."""
    config, _ = parse_config(job.flags)
    accelerator = Accelerator(mixed_precision="no", **accelerator_arguments(config))
    set_up_logging(accelerator.is_main_process)
    observer = Observer(job, accelerator.device)
    with observer.watching():
        status = train(config, accelerator, on_ready=observer.observe)
    if accelerator.is_main_process:
        assert observer.run
        write_json(job.result, observed(observer) | {"chosen": chosen(observer.run)})
    return status


def chosen(run: Run) -> dict[str, Any]:
    """What a run has chosen by itself, and what it expects of it.

    How many blocks are recomputed and swapped, the base model's precision, the planned peak of tensors in GiB, and on a
    GPU the seconds per image that choices were compared by; these assume a share of a large product's speed.
    """
    config, transformer = run.model.config, run.model.transformer
    blocks = len(transformer.transformer_blocks) + len(transformer.single_transformer_blocks)
    checkpointed = blocks if config.gradient_checkpointing else config.checkpoint_blocks or 0
    memory = run.plan.memory
    found = {"checkpointed": checkpointed, "swapped": config.blocks_to_swap or 0, "base": memory.choice.precision}
    found["planned_gib"] = memory.bytes.peak / GIB
    if memory.device and memory.device.is_measured:
        seconds = expected_seconds(memory.work, memory.device, memory.choice)
        found["expected_seconds"] = seconds / memory.work.batch
    return found


def observed(observer: Observer) -> dict[str, Any]:
    """What was observed, as JSON. Peaks of memory are those of the process from its start, encoding included."""
    on_gpu = observer.device.type == "cuda"
    host_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seen = {
        "first_step_at": observer.first_step_at,
        "optimizer_seconds": observer.optimizer_seconds(),
        "processor": observer.processor / (observer.job.measured * observer.job.pictures_per_step),
        "torch_allocated_gib": torch.cuda.max_memory_allocated(observer.device) / GIB if on_gpu else None,
        "torch_reserved_gib": torch.cuda.max_memory_reserved(observer.device) / GIB if on_gpu else None,
        "device_gib": observer.device_gib or None,
        "host_gib": host_kib * 1024 / GIB,
        "launches": observer.launches,
        "synchronizations": dict(observer.synchronizations) if on_gpu else None,
        "kinds": kinds_of_steps(observer.run.plan, observer.job.steps) if observer.run else [],
    }
    return seen | {"breakdown": observer.breakdown()}


if __name__ == "__main__":
    sys.exit(run(Job.read(Path(sys.argv[1]))))
