"""What would keep a comparison from running, found before a weight is read. Imports neither diffusers nor peft."""

from pathlib import Path

from trainer.common.problems import Problem
from trainer.comparison.description import DINOV2, SIGLIP2
from trainer.comparison.prompts import concepts_of
from trainer.config import TrainConfig
from trainer.data.dataset import TrainingData
from trainer.models.published import class_problems, folder_problems


def default_folder(key: str) -> Path:
    """Where `trainer download` puts a model. key: "dinov2" or "siglip2"."""
    return Path("models", {DINOV2.key: DINOV2, SIGLIP2.key: SIGLIP2}[key].folder)


def judge_problems(dinov2: Path, siglip2: Path | None) -> list[Problem]:
    """What is wrong with transformers' version and the folders of the two models, found without reading their weights.

    siglip2: None if text agreement is not to be measured.
    """
    problems = [*class_problems(("Dinov2Model", "SiglipModel"), "4.49"), *folder_problems(DINOV2, dinov2)]
    return problems + (list(folder_problems(SIGLIP2, siglip2)) if siglip2 else [])


def evaluation_problems(config: TrainConfig, data: TrainingData) -> list[Problem]:
    """Why --evaluate_every_n_epochs, if it is set, would fail: nothing to measure, or an incomplete model."""
    if not config.evaluate_every_n_epochs:
        return []
    problems = []
    if not concepts_of(data):
        what = "has nothing to measure: the dataset teaches no concept, only preserves the base model"
        problems.append(Problem(f"--evaluate_every_n_epochs={config.evaluate_every_n_epochs}", what, "leave it out"))
    dinov2, siglip2 = default_folder(DINOV2.key), default_folder(SIGLIP2.key)
    return problems + (judge_problems(dinov2, siglip2 if siglip2.is_dir() else None) if dinov2.is_dir() else [])
