"""The images that the demo preserves: the tiny FLUX generates them, so that training keeps what it draws itself."""

from dataclasses import replace
from pathlib import Path

import torch

from mini.training.images.photos import SMALL_QUALITY, save_captioned
from mini.world.preserved import preserved_prompts
from mini.world.scenes import prompts_json
from trainer.cli.evaluate import Adapter, draw_column, load_evaluation
from trainer.sampling.prompt_sets import PromptSets, ScenePrompt

FIRST_SEED = 5000  # far from the seeds of an evaluation's images
NAME = "preserved"


def write_preserved(folder: Path, models: Path, device: torch.device, count: int | None = None) -> list[Path]:
    """Generate an image for each of `preserved_prompts` (the first `count`) as JPEG, with its prompt as its caption.

    models: folder of the tiny FLUX. Returns the image files. Raises `Problems` if a model file is missing. Prompts that
    also score have no file.
    """
    prompts = preserved_prompts()[:count]
    evaluation = load_evaluation(models, FIRST_SEED, device=device)
    scenes = tuple(ScenePrompt(text) for _, text in prompts)
    evaluation = replace(evaluation, prompts=PromptSets(base=(), concepts={NAME: scenes}, both=()))
    scored = {prompt["prompt"] for each in prompts_json().values() for prompt in each}
    files = []
    for (name, text), pixels in zip(prompts, draw_column(evaluation, Adapter("base"))[NAME], strict=True):
        if text not in scored:
            files.append(folder / f"{name}.jpg")
            save_captioned(pixels, text, files[-1], SMALL_QUALITY)
    return files
