"""The files of a bench: models, images and dataset, made if they are missing and kept for the next run."""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

from benchmarks.random_flux import SIZES, ModelFiles, model_contents, model_files
from trainer.common.files import free_disk_bytes, write_text
from trainer.common.problems import Problem, raise_if_any
from trainer.config import TrainConfig

GB = 1e9
MINI = Path("models/mini")
NUM_PICTURES = 8
NUM_OF_CONCEPT = 4  # images of each of CONCEPT_SUBSETS
# plain: one subset; mixed: the same in four aspect ratios; concepts: the subsets below, and composites
Images = Literal["plain", "mixed", "concepts"]
CONCEPT_SUBSETS = {
    "plain": ['class_tokens = "tjtoy toy"'],
    "masked": ['class_tokens = "tjtoy toy"', "masked_loss = true", "mask_background = 0.1"],
    "kept": ['class_tokens = "sparkgpu gpu"', "masked_loss = true", 'mask_background = "preserve"'],
    "others": ['class_tokens = "toy"', "custom_attributes = { diff_output_preservation = true }"],
}
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


def write_dataset(folder: Path, config: TrainConfig, draws: int, images: Images) -> Path:
    """Write images of the requested resolution, and a dataset file that uses at least `draws` of them per epoch."""
    width, height = _resolution(config.resolution)
    dataset, place = folder / "data.toml", folder / "pictures" / f"{width}x{height}-{images}"
    if images == "concepts":
        lines = _concept_lines(place, (width, height), -(-draws // (len(CONCEPT_SUBSETS) + 1)))
        write_text(dataset, "\n".join(lines))
        return dataset
    aspects = MIXED_ASPECTS if images == "mixed" else ASPECTS
    for number in range(NUM_PICTURES):
        _write_once(place / f"{number:02}.png", number, _of_aspect(width, height, aspects[number % len(aspects)]))
    lines = [
        "[[datasets]]", "", "[[datasets.subsets]]", f'image_dir = "{place.resolve().as_posix()}"',
        'class_tokens = "tjtoy toy"', f"num_repeats = {-(-draws // NUM_PICTURES)}", "",
    ]  # fmt: skip
    if images == "mixed":
        bounds = [f"min_bucket_reso = {min(width, height) // 2}", f"max_bucket_reso = {2 * max(width, height)}"]
        lines = ["[general]", "enable_bucket = true", *bounds, "", *lines]
    write_text(dataset, "\n".join(lines))
    return dataset


def _concept_lines(place: Path, size: tuple[int, int], of_each_kind: int) -> list[str]:
    """Write images of each of CONCEPT_SUBSETS; the lines of a dataset file that uses as many composites as of each."""
    repeats = -(-of_each_kind // NUM_OF_CONCEPT)
    lines = ["[[datasets]]", ""]
    for index, (name, settings) in enumerate(CONCEPT_SUBSETS.items()):
        for number in range(NUM_OF_CONCEPT):
            path = place / name / f"{number:02}.png"
            _write_once(path, index * NUM_OF_CONCEPT + number, size, thing="masked_loss = true" in settings)
        image_dir = f'image_dir = "{(place / name).resolve().as_posix()}"'
        lines += ["[[datasets.subsets]]", image_dir, *settings, f"num_repeats = {repeats}", ""]
    many = NUM_OF_CONCEPT * repeats
    return [*lines, "[[datasets.compositions]]", f"num_images = {many}", f"images_per_epoch = {many}", ""]


def _write_once(path: Path, number: int, size: tuple[int, int], thing: bool = False) -> None:
    """Write a generated image, if it is missing; with a thing in its middle and the mask of that if asked."""
    mask_path = path.with_name(f"{path.stem}.mask.png")
    if path.exists() and (mask_path.exists() or not thing):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = draw_picture(number, *size)
    if thing:
        width, height = size
        mask = Image.new("L", size)
        ImageDraw.Draw(mask).ellipse([width // 4, height // 8, 3 * width // 4, 7 * height // 8], fill=255)
        picture.paste((40 * (number % 6), 90, 160), mask=mask)
        mask.save(mask_path)
    picture.save(path)


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
