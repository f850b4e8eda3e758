"""From folders to samples: every image decoded, every caption read, all problems found at once."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from trainer.common.files import out_of_reach
from trainer.common.problems import Problem
from trainer.common.text import counted
from trainer.config import TrainConfig
from trainer.data.buckets import place, section_buckets
from trainer.data.captions import read_caption, split_caption
from trainer.data.compose import Composite, CompositeMask
from trainer.data.dataset_config import DatasetConfig, DatasetSection, SubsetConfig
from trainer.data.generated import Generated
from trainer.data.masks import Mask, scan_masks
from trainer.images.decode import Size
from trainer.images.folder import NAMES_SHOWN, Folder, count_images, read_folder, some
from trainer.images.formats import IMAGE_ENDINGS
from trainer.images.inspection import Picture, inspect_images, remarks
from trainer.images.resize import default_interpolation

FAR_SMALLER = 1.5  # an image enlarged more than this loses visibly
CROPPED = 0.1  # an image that loses more than this share of its area is named


@dataclass(frozen=True, kw_only=True)
class Sample:
    """An image as one dataset trains it.

    key: its unique name, "dataset.subset/file", which seeds its random numbers. lines: with enable_wildcard, the
    captions from which each use chooses; else the one caption. resized, bucket: (width, height) in pixels after
    resizing and after the crop. crop: (left, top) of the crop in pixels. loss_weight: prior_loss_weight for
    regularisation images, else 1. preserves_output: whether the target is the base model's own prediction. mask: where
    the concept is, None if unknown. composition, preservation: for a composite or a generated image, the index of its
    [[datasets.compositions]] or [[datasets.preservation]]. companion: the other thing next to a concept in a composite.
    """

    key: str
    picture: Picture | Composite | Generated
    subset: SubsetConfig
    dataset_index: int
    lines: tuple[str, ...]
    bucket: Size
    resized: Size
    crop: Size
    interpolation: str
    num_repeats: int
    is_reg: bool
    loss_weight: float
    preserves_output: bool
    mask: Mask | CompositeMask | None = None
    composition: int | None = None
    preservation: int | None = None
    companion: str | None = None

    @property
    def is_from_subset(self) -> bool:
        """Whether it is an image of a folder, neither a composite nor generated."""
        return self.composition is None and self.preservation is None

    @property
    def generated_images(self) -> tuple[Generated, ...]:
        """The images that it needs from the base model."""
        if isinstance(self.picture, Composite):
            return self.picture.recipe.generated_images
        return (self.picture,) if isinstance(self.picture, Generated) else ()

    @property
    def masks_loss(self) -> bool:
        """Whether its loss or target differs inside and outside its mask."""
        return self.mask is not None and self.subset.masks_loss

    @property
    def preserves_some(self) -> bool:
        """Whether the target is the base model's own prediction, at least in a part of the image."""
        return self.preserves_output or (self.masks_loss and self.subset.preserves_background)

    @property
    def weighs_places(self) -> bool:
        """Whether its loss is weighted by position in the image."""
        return self.masks_loss and not self.subset.preserves_background

    @property
    def cut_off(self) -> float:
        """The share of the image's area that its crop leaves out, 0 to 1."""
        return 1 - (self.bucket[0] * self.bucket[1]) / (self.resized[0] * self.resized[1])


@dataclass
class Scan:
    """The samples of all folders. problems stop the run; warnings do not. notes: files that are left out, as text."""

    samples: list[Sample] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def scan_dataset(dataset_config: DatasetConfig, config: TrainConfig) -> Scan:
    """Decode every image and read every caption and mask in the folders of a dataset file.

    Problems are collected in the result, not raised.
    """
    scan = Scan(warnings=list(dataset_config.notices))
    for dataset_index, section in enumerate(dataset_config.sections):
        for subset_index, subset in enumerate(section.subsets):
            _scan_subset(scan, config, section, subset, (dataset_index, subset_index))
        if section.subsets and all(subset.is_reg for subset in section.subsets):
            hint = "put is_reg subsets into the dataset of the images that they regularise"
            scan.problems.append(Problem(section.where, "holds only regularisation images", hint))
    scan.problems += _copies_across_concepts(scan.samples)
    scan.warnings += _copies_within_folder(scan.samples)
    scan.notes = list(dict.fromkeys(scan.notes))
    return scan


