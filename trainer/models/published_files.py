"""What a published helper model is: its repository, and the files needed of it. Imports no torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedModel:
    """A model on the Hugging Face Hub that transformers can load.

    key: its name in messages, and of the flag that names its folder. title: what it is. group: the folder in models/
    that it shares with others, and the flag of `sh download.sh` that fetches them. kinds: the `model_type` that its
    config.json may have. files: what is needed of it, by their names in the repository and in its folder.
    """

    key: str
    title: str
    group: str
    repository: str
    kinds: tuple[str, ...]
    files: tuple[str, ...]

    @property
    def folder(self) -> str:
        """The model's folder, relative to models/."""
        return f"{self.group}/{self.repository.rpartition('/')[2]}"

    @property
    def download(self) -> str:
        """How to get the model, for messages."""
        return f"run `sh download.sh --{self.group}`"
