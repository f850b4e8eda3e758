"""`python -m trainer compare RUN`: which of a run's LoRA files to keep, measured, in one page to open.

Each file generates the same images from the same seeds. Likeness, bleed and drift are measured on them with DINOv2
(`sh download.sh --judges`) or, without it, with weaker means. The page is runs/NAME/report.html; compare.json has every
number.
"""

import argparse
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.common.disk import has_mark, mark_of, output_problems
from trainer.common.files import write_json
from trainer.common.problems import Problem, Problems, raise_if_any
from trainer.common.process import set_up_logging
from trainer.common.text import counted, duration
from trainer.comparison.description import JUDGE_MODELS
from trainer.config.paths import path_flag
from trainer.config.settings import MAX_SEED

if TYPE_CHECKING:  # imported late, so that a mistake in a flag is reported at once
    from trainer.comparison.compare import Comparer, Comparison, Row
    from trainer.comparison.pictures import Generator
    from trainer.config import TrainConfig

log = logging.getLogger(__name__)
NUMBERS, PAGE = "compare.json", "report.html"
MEASURES = {
    "auto": "DINOv2 if it was downloaded; else the tiny FLUX's own features for the tiny FLUX, losses for other models",
    "dinov2": "DINOv2's features, and SigLIP 2 for text agreement",
    "base": "the base model's own features; tested on the tiny FLUX only",
    "loss": "losses at fixed noise alone, which are weaker",
}


