"""Composites of what people really have: odd backgrounds, specks in masks, names spelled in several ways."""

import logging
from pathlib import Path

import pytest
from PIL import Image, ImageOps

from tests.dataset_files import draw_folder, write_toml
from tests.unit.test_compositions import DATA, RED, composites, config, draw_subject, folder, load, problems, recipe
from trainer.common.problems import Problems
from trainer.data.compose import solid_corners
from trainer.data.dataset import load_dataset

__all__ = ["folder"]  # the fixture
ROOMS = 'backgrounds = "{folder}/rooms"\nnum_images = 8'


def warnings(at: Path, more: str) -> str:
    return "\n".join(map(str, load_dataset(config(at, more))[1]))


@pytest.mark.parametrize(
    ("written", "expected"),
    [("\ufeffin a hall\r\nat night\r\n".encode(), "in a hall at night"), (b"", "")],
)
def test_the_place_of_a_background_is_read_as_captions_are(folder, written, expected):
    draw_folder(folder / "rooms", [(200, 100)])
    (folder / "rooms" / "00.txt").write_bytes(written)
    captions = [
        sample.lines[0] for sample in composites(load(folder, f'{ROOMS}\ncaptions = "{{concepts}} | {{place}}"'))
    ]
    assert {caption.partition(" |")[2].strip() for caption in captions} == {expected}


@pytest.mark.parametrize("written", ["café".encode("latin-1"), "in a hall".encode("utf-16")])
def test_a_background_caption_that_is_no_text_is_a_problem(folder, written):
    draw_folder(folder / "rooms", [(200, 100)])
    (folder / "rooms" / "00.txt").write_bytes(written)
    (message,) = problems(folder, ROOMS)
    assert "00.txt" in message and "not UTF-8" in message


def test_backgrounds_that_are_left_out_or_doubtful_are_named(folder):
    draw_folder(folder / "rooms", [(200, 100), (20, 300)], shade=9)
    Image.new("L", (9, 9)).save(folder / "rooms" / "lonely.mask.png")
    told = warnings(folder, ROOMS)
    assert "masks without an image: lonely.mask.png" in told
    assert "enlarged more than 2 times: 01.png" in told
    told = warnings(folder, 'backgrounds = "{folder}/toy"\nnum_images = 2')
    assert "backgrounds that are images of this dataset too: 00.png, 01.png" in told


@pytest.mark.parametrize("template", ["{first:d} {second}", "{first!x} {second}", "{first:{second}} {second}"])
def test_a_template_cannot_format_its_parts(folder, template):
    (message,) = problems(folder, f'captions = "{template}"')
    assert "without : or !" in message


def test_spellings_of_one_trigger_are_one_concept(folder):
    draw_subject(folder / "more", "09", RED, (40, 22, 110, 140))
    subset = '[[datasets.subsets]]\nimage_dir = "{folder}/more"\nclass_tokens = "TJtoy  toy"\n[[datasets.compositions]]'
    text = DATA.replace("[[datasets.compositions]]", subset)
    for more in ("num_images = 40", 'concepts = ["TJTOY toy", "sparkgpu gpu"]\nnum_images = 40'):
        found = composites(load_dataset(write_toml(folder, text.replace("MORE", more)))[0])
        assert all("tjtoy toy" in s.lines[0] and "sparkgpu gpu" in s.lines[0] for s in found)
        used = {piece.source.picture.path.parent.name for s in found for piece in recipe(s).pieces}
        assert used == {"toy", "more", "gpu"}


def test_concepts_that_cannot_be_composed_by_their_name(folder):
    (message,) = problems(folder, 'concepts = ["tjtoy toy", "TJTOY toy", "sparkgpu gpu"]')
    assert "names 'tjtoy toy' twice" in message
    (message,) = problems(folder, 'companions = "Tjtoy"')
    assert "is a concept of this dataset" in message
    text = DATA.replace('"tjtoy toy"', '"tjtoy {toy|figure}"\nenable_wildcard = true')
    with pytest.raises(Problems, match="is a choice of names"):
        load_dataset(write_toml(folder, text.replace("MORE", "")))


def test_specks_do_not_make_a_concept_small(folder):
    before = [recipe(sample).pieces for sample in composites(load(folder, "num_images = 6"))]
    for path in (folder / "toy").glob("*.mask.png"):
        mask = Image.open(path)
        mask.putpixel((2, 2), 255)
        mask.paste(255, (155, 155, 158, 158))
        mask.save(path)
    assert "specks apart from the concept" in warnings(folder, "num_images = 6")
    after = [recipe(sample).pieces for sample in composites(load(folder, "num_images = 6"))]
    places = [[(p.left, p.top, p.size, p.source.corners) for p in pieces] for pieces in (*before, *after)]
    assert places[:6] == places[6:]


def test_all_parts_of_a_mask_count_unless_they_are_specks():
    mask = Image.new("L", (1000, 700), 0)
    mask.paste(255, (300, 200, 500, 600))
    assert solid_corners(mask) == (300, 200, 500, 600)
    mask.paste(255, (700, 100, 760, 140))
    assert solid_corners(mask) == (300, 100, 760, 600)
    dust = Image.new("L", (1000, 700), 0)
    for x in range(0, 1000, 20):
        for y in range(0, 700, 20):
            dust.putpixel((x, y), 255)
    assert solid_corners(dust) == dust.getbbox()


def test_masks_that_cannot_be_cut_out_are_explained(folder, caplog):
    for number in range(2):
        draw_subject(folder / "toy", f"{number:02}", RED, (0, 20, 110, 140 - number))
    with caplog.at_level(logging.WARNING), pytest.raises(Problems, match="the warnings say why"):
        load(folder)
    assert "00.mask.png" in caplog.text and "cut off by the image's edge (left)" in caplog.text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (ImageOps.invert, "as if inverted"),
        (lambda mask: Image.merge("RGBA", [mask, mask, mask, ImageOps.invert(mask)]), "has transparent parts"),
        (lambda mask: Image.merge("RGB", [mask, mask, ImageOps.invert(mask)]), "is coloured"),
    ],
)
def test_masks_that_look_wrong_are_named(folder, change, words):
    path = folder / "toy" / "00.mask.png"
    change(Image.open(path)).save(path)
    assert words in warnings(folder, "num_images = 2")


@pytest.mark.parametrize("mode", ["1", "P", "RGB", "RGBA", "LA", "I;16"])
def test_masks_of_every_mode_are_the_same_mask(folder, mode):
    path = folder / "toy" / "00.mask.png"
    mask = Image.open(path)
    deep = mask.convert("I").point(lambda value: value * 257).convert("I;16")
    (deep if mode == "I;16" else mask.convert(mode)).save(path)
    assert "00.mask.png" not in warnings(folder, "num_images = 2")
    sample = next(s for s in load(folder, "num_images = 2").samples if s.picture.path.name == "00.png")
    assert sample.mask and sample.mask.read().tobytes() == mask.tobytes()
