"""The stage that evaluates the exported model and writes its model card, in which every figure is measured."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from mini.training.autoencoder.model import signal_to_noise, to_unit_range
from mini.training.distributed import Budget, Distributed
from mini.training.export.card_text import card_text
from mini.training.export.figures import file_figures, journal_figures
from mini.training.export.model_files import AUTOENCODER, recipe_hash
from mini.training.images.pictures import read_pictures
from mini.training.recipe import Recipe
from mini.world.scene import PLACES
from trainer.cli.evaluate import Adapter, draw_column, load_evaluation, make_table
from trainer.common.files import atomic_write, write_json, write_text
from trainer.models.load import load_autoencoder
from trainer.sampling.contact_sheet import Row, contact_sheet
from trainer.sampling.evaluation import USUAL
from trainer.sampling.prompt_sets import BASE
from trainer.sampling.sampler import as_image

SHEET, FIGURES, CARD = "contact_sheet.jpg", "figures.json", "README.md"
SHEET_COLUMNS, SHEET_QUALITY = 6, 90
PICTURES_AT_ONCE = 32


def run_card(recipe: Recipe, folder: Path, _budget: Budget) -> None:
    """Write README.md, contact_sheet.jpg and figures.json into `folder`/export, in the main process.

    Raises `Problems` if the export is not complete.
    """
    distributed = Distributed.from_environment()
    if distributed.is_main:
        figures = measure(recipe, folder, distributed)
        write_json(folder / "export" / FIGURES, figures)
        write_text(folder / "export" / CARD, card_text(figures))
    distributed.barrier()


def measure(recipe: Recipe, folder: Path, distributed: Distributed) -> dict[str, Any]:
    """Generate and score images of the held-out prompts, measure the autoencoder, and collect the stages' figures."""
    export = folder / "export"
    evaluation = load_evaluation(export, recipe.seed, recipe.card_prompts, "base", distributed.device)
    start = time.monotonic()
    pictures = draw_column(evaluation, Adapter(BASE))
    seconds = time.monotonic() - start
    prompts = [scene.prompt for scene in evaluation.prompts.base]
    sheet = arrange_sheet(prompts[: recipe.card_sheet], pictures[BASE])
    atomic_write(export / SHEET, lambda target: sheet.save(target, format="JPEG", quality=SHEET_QUALITY))
    return {
        "recipe": asdict(recipe),
        "recipe_sha256": recipe_hash(recipe),
        "files": file_figures(export),
        "stages": journal_figures(folder),
        "judge": json.loads((folder / "judge.json").read_text(encoding="utf-8")),
        "places": len(PLACES),
        "sheet": SHEET,
        "sampling": {
            "prompts": len(prompts),
            "steps": USUAL.steps,
            "guidance": USUAL.guidance,
            "seed": recipe.seed,
            "seconds": round(seconds, 1),
        },
        "scores": make_table(evaluation, {BASE: pictures}).as_json(),
        "autoencoder": reconstruction_figures(folder, export / AUTOENCODER, distributed.device),
    }


@torch.inference_mode()
def reconstruction_figures(folder: Path, file: Path, device: torch.device) -> dict[str, float]:
    """PSNR in dB of the exported autoencoder on all held-out renders, in float32: mean and 10th percentile."""
    autoencoder = load_autoencoder(file, device, torch.float32)
    pixels = read_pictures(folder, "held-out-base", Distributed(device=device)).pixels
    found = []
    for part in pixels.split(PICTURES_AT_ONCE):
        pictures = to_unit_range(part)
        latents = autoencoder.encode(pictures).latent_dist.mode()  # type: ignore[union-attr]
        found.append(signal_to_noise(autoencoder.decode(latents).sample, pictures))  # type: ignore[union-attr]
    psnr = torch.cat(found)
    return {"pictures": len(psnr), "psnr": psnr.mean().item(), "psnr_lowest_tenth": psnr.quantile(0.1).item()}


def arrange_sheet(prompts: Sequence[str], pictures: torch.Tensor) -> Image.Image:
    """Arrange images with their prompts above them, `SHEET_COLUMNS` in a row; the last row may be partly empty."""
    rows = []
    for start in range(0, len(prompts), SHEET_COLUMNS):
        titles = list(prompts[start : start + SHEET_COLUMNS])
        images = [as_image(picture) for picture in pictures[start : start + len(titles)]]
        missing = SHEET_COLUMNS - len(titles)
        rows.append(contact_sheet([Row("", [*images, *[None] * missing])], [*titles, *[""] * missing]))
    sheet = Image.new("RGB", (rows[0].width, sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    return sheet
