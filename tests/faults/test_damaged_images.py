"""Random damage to images of every format: each is read or named, and nothing else happens."""

import random
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.dataset_files import write_toml
from trainer.common.problems import Problems
from trainer.data.dataset import load_dataset

FORMATS = {
    "png": {"format": "PNG"},
    "apng": {"format": "PNG", "save_all": True},
    "jpg": {"format": "JPEG", "quality": 90},
    "webp": {"format": "WEBP"},
    "avif": {"format": "AVIF"},
    "gif": {"format": "GIF", "save_all": True},
    "tif": {"format": "TIFF", "compression": "tiff_lzw"},
    "bmp": {"format": "BMP"},
    "jp2": {"format": "JPEG2000"},
    "heic": {"format": "HEIF"},
    "ppm": {"format": "PPM"},
    "ico": {"format": "ICO"},
    "qoi": {"format": "QOI"},
    "tga": {"format": "TGA"},
}
DATASET = """
[[datasets]]
resolution = 64
[[datasets.subsets]]
image_dir = "{folder}/cat"
class_tokens = "tjtoy toy"
"""
SIZE = (48, 40)
EACH = 12  # damaged files of each format


def noise(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*SIZE[::-1], 3), dtype=np.uint8))


def encode(ending: str) -> bytes:
    options = dict(FORMATS[ending])
    if options["format"] == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    Image.init()
    if options["format"] not in Image.SAVE:
        pytest.skip(f"this Pillow writes no {options['format']}")
    if options.get("save_all"):
        options["append_images"] = [noise(1)]
    exif = Image.Exif()
    exif[0x0112] = 6
    file = BytesIO()
    noise(0).save(file, **options, **({"exif": exif} if options["format"] in ("JPEG", "PNG", "WEBP", "AVIF") else {}))
    return file.getvalue()


def damage(data: bytes, chance: random.Random) -> bytes:
    """Cut off, overwritten in places, with a piece missing or doubled, or with bytes before it."""
    kind = chance.randrange(5)
    at = chance.randrange(len(data))
    if kind == 0:
        return data[:at]
    if kind == 1:
        changed = bytearray(data)
        for _ in range(chance.randint(1, 20)):
            changed[chance.randrange(len(changed))] = chance.randrange(256)
        return bytes(changed)
    if kind == 2:
        return data[:at] + data[at + chance.randint(1, 50) :]
    if kind == 3:
        return data[:at] + data[at : at + chance.randint(1, 50)] + data[at:]
    return bytes(chance.randrange(256) for _ in range(chance.randint(1, 20))) + data


def write_damaged(folder: Path, ending: str, count: int, seed: int) -> list[Path]:
    """Damaged files of one format, every third with another format's ending."""
    folder.mkdir()
    chance, data = random.Random(f"{ending} {seed}"), encode(ending)
    paths = []
    for number in range(count):
        other = chance.choice(list(FORMATS)) if number % 3 == 2 else ending
        paths.append(folder / f"{number:03}.{other}")
        paths[-1].write_bytes(damage(data, chance))
    return paths


@pytest.mark.parametrize("ending", FORMATS)
def test_every_damaged_image_is_read_or_named(tmp_path: Path, ending: str, capfd, caplog, recwarn) -> None:
    paths = write_damaged(tmp_path / "cat", ending, EACH, seed=0)
    told, trained = "", set()
    try:
        data, warnings = load_dataset(write_toml(tmp_path, DATASET))
        trained = {sample.picture.path for sample in data.samples}
        told = "\n".join([*map(str, warnings), *data.notes])
    except Problems as found:
        told = f"{found}\n{caplog.text}"
        # the others are trained once the damaged ones are gone
        named = {path for path in paths if str(path) in str(found)}
        assert all(problem.what and problem.hint for problem in found.problems)
        for path in named:
            path.unlink()
        try:
            rest, warnings = load_dataset(write_toml(tmp_path, DATASET))
            trained = {sample.picture.path for sample in rest.samples}
            told += "\n".join([*map(str, warnings), *rest.notes])
        except Problems as empty:
            told += str(empty)
    for path in paths:
        assert path in trained or path.name in told, path
    assert not list(recwarn), "Python's warnings reach nobody"
    lines = capfd.readouterr().err.splitlines()
    assert all(line.startswith("tempfile.tif: ") for line in lines), "libtiff's decoder prints by itself"
