"""The trainings on which the choice of a checkpoint is tested: rates, ranks, lengths, data, some of it broken."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

DATA = Path("flux_data")
CONCEPTS = {"tjtoy": ("tjtoy toy", 14), "sparkgpu": ("sparkgpu gpu", 11)}  # class_tokens and repeats, as in the demo
GENERAL = '[general]\ncaption_extension = ".txt"\n\n[[datasets]]\nresolution = 256\nbatch_size = 4\n'
SUBSET = '\n[[datasets.subsets]]\nimage_dir = "{folder}"\nclass_tokens = "{tokens}"\nnum_repeats = {repeats}\n'
OTHERS = '\n[[datasets.subsets]]\nimage_dir = "{folder}"\ncustom_attributes = { diff_output_preservation = true }\n'
STRANGERS = 7  # images of other toys among those of a broken dataset
DEMO, PRESERVED, ALONE, TOY, BARE, MIXED = "demo", "preserved", "alone", "toy", "bare", "mixed"


@dataclass(frozen=True)
class SelectionRun:
    """One training. data: "demo" as shipped; "preserved" its photographs and preserved images, without masks and
    composites; "alone" the photographs only; "toy" one concept, preserved; "bare" with captions that name the concept
    only; "mixed" with images of other toys under the toy's captions.

    tuning: whether it is for choosing how to measure, instead of for scoring.
    """

    learning_rate: str
    rank: int
    data: str
    steps: int
    every: int
    tuning: bool = False

    @property
    def name(self) -> str:
        """A name for files, such as "preserved-rate2e-3-rank32-200"."""
        return f"{self.data}-rate{self.learning_rate}-rank{self.rank}-{self.steps}"

    @property
    def concepts(self) -> tuple[str, ...]:
        """The judge's names of the concepts that are taught."""
        return ("tjtoy",) if self.data == TOY else tuple(CONCEPTS)

    def flags(self, folder: Path) -> list[str]:
        """The flags of `python -m trainer train`. folder: for everything that the run writes."""
        settings = {
            "config_file": "flux_data/demo.toml",
            "dataset_config": write_dataset(folder / "data", self.data),
            "cache_dir": folder / "cache",
            "output_name": "run",
            "output_dir": folder / "loras",
            "run_dir": folder / "runs",
            "network_dim": self.rank,
            "learning_rate": self.learning_rate,
            "max_train_steps": self.steps,
            "save_every_n_steps": self.every,
            "save_every_n_epochs": 10**6,
        }
        return [f"--{name}={value}" for name, value in settings.items()]


def _grid() -> list[SelectionRun]:
    runs = [
        SelectionRun(rate, rank, data, 200, 40, (i + j + k) % 2 == 0)
        for i, data in enumerate((PRESERVED, ALONE))
        for j, rank in enumerate((4, 32))
        for k, rate in enumerate(("5e-4", "2e-3", "6e-3", "2e-2"))
    ]
    lengths = (("2e-3", 540), ("2e-2", 200), ("6e-3", 300), ("1e-3", 540))
    runs += [SelectionRun(rate, 32, DEMO, steps, steps // 5, k % 2 == 1) for k, (rate, steps) in enumerate(lengths)]
    runs += [
        SelectionRun(rate, 16, data, 480, 96, (i + k) % 2 == 0)
        for i, data in enumerate((PRESERVED, ALONE))
        for k, rate in enumerate(("2e-3", "6e-3"))
    ]
    return runs + [
        SelectionRun(rate, 32, data, 200, 40, (i + k) % 2 == 0)
        for i, data in enumerate((TOY, BARE, MIXED))
        for k, rate in enumerate(("2e-3", "6e-3"))
    ]


RUNS = {run.name: run for run in _grid()}


def write_dataset(folder: Path, data: str, source: Path = DATA) -> Path:
    """Write a dataset file, and images where they differ from the demo's; returns the file's path."""
    if data == DEMO:
        return source / "data_demo.toml"
    names = ("tjtoy",) if data == TOY else tuple(CONCEPTS)
    text = GENERAL.replace(".txt", ".none") if data == BARE else GENERAL
    for name in names:
        place = (source / name).resolve()
        if data == MIXED and name == "tjtoy":
            place = _mix(folder / name, place, sorted((source / "regularisation").glob("*.txt")))
        tokens, repeats = CONCEPTS[name]
        text += SUBSET.format(folder=place.as_posix(), tokens=tokens, repeats=repeats)
    if data in (PRESERVED, TOY):
        text += OTHERS.replace("{folder}", (source / "regularisation").resolve().as_posix())
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "data.toml"
    file.write_text(text)
    return file


def _mix(target: Path, images: Path, captions: Sequence[Path]) -> Path:
    """A copy of a concept's folder, with other toys whose captions call them the concept."""
    shutil.copytree(images, target, dirs_exist_ok=True)
    strangers = [file for file in captions if " toy" in file.read_text() and "gpu" not in file.read_text()][:STRANGERS]
    for caption in strangers:
        place = caption.stem.partition("_")[2]
        shutil.copy(caption.with_suffix(".jpg"), target / f"other_{caption.stem}.jpg")
        (target / f"other_{caption.stem}.txt").write_text(f"tjtoy toy, {place}")
    return target
