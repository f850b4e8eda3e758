"""Run real trainings, one process each, and read the figures from their logs."""

import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.conditions import watching
from benchmarks.flops import Flops, Tokens, in_backward, linear_sizes, pass_flops
from benchmarks.kinds import seconds_by_kind
from benchmarks.settings import Setting, merge_flags
from benchmarks.worker import Job
from benchmarks.workspace import Images, write_dataset
from trainer.common.problems import redact
from trainer.config import TrainConfig, parse_config
from trainer.data.cache import TensorCache
from trainer.models.module_plan import plan_transformer
from trainer.models.weights import read_header
from trainer.preflight.check import make_plan
from trainer.preflight.plan import RunPlan

TAIL_LINES = 25
# how lines of a training's log begin that say what it chose on this machine
TELLING = (
    "memory:",
    "attention:",
    "falling back",
    "the transformer's blocks",
    "batches recorded",
    "CUDA graph",
)
SECONDS_TO_END = 30  # for a training to save and end after it was asked to stop


@dataclass(frozen=True)
class Length:
    """The length of a run: warm-up steps, minimum number of timed images, and profiled steps at the end."""

    warm_up: int = 4
    pictures: int = 40
    profiled: int = 2


@dataclass(frozen=True)
class Figures:
    """The cost of one setting. Times are in seconds, memory in GiB; None if the machine does not provide a figure.

    seconds_per_picture: median over the timed steps; lowest and highest are those of single steps. tflop_per_picture
    counts each product once; tflop_recomputed is what checkpointing adds. tflops and share_of_peak use the former.
    first_step: from the start of the process to the end of the first step, in which `encoded` images and captions were
    encoded. checkpoint: how long training stopped to save a LoRA. checkpoint_written: until that was on disk.
    processor: CPU time of the main process's threads per image. chosen: what the run chose by itself. by_kind: of each
    kind of batch the median, lowest and highest seconds per image and the number of steps, if there are several.
    launches: "recorded" as CUDA graphs, or why not. synchronizations: where the host had to wait for the GPU in the
    timed steps, and how often.
    """

    seconds_per_picture: float
    lowest: float
    highest: float
    pictures_timed: int
    pictures_per_step: int
    first_step: float
    encoded: int
    tflop_per_picture: float
    tflop_recomputed: float
    tflops: float
    share_of_peak: float | None
    peak_precision: str
    optimizer_step: float
    processor: float
    checkpoint: float | None
    checkpoint_written: float | None
    torch_allocated_gib: float | None
    torch_reserved_gib: float | None
    device_gib: float | None
    host_gib: float
    seconds_in_all: float
    chosen: dict[str, Any]
    by_kind: dict[str, list[float]]
    launches: str
    synchronizations: dict[str, int] | None


@dataclass(frozen=True)
class Result:
    """A setting and its result: figures and breakdown, or the last lines of a failed run.

    conditions: temperature, clocks and power meanwhile, as `Readings.summary` gives them. said: the lines of the
    training's log about what it chose on this machine.
    """

    setting: Setting
    figures: Figures | None
    breakdown: dict[str, Any] | None = None
    failure: str = ""
    conditions: dict[str, float] | None = None
    said: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        setting = {"name": self.setting.name, "flags": list(self.setting.flags)}
        figures = asdict(self.figures) if self.figures else None
        seen = {"conditions": self.conditions, "said": list(self.said)}
        return setting | {"figures": figures, "breakdown": self.breakdown, "failure": self.failure} | seen


@dataclass(frozen=True)
class Prepared:
    """A setting whose files and flags passed the check."""

    setting: Setting
    config: TrainConfig
    plan: RunPlan
    job: Job
    num_processes: int


def prepare(setting: Setting, work: Path, length: Length, images: Images, num_processes: int = 1) -> Prepared:
    """Write the dataset of a setting, and check everything. Raises `Problems`."""
    folder = work / "runs" / _file_name(setting.name)
    config, _ = parse_config(setting.flags)
    of_one = config.train_batch_size * config.gradient_accumulation_steps
    per_step = of_one * num_processes
    measured = max(-(-length.pictures // per_step), 3)
    steps = length.warm_up + measured + length.profiled
    dataset = config.dataset_config or write_dataset(folder, config, (steps + 1) * per_step, images)
    where = [
        f"--dataset_config={dataset}", f"--cache_dir={work / 'cache'}", f"--output_dir={folder / 'loras'}",
        f"--run_dir={folder}", "--output_name=run", "--log_with=none",
        "--overwrite",  # of a measurement that was interrupted
        f"--save_every_n_steps={steps}", f"--max_train_steps={steps + 1}",
    ]  # fmt: skip
    flags = tuple(merge_flags(setting.flags, where))
    config, _ = parse_config(flags)
    plan = make_plan(config, num_processes)
    low_rank_side = max(plan.adapter.ranks.values(), default=0)
    job = Job(flags, length.warm_up, measured, length.profiled, of_one, low_rank_side, folder)
    return Prepared(setting, config, plan, job, num_processes)


def _file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name)


def measure(prepared: Prepared, peaks: dict[str, dict[str, Any]]) -> Result:
    """Train in a separate process. A failed run is also a result."""
    job, encoded = prepared.job, missing_entries(prepared.plan)
    job.result.unlink(missing_ok=True)
    output = job.folder / "output.txt"
    command = [sys.executable, *_launcher(prepared.num_processes), "-m", "benchmarks.worker", str(job.write())]
    start = time.time()
    with output.open("w", encoding="utf-8") as file, watching() as readings:
        status = run_to_end(command, file)
    seconds = time.time() - start
    printed = redact(output.read_text(encoding="utf-8", errors="replace")).splitlines()
    said = tuple(dict.fromkeys(line for line in printed if line.startswith(TELLING)))
    if status or not job.result.exists():
        failure = "\n".join([f"exit status {status}", *printed[-TAIL_LINES:]])
        return Result(prepared.setting, None, None, failure, readings.summary(), said)
    seen = json.loads(job.result.read_text(encoding="utf-8"))
    log = read_log(job.folder / "run" / "log.jsonl")
    shutil.rmtree(job.folder / "loras", ignore_errors=True)  # gigabytes at rank 256
    seen |= {"start": start, "seconds": seconds, "encoded": encoded}
    figures = figures_of(prepared, seen, log, peaks)
    return Result(prepared.setting, figures, seen["breakdown"], "", readings.summary(), said)


def missing_entries(plan: RunPlan) -> int:
    """The number of images and captions that are not in the cache yet."""
    cache = TensorCache(plan.cache_dir)
    wanted = {plan.keys.latents(sample, flip) for sample, flip in plan.data.views()}
    wanted |= {plan.keys.t5_text(caption) for caption in plan.captions}
    return sum(not cache.has(key) for key in wanted)


def _launcher(num_processes: int) -> list[str]:
    if num_processes == 1:
        return []
    return ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_processes}"]


