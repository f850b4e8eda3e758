"""The stage that renders the demo's photographs and backgrounds, and a sheet that shows the world."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mini.render.pictures import render, render_with_masks
from mini.training.distributed import Budget, Distributed
from mini.training.recipe import Recipe
from mini.world.photos import empty_scenes, photo_scenes
from mini.world.scene import CONCEPTS, stack_scenes
from mini.world.scenes import random_batch

JPEG_QUALITY = 95
SMALL_QUALITY = 92  # of images of 256 pixels
SHEET_COLUMNS = 8


def run_photos(recipe: Recipe, folder: Path, budget: Budget) -> None:
    """Write `folder`/photos and `folder`/world.jpg, in the main process. Takes minutes and cannot be resumed."""
    distributed = Distributed.from_environment()
    if not distributed.is_main:
        return
    device = str(distributed.device)
    write_sheet(folder / "world.jpg", recipe, device)
    files = write_photos(folder / "photos", CONCEPTS, recipe.photo_size, recipe.photo_supersampling, device)
    files += write_backgrounds(folder / "photos" / "backgrounds", recipe.size, recipe.supersampling, device)
    distributed.say(f"{len(files)} photos in {budget.seconds():.0f} s")


def write_photos(
    folder: Path, concepts: Sequence[str], size: int, supersampling: int, device: str = "cpu"
) -> list[Path]:
    """Render `photo_scenes` into a folder for each concept, each with its caption and its mask, NAME.mask.png.

    Images with odd numbers are PNG, the others JPEG. Images that are already there are kept. Returns the image files.
    """
    files = []
    for name, scene in photo_scenes(concepts):
        number = int(name.partition("/")[2].partition("_")[0])
        files.append(folder / (name + (".png" if number % 2 else ".jpg")))
        mask = folder / f"{name}.mask.png"
        if not mask.exists():
            (pixels,), (covered,) = render_with_masks(stack_scenes([scene]), size, supersampling, device)
            save_captioned(pixels, scene.caption, files[-1])
            Image.fromarray(covered.cpu().numpy()).save(mask, optimize=True)
    return files


def write_backgrounds(folder: Path, size: int, supersampling: int, device: str = "cpu") -> list[Path]:
    """Render `empty_scenes` as JPEG, each with its caption. Returns the image files."""
    files = []
    for name, scene in empty_scenes():
        files.append(folder / f"{name}.jpg")
        (pixels,) = render(stack_scenes([scene]), size, supersampling, device=device)
        save_captioned(pixels, scene.caption, files[-1], SMALL_QUALITY)
    return files


def save_captioned(pixels: Tensor, caption: str, file: Path, quality: int = JPEG_QUALITY) -> None:
    """Write uint8 [3, height, width] in the format of the file's suffix, and its caption next to it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    save_picture(pixels, file, quality)
    file.with_suffix(".txt").write_text(caption + "\n", encoding="utf-8")


def write_sheet(file: Path, recipe: Recipe, device: str = "cpu") -> None:
    """Render `recipe.sheet_pictures` scenes of the base world, cycling through the places, as one image."""
    batches = [random_batch("base", recipe.seed, index, 1) for index in range(recipe.sheet_pictures)]
    drawn = [render(batch, recipe.size, recipe.supersampling, device=device).cpu() for batch in batches]
    save_picture(side_by_side(torch.cat(drawn), SHEET_COLUMNS), file)


def side_by_side(pixels: Tensor, columns: int) -> Tensor:
    """Arrange images [n, 3, h, w] row by row as one [3, rows * h, columns * w]; free cells are white."""
    columns = min(columns, len(pixels))
    rows = -(-len(pixels) // columns)
    sheet = pixels.new_full((rows * columns, *pixels.shape[1:]), 255)
    sheet[: len(pixels)] = pixels
    _, channels, height, width = sheet.shape
    grid = sheet.view(rows, columns, channels, height, width).permute(2, 0, 3, 1, 4)
    return grid.reshape(channels, rows * height, columns * width)


def save_picture(pixels: Tensor, file: Path, quality: int = JPEG_QUALITY) -> None:
    """Write uint8 [3, height, width] in the format of the file's suffix."""
    image = Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).cpu().numpy()))
    if file.suffix == ".jpg":
        image.save(file, quality=quality, subsampling=0)
    else:
        image.save(file, optimize=True)
