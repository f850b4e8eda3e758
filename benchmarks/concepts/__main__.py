"""Train a demo's concepts, or others, on a GPU with the complete method and without each part, and score them.

    python -m benchmarks.concepts run --folder work [--processes 6] [--seeds 101 102 103] [--variants 0 1 …]
    python -m benchmarks.concepts run --folder work --concepts kopmi fenrik [--concepts lumjo vaxtu …]
    python -m benchmarks.concepts table --folder work [--concepts …]

--config=flux_data/demo.toml takes what `make demo` does, instead of the longer method of demo_gpu.toml.

Other concepts than tjtoy and sparkgpu first need their photographs, prompts and judge in work/kopmi+fenrik:
`python -m mini.concepts all --concepts kopmi fenrik --folder work/kopmi+fenrik`. What is complete is skipped. With
--tuning, the prompts that serve to choose settings are used instead of those that score.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.concepts.table import tabulate
from benchmarks.concepts.variants import DATASETS, VARIANTS, ConceptRun, needs_images, runs, write_dataset
from mini.training.export.model_files import JUDGE, PROMPTS, TUNING_PROMPTS
from mini.world.concepts import DESIGNS
from mini.world.scene import CONCEPTS

MODELS = Path("models/mini")
TUNING_SEED = 90000  # other noise than that of the evaluation


def main(argv: Sequence[str]) -> int:
    """Run or tabulate. argv: the command line. Returns the exit status: 1 if a training failed."""
    given = _parser().parse_args(argv)
    names = list(VARIANTS)
    asked = runs(
        given.concepts or [list(CONCEPTS)], [names[number] for number in given.variants], given.seeds, given.config
    )
    results = given.folder / ("tuning" if given.tuning else "results")
    failed = _run(asked, results, given) if given.what == "run" else []
    print(tabulate(results, asked))
    print("".join(f"failed: {name}, see {results / name}.log\n" for name in failed), end="")
    return int(bool(failed))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument(
        "--concepts", nargs="+", action="append", choices=list(DESIGNS), help="two or three; may repeat"
    )
    listed = ", ".join(f"{number}: {name}" for number, name in enumerate(VARIANTS))
    parser.add_argument("--variants", nargs="+", type=int, default=[0], choices=range(len(VARIANTS)), help=listed)
    parser.add_argument("--seeds", nargs="+", type=int, default=[101, 102, 103])
    parser.add_argument("--config", choices=list(DATASETS), default=ConceptRun.config, help="the demo (%(default)s)")
    parser.add_argument("--steps", type=int, help="instead of those of the settings")
    parser.add_argument("--processes", type=int, default=1, help="trainings at once (%(default)s)")
    parser.add_argument("--tuning", action="store_true", help="score the tuning prompts")
    return parser


def _run(asked: Sequence[ConceptRun], results: Path, given: argparse.Namespace) -> list[str]:
    """Train and score what is not complete; returns the names of what failed."""
    results.mkdir(parents=True, exist_ok=True)
    due = [run for run in asked if not (results / f"{run.name}.json").is_file()]
    for run in {run.concepts: run for run in due}.values():  # once, since they share what the base model generates
        if needs_images(run.dataset(_material(run, given) / "photos")):
            _call(["generate", *_flags(run, given)], results / f"{run.name}.log")
    with ThreadPoolExecutor(given.processes) as pool:
        done = pool.map(lambda run: _one(run, results, given), due)
        return [run.name for run, status in zip(due, done, strict=True) if status]


def _one(run: ConceptRun, results: Path, given: argparse.Namespace) -> int:
    start, log = time.perf_counter(), results / f"{run.name}.log"
    status = _call(["train", *_flags(run, given)], log)
    status = status or _call(["evaluate", *_evaluation(run, results, given)], log)
    print(f"{run.name}: {'done' if status == 0 else 'failed'} after {time.perf_counter() - start:.0f} s", flush=True)
    return status


def _call(arguments: Sequence[str], log: Path) -> int:
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    with log.open("a") as output:
        command = [sys.executable, "-m", "trainer", *arguments]
        return subprocess.run(command, stdout=output, stderr=output, env=environment, check=False).returncode


def _flags(run: ConceptRun, given: argparse.Namespace) -> list[str]:
    folder = given.folder / "datasets"
    folder.mkdir(parents=True, exist_ok=True)
    dataset = folder / f"{run.name}.toml"
    write_dataset(dataset, run.dataset(_material(run, given) / "photos"))
    flags = [f"--config_file={run.config}", f"--mixed_precision={_precision()}"]
    flags += [f"--dataset_config={dataset}", f"--cache_dir={given.folder / 'cache'}"]
    flags += [f"--output_dir={given.folder / 'loras'}", f"--run_dir={given.folder / 'runs'}", "--overwrite"]
    flags += [f"--output_name={run.name}", f"--seed={run.seed}", *run.flags]
    return [*flags, *([f"--max_train_steps={given.steps}"] if given.steps else [])]


def _precision() -> str:
    import torch

    from trainer.common.devices import computes_bf16

    return "bf16" if computes_bf16(torch.device("cuda" if torch.cuda.is_available() else "cpu")) else "no"


def _evaluation(run: ConceptRun, results: Path, given: argparse.Namespace) -> list[str]:
    prompts = TUNING_PROMPTS if given.tuning else PROMPTS
    own = _material(run, given) if not set(run.concepts) <= set(CONCEPTS) else MODELS
    flags = [f"--lora={given.folder / 'loras' / run.name}.safetensors", f"--json={results / run.name}.json"]
    flags += [f"--prompt_file={own / prompts}", f"--judge={own / JUDGE}"]
    return [*flags, *([f"--seed={TUNING_SEED}"] if given.tuning else [])]


def _material(run: ConceptRun, given: argparse.Namespace) -> Path:
    return given.folder / "+".join(run.concepts)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