def _scan_subset(
    scan: Scan, config: TrainConfig, section: DatasetSection, subset: SubsetConfig, index: tuple[int, int]
) -> None:
    folder = _open_folder(subset)
    if isinstance(folder, Problem):
        scan.problems.append(folder)
        return
    scan.warnings += folder.warnings
    scan.notes += (f"{subset.image_dir}: {note}" for note in folder.notes)
    captions = _read_captions(scan, subset, folder)
    inspected = []
    for found in inspect_images(folder):
        if isinstance(found, Problem):
            scan.problems.append(found)
        else:
            inspected.append(found)
    scan.warnings += remarks(subset.where, inspected)
    sizes = {found.picture.path: found.picture.size for found in inspected}
    masks = scan_masks(subset, folder, sizes, cuts_out=bool(section.compositions) and not subset.is_reg)
    scan.problems += masks.problems
    scan.warnings += masks.warnings
    if not _is_placeable(section):
        return
    buckets, first = section_buckets(section), len(scan.samples)
    for found in inspected:
        if found.picture.path in captions:
            lines, mask = captions[found.picture.path], masks.masks.get(found.picture.path)
            _add_sample(scan, config, section, subset, index, found.picture, lines, buckets, mask)
    scan.warnings += _crops(section, subset, scan.samples[first:])


def _add_sample(
    scan: Scan,
    config: TrainConfig,
    section: DatasetSection,
    subset: SubsetConfig,
    index: tuple[int, int],
    picture: Picture,
    lines: tuple[str, ...],
    buckets: Sequence[Size],
    mask: Mask | None,
) -> None:
    try:
        placement = place(picture.size, section, buckets)
    except ValueError as error:
        what = f"{picture.width}x{picture.height} {error}"
        scan.problems.append(Problem(str(picture.path), what, "use a larger or less narrow image"))
        return
    enlarged = placement.resized[0] / picture.width
    if enlarged >= FAR_SMALLER:
        size = f"{picture.width}x{picture.height}"
        what = f"is far smaller than the resolution: {size} is enlarged {enlarged:.1f} times"
        hint = "use a larger image, a lower resolution, or enable_bucket with bucket_no_upscale"
        scan.warnings.append(Problem(str(picture.path), what, hint))
    scan.samples.append(
        Sample(
            key=f"{index[0]}.{index[1]}/{picture.path.name}",
            picture=picture,
            subset=subset,
            dataset_index=index[0],
            lines=lines,
            bucket=placement.bucket,
            resized=placement.resized,
            crop=placement.crop,
            interpolation=subset.resize_interpolation or default_interpolation(picture.size, placement.resized),
            num_repeats=subset.num_repeats,
            is_reg=subset.is_reg,
            loss_weight=config.prior_loss_weight if subset.is_reg else 1.0,
            preserves_output=subset.diff_output_preservation or (subset.is_reg and config.diff_output_preservation),
            mask=mask,
        )
    )


def _crops(section: DatasetSection, subset: SubsetConfig, samples: Sequence[Sample]) -> Iterator[Problem]:
    cropped = [sample for sample in samples if sample.cut_off > CROPPED]
    if not cropped:
        return
    shares = ", ".join(
        f"{sample.picture.path.name}: {sample.cut_off:.0%} cut off".replace("%", " %")
        for sample in cropped[:NAMES_SHOWN]
    )
    shares += f" and {len(cropped) - NAMES_SHOWN} more" if len(cropped) > NAMES_SHOWN else ""
    what = f"{len(cropped)} of {len(samples)} images lose more than a tenth of their area to the crop: {shares}"
    bucketed = "crop it yourself, or raise max_bucket_reso and lower min_bucket_reso"
    hint = bucketed if section.enable_bucket else "enable_bucket = true trains each in a shape near its own"
    yield Problem(subset.where, what, hint)


