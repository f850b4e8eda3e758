"""What `trainer compare` costs: seconds for each checkpoint by stage, with random weights of the real sizes.

    python -m benchmarks.compare_cost --work DIR [--size full] [--resolution 512 1024] [--output FILE.json]

It writes random FLUX.1 files and random DINOv2 and SigLIP 2 to DIR/models (36 GB at the full size, kept for the next
time), trains two steps that save a LoRA file each, and compares the two. The figures are the command's own; nothing
comes from its cache. `start` is everything before the first checkpoint: models, texts, the base model's images and the
training images. Prints JSON.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.random_flux import SIZES, ModelFiles, write_model_files
from benchmarks.random_judges import FULL, TINY, write_dinov2, write_siglip2
from benchmarks.workspace import DEFAULTS, NUM_PICTURES, file_flags, write_dataset
from trainer.cli.compare import run as compare
from trainer.common.devices import free_memory
from trainer.common.files import write_json
from trainer.config import parse_config

GIB = 2**30


def main() -> None:
    """Write the models, train, compare at each resolution, and print the seconds."""
    given = _parser().parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    models = given.work / "models"
    files = write_model_files(models / given.size, given.size, device=device, keep=True)
    judges = write_judges(models / given.size, given.size)
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
        "size": given.size,
        "steps": given.steps,
        "batch": given.batch,
        "comparisons": [],
    }
    with tempfile.TemporaryDirectory(dir=given.work) as folder:
        config = train(Path(folder), files, given.size)
        for resolution in given.resolution:
            flags = [f"--size={resolution}", f"--steps={given.steps}", f"--prompts={given.prompts}"]
            flags += [f"--batch={given.batch}", *judges, f"--output={folder}/{resolution}"]
            found["comparisons"].append(cost(config, Path(folder, str(resolution)), flags, device))
            if given.output:
                write_json(given.output, found)
    print(json.dumps(found, indent=2))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.compare_cost",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for models and the run")
    parser.add_argument("--size", choices=SIZES, default="full", help="of the random FLUX.1 (%(default)s)")
    parser.add_argument("--resolution", type=int, nargs="+", default=[512, 1024], help="sides of the images")
    parser.add_argument("--steps", type=int, default=12, help="sampling steps (%(default)s)")
    parser.add_argument("--prompts", type=int, default=6, help="prompts of each kind (%(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="images generated at once (%(default)s)")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="also write the figures here")
    return parser


def write_judges(folder: Path, size: str) -> list[str]:
    """Write both models unless they are there, of the real sizes for a FLUX.1 of the real size; returns their flags."""
    judge_size = FULL if size == "full" else TINY
    flags = []
    for name, write in (("dinov2", write_dinov2), ("siglip2", write_siglip2)):
        place = folder / name
        if not place.is_dir():
            write(place, judge_size)
        flags.append(f"--{name}={place}")
    return flags


def train(folder: Path, files: ModelFiles, size: str) -> Path:
    """Train two steps in a process of its own, whose memory is free afterwards; returns the run's folder."""
    words = [
        *DEFAULTS[size], *file_flags(files), f"--output_dir={folder}/loras", f"--run_dir={folder}/runs",
        f"--dataset_config={folder}/data.toml", f"--cache_dir={folder}/cache", "--output_name=cost", "--log_with=none",
        "--network_dim=16", "--max_train_steps=2", "--save_every_n_steps=1",
    ]  # fmt: skip
    write_dataset(folder, parse_config(words)[0], NUM_PICTURES, "plain")
    subprocess.run([sys.executable, "-m", "trainer", "train", *words], check=True, stdout=sys.stderr)
    return folder / "runs/cost"


def cost(run: Path, output: Path, flags: list[str], device: torch.device) -> dict[str, Any]:
    """Compare the run's files; the seconds of each checkpoint by stage, of the start, and the peak of GPU memory."""
    free_memory(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    with contextlib.redirect_stdout(sys.stderr):  # standard output is for the JSON
        status = compare([str(run), *flags])
    seconds = time.perf_counter() - start
    assert status == 0
    found = json.loads((output / "compare.json").read_text(encoding="utf-8"))
    checkpoints = [each["seconds"] for each in found["checkpoints"]]
    totals = [sum(each.values()) for each in checkpoints]
    return {
        "resolution": int(output.name),
        "images": len(found["prompts"]),
        "start": seconds - sum(totals),
        "checkpoints": checkpoints,
        "seconds_per_checkpoint": sum(totals) / len(totals),
        "peak_gib": torch.cuda.max_memory_allocated() / GIB if device.type == "cuda" else None,
    }


if __name__ == "__main__":
    main()
