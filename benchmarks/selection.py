"""Does `python -m trainer compare` recommend the checkpoint that the tiny FLUX's judge would choose?

    python -m benchmarks.selection run --folder work [--processes 8] [--only NAME ...]
    python -m benchmarks.selection table --folder work

The first trains the runs of `selection_runs` one after the other or several at once, compares the checkpoints of each,
and lets the judge score the same checkpoints on its own prompts and seeds. Runs that are complete are skipped. The
second tabulates what is there.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.selection_runs import RUNS, SelectionRun
from trainer.cli.compare import make_comparer, make_parser
from trainer.cli.evaluate import Adapter, Evaluation, draw_column, load_evaluation
from trainer.common.files import atomic_write, write_json
from trainer.common.process import set_up_logging
from trainer.comparison.compare import as_json, compare
from trainer.comparison.job import candidates_of, run_config
from trainer.comparison.judges import Judges
from trainer.comparison.recommend import Rule
from trainer.lora.file import load_lora
from trainer.sampling.evaluation import score_base
from trainer.sampling.judge import judge_pictures

RESULT = "result.json"
WITHIN = 3.0  # points of the judge's score that a recommendation may be below the best checkpoint
STRIP_QUALITY = 92
# where else the base model's features could be read: after which share of the blocks, at how much noise
VARIANTS = ((0.2, 0.1), (0.2, 0.25), (0.35, 0.1), (0.35, 0.25), (0.55, 0.1), (0.55, 0.5), (0.8, 0.25), (0.9, 0.1))
NUMBERS = ("likeness", "bleed", "drift")


def main(argv: Sequence[str]) -> int:
    """Run, or tabulate. argv: the command line. Returns the exit status: 1 if a run failed."""
    given = _parser().parse_args(argv)
    if given.what == "table":
        print(tabulate(read_results(given.folder)))
        return 0
    if given.what == "one":
        set_up_logging()
        run_one(RUNS[given.only[0]], given.folder / given.only[0], given.prompts, given.judged)
        return 0
    names = given.only or list(RUNS)
    due = [name for name in names if not (given.folder / name / RESULT).is_file()]
    with ThreadPoolExecutor(given.processes) as pool:
        failed = [name for name, status in zip(due, pool.map(lambda n: _start(n, given), due), strict=True) if status]
    print(tabulate(read_results(given.folder)))
    print("".join(f"failed: {name}, see {given.folder / name}.log\n" for name in failed), end="")
    return int(bool(failed))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "one", "table"))
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=RUNS, metavar="NAME")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--prompts", type=int, default=6, help="of each kind, to compare (%(default)s)")
    parser.add_argument("--judged", type=int, default=16, help="of each of the judge's lists (%(default)s)")
    return parser


def _start(name: str, given: argparse.Namespace) -> int:
    """Run one training and its comparison in a process of its own, with its share of the cores."""
    given.folder.mkdir(parents=True, exist_ok=True)
    threads = str(max(1, (os.cpu_count() or 1) // given.processes))
    numbers = [f"--prompts={given.prompts}", f"--judged={given.judged}"]
    command = [
        sys.executable,
        "-m",
        "benchmarks.selection",
        "one",
        f"--folder={given.folder}",
        "--only",
        name,
        *numbers,
    ]
    with (given.folder / f"{name}.log").open("w") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": threads}
        status = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment, check=False).returncode
    print(f"{name}: {'done' if status == 0 else f'exit status {status}'}", flush=True)
    return status


def run_one(run: SelectionRun, folder: Path, prompts: int, judged: int) -> None:
    """Train a run, compare its checkpoints, judge them, and write result.json and the images into the folder."""
    start = time.perf_counter()
    flags = run.flags(folder)
    precision = "bf16" if _computes_bf16() else "no"
    command = [sys.executable, "-m", "trainer", "train", *flags, f"--mixed_precision={precision}", "--overwrite"]
    subprocess.run(command, check=True)
    trained = time.perf_counter()
    measured, strips = _compare(folder, prompts)
    compared = time.perf_counter()
    evaluation = load_evaluation(limit=judged)
    before = _verdict(evaluation, Adapter("base"), run.concepts)
    for checkpoint in measured["checkpoints"]:
        adapter = Adapter(checkpoint["name"], load_lora(Path(checkpoint["file"])))
        checkpoint["truth"] = truth(before, _verdict(evaluation, adapter, run.concepts))
    for name, strip in strips.items():
        atomic_write(folder / f"{name}.jpg", lambda path, each=strip: each.save(path, "JPEG", quality=STRIP_QUALITY))
    seconds = {"train": trained - start, "compare": compared - trained, "judge": time.perf_counter() - compared}
    write_json(folder / RESULT, {**measured, "run": run.name, "seconds": seconds})


def _computes_bf16() -> bool:
    from trainer.common.devices import computes_bf16

    return computes_bf16(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def _compare(folder: Path, prompts: int, options: Sequence[str] = ()) -> tuple[dict[str, Any], dict[str, Image.Image]]:
    """The numbers of `trainer compare`, with those of VARIANTS, and each checkpoint's images side by side.

    options: more flags of `trainer compare`.
    """
    given = make_parser().parse_args([str(folder / "runs" / "run"), f"--prompts={prompts}", "--measure=base", *options])
    config = run_config(given.run)
    candidates, comparer = candidates_of(config, []), make_comparer(given, config)
    comparison = compare(comparer, candidates, Rule(), lambda row: print(row.candidate.name, row.seconds, flush=True))
    found = as_json(comparison)
    for depth, sigma in VARIANTS:
        comparer.use(Judges(depth=depth, sigma=sigma))
        for candidate, checkpoint in zip(candidates, found["checkpoints"], strict=True):
            measured = comparer.row(candidate)
            assert measured.measures
            numbers = {name: getattr(measured.measures, name).mean for name in NUMBERS}
            numbers["score"] = measured.standing.score(Rule())
            checkpoint.setdefault("variants", {})[f"depth {depth:g}, sigma {sigma:g}"] = numbers
    strips = {"base": _strip(comparison.base)}
    strips |= {row.candidate.name.replace(" ", ""): _strip(row.images) for row in comparison.rows}
    return found, strips


def _strip(images: Sequence[Image.Image]) -> Image.Image:
    return Image.fromarray(np.concatenate([np.asarray(image) for image in images], axis=1))


def _verdict(evaluation: Evaluation, adapter: Adapter, concepts: Sequence[str]) -> dict[str, float]:
    """What the judge sees: likeness, the concepts where they should not be, and what the base model still can, in
    percent."""
    classes, sets = evaluation.judge.classes, evaluation.prompts
    drawn = draw_column(evaluation, adapter)
    seen = {name: judge_pictures(evaluation.judge, pictures) for name, pictures in drawn.items()}
    at = {name: classes.concepts.index(name) for name in concepts}
    shown = [seen[name].concepts[:, index] for name, index in at.items()]
    absent = [
        seen[other].concepts[:, index] for name, index in at.items() for other in seen if other not in (name, "both")
    ]
    base = score_base(seen["base"], sets.base, classes)
    return {
        "likeness": 100 * float(torch.cat(shown).mean()),
        "bleed": 100 * float(torch.cat(absent).mean()),
        "prior": (base.objects + base.colours + base.places) / 3,
    }


def truth(base: Mapping[str, float], found: Mapping[str, float]) -> dict[str, float]:
    """The judge's likeness, bleed and drift, and the score by the default rule of `compare`, in points."""
    bleed, drift = max(0.0, found["bleed"] - base["bleed"]), max(0.0, base["prior"] - found["prior"])
    return {"likeness": found["likeness"], "bleed": bleed, "drift": drift, "score": found["likeness"] - bleed - drift}