def _open_folder(subset: SubsetConfig) -> Folder | Problem:
    folder = subset.image_dir
    if why := out_of_reach(folder):
        hint = "let this user enter the folders above it"
        return Problem(subset.where, f"image_dir {folder} cannot be looked at: {why}", hint)
    if not folder.exists():
        hint = "paths start at the current folder"
        return Problem(subset.where, f"image_dir {folder} does not exist", hint)
    if not folder.is_dir():
        return Problem(subset.where, f"image_dir {folder} is not a folder", "name the folder that holds the images")
    try:
        found = read_folder(folder, subset.where, subset.caption_extension)
        below = 0 if found.images else count_images(folder)
    except OSError as error:
        return Problem(subset.where, f"image_dir {folder} cannot be read: {error.strerror}")
    if found.images:
        return found
    what = f"image_dir {folder} holds no images that can be trained (concept {subset.concept})"
    images = counted(below, "image is", "images are")
    hints = [f"{images} in folders below, which are not read: set image_dir to one of these"] if below else []
    hints += [f"{problem.what}: {problem.hint}" for problem in found.warnings]
    return Problem(
        subset.where,
        what,
        "; ".join(hints) or f"put images into it; their usual endings are {' '.join(sorted(IMAGE_ENDINGS))}",
    )


def _is_placeable(section: DatasetSection) -> bool:
    """Whether the sizes make buckets at all; where they do not, that is a problem of the file, reported already."""
    if not section.enable_bucket or section.bucket_no_upscale:
        return True
    return bool(section_buckets(section)) and min(section_buckets(section)[0]) > 0


def _read_captions(scan: Scan, subset: SubsetConfig, folder: Folder) -> dict[Path, tuple[str, ...]]:
    """The lines of each image's caption; images with a faulty one are missing."""
    captions: dict[Path, tuple[str, ...]] = {}
    without = []
    class_lines = split_caption(subset.class_tokens or "", subset.enable_wildcard)
    for path in folder.images:
        found = folder.captions.get(path, ())
        lines = read_caption(found, subset.enable_wildcard) if found else class_lines
        if isinstance(lines, Problem):
            scan.problems.append(lines)
        elif lines:
            captions[path] = lines
        if not found:
            without.append(path)
    if without and not class_lines:
        what = f"no caption file and no class_tokens for {some(without)}"
        scan.problems.append(Problem(subset.where, what, "set class_tokens, or write a .txt next to each image"))
    elif without and len(without) < len(folder.images):
        what = f"{len(without)} of {len(folder.images)} images have no caption file: {some(without)}"
        scan.warnings.append(Problem(subset.where, what, f'they use class_tokens, "{subset.class_tokens}"'))
    return captions


def _copies_across_concepts(samples: Iterable[Sample]) -> Iterator[Problem]:
    for copies in _by_content(samples).values():
        first = copies[0]
        for copy in copies[1:]:
            concepts = {(sample.subset.concept, sample.is_reg) for sample in (first, copy)}
            if copy.picture.path.parent != first.picture.path.parent and len(concepts) > 1:
                what = f"the same image as {first.picture.path}, in another concept"
                yield Problem(str(copy.picture.path), what, "keep it in one of the two")


def _copies_within_folder(samples: Iterable[Sample]) -> Iterator[Problem]:
    for copies in _by_content(samples).values():
        first, *others = dict.fromkeys(sample.picture.path for sample in copies)
        for path in others:
            if path.parent == first.parent:
                hint = "delete one; num_repeats gives an image more weight"
                yield Problem(str(path), f"the same image as {first.name}", hint)


def _by_content(samples: Iterable[Sample]) -> dict[str, list[Sample]]:
    groups: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[sample.picture.sha256].append(sample)
    return groups
