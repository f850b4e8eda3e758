"""Images that a command names by their folders or by a dataset file, as `mask` and `caption` do."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from trainer.common.problems import Problem
from trainer.config import TrainConfig
from trainer.data.dataset_config import SubsetConfig
from trainer.data.dataset_file import read_dataset_config

Concept = TypeVar("Concept")


@dataclass(frozen=True)
class NamedImages:
    """Folders of images, or a dataset file that names them. words: what the flag `flag` says that the folders show."""

    folders: Sequence[Path]
    dataset_config: Path | None
    flag: str
    words: str | None

    def problems(self, command: str, in_file: str) -> list[Problem]:
        """What is missing or contradicts. in_file: what the dataset file says in the flag's place, for the message."""
        found = []
        if not self.folders and not self.dataset_config:
            hint = f"give --dataset_config flux_data/data.toml, or a folder of images and {self.flag}"
            found.append(Problem(command, "no images are named", hint))
        if self.folders and self.dataset_config:
            found.append(Problem("--dataset_config", "is given along with folders", "give one of them"))
        if self.words and self.dataset_config:
            hint = "leave it out, or give the folder that it describes instead of the dataset file"
            found.append(Problem(self.flag, f"has no effect: {in_file}", hint))
        return found

    def concepts(
        self,
        problems: list[Problem],
        of_subsets: Callable[[Sequence[SubsetConfig]], tuple[list[Concept], list[str]]],
        of_folder: Callable[[Path], Concept],
    ) -> tuple[list[Concept], list[str]]:
        """The concepts of the dataset file, or of the folders, each once, and notes on what is left out of the file.

        Problems of the file's keys are added to `problems`. Raises `Problems` if the file cannot be read at all.
        """
        if self.dataset_config:
            dataset, found = read_dataset_config(self.dataset_config, TrainConfig())
            problems += found
            return of_subsets(dataset.subsets)
        folders = {folder.resolve(): folder for folder in self.folders}.values()
        return [of_folder(folder) for folder in folders], []
