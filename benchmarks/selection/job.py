"""One run of the benchmark: train, compare the checkpoints, measure at other depths, and judge."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.selection.depths import SIGMAS, figures_at_depths
from benchmarks.selection.judged import SCORING, TUNING, JudgedImages, judge_in_parts
from benchmarks.selection.results import RESULT
from benchmarks.selection.runs import SelectionRun
from trainer.cli.compare import make_comparer, make_parser
from trainer.cli.train import run as train
from trainer.common.devices import computes_bf16, free_memory
from trainer.common.files import atomic_write, write_json
from trainer.comparison.compare import as_json, compare
from trainer.comparison.job import candidates_of, run_config
from trainer.comparison.recommend import Rule

SHEET_COLUMNS, SHEET_QUALITY = 8, 85


def process(run: SelectionRun, folder: Path, until: float | None = None) -> None:
    """Train a run and compare its checkpoints, unless result.json is there; then judge them.

    folder: for everything that is written. until: the time at which judging stops.
    """
    if not (folder / RESULT).is_file():
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        start = time.perf_counter()
        precision = "bf16" if computes_bf16(device) else "no"
        status = train([*run.flags(folder), f"--mixed_precision={precision}", "--overwrite"])
        if status:
            raise SystemExit(status)
        free_memory(device)
        trained = time.perf_counter()
        found = compare_run(folder)
        seconds = {"train": trained - start, **found.pop("seconds")}
        facts = {"run": run.name, "tuning": run.tuning, "concepts": list(run.concepts), "seconds": seconds}
        write_json(folder / RESULT, {**facts, **found})
    prompts = TUNING if run.tuning else SCORING
    candidates, _ = candidates_of(run_config(folder / "runs" / "run"), [])
    judge_in_parts(JudgedImages(prompts, folder / "cache"), candidates, folder, until)


def judge_base(folder: Path, prompts: str, until: float | None = None) -> None:
    """Judge the base model's images. prompts: TUNING or SCORING."""
    folder.mkdir(parents=True, exist_ok=True)
    judge_in_parts(JudgedImages(prompts, folder / "cache"), [None], folder, until)


def compare_run(folder: Path, options: Sequence[str] = (), sigmas: Sequence[float] = SIGMAS) -> dict[str, Any]:
    """The numbers of `trainer compare` and, as "depths", those of `figures_at_depths`. Writes a sheet of images for
    each checkpoint and for the base model into the folder.

    options: more flags of `trainer compare`.
    """
    start = time.perf_counter()
    given = make_parser().parse_args([str(folder / "runs" / "run"), "--measure=base", *options])
    config = run_config(given.run)
    (candidates, _), comparer = candidates_of(config, []), make_comparer(given, config)
    comparison = compare(comparer, candidates, Rule(), lambda row: print(row.candidate.name, row.seconds, flush=True))
    compared = time.perf_counter()
    depths = figures_at_depths(comparer, [row.images for row in comparison.rows], sigmas)
    seconds = {"compare": compared - start, "depths": time.perf_counter() - compared}
    _save_sheet(comparison.base, folder / "base.webp")
    for row in comparison.rows:
        _save_sheet(row.images, folder / f"{row.candidate.name.replace(' ', '')}.webp")
    return {**as_json(comparison), "depths": depths, "seconds": seconds}


def _save_sheet(images: Sequence[Image.Image], path: Path) -> None:
    """Images of one size in rows of eight, as a WebP file."""
    width, height = images[0].size
    sheet = np.zeros((-(-len(images) // SHEET_COLUMNS) * height, SHEET_COLUMNS * width, 3), np.uint8)
    for index, image in enumerate(images):
        top, left = index // SHEET_COLUMNS * height, index % SHEET_COLUMNS * width
        sheet[top : top + height, left : left + width] = np.asarray(image)
    atomic_write(path, lambda target: Image.fromarray(sheet).save(target, "WEBP", quality=SHEET_QUALITY))
