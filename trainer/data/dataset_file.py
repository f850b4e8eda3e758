"""Reads the dataset file, in kohya's layout ([general], [[datasets]], [[datasets.subsets]]), and validates it."""

from collections.abc import Iterator
from dataclasses import MISSING, replace
from pathlib import Path
from typing import Any

from trainer.common.files import out_of_reach
from trainer.common.problems import Problem, Problems, raise_if_any
from trainer.config import TrainConfig
from trainer.config.fields import Given
from trainer.config.input_settings import ALIASES
from trainer.config.toml_file import TomlFile, read_toml
from trainer.data.composition_file import COMPOSITIONS, PLAIN, CompositionConfig, read_composition
from trainer.data.dataset_config import (
    DEFAULTS,
    FOLDERS,
    PIXELS_PER_TOKEN,
    SECTION_DEFAULTS,
    SUBSET_DEFAULTS,
    DatasetConfig,
    DatasetSection,
    SubsetConfig,
    parse_size,
)
from trainer.data.effects import OF_SECTION, OF_SUBSET, Place, Rules, Usage, idle_keys
from trainer.data.keys import DATASETS, FLAGS, GENERAL, KEYS, MEANINGLESS, SCHEMAS, SUBSETS, SUPPORTED
from trainer.data.preservation_file import PRESERVATION, PreservationConfig, read_preservation


def load_dataset_config(path: Path, config: TrainConfig) -> DatasetConfig:
    """Read a dataset file. A key is taken from the subset, else the dataset, else [general], else the flag.

    config: gives the flags. Raises `Problems` with everything that is wrong with the file.
    """
    dataset_config, problems = read_dataset_config(path, config)
    raise_if_any(problems)
    return dataset_config


def read_dataset_config(path: Path, config: TrainConfig) -> tuple[DatasetConfig, list[Problem]]:
    """Read a dataset file; returns it without its invalid keys, and every problem, so that images can be checked too.

    A key is taken from the subset, else the dataset, else [general], else the flag. config: gives the flags. Raises
    `Problems` only if the file cannot be read or its tables are not laid out as they must be.
    """
    if path.suffix.lower() == ".json":
        raise Problems([Problem(str(path), "JSON is not supported", "write the same keys as TOML")])
    file = read_toml(path)
    problems = list(_structure_problems(file))
    raise_if_any(problems)
    return _Reader(file, config).read()


def _structure_problems(file: TomlFile) -> Iterator[Problem]:
    values = file.values
    for name in values.keys() - {"general", "datasets"}:
        hint = "put it under [general]" if name in KEYS else "the file has [general] and [[datasets]]"
        yield Problem(file.where(name), f"{name} is outside of any table", hint)
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
        for name, header in _TABLES_BELOW.items():
            if name != "subsets" and not _are_tables(dataset.get(name, [])):
                yield Problem(file.where("datasets", index), f"{name} is not a list of tables", f"write {header}")
        if not _are_tables(subsets):
            yield Problem(file.where("datasets", index), "subsets is not a list of tables", f"write {SUBSETS}")
        elif not subsets:
            yield Problem(file.where("datasets", index), "has no subsets", f"add {SUBSETS} with an image_dir")


