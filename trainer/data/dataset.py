"""What is trained in which order: every epoch is one exact pass, every sample a pure function of the seed."""

import logging
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

from trainer.common.problems import Problem, Problems
from trainer.common.rng import python_random
from trainer.config import TrainConfig
from trainer.data.captions import caption_variant, caption_varies, contains_phrase, plain_caption, possible_captions
from trainer.data.class_words import class_word_of, in_class_words
from trainer.data.compose import Composite
from trainer.data.composition_file import composition_settings
from trainer.data.compositions import compose_samples
from trainer.data.dataset_config import MASK_SETTINGS, DatasetConfig, DatasetSection, SubsetConfig
from trainer.data.dataset_file import read_dataset_config
from trainer.data.epochs import Group, Rotation, hold_out, make_groups
from trainer.data.generated import Generated, generator_of
from trainer.data.preservation import preserved_samples
from trainer.data.preservation_file import preservation_settings
from trainer.data.samples import Picture, Sample, scan_dataset
from trainer.images.decode import Size

log = logging.getLogger(__name__)

__all__ = [
    "BucketCount",
    "Draw",
    "Picture",
    "Sample",
    "Schedule",
    "TrainingData",
    "load_dataset",
    "plan_schedule",
]


@dataclass(frozen=True)
class Draw:
    """One use of a sample in training.

    epoch: counted from 0. repeat: how often the epoch has used the sample before. flip: mirrored left to right.
    """

    sample: Sample
    epoch: int
    repeat: int
    caption: str
    flip: bool


@dataclass(frozen=True)
class Schedule:
    """The length of a run, in optimizer steps and epochs; the last epoch may be cut short.

    batches_per_step: how many batches one step uses: gradient_accumulation_steps times the number of processes.
    """

    batches_per_step: int
    steps_per_epoch: int
    total_steps: int
    num_epochs: int


@dataclass(frozen=True)
class BucketCount:
    """One bucket, that is one shape, of one dataset.

    pictures: how many images it has. draws: how many samples each epoch uses, repeats counted. batches: in each epoch.
    """

    dataset_index: int
    bucket: Size
    pictures: int
    draws: int
    batches: int


