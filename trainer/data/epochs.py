"""Which samples each epoch consists of, grouped by shape, and which are held out for validation."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import TypeVar

from trainer.common.problems import Problem, raise_if_any
from trainer.common.rng import derive_seed
from trainer.data.dataset_config import DatasetConfig, DatasetSection
from trainer.data.samples import Sample
from trainer.images.decode import Size

T = TypeVar("T")


@dataclass(frozen=True)
class Group:
    """The samples of one dataset that share a shape, trained in batches of batch_size.

    train: samples that every epoch uses num_repeats times. rotations: sets of samples of which each epoch uses some.
    """

    dataset_index: int
    bucket: Size
    batch_size: int
    train: tuple[Sample, ...]
    rotations: tuple["Rotation", ...]

    @property
    def samples(self) -> tuple[Sample, ...]:
        """All samples of the group, each once."""
        return self.train + tuple(sample for rotation in self.rotations for sample in rotation.samples)

    @property
    def num_draws(self) -> int:
        """The number of samples that each epoch uses, repeats counted."""
        return len(expand(self.train)) + sum(rotation.count for rotation in self.rotations)

    @property
    def num_batches(self) -> int:
        """The number of batches in each epoch, the last one possibly smaller."""
        return math.ceil(self.num_draws / self.batch_size)

    def epoch(self, epoch: int) -> list[Sample]:
        """The samples that an epoch uses, unshuffled, repeats included. epoch: counted from 0."""
        turns = [take_turns(expand(each.samples), each.count, epoch) for each in self.rotations]
        return expand(self.train) + [sample for turn in turns for sample in turn]


@dataclass(frozen=True)
class Rotation:
    """A set of samples of which every epoch uses the next `count`, continuing where the last epoch ended."""

    samples: tuple[Sample, ...]
    count: int


def make_groups(samples: Iterable[Sample], dataset_config: DatasetConfig) -> list[Group]:
    """Group samples by dataset and shape.

    In each epoch, a dataset uses as many regularisation images as training images, repeats counted, as in kohya's
    trainer. They are divided among the shapes by the number of regularisation images that each has. The composites of
    each [[datasets.compositions]], and the images of each [[datasets.preservation]], are one rotation.
    """
    groups: list[Group] = []
    for index, section in enumerate(dataset_config.sections):
        shapes: dict[Size, list[Sample]] = defaultdict(list)
        for sample in samples:
            if sample.dataset_index == index:
                shapes[sample.bucket].append(sample)
        train = {shape: tuple(s for s in found if not s.is_reg and s.is_from_subset) for shape, found in shapes.items()}
        reg = {shape: tuple(s for s in found if s.is_reg and s.is_from_subset) for shape, found in shapes.items()}
        num_train = sum(len(expand(found)) for found in train.values())
        shares = share_out(num_train, {shape: len(expand(found)) for shape, found in reg.items() if found})
        for shape in sorted(shapes):
            rotations = [Rotation(reg[shape], shares[shape])] if reg[shape] else []
            rotations += _composites(section, shapes[shape], train)
            rotations += _preserved(section, shapes[shape], num_train)
            groups.append(Group(index, shape, section.batch_size, train[shape], tuple(rotations)))
    return groups


def _composites(
    section: DatasetSection, samples: Sequence[Sample], train: Mapping[Size, Sequence[Sample]]
) -> Iterator[Rotation]:
    """Rotations for the composites of each composition: of its concepts together, and of one with a companion."""
    for number, composition in enumerate(section.compositions):
        own = tuple(sample for sample in samples if sample.composition == number)
        if own:
            named = [
                sample
                for found in train.values()
                for sample in found
                if sample.subset.class_tokens in composition.concepts or not composition.concepts
                if not sample.preserves_output
            ]
            pairs = tuple(sample for sample in own if sample.companion is None)
            if pairs:
                yield Rotation(pairs, composition.images_per_epoch or len(expand(named)))
            if composition.companions:
                beside = tuple(sample for sample in own if sample.companion is not None)
                yield Rotation(beside, composition.companions.images_per_epoch or math.ceil(len(expand(named)) / 2))


def _preserved(section: DatasetSection, samples: Sequence[Sample], num_train: int) -> Iterator[Rotation]:
    """A rotation for the generated images of each [[datasets.preservation]]. num_train: samples of training images."""
    for number, preservation in enumerate(section.preservation):
        own = tuple(sample for sample in samples if sample.preservation == number)
        if own:
            yield Rotation(own, preservation.images_per_epoch or num_train)


def expand(samples: Sequence[Sample]) -> list[Sample]:
    """A list with each sample num_repeats times; all of them come once before any is repeated."""
    rounds = max((sample.num_repeats for sample in samples), default=0)
    return [sample for repeat in range(rounds) for sample in samples if repeat < sample.num_repeats]


def take_turns(queue: Sequence[T], count: int, epoch: int) -> list[T]:
    """The `count` items that an epoch takes from an endless repetition of `queue`, where the previous epoch ended.

    epoch: counted from 0. An empty queue gives an empty list.
    """
    if not queue:
        return []
    start = epoch * count
    return [queue[position % len(queue)] for position in range(start, start + count)]


def share_out(total: int, weights: dict[Size, int]) -> dict[Size, int]:
    """Divide `total` into integers in proportion to weights (largest remainders), none of them 0 if `total` allows it.

    Returns the share of each key of `weights`; their sum is `total`.
    """
    if not weights:
        return {}
    minimum = 1 if total >= len(weights) else 0
    rest, weight = total - minimum * len(weights), sum(weights.values())
    exact = {shape: rest * part / weight for shape, part in weights.items()}
    shares = {shape: minimum + math.floor(part) for shape, part in exact.items()}
    by_remainder = sorted(exact, key=lambda shape: (math.floor(exact[shape]) - exact[shape], shape))
    for shape in islice(by_remainder, total - sum(shares.values())):
        shares[shape] += 1
    return shares


def hold_out(
    samples: Sequence[Sample], dataset_config: DatasetConfig, seed: int
) -> tuple[list[Sample], list[Sample], list[Problem]]:
    """Hold out images by each dataset's validation_split; returns (train, validation, warnings).

    Images are held out by content: a file with the content of a held-out image is not trained in any dataset. Raises
    `Problems` if a subset would have nothing left to train on. seed: used by datasets without validation_seed.
    """
    by_subset: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        if not sample.is_reg:
            by_subset[sample.subset.where].append(sample)
    held: set[str] = set()
    warnings = []
    for members in by_subset.values():
        section = dataset_config.sections[members[0].dataset_index]
        if section.validation_split == 0:
            continue
        chosen = _choose(members, section.validation_split, section.validation_seed, seed)
        held |= {sample.picture.sha256 for sample in chosen}
        if not chosen:
            what = f"validation_split {section.validation_split} holds out none of {len(members)} images"
            warnings.append(Problem(members[0].subset.where, what, "raise it, or add images"))
    train = [sample for sample in samples if sample.picture.sha256 not in held]
    validation = [sample for sample in samples if sample.picture.sha256 in held and not sample.is_reg]
    trained = {sample.subset.where for sample in train}
    raise_if_any(
        Problem(where, "validation leaves none of its images to train on", "lower validation_split")
        for where in by_subset.keys() - trained
    )
    return train, validation, warnings


def _choose(members: Sequence[Sample], split: float, validation_seed: int | None, seed: int) -> list[Sample]:
    """kohya's shuffle and cut: the same validation_seed holds out the same images."""
    order = list(members)
    Random(derive_seed(seed, "validation split") if validation_seed is None else validation_seed).shuffle(order)
    return order[math.ceil(len(order) * (1 - split)) :]
