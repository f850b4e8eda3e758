"""From folders to samples: every picture decoded, every caption read, all problems found at once."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from trainer.common.files import out_of_reach
from trainer.common.problems import Problem
from trainer.config import TrainConfig
from trainer.data.buckets import place, section_buckets
from trainer.data.dataset_file import DatasetConfig, DatasetSection, SubsetConfig
from trainer.data.images import EXTENSIONS, Size, default_interpolation, read_picture

CAPTION_EXTENSIONS = (".txt", ".caption")  # looked for where the user names none
FAR_SMALLER = 1.5  # a picture enlarged more than this loses visibly


@dataclass(frozen=True)
class Picture:
    """A decoded picture: the digest of its file and its upright size in pixels."""

    path: Path
    sha256: str
    width: int
    height: int

    @property
    def size(self) -> Size:
        """Width and height in pixels."""
        return self.width, self.height


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A picture as one dataset trains it.

    key: its name in every random draw and message, "dataset.subset/file"; lines: what its captions
    are made of; bucket, resized (width, height) and crop (left, top) in pixels; loss_weight:
    prior_loss_weight for regularisation pictures, else 1; preserves_output: the target is the base
    model's own prediction.
    """

    key: str
    picture: Picture
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


@dataclass
class Scan:
    """What was found; problems stop the run, warnings do not."""

    samples: list[Sample] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)


def scan_dataset(dataset_config: DatasetConfig, config: TrainConfig) -> Scan:
    """Read every folder of the dataset file; nothing is raised and nothing is left out in silence."""
    scan = Scan(warnings=list(dataset_config.notices))
    for dataset_index, section in enumerate(dataset_config.sections):
        for subset_index, subset in enumerate(section.subsets):
            _scan_subset(scan, config, section, subset, (dataset_index, subset_index))
        if section.subsets and all(subset.is_reg for subset in section.subsets):
            hint = "put is_reg subsets into the dataset of the pictures that they go with"
            scan.problems.append(Problem(section.where, "holds only regularisation pictures", hint))
    scan.problems += _copies_across_concepts(scan.samples)
    scan.warnings += _copies_within_folder(scan.samples)
    return scan


def _scan_subset(
    scan: Scan, config: TrainConfig, section: DatasetSection, subset: SubsetConfig, index: tuple[int, int]
) -> None:
    if problem := _folder_problem(subset):
        scan.problems.append(problem)
        return
    paths = picture_paths(subset.image_dir)
    captions = _read_captions(scan, subset, paths)
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        pictures = list(pool.map(_read, paths))
    buckets = section_buckets(section) if _is_placeable(section) else None
    for path, picture in zip(paths, pictures, strict=True):
        if isinstance(picture, Problem):
            scan.problems.append(picture)
        elif buckets is not None and path in captions:
            _add_sample(scan, config, section, subset, index, picture, captions[path], buckets)


def _add_sample(
    scan: Scan,
    config: TrainConfig,
    section: DatasetSection,
    subset: SubsetConfig,
    index: tuple[int, int],
    picture: Picture,
    lines: tuple[str, ...],
    buckets: Sequence[Size],
) -> None:
    try:
        placement = place(picture.size, section, buckets)
    except ValueError as error:
        what = f"{picture.width}x{picture.height} {error}"
        scan.problems.append(Problem(str(picture.path), what, "use a larger or less narrow picture"))
        return
    enlarged = placement.resized[0] / picture.width
    if enlarged >= FAR_SMALLER:
        size = f"{picture.width}x{picture.height}"
        what = f"is far smaller than the resolution: {size} is enlarged {enlarged:.1f} times"
        hint = "use a larger picture, a lower resolution, or enable_bucket with bucket_no_upscale"
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
        )
    )


def picture_paths(folder: Path) -> list[Path]:
    """The pictures directly in a folder, by name."""
    return sorted(
        (path for path in folder.iterdir() if path.suffix.lower() in EXTENSIONS and path.is_file()),
        key=lambda path: path.name,
    )


def _folder_problem(subset: SubsetConfig) -> Problem | None:
    folder = subset.image_dir
    if why := out_of_reach(folder):
        hint = "let this user enter the folders above it"
        return Problem(subset.where, f"image_dir {folder} cannot be looked at: {why}", hint)
    if not folder.exists():
        return Problem(subset.where, f"image_dir {folder} does not exist", "paths start at the current folder")
    if not folder.is_dir():
        return Problem(subset.where, f"image_dir {folder} is not a folder", "name the folder that holds the pictures")
    try:
        if picture_paths(folder):
            return None
        below = sum(len(picture_paths(child)) for child in folder.iterdir() if child.is_dir())
    except OSError as error:
        return Problem(subset.where, f"image_dir {folder} cannot be read: {error.strerror}")
    hint = f"{below} lie in folders below, which are not read" if below else f"known are {' '.join(EXTENSIONS)}"
    return Problem(subset.where, f"image_dir {folder} holds no pictures (concept {subset.concept})", hint)