def run_to_end(command: Sequence[str], output: Any) -> int:
    """Run a command. It ends with this process, also on Ctrl-C or SIGTERM, and leaves nothing on the device."""
    process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=os.environ)
    try:
        return process.wait()
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def read_log(file: Path) -> list[dict[str, Any]]:
    """The complete lines of a log.jsonl."""
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def figures_of(
    prepared: Prepared, seen: dict[str, Any], log: Sequence[dict[str, Any]], peaks: dict[str, dict[str, Any]]
) -> Figures:
    """The figures of a finished run, from the observations of its worker and the bench, and from its log."""
    job = prepared.job
    steps = [line for line in log if line["kind"] == "step"][job.warm_up : job.warm_up + job.measured]
    speeds = [line["seconds_per_picture"] for line in steps]
    median = statistics.median(speeds)
    flops = flops_of(prepared.config, prepared.plan, seen["chosen"]["checkpointed"])
    precision = "bf16" if prepared.config.mixed_precision == "bf16" else "fp32"
    tflops = flops.needed / median / 1e12
    peak = peaks[precision]["tflops"] if precision in peaks else None
    saved = next((line for line in log if line["kind"] == "checkpoint"), {})
    return Figures(
        seconds_per_picture=median,
        lowest=min(speeds),
        highest=max(speeds),
        pictures_timed=sum(round(line["seconds"] / line["seconds_per_picture"]) for line in steps),
        pictures_per_step=job.pictures_per_step * prepared.num_processes,
        first_step=seen["first_step_at"] - seen["start"],
        encoded=seen["encoded"],
        tflop_per_picture=flops.needed / 1e12,
        tflop_recomputed=flops.recomputed / 1e12,
        tflops=tflops,
        share_of_peak=tflops / (peak * prepared.num_processes) if peak else None,
        peak_precision=precision,
        optimizer_step=statistics.median(seen["optimizer_seconds"]),
        processor=seen["processor"],
        checkpoint=saved.get("stopped", saved.get("seconds")),
        checkpoint_written=saved.get("seconds"),
        torch_allocated_gib=seen["torch_allocated_gib"],
        torch_reserved_gib=seen["torch_reserved_gib"],
        device_gib=seen["device_gib"],
        host_gib=seen["host_gib"],
        seconds_in_all=seen["seconds"],
        chosen=seen["chosen"],
        by_kind=seconds_by_kind(steps, seen["kinds"][job.warm_up : job.warm_up + job.measured]),
        launches=seen["launches"],
        synchronizations=seen["synchronizations"],
    )


def flops_of(config: TrainConfig, plan: RunPlan, checkpointed: int) -> Flops:
    """The arithmetic per image, averaged over the run's images. A trained CLIP is not included.

    checkpointed: number of recomputed blocks, counted from the first one that the backward pass reaches.
    """
    assert config.pretrained_model_name_or_path
    module = plan_transformer(read_header(config.pretrained_model_name_or_path)).module
    sizes = linear_sizes(module)
    recomputed = in_backward(sizes, plan.adapter.ranks)[:checkpointed]
    buckets = [sample.bucket for sample in plan.data.samples for _ in range(sample.num_repeats)]
    total = Flops()
    for width, height in set(buckets):
        tokens = Tokens(img=(width // 16) * (height // 16), txt=plan.keys.t5_length)
        one = pass_flops(sizes, plan.adapter.ranks, tokens, recomputed)
        share = buckets.count((width, height)) / len(buckets)
        total += Flops(*(math.floor(share * count) for count in asdict(one).values()))
    return total


def again(prepared: Prepared, number: int) -> Prepared:
    """The same setting again, in a separate process, with filled caches."""
    setting = replace(prepared.setting, name=f"{prepared.setting.name}, run {number}")
    return replace(prepared, setting=setting)
