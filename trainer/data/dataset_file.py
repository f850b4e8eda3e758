"""The dataset file in kohya's layout: [general], [[datasets]], [[datasets.subsets]], typed and checked."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from trainer.common.files import out_of_reach
from trainer.common.problems import Problem, Problems, raise_if_any
from trainer.config import TrainConfig
from trainer.config.toml_file import TomlFile, read_toml
from trainer.data.images import ALIASES, Size
from trainer.data.keys import (
    DATASETS,
    FLAGS,
    GENERAL,
    KEYS,
    MEANINGLESS,
    SUBSETS,
    SUPPORTED,
    asks_for_nothing,
    check_key,
    check_value,
)

PIXELS_PER_TOKEN = 16  # the autoencoder's 8 times the transformer's 2x2 patches


@dataclass(frozen=True, kw_only=True)
class SubsetConfig:
    """One folder of pictures of one concept. where: its place in the file, for messages."""

    image_dir: Path
    where: str = ""
    is_reg: bool = False
    num_repeats: int = 1
    class_tokens: str | None = None
    caption_extension: str | None = None
    caption_separator: str = ","
    caption_prefix: str | None = None
    caption_suffix: str | None = None
    shuffle_caption: bool = False
    keep_tokens: int = 0
    keep_tokens_separator: str | None = None
    secondary_separator: str | None = None
    enable_wildcard: bool = False
    caption_dropout_rate: float = 0.0
    caption_dropout_every_n_epochs: int = 0
    caption_tag_dropout_rate: float = 0.0
    token_warmup_min: int = 1
    token_warmup_step: float = 0.0
    flip_aug: bool = False
    resize_interpolation: str | None = None
    diff_output_preservation: bool = False

    @property
    def concept(self) -> str:
        """What the subset teaches, for messages: its class_tokens, else its folder's name."""
        return self.class_tokens or self.image_dir.name


@dataclass(frozen=True, kw_only=True)
class DatasetSection:
    """One [[datasets]]: pictures that are trained at one resolution. Sizes in pixels, width first."""

    subsets: tuple[SubsetConfig, ...]
    where: str = ""
    resolution: Size = (1024, 1024)
    batch_size: int = 1
    enable_bucket: bool = False
    min_bucket_reso: int = 256
    max_bucket_reso: int = 1024
    bucket_reso_steps: int = 64
    bucket_no_upscale: bool = False
    validation_split: float = 0.0
    validation_seed: int | None = None


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """The whole file. notices: settings that were accepted but change nothing."""

    path: Path
    sections: tuple[DatasetSection, ...]
    notices: tuple[Problem, ...] = ()

    @property
    def subsets(self) -> tuple[SubsetConfig, ...]:
        """All subsets in the file's order."""
        return tuple(subset for section in self.sections for subset in section.subsets)


def load_dataset_config(path: Path, config: TrainConfig) -> DatasetConfig:
    """Read the dataset file; a key falls back from subset to dataset to [general] to the flag.

    Raises `Problems` with all that is wrong with it.
    """
    dataset_config, problems = read_dataset_config(path, config)
    raise_if_any(problems)
    return dataset_config


def read_dataset_config(path: Path, config: TrainConfig) -> tuple[DatasetConfig, list[Problem]]:
    """As `load_dataset_config`, but faulty keys are left out and told, so that pictures can be checked too.

    Raises `Problems` only where nothing can be read at all.
    """
    if path.suffix.lower() == ".json":
        raise Problems([Problem(str(path), "JSON is not read", "write the same keys as TOML")])
    file = read_toml(path)
    problems = list(_structure_problems(file))
    raise_if_any(problems)
    return _Reader(file, config).read()


def _structure_problems(file: TomlFile) -> Iterator[Problem]:
    values = file.values
    for name in values.keys() - {"general", "datasets"}:
        hint = "put it under [general]" if name in KEYS else "the file holds [general] and [[datasets]]"
        yield Problem(file.where(name), f"{name} stands outside of any table", hint)
    if not isinstance(values.get("general", {}), dict):
        yield Problem(file.where("general"), "general is not a table", "write [general]")
    datasets = values.get("datasets", [])
    if not _are_tables(datasets):
        yield Problem(file.where("datasets"), "is not a list of tables", "write [[datasets]], two brackets")
        return
    if not datasets:
        yield Problem(str(file.path), "has no [[datasets]]", f"add one, with {SUBSETS} for each folder")
    for index, dataset in enumerate(datasets):
        subsets = dataset.get("subsets", [])
        if not _are_tables(subsets):
            yield Problem(file.where("datasets", index), "subsets is not a list of tables", f"write {SUBSETS}")
        elif not subsets:
            yield Problem(file.where("datasets", index), "has no subsets", f"add {SUBSETS} with an image_dir")