@dataclass(frozen=True)
class TrainingData:
    """The samples of a run, and how each epoch uses them: a pure function of the seed and the epoch's number.

    config: the dataset file. validation: the samples held out. notes: files in the folders that are left out, for the
    user.
    """

    config: DatasetConfig
    samples: tuple[Sample, ...]
    validation: tuple[Sample, ...]
    seed: int
    schedule: Schedule
    notes: tuple[str, ...] = ()

    def batches(self, epoch: int) -> list[tuple[Draw, ...]]:
        """All batches of an epoch in order, each of one dataset and one shape. epoch: counted from 0.

        Each training image is in them exactly num_repeats times. Every epoch has the same number of batches. Of several
        processes, each trains its share of them, taking turns.
        """
        batches = [batch for group in self._groups for batch in self._group_batches(group, epoch)]
        python_random(self.seed, "batch order", epoch).shuffle(batches)
        first_step = epoch * self.schedule.steps_per_epoch
        return [
            tuple(self._draw(*item, epoch, first_step + index // self.schedule.batches_per_step) for item in batch)
            for index, batch in enumerate(batches)
        ]

    @property
    def num_batches(self) -> int:
        """The number of batches in each epoch, over all processes."""
        return sum(group.num_batches for group in self._groups)

    def buckets(self) -> list[BucketCount]:
        """How many images and batches each bucket has, for the plan and the LoRA's metadata."""
        return [
            BucketCount(
                group.dataset_index,
                group.bucket,
                len(group.samples),
                group.num_draws,
                group.num_batches,
            )
            for group in self._groups
        ]

    def generated_images(self) -> list[Generated]:
        """The images that the run needs from the base model, whether or not they have been generated, each once."""
        return list(dict.fromkeys(image for sample in self.samples for image in sample.generated_images))

    def rotations(self) -> list[Rotation]:
        """The sets of samples of which each epoch uses only some: regularisation images and composites."""
        return [rotation for group in self._groups for rotation in group.rotations]

    @property
    def held_out(self) -> tuple[Sample, ...]:
        """The validation samples whose loss says what was learned: not those whose target is the base model's own
        prediction, since their loss begins at zero and only measures drift."""
        return tuple(sample for sample in self.validation if not sample.preserves_output)

    def validation_draws(self) -> tuple[Draw, ...]:
        """One use of each image for validation, not mirrored and with a caption that never varies.

        These are the `held_out` images or, if there are none, the training images without regularisation, preserved
        ones, composites and generated ones.
        """
        taught = (s for s in self.samples if not (s.is_reg or s.preserves_output) and s.is_from_subset)
        samples = self.held_out or tuple(taught)
        return tuple(
            Draw(sample, 0, 0, plain_caption(sample.subset, sample.lines, self.seed, sample.key), False)
            for sample in samples
        )

    def views(self) -> list[tuple[Sample, bool]]:
        """Every (sample, flip) whose latents the run needs, flip being whether the image is mirrored."""
        mirrored = [(sample, True) for sample in self.samples if sample.subset.flip_aug]
        return [(sample, False) for sample in (*self.samples, *self.validation)] + mirrored

    def captions_used(self, epochs: int) -> list[str]:
        """Every caption that validation and the first `epochs` epochs use, each once, in a fixed order."""
        captions = dict.fromkeys(draw.caption for draw in self.validation_draws())
        for sample in self.samples:
            if not caption_varies(sample.subset):
                captions[plain_caption(sample.subset, sample.lines, self.seed, sample.key)] = None
        if any(caption_varies(sample.subset) for sample in self.samples):
            for epoch in range(epochs):
                captions |= dict.fromkeys(draw.caption for batch in self.batches(epoch) for draw in batch)
        return list(captions)

    def tag_frequency(self) -> dict[str, dict[str, int]]:
        """How often each tag occurs in the captions, by folder name and tag, as kohya's trainer counts for metadata.

        Tags are in lower case and split at commas; of several caption lines, only the first counts.
        """
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for sample in (*self.samples, *self.validation):
            tags = (tag.strip().lower() for tag in sample.lines[0].split(","))
            counts[sample.subset.image_dir.name].update(tag for tag in tags if tag)
        return {folder: dict(tags) for folder, tags in counts.items()}

    @cached_property
    def class_words(self) -> dict[str, str]:
        """The class word of each concept that is taught and has one, by its class_tokens."""
        taught = (s.subset.class_tokens for s in self.samples if not s.is_reg and not s.preserves_output)
        return {tokens: word for tokens in taught if tokens and (word := class_word_of(tokens))}

    def class_caption(self, draw: Draw) -> str | None:
        """The draw's caption with class words in place of triggers; None if it has no trigger or teaches nothing."""
        if draw.sample.is_reg or draw.sample.preserves_output:
            return None
        caption = in_class_words(draw.caption, self.class_words)
        return caption if caption != draw.caption else None

    def trains_trigger(self, subset: SubsetConfig) -> bool:
        """Whether training teaches a subset's class_tokens.

        They must be in at least one caption of an image that is neither regularisation nor trained towards the base
        model's own prediction.
        """
        return any(
            contains_phrase(caption, subset.class_tokens)
            for sample in self.samples
            if subset.class_tokens and sample.subset == subset and not sample.is_reg and not sample.preserves_output
            for caption in possible_captions(subset, sample.lines)
        )

    def manifest(self) -> dict[str, str]:
        """The dataset's settings and content as text, by name, to compare the data of two runs.

        With equal manifests, seeds and schedules, the batches of two runs are the same.
        """
        sections = {f"dataset {index}": _settings(section) for index, section in enumerate(self.config.sections)}
        subsets = {
            f"dataset {index} subset {number}": _settings(subset)
            for index, section in enumerate(self.config.sections)
            for number, subset in enumerate(section.subsets)
        }
        compositions = {
            f"dataset {index} composition {number}": composition_settings(composition)
            for index, section in enumerate(self.config.sections)
            for number, composition in enumerate(section.compositions)
        }
        preservation = {
            f"dataset {index} preservation {number}": preservation_settings(preservation)
            for index, section in enumerate(self.config.sections)
            for number, preservation in enumerate(section.preservation)
        }
        parts = (("train", self.samples), ("validation", self.validation))
        pictures = {
            f"picture {sample.key}": f"{_content(sample.picture)} {part} {' | '.join(sample.lines)}"
            for part, samples in parts
            for sample in samples
        }
        masks = {
            f"mask {sample.key}": f"{sample.mask.sha256} {_mask_settings(sample.subset)}"
            for _, samples in parts
            for sample in samples
            if sample.mask and sample.masks_loss
        }
        return {**sections, **subsets, **compositions, **preservation, **pictures, **masks}

    @cached_property
    def _groups(self) -> list[Group]:
        return make_groups(self.samples, self.config)

    def _group_batches(self, group: Group, epoch: int) -> Iterator[list[tuple[Sample, int]]]:
        repeats: Counter[str] = Counter()
        items = []
        for sample in group.epoch(epoch):
            items.append((sample, repeats[sample.key]))
            repeats[sample.key] += 1
        python_random(self.seed, "order", epoch, group.dataset_index, *group.bucket).shuffle(items)
        return (items[at : at + group.batch_size] for at in range(0, len(items), group.batch_size))

    def _draw(self, sample: Sample, repeat: int, epoch: int, step: int) -> Draw:
        total = self.schedule.total_steps
        caption = caption_variant(sample.subset, sample.lines, self.seed, epoch, sample.key, repeat, step, total)
        coin = python_random(self.seed, "flip", epoch, repeat, sample.key).random()
        return Draw(sample, epoch, repeat, caption, sample.subset.flip_aug and coin < 0.5)


def load_dataset(config: TrainConfig, num_processes: int = 1, models: str = "") -> tuple[TrainingData, list[Problem]]:
    """Read the dataset file, decode every image and read every caption; returns the data, and warnings for the user.

    models: a digest of the base model, by which the images that it generates are known.

    Raises `Problems` with every problem of the file and the folders or, if there are none, with those of
    validation_split or of the compositions. All warnings so far are then logged.
    """
    if config.dataset_config is None:
        raise Problems([Problem("--dataset_config", "is missing", "name the TOML file that lists your images")])
    dataset_config, problems = read_dataset_config(config.dataset_config, config)
    scan = scan_dataset(dataset_config, config)
    if problems or scan.problems:
        _log_warnings(scan.warnings)
        raise Problems([*problems, *scan.problems])
    samples, validation, warnings = hold_out(scan.samples, dataset_config, config.seed)
    generator = generator_of(config, models)
    composed = compose_samples(dataset_config, samples, config.seed, generator)
    preserved = preserved_samples(dataset_config, samples, generator, config.prior_loss_weight)
    if composed.problems or preserved.problems:
        _log_warnings([*scan.warnings, *composed.warnings, *preserved.warnings])
        raise Problems([*composed.problems, *preserved.problems])
    samples += composed.samples + preserved.samples
    warnings += composed.warnings + preserved.warnings
    num_batches = sum(group.num_batches for group in make_groups(samples, dataset_config))
    schedule = plan_schedule(config, num_batches, num_processes)
    data = TrainingData(dataset_config, tuple(samples), tuple(validation), config.seed, schedule, tuple(scan.notes))
    return data, [*scan.warnings, *warnings]


def _log_warnings(warnings: Sequence[Problem]) -> None:
    """Log the warnings of a dataset that has problems: nobody is left to whom they could be returned."""
    for warning in warnings:
        log.warning("%s", warning)


def steps_per_epoch(num_batches: int, num_processes: int, gradient_accumulation_steps: int) -> int:
    """The number of optimizer steps in one epoch, a last one with fewer batches included, as kohya's trainer counts.

    num_batches: in one epoch, over all processes.
    """
    return math.ceil(math.ceil(num_batches / num_processes) / gradient_accumulation_steps)


def plan_schedule(config: TrainConfig, num_batches: int, num_processes: int = 1) -> Schedule:
    """How long the run is: max_train_epochs if it is set, else max_train_steps, as in kohya's trainer.

    num_batches: in one epoch, over all processes.
    """
    accumulation = config.gradient_accumulation_steps
    per_epoch = steps_per_epoch(num_batches, num_processes, accumulation)
    total = config.max_train_epochs * per_epoch if config.max_train_epochs else config.max_train_steps
    return Schedule(num_processes * accumulation, per_epoch, total, math.ceil(total / per_epoch))


def _settings(table: DatasetSection | SubsetConfig) -> str:
    """A table as one line, without where it stands, where its images are and how they are masked."""
    skipped = ("where", "subsets", "compositions", "preservation", "image_dir", "conditioning_data_dir", *MASK_SETTINGS)
    return " ".join(f"{name}={value!r}" for name, value in asdict(table).items() if name not in skipped)


def _content(picture: Picture | Composite | Generated) -> str:
    return f"{picture.sha256} in sRGB" if picture.converted else picture.sha256


def _mask_settings(subset: SubsetConfig) -> str:
    return " ".join(f"{name}={getattr(subset, name)!r}" for name in MASK_SETTINGS)
