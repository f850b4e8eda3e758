"""A checked run in numbers: what will be trained, in how many steps, and what it will write."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from trainer.cache import CacheKeys
from trainer.config import TrainConfig
from trainer.data.dataset import Draw, Sample, Schedule, TrainingData
from trainer.faults import Fault
from trainer.lora.network_args import NetworkArgs
from trainer.sample import SamplePrompt

SAVE_BYTES = {"bf16": 2, "fp16": 2, "float": 4}
OPTIMIZER_TENSORS = {"prodigy": 4, "lion": 1, "adafactor": 0.1, "adamw8bit": 0.5}  # per parameter; AdamW has 2
GB = 1e9


@dataclass(frozen=True)
class AdapterPlan:
    """ranks, clip_ranks: module name -> rank; num_parameters: numbers to train, both models together."""

    network: NetworkArgs
    ranks: dict[str, int]
    clip_ranks: dict[str, int]
    num_parameters: int
    is_schnell: bool


@dataclass(frozen=True)
class Plan:
    """What a run will do. Made by `trainer.check.make_plan`, after everything was found in order."""

    config: TrainConfig
    data: TrainingData
    schedule: Schedule
    world_size: int
    warnings: tuple[Fault, ...]
    adapter: AdapterPlan
    tokenizer_dir: Path
    cache_dir: Path
    keys: CacheKeys
    t5_width: int
    captions: tuple[str, ...]
    sample_prompts: tuple[SamplePrompt, ...]
    missing_latents: int
    missing_texts: int
    checkpoints: int
    _epochs: dict[int, list[tuple[Draw, ...]]] = field(default_factory=dict)

    def group(self, step: int) -> Sequence[tuple[Draw, ...]]:
        """The batches of one optimizer step (counted from 1), over all processes."""
        epoch, index = divmod(step - 1, self.schedule.steps_per_epoch)
        if epoch not in self._epochs:
            while len(self._epochs) > 1:  # prefetching looks at most into the next epoch
                self._epochs.pop(min(self._epochs))
            self._epochs[epoch] = self.data.batches(epoch)
        size = self.schedule.batches_per_step
        return self._epochs[epoch][index * size : (index + 1) * size]

    @property
    def lora_bytes(self) -> int:
        """One LoRA file."""
        return self.adapter.num_parameters * SAVE_BYTES[self.config.save_precision]

    @property
    def lora_bytes_kept(self) -> int:
        """All LoRA files that stay, and one more while it is being written."""
        kept = self.checkpoints
        if self.config.save_last_n_epochs and not self.config.save_every_n_steps:
            kept = min(kept, self.config.save_last_n_epochs + 1)
        return self.lora_bytes * (kept + 1)

    @property
    def state_bytes(self) -> int:
        """One state: the adapter in its own precision, its optimizer's tensors, its average."""
        tensors = 1 + OPTIMIZER_TENSORS.get(self.config.optimizer_type.lower(), 2) + bool(self.config.ema_decay)
        return int(self.adapter.num_parameters * 4 * tensors)

    @property
    def state_bytes_kept(self) -> int:
        """All states that stay; room for one even where none is asked for, for a run that is stopped."""
        kept = self.checkpoints if self.config.save_state else 1
        if self.config.save_last_n_epochs_state or self.config.save_last_n_epochs:
            kept = min(kept, (self.config.save_last_n_epochs_state or self.config.save_last_n_epochs or 0) + 1)
        return self.state_bytes * kept

    @property
    def missing_cache_bytes(self) -> int:
        """What encoding will add: mean and deviation of latents in float32, T5's text in 2 or 4 bytes."""
        views = self.data.views()
        pixels = sum(sample.bucket[0] * sample.bucket[1] for sample, _ in views) // max(len(views), 1)
        latents = self.missing_latents * (pixels // 64) * 16 * 2 * 4
        return latents + self.missing_texts * self.keys.t5_length * self.t5_width * 4

    def summary(self) -> str:
        """The plan in lines for people."""
        return "\n".join(
            [
                *(f"warning: {warning}" for warning in self.warnings),
                "",
                *self._picture_lines(),
                *self._step_lines(),
                *self._file_lines(),
            ]
        )

    def _picture_lines(self) -> list[str]:
        held_out = f", {len(self.data.validation)} more held out" if self.data.validation else ""
        buckets = (
            f"  {count.bucket[0]} x {count.bucket[1]}: {count.pictures} pictures, {count.draws} draws,"
            f" {count.batches} batches"
            for count in self.data.buckets()
        )
        return [f"{len(self.data.samples)} pictures{held_out}", *_subset_lines(self.data.samples), *buckets]

    def _step_lines(self) -> list[str]:
        schedule = self.schedule
        return [
            f"{self.data.num_batches} batches an epoch / {schedule.batches_per_step} a step ="
            f" {schedule.steps_per_epoch} steps an epoch, {schedule.total_steps} steps in {schedule.num_epochs} epochs"
        ]

    def _file_lines(self) -> list[str]:
        layers = len(self.adapter.ranks) + len(self.adapter.clip_ranks)
        return [
            f"LoRA of rank {_ranks_in_words(self.adapter)} on {layers} layers:"
            f" {self.adapter.num_parameters / 1e6:.1f} M parameters, {self.lora_bytes / GB:.3f} GB a file",
            f"{self.checkpoints} checkpoints into {self.config.output_dir}:"
            f" {self.checkpoints * self.lora_bytes / GB:.3f} GB; a state is {self.state_bytes / GB:.3f} GB",
            f"{self.missing_latents} latents and {self.missing_texts} captions to encode:"
            f" {self.missing_cache_bytes / GB:.3f} GB into {self.cache_dir}",
        ]


def _subset_lines(samples: Sequence[Sample]) -> list[str]:
    subsets = {sample.subset.where: sample.subset for sample in samples}
    lines = []
    for where, subset in subsets.items():
        own = [sample for sample in samples if sample.subset.where == where]
        kind = ", regularisation" if subset.is_reg else ""
        repeats = sorted({sample.num_repeats for sample in own})
        times = "-".join(map(str, repeats[:: max(len(repeats) - 1, 1)]))
        lines.append(f"  {subset.image_dir}: {len(own)} pictures x {times}, {subset.concept!r}{kind}")
    return lines


def _ranks_in_words(adapter: AdapterPlan) -> str:
    ranks = sorted({*adapter.ranks.values(), *adapter.clip_ranks.values()})
    return str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