def read_results(folder: Path) -> list[dict[str, Any]]:
    """The results of all runs that are complete, by name."""
    return [json.loads(file.read_text()) for file in sorted(folder.glob(f"*/{RESULT}"))]


def tabulate(results: Sequence[Mapping[str, Any]]) -> str:
    """A line for each run, then how often the recommendation is good, and how the measures rank checkpoints."""
    lines = [f"{'run':<34} {'recommended':>11} {'best':>9} {'judge':>7} {'best':>6} {'lost':>6}"]
    lost = []
    for result in results:
        checkpoints = result["checkpoints"]
        chosen = next(each for each in checkpoints if each["file"] == result["recommended"])
        best = max(checkpoints, key=lambda each: each["truth"]["score"])
        lost.append(best["truth"]["score"] - chosen["truth"]["score"])
        lines.append(
            f"{result['run']:<34} {chosen['name']:>11} {best['name']:>9}"
            f" {chosen['truth']['score']:>7.1f} {best['truth']['score']:>6.1f} {lost[-1]:>6.1f}"
        )
    if not lost:
        return "no run is complete"
    good = sum(each <= WITHIN for each in lost)
    lines.append(f"within {WITHIN:g} points of the best: {good} of {len(lost)} ({100 * good / len(lost):.0f} %)")
    every = [checkpoint for result in results for checkpoint in result["checkpoints"]]
    for name in (*NUMBERS, "score"):
        measured = [each["score"] if name == "score" else each[name]["mean"] for each in every]
        rank = spearman(measured, [each["truth"][name] for each in every])
        lines.append(f"{name}: Spearman {rank:.2f} over {len(every)} checkpoints")
    for name, of in (("loss_on_images", "likeness"), ("loss_drift", "drift")):
        rank = spearman([each[name]["mean"] for each in every], [each["truth"][of] for each in every])
        lines.append(f"{name} for {of}: Spearman {rank:.2f}")
    return "\n".join([*lines, *_variant_lines(results)])


def _variant_lines(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """For other places to read the features: how each ranks checkpoints, and how often it would recommend well."""
    every = [each for result in results for each in result["checkpoints"]]
    names = [name for name in every[0].get("variants", {}) if all(name in each.get("variants", {}) for each in every)]
    lines = []
    for name in names:
        ranks = [
            f"{number} {spearman([each['variants'][name][number] for each in every], _truths(every, number)):.2f}"
            for number in (*NUMBERS, "score")
        ]
        good = 0
        for result in results:
            chosen = max(result["checkpoints"], key=lambda each: each["variants"][name]["score"])
            best = max(each["truth"]["score"] for each in result["checkpoints"])
            good += best - chosen["truth"]["score"] <= WITHIN
        lines.append(f"{name}: Spearman {', '.join(ranks)}; good {good} of {len(results)}")
    return lines


def _truths(checkpoints: Sequence[Mapping[str, Any]], number: str) -> list[float]:
    return [each["truth"][number] for each in checkpoints]


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's rank correlation; equal values share their mean rank. 0 if one does not vary."""
    ranks = [_ranks(np.asarray(values, np.float64)) for values in (one, other)]
    if any(each.std() == 0 for each in ranks):
        return 0.0
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