def _are_tables(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


_TABLES_BELOW = {"subsets": SUBSETS, "compositions": COMPOSITIONS, "preservation": PRESERVATION}  # of [[datasets]]
FLAG_PLACE: Place = ()
GENERAL_PLACE: Place = ("general",)


class _Reader:
    """Reads one file, collecting problems and notices on the way."""

    def __init__(self, file: TomlFile, config: TrainConfig):
        self.file = file
        self.problems: list[Problem] = []
        self.notices: dict[Problem, None] = {}  # ordered, each once
        self.usage = Usage()
        self.tables: dict[Place, dict[str, Any]] = {FLAG_PLACE: self._flags(config)}

    def read(self) -> tuple[DatasetConfig, list[Problem]]:
        self._table(GENERAL, *GENERAL_PLACE)
        sections = tuple(self._section(index) for index in range(len(self.file.values["datasets"])))
        self.notices |= dict.fromkeys(self.usage.notices())
        config = DatasetConfig(path=self.file.path, sections=sections, notices=tuple(self.notices))
        return config, self.problems

    def _flags(self, config: TrainConfig) -> dict[str, Any]:
        """The settings that keys fall back to, by the keys' names."""
        flags = {}
        for name in SUPPORTED:
            flag = FLAGS.get(name, name)
            value = getattr(config, flag, None)
            if value not in (None, ""):
                flags[name] = parse_size(value) if name == "resolution" else _normalized(name, value)
                self.usage.wrote(FLAG_PLACE, name, flags[name], f"--{flag}", DEFAULTS[name])
        return flags

    def _table(self, level: str, *place: str | int) -> None:
        """Read the keys of one table."""
        below = _TABLES_BELOW if level == DATASETS else {}
        written = {name: value for name, value in self.file.table(*place).items() if name not in below}
        read = SCHEMAS[level].read(
            Given(name, value, self.file.where(*place, name), subject=name) for name, value in written.items()
        )
        self.problems += read.problems
        for given in read.ignored:
            what = f"{given.name} has no effect: {MEANINGLESS[given.name]}"
            self.notices[Problem(given.where, what)] = None
        # 1 stays 1 where 1.0 would do: the manifest of a saved state has it as it was written
        values = {name: written[name] if written[name] == value else value for name, value in read.values.items()}
        if not str(values.get("class_tokens", "given")).strip():
            what, hint = "class_tokens is empty: no trigger is named", 'write it with what it is, as in "tjtoy toy"'
            self.notices[Problem(self.file.where(*place, "class_tokens"), what, hint)] = None
            values["class_tokens"] = ""
        self.tables[place] = {name: _normalized(name, value) for name, value in values.items()}
        for name, value in self.tables[place].items():
            if name in DEFAULTS and name != "image_dir":
                value = DEFAULTS[name] if value == "" else value
                self.usage.wrote(place, name, value, self.file.where(*place, name), DEFAULTS[name])

    def _resolve(self, places: tuple[Place, ...], defaults: dict[str, Any], rules: Rules) -> dict[str, Any]:
        """The values of one dataset or subset, from the tables at `places`, innermost first; "" means the default."""
        keys: dict[str, Any] = {}
        for place in reversed(places):
            keys |= self.tables[place]
        values = {name: default if keys.get(name, "") == "" else keys[name] for name, default in defaults.items()}
        idle = idle_keys(values, rules)
        for name in defaults:
            self.usage.resolved(name, places, idle.get(name))
        values |= keys.get("custom_attributes", {}) if "diff_output_preservation" in defaults else {}
        return {name: value for name, value in values.items() if value is not MISSING}

    def _section(self, index: int) -> DatasetSection:
        place: Place = ("datasets", index)
        self._table(DATASETS, *place)
        above = (place, GENERAL_PLACE, FLAG_PLACE)
        count = len(self.file.table(*place)["subsets"])
        found = [self._subset((*place, "subsets", number), above) for number in range(count)]
        subsets = tuple(subset for subset in found if subset is not None)
        self.problems += _repeated_folders(subsets)
        values = self._resolve(above, SECTION_DEFAULTS, OF_SECTION)
        tables = {
            "subsets": subsets,
            "compositions": tuple(self._compositions(place)),
            "preservation": tuple(self._preservation(place)),
        }
        section = DatasetSection(**{**values, "where": self.file.where(*place), **tables})
        if section.enable_bucket and not section.bucket_no_upscale:
            section = self._round_outward(section)
        self.problems += _bucket_problems(section)
        return section

    def _subset(self, place: Place, above: tuple[Place, ...]) -> SubsetConfig | None:
        self._table(SUBSETS, *place)
        values = self._resolve((place, *above), SUBSET_DEFAULTS, OF_SUBSET)
        where = self.file.where(*place)
        if "image_dir" not in values:
            if "image_dir" not in self.file.table(*place):
                self.problems.append(Problem(where, "has no image_dir", "set image_dir to the folder of images"))
            return None
        folders = {name: self._folder(values[name]) for name in FOLDERS if values[name]}
        return SubsetConfig(**{**values, **folders, "where": where})

    def _compositions(self, section: Place) -> Iterator[CompositionConfig]:
        for given, where in self._tables_below(section, "compositions"):
            composition, problems = read_composition(given, where)
            self.problems += problems
            backgrounds = (
                str(self._folder(Path(each))) if isinstance(each, str) and each != PLAIN else each
                for each in composition.backgrounds
            )
            yield replace(composition, backgrounds=tuple(backgrounds))

    def _preservation(self, section: Place) -> Iterator[PreservationConfig]:
        for given, where in self._tables_below(section, "preservation"):
            preservation, problems = read_preservation(given, where)
            self.problems += problems
            prompts = preservation.prompts
            yield replace(preservation, prompts=self._file(prompts)) if isinstance(prompts, Path) else preservation

    def _tables_below(self, section: Place, name: str) -> Iterator[tuple[list[Given], str]]:
        """The keys of each table of this name below a dataset, and the table's place in the file."""
        for number in range(len(self.file.table(*section).get(name, []))):
            place = (*section, name, number)
            written = self.file.table(*place).items()
            yield (
                [Given(key, value, self.file.where(*place, key), subject=key) for key, value in written],
                (self.file.where(*place)),
            )

    def _file(self, file: Path) -> Path:
        """The file, from the current folder or else from that of the dataset file."""
        next_to_file = self.file.path.parent / file
        return next_to_file if not file.exists() and next_to_file.exists() else file

    def _folder(self, folder: Path) -> Path:
        """The folder, from the current folder or else from that of the dataset file."""
        next_to_file = self.file.path.parent / folder
        return next_to_file if not _may_be_folder(folder) and _may_be_folder(next_to_file) else folder

    def _round_outward(self, section: DatasetSection) -> DatasetSection:
        """kohya's rule: the smallest side is rounded down to a multiple of the steps, the largest up."""
        steps = section.bucket_reso_steps
        rounded = {
            "min_bucket_reso": max(steps, section.min_bucket_reso // steps * steps),
            "max_bucket_reso": -(-section.max_bucket_reso // steps) * steps,
        }
        for name, value in rounded.items():
            if (given := getattr(section, name)) != value:
                what = f"{name} {given} is rounded to {value}, a multiple of bucket_reso_steps ({steps})"
                self.notices[Problem(section.where, what)] = None
        return replace(section, **rounded)


def _normalized(name: str, value: Any) -> Any:
    """The value of a key as `SubsetConfig` and `DatasetSection` hold it."""
    if value == "":
        return value
    if name == "resolution":
        return tuple(value) if isinstance(value, list) else (value, value)
    if name == "caption_extension":
        return "." + value.removeprefix(".")
    if name == "resize_interpolation":
        return ALIASES.get(value, value)
    return value


def _may_be_folder(path: Path) -> bool:
    """True also if the path is not accessible; the scan of the folder reports that."""
    return bool(out_of_reach(path)) or path.is_dir()


def _repeated_folders(subsets: tuple[SubsetConfig, ...]) -> Iterator[Problem]:
    first: dict[Path, SubsetConfig] = {}
    for subset in subsets:
        former = first.setdefault(subset.image_dir.resolve(), subset)
        if former is not subset:
            what = f"image_dir {subset.image_dir} is in this dataset twice (first at {former.where})"
            yield Problem(subset.where, what, "raise num_repeats, or start another [[datasets]]")


def _bucket_problems(section: DatasetSection) -> Iterator[Problem]:
    width, height = section.resolution
    shown = f"resolution {width}" if width == height else f"resolution {width}x{height}"
    if not section.enable_bucket:
        if width % PIXELS_PER_TOKEN or height % PIXELS_PER_TOKEN:
            near = "x".join(str(round(side / PIXELS_PER_TOKEN) * PIXELS_PER_TOKEN) for side in section.resolution)
            what = f"{shown} is not divisible by {PIXELS_PER_TOKEN}"
            yield Problem(section.where, what, f"use {near}, or set enable_bucket = true")
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
