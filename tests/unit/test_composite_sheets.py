"""The sheet of composites that `check` writes."""

from dataclasses import replace

from PIL import Image

from tests.unit.test_compositions import composites, config, folder
from trainer.data.dataset import load_dataset
from trainer.preflight.composites import SHOWN, write_composite_sheet

__all__ = ["folder"]  # a fixture


def test_check_writes_a_sheet_of_all_relations(folder):
    settings = config(folder, 'relations = ["next to", "holding"]', run_dir=folder / "runs", output_name="tj")
    data = load_dataset(settings)[0]
    path = write_composite_sheet(settings, data)
    assert path == folder / "runs" / "tj" / "composites.jpg" and path.stat().st_size > 10_000
    width, height = Image.open(path).size
    assert width > 4 * 256 and height > 12 * 256
    assert {sample.lines[0].split()[2] for sample in composites(data)[:SHOWN]} == {"next", "holding"}
    alone = replace(data, samples=tuple(sample for sample in data.samples if sample.composition is None))
    assert write_composite_sheet(settings, alone) is None


def test_a_sheet_of_many_compositions_fits_into_one_file(folder):
    many = "num_images = 6\n" + "[[datasets.compositions]]\nnum_images = 6\n" * 119
    settings = config(folder, many, run_dir=folder / "runs", output_name="tj")
    path = write_composite_sheet(settings, load_dataset(settings)[0])
    assert path and Image.open(path).size[1] > 100 * 256  # two composites of each, a row
