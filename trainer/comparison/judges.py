"""What images are measured with: DINOv2 and SigLIP 2 if they were downloaded, else what the base model itself knows."""

from dataclasses import dataclass
from pathlib import Path

import torch

from trainer.common.problems import raise_if_any
from trainer.comparison.check import default_folder, judge_problems
from trainer.comparison.description import DINOV2, SIGLIP2
from trainer.comparison.features import Dinov2, Siglip2
from trainer.config import TrainConfig
from trainer.models.weights import read_header

AUTO, DINO, BASE, LOSS = "auto", "dinov2", "base", "loss"
TINY_WIDTH = 1024  # of the transformer: a narrower one is the tiny FLUX
BASE_FEATURES = "the base model's own features"
NO_DINO = "DINOv2 is not there, so losses at fixed noise decide, which are weaker: sh download.sh --judges"
NO_SIGLIP = "SigLIP 2 is not there, so text agreement is not measured: sh download.sh --judges"


@dataclass(frozen=True)
class Judges:
    """What measures images beyond the base model itself.

    dinov2: None for the base model's own features, or for losses alone if not `uses_features`. siglip2: None if text
    agreement is not measured. note: what is missing, for the user; "" if nothing is.
    """

    uses_features: bool = True
    dinov2: Dinov2 | None = None
    siglip2: Siglip2 | None = None
    note: str = ""

    @property
    def source(self) -> str:
        """What the figures are from, for the report."""
        if not self.uses_features:
            return "losses at fixed noise"
        return "DINOv2" if self.dinov2 else BASE_FEATURES


def load_judges(
    config: TrainConfig,
    device: torch.device,
    measure: str = AUTO,
    dinov2: Path | None = None,
    siglip2: Path | None = None,
) -> Judges:
    """Load what measures images.

    measure: "dinov2", "base" (the base model's features), "loss" (losses alone), or "auto": DINOv2 if its folder is
    there, else the base model's features for the tiny FLUX, on which they were tested, and losses for other models.
    dinov2, siglip2: the models' folders; None for those of `trainer download`. Raises `Problems` if one is incomplete.
    """
    dinov2, siglip2 = dinov2 or default_folder(DINOV2.key), siglip2 or default_folder(SIGLIP2.key)
    note = ""
    if measure == AUTO:
        measure = DINO if dinov2.is_dir() else BASE if is_tiny(config) else LOSS
        note = NO_DINO if measure == LOSS else ""
    if measure != DINO:
        return Judges(uses_features=measure == BASE, note=note)
    has_siglip = siglip2.is_dir()
    raise_if_any(judge_problems(dinov2, siglip2 if has_siglip else None))
    if not has_siglip:
        return Judges(True, Dinov2(dinov2, device), note=NO_SIGLIP)
    return Judges(True, Dinov2(dinov2, device), Siglip2(siglip2, device))


def is_tiny(config: TrainConfig) -> bool:
    """Whether the base model is the tiny FLUX, by the width of its transformer."""
    assert config.pretrained_model_name_or_path
    return read_header(config.pretrained_model_name_or_path).shape("img_in.weight")[0] < TINY_WIDTH


def usual_side(config: TrainConfig) -> int:
    """The side of compared images in pixels, unless the user chooses it: 512, or 256 for the tiny FLUX."""
    return 256 if is_tiny(config) else 512
