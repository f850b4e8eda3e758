"""A sheet of the composites that a run will train, so that one sees them before it starts."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from PIL import Image, ImageOps

from trainer.checkpoint.naming import run_dir
from trainer.common.files import atomic_write
from trainer.config import TrainConfig
from trainer.data.compose import Composite
from trainer.data.dataset import TrainingData
from trainer.data.samples import Sample
from trainer.sampling.contact_sheet import Row, contact_sheet

SHOWN = 24  # of each composition
DIMMED = (24, 24, 27)
QUALITY = 88


def write_composite_sheet(config: TrainConfig, data: TrainingData) -> Path | None:
    """Write a sheet of the composites that a run will train to composites.jpg in the run's folder.

    Each composite is next to a copy in which everything outside its mask is dark. Returns the path; None, with nothing
    written, if there are no composites.
    """
    rows = [row for own in _by_composition(data) for row in _rows(own[:SHOWN])]
    if not rows:
        return None
    path = run_dir(config) / "composites.jpg"
    sheet = contact_sheet(rows, ("composite", "inside its mask") * 2, title="Composites")
    atomic_write(path, lambda target: sheet.save(target, format="JPEG", quality=QUALITY))
    return path


def _by_composition(data: TrainingData) -> Iterable[list[Sample]]:
    found: dict[tuple[int, int], list[Sample]] = {}
    for sample in data.samples:
        if sample.composition is not None:
            found.setdefault((sample.dataset_index, sample.composition), []).append(sample)
    return found.values()


def _rows(samples: Sequence[Sample]) -> Iterator[Row]:
    """Two composites a row."""
    for start in range(0, len(samples), 2):
        pair = samples[start : start + 2]
        pictures = [picture for sample in pair for picture in _pictures(sample)]
        label = "  |  ".join(sample.lines[0] for sample in pair)
        yield Row(label, [*pictures, *[None] * (4 - len(pictures))])


def _pictures(sample: Sample) -> Sequence[Image.Image]:
    assert isinstance(sample.picture, Composite)
    image, mask = sample.picture.recipe.image(), sample.picture.recipe.mask()
    masked = Image.composite(image, Image.new("RGB", image.size, DIMMED), mask)
    side = max(image.size)
    return [ImageOps.pad(each, (side, side), color=DIMMED) for each in (image, masked)]
