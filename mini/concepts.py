"""`python -m mini.concepts STAGE --concepts NAME … --folder DIR`: teach and judge other concepts than the demo's.

    python -m mini.concepts all --concepts kopmi fenrik --folder work/kopmi
    python -m trainer evaluate --lora FILE --prompt_file work/kopmi/prompts.json --judge work/kopmi/judge.safetensors

The stages write into the folder, and skip what is already there:

    prompts   prompts.json, which scores, and tuning_prompts.json, to choose settings with
    photos    photos/NAME: plain photographs of each concept, with captions and masks, to train a LoRA on
    preserved preserved: images that the tiny FLUX generates, to preserve: the demo's flux_data/regularisation
    judge     judge.safetensors and judge.json, its accuracy: a judge of these concepts, trained on renders of them;
              it needs a GPU

When the minutes are used up, the stage judge stops cleanly, and the same command resumes it.
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from mini.training.distributed import Budget, Distributed
from mini.training.export.model_files import AUTOENCODER, JUDGE, PROMPTS, TUNING_PROMPTS
from mini.training.images import photos
from mini.training.images.pictures import judge_sets, render_sets
from mini.training.images.preserved import write_preserved
from mini.training.judge.train import train_judge
from mini.training.recipe import RECIPES, Recipe
from mini.world.concepts import DESIGNS
from mini.world.scene import TOYS
from mini.world.scenes import prompts_json, tuning_prompts_json
from trainer.common.files import write_json
from trainer.common.problems import Problem, Problems, raise_if_any
from trainer.common.process import announce, phase, set_up_logging
from trainer.models.load import load_autoencoder

log = logging.getLogger(__name__)
STAGES = ("prompts", "photos", "preserved", "judge")
MODELS = Path("models/mini")


def main(argv: Sequence[str]) -> int:
    """Run one stage or all. Exit status: 0, also when the minutes are used up; 1 for problems, 130 after Ctrl-C."""
    given = _parser().parse_args(argv)
    set_up_logging(os.environ.get("RANK", "0") == "0")
    recipe = replace(RECIPES[given.size], judge_steps=given.judge_steps or RECIPES[given.size].judge_steps)
    concepts = tuple(sorted(given.concepts, key=lambda name: DESIGNS[name].kind not in ("toy", *TOYS)))
    try:
        raise_if_any(_problems(concepts, given.folder))
        if given.stage in ("prompts", "all"):
            write_prompts(concepts, given.folder)
        if given.stage in ("photos", "all"):
            with phase("photos"):
                write_photos(concepts, recipe, given.folder)
        if given.stage in ("preserved", "all"):
            with phase("preserved"):
                draw_preserved(given.folder, given.models)
        if given.stage in ("judge", "all"):
            with phase("judge"):
                make_judge(concepts, recipe, given.folder, given.models / AUTOENCODER, Budget(given.minutes))
    except Problems as found:
        announce(str(found))
        return 1
    except KeyboardInterrupt:
        announce("\nStopped.")
        return 130
    if dist.is_initialized():  # not after a failure, where this would wait for the other processes
        dist.destroy_process_group()
    return 0


def write_prompts(concepts: tuple[str, ...], folder: Path) -> None:
    """Write prompts.json and tuning_prompts.json."""
    if Distributed.from_environment().is_main:
        write_json(folder / PROMPTS, prompts_json(concepts))
        write_json(folder / TUNING_PROMPTS, tuning_prompts_json(concepts))


def write_photos(concepts: tuple[str, ...], recipe: Recipe, folder: Path) -> None:
    """Write the photographs, in the main process. On a CPU it takes minutes."""
    distributed = Distributed.from_environment()
    if distributed.is_main:
        size, supersampling = recipe.photo_size, recipe.photo_supersampling
        files = photos.write_photos(folder / "photos", concepts, size, supersampling, str(distributed.device))
        log.info("%d photographs in %s", len(files), folder / "photos")


def draw_preserved(folder: Path, models: Path) -> None:
    """Write the images to preserve, in the main process, unless the folder has them. On a CPU it takes minutes."""
    distributed = Distributed.from_environment()
    if distributed.is_main and not (folder / "preserved").exists():
        log.info("%d images to preserve", len(write_preserved(folder / "preserved", models, distributed.device)))


def make_judge(concepts: tuple[str, ...], recipe: Recipe, folder: Path, autoencoder: Path, budget: Budget) -> None:
    """Render the judge's images and train it. autoencoder: file of the tiny FLUX's, in FLUX.1's layout."""
    if (folder / JUDGE).exists():
        return
    render_sets(judge_sets(recipe, concepts), recipe, folder, budget)  # first: its processes start before CUDA does
    distributed = Distributed.from_environment()
    if distributed.any(budget.spent()):
        log.info("the time limit was reached while rendering; the same command resumes from here")
        return
    train_judge(
        recipe, folder, budget, concepts, lambda: load_autoencoder(autoencoder, distributed.device, torch.float32)
    )


def _problems(concepts: tuple[str, ...], folder: Path) -> list[Problem]:
    """Refuses a folder with the files of other concepts."""
    if len(set(concepts)) < max(2, len(concepts)):
        return [Problem(f"--concepts={' '.join(concepts)}", "names fewer than two concepts, or one twice")]
    prompts = folder / PROMPTS
    if not prompts.exists():
        return []
    found = [name for name in json.loads(prompts.read_text(encoding="utf-8")) if name in DESIGNS]
    if found == list(concepts):
        return []
    return [Problem(f"--folder={folder}", f"has the files of {', '.join(found)}", "give each set a folder of its own")]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m mini.concepts", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=[*STAGES, "all"], help="the stages, in order")
    parser.add_argument("--concepts", required=True, nargs="+", choices=list(DESIGNS), help="two or three of them")
    parser.add_argument("--folder", required=True, type=Path, help="working folder of these concepts")
    parser.add_argument("--models", type=Path, default=MODELS, help="folder of the tiny FLUX (%(default)s)")
    parser.add_argument("--size", choices=RECIPES, default="full", help="which recipe (%(default)s)")
    parser.add_argument("--minutes", type=float, help="stop the judge's training cleanly after so many minutes")
    parser.add_argument("--judge_steps", type=int, metavar="N", help="number of steps, instead of the recipe's")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
