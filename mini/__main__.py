"""`python -m mini STAGE --folder DIR`: re-create the tiny FLUX of models/mini, one stage at a time or all of them.

    python -m mini all --folder work --size tiny
    torchrun --nproc_per_node 2 -m mini transformer --folder work --minutes 9

A stage reads the files that earlier stages wrote to the folder. When its minutes are used up it stops cleanly, and the
same command resumes it.
"""

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch.distributed as dist

from mini.training.distributed import Budget, Distributed
from mini.training.recipe import RECIPES, Recipe
from trainer.common.problems import Problems
from trainer.common.process import announce, phase, set_up_logging

log = logging.getLogger(__name__)
Stage = Callable[[Recipe, Path, Budget], None]

# In order, each with its module, which has a function `run_STAGE`. A module is imported only when its stage begins,
# because the processes that make scenes must be forked before CUDA is initialized.
STAGES: Mapping[str, str] = {
    "pictures": "images.pictures",
    "photos": "images.photos",
    "autoencoder": "autoencoder.train",
    "latents": "autoencoder.latents",
    "transformer": "transformer.train",
    "guidance": "transformer.guidance",
    "judge": "judge.train",
    "export": "export.model_files",
    "card": "export.card",
}
STEPS = ("autoencoder_steps", "transformer_steps", "guidance_steps", "judge_steps")


def main(argv: Sequence[str]) -> int:
    """Run one stage or all. Exit status: 0, also when the minutes are used up; 1 for problems, 130 after Ctrl-C."""
    arguments = _parser().parse_args(argv)
    set_up_logging(os.environ.get("RANK", "0") == "0")
    names = list(STAGES) if arguments.stage == "all" else [arguments.stage]
    try:
        run_stages(names, recipe_of(arguments), arguments.folder, arguments.minutes)
    except Problems as found:
        announce(str(found))
        return 1
    except KeyboardInterrupt:
        announce("\nStopped.")
        return 130
    if dist.is_initialized():  # not after a failure, where this would wait for the other processes
        dist.destroy_process_group()
    return 0


def run_stages(names: Sequence[str], recipe: Recipe, folder: Path, minutes: float | None = None) -> None:
    """Run the stages in order. `minutes` is the limit for all of them together."""
    folder.mkdir(parents=True, exist_ok=True)
    budget = Budget(minutes)
    for name in names:
        with phase(name):
            load_stage(name)(recipe, folder, budget)
        if name != names[-1] and Distributed.from_environment().any(budget.spent()):
            log.info("the time limit was reached after stage %s; the same command resumes from here", name)
            return


def load_stage(name: str) -> Stage:
    """Import the module of a stage and return its function."""
    return getattr(importlib.import_module(f"mini.training.{STAGES[name]}"), f"run_{name}")


def recipe_of(arguments: argparse.Namespace) -> Recipe:
    """The recipe of --size, with the step counts of the command line in place of its own."""
    given = {name: getattr(arguments, name) for name in STEPS if getattr(arguments, name) is not None}
    return replace(RECIPES[arguments.size], **given)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m mini", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=[*STAGES, "all"], help="the stages, in order")
    parser.add_argument("--folder", required=True, type=Path, help="working folder of all stages")
    parser.add_argument("--size", choices=RECIPES, default="full", help="which recipe (%(default)s)")
    parser.add_argument("--minutes", type=float, help="stop cleanly after this many minutes (no limit)")
    for name in STEPS:
        parser.add_argument(f"--{name}", type=int, metavar="N", help="number of steps, instead of the recipe's")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
