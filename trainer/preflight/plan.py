"""A checked run in numbers: what it will train, in how many steps, and what it will write."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from trainer.common.problems import Problem
from trainer.common.text import counted, duration
from trainer.config import TrainConfig
from trainer.data.cache import CacheKeys
from trainer.data.dataset import Draw, Sample, Schedule, TrainingData
from trainer.data.generated import Generated
from trainer.lora.network_args import NetworkArgs
from trainer.memory.bytes import Block, forward_flops, step_flops
from trainer.memory.choose import MemoryPlan
from trainer.models.description import FLUX1, BaseModel
from trainer.models.text import Tokenizers
from trainer.preflight.disk import Growth, growth, save_steps
from trainer.preflight.outputs import in_words
from trainer.sampling.prompts import SamplePrompt

SAVE_BYTES = {"bf16": 2, "fp16": 2, "float": 4}
# the state of an optimizer per parameter: numbers in the parameter's own precision, and additional bytes
OPTIMIZER_TENSORS = {
    "adamw": (2, 0),
    "lion": (1, 0),
    "prodigy": (0.5, 12),  # 0.5: initial values, of those parameters that do not start at zero
    "adafactor": (0, 1),  # only rows and columns
    "adamw8bit": (0, 2.1),
    "pagedadamw8bit": (0, 2.1),
    "pagedadamw": (0, 8),
    "pagedadamw32bit": (0, 8),
    "lion8bit": (0, 1.1),
    "pagedlion8bit": (0, 1.1),
}
UNKNOWN_OPTIMIZER = (2, 0)
PNG_BYTES = 2  # of a generated image, per pixel
GB = 1e9


def trained_itemsize(config: TrainConfig) -> int:
    """Bytes of one trained parameter of the adapter: 2 with --full_bf16, else 4."""
    return 2 if config.full_bf16 else 4


def optimizer_bytes_per_number(config: TrainConfig) -> float:
    """Bytes of optimizer state, and of the moving average if there is one, per trained parameter."""
    tensors, more = OPTIMIZER_TENSORS.get(config.optimizer_type.lower(), UNKNOWN_OPTIMIZER)
    return trained_itemsize(config) * tensors + more + 4 * bool(config.ema_decay)


@dataclass(frozen=True)
class AdapterPlan:
    """Which layers of a base model get an adapter, of which rank, and how many parameters that trains.

    network: the parsed --network_args. ranks, clip_ranks: module name -> rank, in the transformer and in CLIP. alpha:
    None if it equals the rank of each layer. num_parameters: numbers to train, both models together. base: the model
    that is trained on. blocks: the transformer's, each with its part of the adapter. outside: how many frozen numbers
    the transformer has outside its blocks.
    """

    network: NetworkArgs
    ranks: dict[str, int]
    clip_ranks: dict[str, int]
    alpha: float | None
    num_parameters: int
    base: BaseModel
    blocks: tuple[Block, ...]
    outside: int

    @property
    def usual_rank(self) -> int:
        """The rank that most layers of the transformer have."""
        return Counter(self.ranks.values()).most_common(1)[0][0]


@dataclass(frozen=True)
class RunPlan:
    """What a run will do, as `trainer.preflight.check.make_plan` returns it if it finds no problem.

    config: the settings, with network_dim and network_alpha as --dim_from_weights found them. world_size: the number of
    processes. keys: make the names of cached latents and text. models: the fingerprint of each model file, by the name
    of its option. start_step: optimizer steps that the resumed state has done. t5_width: the size of T5's hidden
    states. captions: all texts that will be encoded. images_to_generate: those that the base model generates before
    training. missing_latents, missing_texts: how many the cache lacks. replaces: files of an earlier run that
    --overwrite allows this run to replace.
    """

    config: TrainConfig
    data: TrainingData
    schedule: Schedule
    world_size: int
    warnings: tuple[Problem, ...]
    adapter: AdapterPlan
    tokenizers: Tokenizers
    cache_dir: Path
    keys: CacheKeys
    models: dict[str, str]
    start_step: int
    t5_width: int
    captions: tuple[str, ...]
    images_to_generate: tuple[Generated, ...]
    sample_prompts: tuple[SamplePrompt, ...]
    missing_latents: int
    missing_texts: int
    memory: MemoryPlan
    replaces: tuple[Path, ...] = ()
    _epochs: dict[int, list[tuple[Draw, ...]]] = field(default_factory=dict)

    @property
    def class_caption(self) -> Callable[[Draw], str | None] | None:
        """Returns a draw's caption with class words in place of triggers; None without --class_preservation_weight."""
        return self.data.class_caption if self.config.class_preservation_weight else None

    def group(self, step: int) -> Sequence[tuple[Draw, ...]]:
        """The batches of an optimizer step (counted from 1), those of all processes, each as a tuple of draws."""
        epoch, index = divmod(step - 1, self.schedule.steps_per_epoch)
        if epoch not in self._epochs:
            while len(self._epochs) > 1:  # prefetching reads ahead at most into the next epoch
                self._epochs.pop(min(self._epochs))
            self._epochs[epoch] = self.data.batches(epoch)
        size = self.schedule.batches_per_step
        return self._epochs[epoch][index * size : (index + 1) * size]

    @property
    def lora_bytes(self) -> int:
        """The size of one LoRA file in bytes."""
        return self.adapter.num_parameters * SAVE_BYTES[self.config.save_precision]

    @property
    def state_bytes(self) -> int:
        """Bytes of one saved state: adapter in training precision, optimizer state, moving average in float32."""
        number = trained_itemsize(self.config) + optimizer_bytes_per_number(self.config)
        return int(self.adapter.num_parameters * number)

    @property
    def checkpoints(self) -> int:
        """The number of LoRA files that the run will write."""
        return len(save_steps(self.config, self.schedule, self.start_step))

    @cached_property
    def growth(self) -> tuple[Growth, ...]:
        """The extra disk space at each save of the run, in order; computed once, on first use."""
        return growth(self.config, self.schedule, self.start_step, self.lora_bytes, self.state_bytes)

    @property
    def lora_bytes_kept(self) -> int:
        """The most disk space, in bytes, that LoRA files of this run add at any time, temporary files included."""
        return max(at_save.loras for at_save in self.growth)

    @property
    def state_bytes_kept(self) -> int:
        """The most disk space, in bytes, that saved states of this run add at any time, temporary files included."""
        return max(at_save.states for at_save in self.growth)

    @property
    def missing_cache_bytes(self) -> int:
        """About how many bytes the run will add to the cache, with latents and T5's output counted as float32."""
        views = self.data.views()
        pixels = sum(sample.bucket[0] * sample.bucket[1] for sample, _ in views) // max(len(views), 1)
        kind = FLUX1.latents
        latents = self.missing_latents * (pixels // kind.side**2) * kind.channels * 2 * 4
        images = sum(PNG_BYTES * image.width * image.height for image in self.images_to_generate)
        return latents + self.missing_texts * self.keys.t5_length * self.t5_width * 4 + images

    def summary(self) -> str:
        """The plan as text for the console: warnings, images, steps, files and memory, one fact a line."""
        return "\n".join(
            [
                *(f"warning: {warning}" for warning in self.warnings),
                "",
                *self._image_lines(),
                *self._step_lines(),
                *self._file_lines(),
                *self.memory.lines(),
            ]
        )

    def _image_lines(self) -> list[str]:
        held_out = f", {len(self.data.validation)} more held out for validation" if self.data.validation else ""
        buckets = (
            f"  {count.bucket[0]} x {count.bucket[1]}: {counted(count.pictures, 'image')},"
            f" {counted(count.draws, 'sample')}, {counted(count.batches, 'batch', 'batches')}"
            for count in self.data.buckets()
        )
        return [
            f"{counted(len(self.data.samples), 'image')}{held_out}",
            *_subset_lines([sample for sample in self.data.samples if sample.is_from_subset]),
            *_composition_lines(self.data),
            *self._generated_lines(),
            *buckets,
            *self._note_lines(),
        ]

    def _generated_lines(self) -> list[str]:
        missing = self.images_to_generate
        if not missing:
            return []
        passes = sum(image.forward_passes for image in missing)
        samples = math.ceil(passes / 2)  # with frozen weights, a backward pass takes as long as a forward pass
        measured = self.memory.measured
        time = f" ({duration(samples * measured.seconds_per_picture)})" if measured else ""
        return [
            f"  {counted(len(missing), 'image')} to generate with the base model before training:"
            f" {counted(passes, 'forward pass', 'forward passes')},"
            f" about the time of {counted(samples, 'training sample')}{time}"
        ]

    def _note_lines(self) -> list[str]:
        return [f"  {note}" for note in self.data.notes]

    def _step_lines(self) -> list[str]:
        schedule = self.schedule
        return [
            f"{counted(self.data.num_batches, 'batch', 'batches')} per epoch / {schedule.batches_per_step} per step ="
            f" {counted(schedule.steps_per_epoch, 'step')} per epoch,"
            f" {counted(schedule.total_steps, 'step')} in {counted(schedule.num_epochs, 'epoch')}",
            *self._preserving_lines(),
            *self._class_lines(),
        ]

    @property
    def _forward_share(self) -> float:
        """The arithmetic of a forward pass, relative to a step without anything that is preserved."""
        return forward_flops(self.memory.work) / step_flops(self.memory.work, self.memory.choice.checkpointed)

    def _preserving_lines(self) -> list[str]:
        """What it costs that the base model predicts the target, in all or a part of some images."""
        draws = [draw for batch in self.data.batches(0) for draw in batch]
        share = sum(draw.sample.preserves_some for draw in draws) / len(draws)
        if not share:
            return []
        return [
            f"  {share:.0%} of the samples keep what the base model generates: one more forward pass of these,"
            f" {1 + share * self._forward_share:.2f} times the arithmetic of a step"
        ]

    def _class_lines(self) -> list[str]:
        """What --class_preservation_weight costs."""
        if not self.class_caption:
            return []
        draws = [draw for batch in self.data.batches(0) for draw in batch]
        share = sum(self.class_caption(draw) is not None for draw in draws) / len(draws)
        words = ", ".join(dict.fromkeys(self.data.class_words.values()))
        return [
            f"  class words ({words}) preserved in {share:.0%} of the samples: two more forward passes and one more"
            f" backward pass of these, {1 + share * (1 + self._forward_share):.2f} times the arithmetic of a step"
        ]

    def _file_lines(self) -> list[str]:
        layers = len(self.adapter.ranks) + len(self.adapter.clip_ranks)
        about = "" if self.config.optimizer_type.lower() in OPTIMIZER_TENSORS else "about "
        return [
            f"LoRA of rank {_ranks_in_words(self.adapter)} on {counted(layers, 'layer')} of {self.adapter.base.name}:"
            f" {self.adapter.num_parameters / 1e6:.1f} M parameters, {self.lora_bytes / GB:.3f} GB per file",
            f"{counted(self.checkpoints, 'checkpoint')} in {self.config.output_dir}:"
            f" {self.checkpoints * self.lora_bytes / GB:.3f} GB; a state is {about}{self.state_bytes / GB:.3f} GB",
            f"{counted(self.missing_latents, 'latent')} and {counted(self.missing_texts, 'caption')} to encode:"
            f" {self.missing_cache_bytes / GB:.3f} GB in {self.cache_dir}",
            *([f"files of an earlier run to replace: {in_words(self.replaces)}"] if self.replaces else []),
        ]


def _subset_lines(samples: Sequence[Sample]) -> list[str]:
    subsets = {sample.subset.where: sample.subset for sample in samples}
    lines = []
    for where, subset in subsets.items():
        own = [sample for sample in samples if sample.subset.where == where]
        kind = ", regularisation" if subset.is_reg else ""
        repeats = sorted({sample.num_repeats for sample in own})
        times = "-".join(map(str, repeats[:: max(len(repeats) - 1, 1)]))
        lines.append(f"  {subset.image_dir}: {counted(len(own), 'image')} x {times}, {subset.concept!r}{kind}")
    return lines


def _composition_lines(data: TrainingData) -> list[str]:
    return [
        f"  {len(rotation.samples)} {_kind(rotation.samples[0])}, {rotation.count} an epoch, such as"
        f" {rotation.samples[0].lines[0]!r}"
        for rotation in data.rotations()
        if not rotation.samples[0].is_from_subset
    ]


def _kind(sample: Sample) -> str:
    if sample.preservation is not None:
        return "preserved images"
    return "composites" if sample.companion is None else "composites with companions"


def _ranks_in_words(adapter: AdapterPlan) -> str:
    ranks = sorted({*adapter.ranks.values(), *adapter.clip_ranks.values()})
    return str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
