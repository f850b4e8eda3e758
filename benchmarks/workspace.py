"""The files of a bench: models, images and dataset, made if they are missing and kept for the next run."""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.random_flux import SIZES, ModelFiles, model_contents, model_files
from trainer.common.files import free_disk_bytes, write_text
from trainer.common.problems import Problem, raise_if_any
from trainer.config import TrainConfig

GB = 1e9
MINI = Path("models/mini")
NUM_PICTURES = 8
ASPECTS, MIXED_ASPECTS = ((1, 1),), ((1, 1), (4, 3), (2, 3), (16, 9))
# training flags for models smaller than the real one
DEFAULTS = {
    "tiny": ["--resolution=64", "--t5xxl_max_token_length=32"],
    "small": ["--resolution=256", "--t5xxl_max_token_length=64"],
    "mini": ["--resolution=256", "--t5xxl_max_token_length=64"],
    "full": ["--resolution=1024"],
}
PATTERNS = {
    "pretrained_model_name_or_path": "flux1*.safetensors",
    "ae": "ae*.safetensors",
    "clip_l": "clip_l*.safetensors",
    "t5xxl": "t5*.safetensors",
}


@dataclass(frozen=True)
class Model:
    """The model to measure. random: a size of `random_flux`, whose files are made in `folder`."""

    name: str
    folder: Path
    random: bool

    @property
    def missing_bytes(self) -> int:
        """Bytes still to be written."""
        if not self.random:
            return 0
        contents = model_contents(model_files(self.folder), self.name)
        return sum(content.num_bytes for content in contents if not content.is_whole)

    @property
    def command(self) -> list[str]:
        """The command that writes missing files; it runs in a separate process, so that nothing stays on the device."""
        own = [sys.executable, "-m", "benchmarks.random_flux"]
        return [*own, f"--size={self.name}", f"--out={self.folder}", "--keep"]

    def flags(self) -> list[str]:
        """The flags that name the files. Raises `Problems` if a folder does not contain them."""
        if self.random:
            return file_flags(model_files(self.folder))
        found = {flag: _only(self.folder, pattern) for flag, pattern in PATTERNS.items()}
        hint = "give a folder with the four model files, or their flags"
        raise_if_any(
            Problem(f"--model={self.folder}", f"holds {len(paths) or 'no'} {PATTERNS[flag]}", hint)
            for flag, paths in found.items()
            if len(paths) != 1
        )
        flags = [f"--{flag}={paths[0]}" for flag, paths in found.items()]
        tokenizers = self.folder / "tokenizers"
        return [*flags, f"--tokenizer_dir={tokenizers}"] if tokenizers.is_dir() else flags


def choose_model(size: str | None, folder: Path | None, work: Path, on_gpu: bool) -> Model:
    """The model of --size or --model; without either, the full size on a GPU and the tiny one on a CPU."""
    if folder:
        return Model("model", folder, random=False)
    size = size or ("full" if on_gpu else "tiny")
    return Model(size, MINI, random=False) if size == "mini" else Model(size, work / "models" / size, random=True)


def file_flags(files: ModelFiles) -> list[str]:
    """The flags of a training that name these files."""
    return [
        f"--pretrained_model_name_or_path={files.transformer}",
        f"--ae={files.ae}",
        f"--clip_l={files.clip_l}",
        f"--t5xxl={files.t5xxl}",
        f"--tokenizer_dir={files.tokenizer_dir}",
    ]


def _only(folder: Path, pattern: str) -> list[Path]:
    return sorted([*folder.glob(pattern), *folder.glob(f"*/{pattern}")])


def disk_problems(model: Model, work: Path) -> list[Problem]:
    """A problem if the random files do not fit on the disk. The training's check covers the files of the runs."""
    missing, free = model.missing_bytes, free_disk_bytes(work)
    if missing <= free:
        return []
    what = f"{missing / GB:.1f} GB of random model files go there, and {free / GB:.1f} GB are free"
    smaller = ", ".join(name for name in SIZES if name != model.name)
    return [Problem(f"--work={work}", what, f"give a folder on a larger disk, or another --size ({smaller})")]


def write_dataset(folder: Path, config: TrainConfig, draws: int, mixed: bool) -> Path:
    """Write images of the requested resolution, and a dataset file that uses them `draws` times per epoch.

    mixed: images of four aspect ratios, each in its own bucket.
    """
    width, height = _resolution(config.resolution)
    aspects = MIXED_ASPECTS if mixed else ASPECTS
    pictures = folder / "pictures" / f"{width}x{height}{'-mixed' if mixed else ''}"
    for number in range(NUM_PICTURES):
        path = pictures / f"{number:02}.png"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            draw_picture(number, *_of_aspect(width, height, aspects[number % len(aspects)])).save(path)
    dataset = folder / "data.toml"
    lines = [
        "[[datasets]]", "", "[[datasets.subsets]]", f'image_dir = "{pictures.resolve().as_posix()}"',
        'class_tokens = "tjtoy toy"', f"num_repeats = {-(-draws // NUM_PICTURES)}", "",
    ]  # fmt: skip
    if mixed:
        bounds = [f"min_bucket_reso = {min(width, height) // 2}", f"max_bucket_reso = {2 * max(width, height)}"]
        lines = ["[general]", "enable_bucket = true", *bounds, "", *lines]
    write_text(dataset, "\n".join(lines))
    return dataset


def _resolution(text: str) -> tuple[int, int]:
    sides = [int(side) for side in re.findall(r"\d+", text)]
    return sides[0], sides[-1]


def _of_aspect(width: int, height: int, aspect: Sequence[int]) -> tuple[int, int]:
    """A size with about the same area and another aspect ratio; sides are multiples of 64, like buckets."""
    across, up = aspect
    side = (width * height * across / up) ** 0.5
    return max(64, round(side / 64) * 64), max(64, round(side * up / across / 64) * 64)


def draw_picture(number: int, width: int, height: int) -> Image.Image:
    """Soft waves of colour with a little grain, different for each number."""
    random = np.random.default_rng(number)
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    waves = [np.sin(2 * np.pi * (a * x + b * y + c)) for a, b, c in random.uniform(0.5, 4, (3, 3))]
    grain = random.normal(0, 6, (height, width, 3))
    return Image.fromarray((127 + 100 * np.stack(waves, axis=-1) + grain).clip(0, 255).astype(np.uint8))