def run(argv: Sequence[str]) -> int:
    """Compare LoRA files, write the report, and print the table and the recommendation.

    argv: the arguments after `compare`. Returns the exit status, 0. Raises `Problems`.
    """
    given = make_parser().parse_args(argv)
    raise_if_any(_argument_problems(given))
    set_up_logging()
    from trainer.comparison.job import candidates_of, run_config

    config = run_config(given.run)
    candidates, left_out = candidates_of(config, given.lora)
    from trainer.checkpoint.naming import run_dir

    folder = given.output or run_dir(config)
    mark = mark_of("compare", config.output_name)
    files = [("--output", folder / name) for name in (NUMBERS, PAGE)]
    raise_if_any(output_problems(files, given.overwrite, lambda path: has_mark(path, mark)))
    print(f"{counted(len(candidates), 'LoRA file')}: {', '.join(each.name for each in candidates)}")
    for text in [f"{each.path}: {each.note}" for each in candidates if each.note]:
        print(text)
    for problem in left_out:
        print(f"left out: {problem}")
    start = time.perf_counter()
    comparison = replace(compare_files(given, config, candidates), left_out=tuple(map(str, left_out)))
    from trainer.comparison.compare import as_json
    from trainer.comparison.report import write_report

    write_json(folder / NUMBERS, {"origin": mark} | as_json(comparison))
    page = write_report(folder / PAGE, comparison, config, mark)
    print(table(comparison))
    print(f"\n{comparison.recommendation.text}\n{page}")
    print(f"took {duration(time.perf_counter() - start)}")
    return 0


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m trainer compare", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "run", type=path_flag, metavar="RUN", help="a run's folder or name, or a configuration file of train"
    )
    parser.add_argument("--lora", action="append", default=[], type=Path, metavar="FILE", help="one more to compare")
    parser.add_argument("--prompts", type=int, default=6, metavar="N", help="prompts of each kind (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first image (%(default)s)")
    parser.add_argument("--size", type=int, metavar="PIXELS", help="side of the images (512; 256 for the tiny FLUX)")
    parser.add_argument("--steps", type=int, default=12, help="sampling steps (%(default)s)")
    parser.add_argument("--guidance", type=float, default=3.5, help="guidance while sampling (%(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="images generated at once (%(default)s)")
    text = "; ".join(f"{name}: {what}" for name, what in MEASURES.items())
    parser.add_argument("--measure", choices=MEASURES, default="auto", help=f"{text} (%(default)s)")
    weights = (("bleed", "bleed"), ("drift", "drift"))
    for name, what in weights:
        text = f"points of likeness that one point of {what} costs (%(default)s)"
        parser.add_argument(f"--{name}_weight", type=float, default=1.0, metavar="W", help=text)
    for model in JUDGE_MODELS:
        text = f"folder of {model.title} (%(default)s)"
        parser.add_argument(f"--{model.key}", type=Path, default=Path("models", model.folder), metavar="DIR", help=text)
    parser.add_argument("--output", type=path_flag, metavar="DIR", help="folder of the report (that of the run)")
    parser.add_argument("--overwrite", action="store_true", help="replace a report that is not of this run")
    return parser


def _argument_problems(given: argparse.Namespace) -> list[Problem]:
    problems = []
    for name in ("prompts", "steps", "batch"):
        if (value := getattr(given, name)) < 1:
            problems.append(Problem(f"--{name}", f"{value} is less than 1"))
    if given.size is not None and (given.size < 64 or given.size % 16):
        problems.append(Problem("--size", f"{given.size} is not a multiple of 16 from 64 on"))
    if not 0 <= given.seed <= MAX_SEED - 10**6:  # each image has the next seed
        problems.append(Problem("--seed", f"{given.seed} is not from 0 to {MAX_SEED - 10**6}"))
    for name in ("guidance", "bleed_weight", "drift_weight"):
        if not 0 <= (value := getattr(given, name)) < math.inf:
            problems.append(Problem(f"--{name}", f"{value:g} is not a number from 0 on"))
    return problems


def compare_files(given: argparse.Namespace, config: "TrainConfig", candidates: Sequence) -> "Comparison":
    """Check everything, then generate and measure. Raises `Problems`."""
    from trainer.comparison.compare import compare
    from trainer.comparison.recommend import Rule

    return compare(make_comparer(given, config), candidates, Rule(given.bleed_weight, given.drift_weight), _say)


def make_comparer(given: argparse.Namespace, config: "TrainConfig") -> "Comparer":
    """Check everything, then generate the base model's images and measure the training images. Raises `Problems`."""
    from trainer.comparison.compare import Comparer
    from trainer.comparison.judges import load_judges
    from trainer.comparison.prompts import compare_prompts, concepts_of
    from trainer.data.dataset import load_dataset

    data, _ = load_dataset(config)
    concepts = concepts_of(data)
    if not concepts:
        raise Problems([Problem(str(config.dataset_config), "teaches no concept, so there is nothing to compare")])
    generator = make_generator(given, config)
    judges = load_judges(config, generator.device, given.measure, given.dinov2, given.siglip2)
    if judges.note:
        print(judges.note)
    prompts = compare_prompts(concepts, given.prompts, given.seed)
    steps = counted(given.steps, "step")
    print(f"{counted(len(prompts), 'prompt')}, {generator.settings.width} pixels, {steps}; from {judges.source}")
    return Comparer(generator, data, concepts, prompts, judges)


def make_generator(given: argparse.Namespace, config: "TrainConfig") -> "Generator":
    """Check the model files and prepare to generate images with them. Raises `Problems`."""
    import torch
    from accelerate import Accelerator

    from trainer.common.devices import computes_bf16
    from trainer.comparison.judges import usual_side
    from trainer.comparison.pictures import Generator
    from trainer.data.cache import CacheKeys, TensorCache
    from trainer.models.load import base_model_of
    from trainer.preflight.check import check_models, model_fingerprints
    from trainer.sampling.prompts import SamplePrompt

    tokenizers = check_models(config)
    assert config.pretrained_model_name_or_path and config.dataset_config
    device = Accelerator(mixed_precision="no").device
    length = config.t5xxl_max_token_length or base_model_of(config.pretrained_model_name_or_path).t5_tokens
    keys = CacheKeys.of(config, tokenizers, length)
    side = given.size or usual_side(config)
    return Generator(
        config,
        tokenizers,
        device,
        torch.bfloat16 if computes_bf16(device) else torch.float32,
        SamplePrompt("", width=side, height=side, steps=given.steps, guidance=given.guidance),
        TensorCache(config.cache_dir or config.dataset_config.parent / ".cache"),
        model_fingerprints(config, keys),
        given.batch,
    )


def _say(row: "Row") -> None:
    from trainer.comparison.recommend import figures

    print(f"{row.candidate.name}: {figures(row.standing)} ({row.cost})", flush=True)


def table(comparison: "Comparison") -> str:
    """The figures of all checkpoints as text, each with its spread over prompts; the recommended one is marked."""
    lines = []
    benefit = "likeness" if comparison.best.measures else "fall of the loss"
    for index, row in enumerate(comparison.rows):
        standing = row.standing
        found = {benefit: standing.benefit, "bleed": standing.bleed, "drift": standing.drift}
        cells = [f"{name} {figure!s:>14}" for name, figure in found.items() if figure]
        mark = "  <- recommended" if index == comparison.recommendation.best else ""
        lines.append(f"{row.candidate.name:<24} {'  '.join(cells)} score {standing.score(comparison.rule):6.1f}{mark}")
    return "\n".join(["", *lines, comparison.rule.text(comparison.best.measures is not None)])
