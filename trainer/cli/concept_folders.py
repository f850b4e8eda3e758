"""What `mask` and `caption` share: images from folders or a dataset file, and the time that the images take."""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from trainer.common.problems import Problem
from trainer.common.text import duration, in_seconds
from trainer.config import TrainConfig

if TYPE_CHECKING:  # imported late, so that a mistake in a flag is reported at once
    from trainer.data.dataset_config import SubsetConfig

Concept = TypeVar("Concept")


def source_problems(given: argparse.Namespace, command: str, words: str, in_file: str) -> list[Problem]:
    """What contradicts in the folders, --dataset_config and the flag `words`, which says what a folder shows.

    in_file: what the dataset file says in the flag's place, for the message.
    """
    problems = []
    if not given.folders and not given.dataset_config:
        hint = f"give --dataset_config flux_data/data.toml, or a folder of images and --{words}"
        problems.append(Problem(command, "no images are named", hint))
    if given.folders and given.dataset_config:
        problems.append(Problem("--dataset_config", "is given along with folders", "give one of them"))
    if getattr(given, words) and given.dataset_config:
        hint = "leave it out, or give the folder that it describes instead of the dataset file"
        problems.append(Problem(f"--{words}", f"has no effect: {in_file}", hint))
    return problems


def named_concepts(
    given: argparse.Namespace,
    problems: list[Problem],
    of_subsets: "Callable[[Sequence[SubsetConfig]], tuple[list[Concept], list[str]]]",
    of_folder: Callable[[Path], Concept],
) -> tuple[list[Concept], list[str]]:
    """The concepts of the dataset file or of the folders, each once, and notes on what is left out of the file.

    Problems of the file's keys are added to `problems`. Raises `Problems` if the file cannot be read at all.
    """
    from trainer.data.dataset_file import read_dataset_config

    if given.dataset_config:
        dataset, found = read_dataset_config(given.dataset_config, TrainConfig())
        problems += found
        return of_subsets(dataset.subsets)
    folders = {folder.resolve(): folder for folder in given.folders}.values()
    return [of_folder(folder) for folder in folders], []


class Pace:
    """Counts images and how long they take. total: how many there are. written: how many have got a file."""

    def __init__(self, total: int):
        self.total, self.done, self.written = total, 0, 0
        self.began = self.last = time.monotonic()

    def count(self, is_written: bool) -> tuple[str, str]:
        """Count one more image; returns the time it took, in seconds, and "3 of 8, about 2 min left"."""
        now = time.monotonic()
        self.done, self.written = self.done + 1, self.written + is_written
        took, self.last = in_seconds(now - self.last), now
        left = (now - self.began) / self.done * (self.total - self.done)
        until = f", about {duration(left)} left" if self.done < self.total else ""
        return took, f"{self.done} of {self.total}{until}"

    def mean(self) -> str:
        """The seconds that an image took on average."""
        return in_seconds((self.last - self.began) / self.total)