def _are_tables(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


SUBSET_KEYS = {field.name for field in fields(SubsetConfig)}
SECTION_KEYS = {field.name for field in fields(DatasetSection)}
BUCKET_KEYS = ("min_bucket_reso", "max_bucket_reso", "bucket_reso_steps", "bucket_no_upscale")
TAG_KEYS = ("keep_tokens", "token_warmup_min")
DEFAULT = TrainConfig()


class _Reader:
    """Walks one file, collecting problems and notices on the way."""

    def __init__(self, file: TomlFile, config: TrainConfig):
        self.file = file
        self.problems: list[Problem] = []
        self.notices: dict[Problem, None] = {}  # ordered, each once
        self.idle: dict[str, str] = {}  # key -> why it changes nothing somewhere
        self.acting: set[str] = set()  # keys that change something elsewhere
        self.flags = self._flags(config)

    def read(self) -> tuple[DatasetConfig, list[Problem]]:
        general = self._table(GENERAL, "general")
        sections = tuple(self._section(index, general) for index in range(len(self.file.values["datasets"])))
        self._notice_idle_flags()
        config = DatasetConfig(path=self.file.path, sections=sections, notices=tuple(self.notices))
        return config, self.problems

    def _flags(self, config: TrainConfig) -> dict[str, Any]:
        flags: dict[str, Any] = {}
        for name in SUPPORTED:
            flag = FLAGS.get(name, name)
            value = getattr(config, flag, None)
            if value is None:
                continue
            value = _parse_resolution(value) if name == "resolution" else value
            if problem := check_value(f"--{flag}", name, value):
                self.problems.append(problem)
            else:
                flags[name] = value
        return flags

    def _table(self, level: str, *place: str | int) -> dict[str, Any]:
        """The keys of one table that are in order."""
        good = {}
        for name, value in self.file.table(*place).items():
            where = self.file.where(*place, name)
            if (level, name) == (DATASETS, "subsets"):
                continue
            if name in MEANINGLESS:
                self.notices[Problem(where, f"{name} changes nothing here: {MEANINGLESS[name]}")] = None
            elif asks_for_nothing(name, value):
                pass
            elif problem := check_key(where, name, value, level):
                self.problems.append(problem)
            else:
                good[name] = value
        return good

    def _section(self, index: int, general: dict[str, Any]) -> DatasetSection:
        place = ("datasets", index)
        keys = {**general, **self._table(DATASETS, *place)}
        count = len(self.file.table(*place)["subsets"])
        found = [self._subset((*place, "subsets", number), keys) for number in range(count)]
        subsets = tuple(subset for subset in found if subset is not None)
        self.problems += _repeated_folders(subsets)
        chosen = {name: value for name, value in {**self.flags, **keys}.items() if name in SECTION_KEYS}
        chosen["resolution"] = _as_size(chosen.get("resolution", 1024))
        section = DatasetSection(**{**chosen, "where": self.file.where(*place), "subsets": subsets})
        self._notice_idle(BUCKET_KEYS, _idle_bucket_keys(section), keys, place)
        if section.enable_bucket and not section.bucket_no_upscale:
            section = self._round_outward(section)
        self.problems += _bucket_problems(section)
        return section

    def _subset(self, place: tuple[str | int, ...], inherited: dict[str, Any]) -> SubsetConfig | None:
        own = self._table(SUBSETS, *place)
        keys = {**self.flags, **inherited, **own}
        chosen = {name: value for name, value in keys.items() if name in SUBSET_KEYS and value != ""}
        where = self.file.where(*place)
        image_dir = own.get("image_dir")
        if not image_dir:
            if image_dir == "" or "image_dir" not in self.file.table(*place):
                self.problems.append(Problem(where, "has no image_dir", "name the folder of pictures"))
            return None
        chosen["image_dir"] = self._folder(image_dir)
        if extension := chosen.get("caption_extension"):
            chosen["caption_extension"] = "." + extension.removeprefix(".")
        if name := chosen.get("resize_interpolation"):
            chosen["resize_interpolation"] = ALIASES.get(name, name)
        attributes = keys.get("custom_attributes", {})
        subset = SubsetConfig(**{**chosen, **attributes, "where": where})
        self._notice_idle(TAG_KEYS, _idle_tag_keys(subset), {**inherited, **own}, place)
        return subset

    def _folder(self, image_dir: str) -> Path:
        here, beside = Path(image_dir), self.file.path.parent / image_dir
        return beside if not _may_be_folder(here) and _may_be_folder(beside) else here

    def _notice_idle(
        self, names: tuple[str, ...], idle: dict[str, str], keys: dict[str, Any], place: tuple[str | int, ...]
    ) -> None:
        """Of these keys, tell of those that the file sets to something but that change nothing here."""
        self.idle |= idle
        self.acting |= set(names) - idle.keys() - keys.keys()
        for name, why in idle.items():
            if keys.get(name):
                self.notices[Problem(self._origin(name, place), f"{name} changes nothing {why}")] = None

    def _notice_idle_flags(self) -> None:
        """Tell of flags that were changed from their default but change nothing in any dataset."""
        for name, why in self.idle.items():
            if name not in self.acting and self.flags.get(name) != getattr(DEFAULT, FLAGS.get(name, name)):
                self.notices[Problem(f"--{FLAGS.get(name, name)}", f"changes nothing {why}")] = None

    def _origin(self, name: str, place: tuple[str | int, ...]) -> str:
        for table in (place, place[:2], ("general",)):
            if name in self.file.table(*table):
                return self.file.where(*table, name)
        return self.file.where(*place)

    def _round_outward(self, section: DatasetSection) -> DatasetSection:
        """kohya's rule: the smallest side is rounded down to steps, the largest up."""
        steps = section.bucket_reso_steps
        rounded = {
            "min_bucket_reso": max(steps, section.min_bucket_reso // steps * steps),
            "max_bucket_reso": -(-section.max_bucket_reso // steps) * steps,
        }
        for name, value in rounded.items():
            if (given := getattr(section, name)) != value:
                what = f"{name} {given} is used as {value}, a multiple of bucket_reso_steps ({steps})"
                self.notices[Problem(section.where, what)] = None
        return replace(section, **rounded)


def _may_be_folder(path: Path) -> bool:
    """True also where we may not look; the scan of the folder says so then."""
    return bool(out_of_reach(path)) or path.is_dir()


def _parse_resolution(text: str) -> int | list[int] | str:
    """A flag's "side" or "width,height"; the text itself where it is neither."""
    try:
        sides = [int(side) for side in text.split(",")]
    except ValueError:
        return text
    return sides[0] if len(sides) == 1 else sides


def _as_size(resolution: int | list[int]) -> Size:
    width, height = resolution if isinstance(resolution, list) else (resolution, resolution)
    return width, height


def _repeated_folders(subsets: tuple[SubsetConfig, ...]) -> Iterator[Problem]:
    first: dict[Path, SubsetConfig] = {}
    for subset in subsets:
        former = first.setdefault(subset.image_dir.resolve(), subset)
        if former is not subset:
            what = f"image_dir {subset.image_dir} is in this dataset twice (first at {former.where})"
            yield Problem(subset.where, what, "raise num_repeats, or begin another [[datasets]]")


def _idle_bucket_keys(section: DatasetSection) -> dict[str, str]:
    if not section.enable_bucket:
        return dict.fromkeys(BUCKET_KEYS, "without enable_bucket")
    if section.bucket_no_upscale:
        return dict.fromkeys(("min_bucket_reso", "max_bucket_reso"), "with bucket_no_upscale")
    return {}


def _idle_tag_keys(subset: SubsetConfig) -> dict[str, str]:
    idle = {}
    if not (subset.shuffle_caption or subset.token_warmup_step or subset.caption_tag_dropout_rate):
        idle["keep_tokens"] = "without shuffle_caption, caption_tag_dropout_rate or token_warmup_step"
    if not subset.token_warmup_step:
        idle["token_warmup_min"] = "without token_warmup_step"
    return idle


def _bucket_problems(section: DatasetSection) -> Iterator[Problem]:
    width, height = section.resolution
    shown = f"resolution {width}" if width == height else f"resolution {width}x{height}"
    if not section.enable_bucket:
        if width % PIXELS_PER_TOKEN or height % PIXELS_PER_TOKEN:
            near = "x".join(str(round(side / PIXELS_PER_TOKEN) * PIXELS_PER_TOKEN) for side in section.resolution)
            what = f"{shown} is not divisible by {PIXELS_PER_TOKEN}"
            yield Problem(section.where, what, f"{near} is near, or set enable_bucket = true")
        return
    steps = section.bucket_reso_steps
    if steps % PIXELS_PER_TOKEN:
        hint = f"it must be a multiple of {PIXELS_PER_TOKEN}; 64 is usual"
        yield Problem(section.where, f"bucket_reso_steps is {steps}", hint)
    if min(width, height) < steps:
        yield Problem(section.where, f"{shown} is smaller than bucket_reso_steps ({steps})")
    if section.bucket_no_upscale:
        return
    if section.min_bucket_reso > min(width, height):
        what = f"min_bucket_reso {section.min_bucket_reso} is larger than {shown}"
        yield Problem(section.where, what, f"set it to {min(width, height)} or less")
    if section.max_bucket_reso < max(width, height):
        what = f"max_bucket_reso {section.max_bucket_reso} is smaller than {shown}"
        yield Problem(section.where, what, f"set it to {max(width, height)} or more")