def _read(path: Path) -> Picture | Problem:
    try:
        data = path.read_bytes()
        picture = read_picture(data)
    except (ValueError, OSError) as error:
        return Problem(str(path), str(error), "replace it or take it out of the folder")
    return Picture(path, hashlib.sha256(data).hexdigest(), *picture.size)


def _is_placeable(section: DatasetSection) -> bool:
    """Whether the sizes make buckets at all; where they do not, that is a problem of the file, told already."""
    if not section.enable_bucket or section.bucket_no_upscale:
        return True
    return bool(section_buckets(section)) and min(section_buckets(section)[0]) > 0


def _read_captions(scan: Scan, subset: SubsetConfig, paths: Sequence[Path]) -> dict[Path, tuple[str, ...]]:
    """The lines of each picture's caption; pictures with a faulty one are missing."""
    captions: dict[Path, tuple[str, ...]] = {}
    without = []
    class_lines = _lines(subset.class_tokens or "")
    for path in paths:
        found = _caption_files(subset, path)
        lines = _caption_lines(found) if found else class_lines
        if isinstance(lines, Problem):
            scan.problems.append(lines)
        elif lines:
            captions[path] = lines
        if not found:
            without.append(path)
    scan.warnings += _stray_captions(subset, paths)
    if without and not class_lines:
        what = f"no caption file and no class_tokens for {_some(without)}"
        scan.problems.append(Problem(subset.where, what, "set class_tokens, or write a .txt beside each picture"))
    elif without and len(without) < len(paths):
        what = f"{len(without)} of {len(paths)} pictures have no caption file: {_some(without)}"
        scan.warnings.append(Problem(subset.where, what, f'they use class_tokens, "{subset.class_tokens}"'))
    return captions


def _caption_files(subset: SubsetConfig, path: Path) -> list[Path]:
    endings = (subset.caption_extension,) if subset.caption_extension else CAPTION_EXTENSIONS
    return [file for ending in endings if _may_be_file(file := path.with_suffix(ending))]


def _may_be_file(path: Path) -> bool:
    return bool(out_of_reach(path)) or path.is_file()  # where we may not look, reading it says so


def _caption_lines(files: Sequence[Path]) -> tuple[str, ...] | Problem:
    texts = []
    for file in files:
        try:
            lines = _lines(file.read_bytes().decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            return Problem(str(file), f"the caption is not UTF-8 (byte {error.start})", "save it as UTF-8")
        except OSError as error:
            return Problem(str(file), f"the caption cannot be read: {error.strerror}")
        if not lines:
            return Problem(str(file), "the caption is empty", "write one, or delete the file to use class_tokens")
        texts.append(lines)
    if any(lines != texts[0] for lines in texts):
        return Problem(str(files[0]), f"{files[1].name} beside it says something else", "set caption_extension")
    return texts[0]


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def _stray_captions(subset: SubsetConfig, paths: Sequence[Path]) -> Iterator[Problem]:
    """Files that look like captions but belong to no picture, or end otherwise than caption_extension says."""
    stems = {path.stem for path in paths}
    endings = (subset.caption_extension,) if subset.caption_extension else CAPTION_EXTENSIONS
    files = sorted(path for path in subset.image_dir.iterdir() if path.suffix in (*CAPTION_EXTENSIONS, *endings))
    alone = [file for file in files if file.stem not in stems]
    if alone:
        yield Problem(subset.where, f"captions without a picture: {_some(alone)}", "they are not used")
    other = [file for file in files if file.stem in stems and file.suffix not in endings]
    if other:
        what = f"captions that do not end in {subset.caption_extension}: {_some(other)}"
        yield Problem(subset.where, what, "they are not used; caption_extension says which are")


def _copies_across_concepts(samples: Iterable[Sample]) -> Iterator[Problem]:
    for copies in _by_content(samples).values():
        first = copies[0]
        for copy in copies[1:]:
            concepts = {(sample.subset.concept, sample.is_reg) for sample in (first, copy)}
            if copy.picture.path.parent != first.picture.path.parent and len(concepts) > 1:
                what = f"the same picture as {first.picture.path}, in another concept"
                yield Problem(str(copy.picture.path), what, "keep it in one of the two")


def _copies_within_folder(samples: Iterable[Sample]) -> Iterator[Problem]:
    for copies in _by_content(samples).values():
        first, *others = dict.fromkeys(sample.picture.path for sample in copies)
        for path in others:
            if path.parent == first.parent:
                hint = "delete one; num_repeats is the place for weight"
                yield Problem(str(path), f"the same picture as {first.name}", hint)


def _by_content(samples: Iterable[Sample]) -> dict[str, list[Sample]]:
    groups: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[sample.picture.sha256].append(sample)
    return groups


def _some(paths: Sequence[Path]) -> str:
    names = ", ".join(path.name for path in paths[:5])
    return f"{names} and {len(paths) - 5} more" if len(paths) > 5 else names
