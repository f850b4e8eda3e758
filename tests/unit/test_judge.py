"""The judge: it learns what is where in which colour, and its file says what it knows."""

import pytest
import torch
from torch.nn import functional as F

from trainer.common.files import write_safetensors
from trainer.common.problems import Problems
from trainer.sampling.judge import (
    Classes,
    Judge,
    Shape,
    Verdicts,
    judge_pictures,
    load_judge,
    save_judge,
    to_unit_range,
)

CLASSES = Classes(("square", "bar", "nothing"), ("red", "green", "blue"), ("dark", "light"), ("crossed", "dotted"))
SMALL = Shape(widths=(8, 16, 16, 24), depths=(0, 0, 1, 0), hidden=32)
SIDE = 64


def draw_squares(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pictures with a square at the left, a bar at the right or both, each in a colour, on a dark or light ground.

    Returns uint8 [n, 3, SIDE, SIDE], the colour of square and bar [n, 2] (-1: not there), and the ground [n].
    """
    generator = torch.Generator().manual_seed(seed)
    places = torch.randint(2, (count,), generator=generator)
    colours = torch.randint(3, (count, 2), generator=generator)
    absent = torch.randint(3, (count,), generator=generator)
    pictures = torch.zeros(count, 3, SIDE, SIDE, dtype=torch.uint8) + (60 + 100 * places)[:, None, None, None].byte()
    for index in range(count):
        if absent[index] < 2:
            colours[index, absent[index]] = -1
        top, left = torch.randint(0, 20, (2,), generator=generator).tolist()
        boxes = (slice(top, top + 12), slice(left, left + 12)), (slice(top, top + 24), slice(left + 30, left + 38))
        for colour, (rows, columns) in zip(colours[index].tolist(), boxes, strict=True):
            if colour >= 0:
                pictures[index, :, rows, columns] = 0
                pictures[index, colour, rows, columns] = 255
    return pictures, colours, places


@pytest.fixture(scope="module")
def trained() -> Judge:
    torch.manual_seed(0)
    judge = Judge(CLASSES, SMALL)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=5e-3)
    pictures, colours, places = draw_squares(512, seed=1)
    there = (colours >= 0).float()
    for step in range(120):
        index = torch.randint(512, (32,), generator=torch.Generator().manual_seed(step))
        logits = judge(to_unit_range(pictures[index]))
        kinds = F.binary_cross_entropy_with_logits(logits.kinds[:, :2], there[index])
        named = F.cross_entropy(logits.colours[:, :2].flatten(0, 1), colours[index].flatten(), ignore_index=-1)
        both = F.binary_cross_entropy_with_logits(logits.concepts[:, 0], there[index].prod(1))
        (kinds + named + both + F.cross_entropy(logits.places, places[index])).backward()
        optimizer.step()
        optimizer.zero_grad()
    return judge


def test_it_learns_kinds_colours_and_places(trained):
    pictures, colours, places = draw_squares(200, seed=2)
    verdicts = judge_pictures(trained, pictures)
    there = colours >= 0
    assert ((verdicts.kinds[:, :2] > 0.5) == there).float().mean() > 0.9
    assert (verdicts.colours[:, :2].argmax(2) == colours)[there].float().mean() > 0.85  # by chance 0.33
    assert (verdicts.places.argmax(1) == places).float().mean() > 0.95
    assert ((verdicts.concepts[:, 0] > 0.5) == there.all(1)).float().mean() > 0.85


def test_verdicts_are_probabilities_whatever_the_batch(trained):
    pictures, _, _ = draw_squares(7, seed=3)
    verdicts = judge_pictures(trained, pictures)
    shapes = [tuple(each.shape) for each in verdicts]
    assert shapes == [(7, 3), (7, 3, 3), (7, 2), (7, 2)]
    assert all(bool(((each >= 0) & (each <= 1)).all()) for each in verdicts)
    torch.testing.assert_close(verdicts.places.sum(1), torch.ones(7))
    for ours, theirs in zip(verdicts, judge_pictures(trained, pictures, batch=2), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_a_colour_is_that_of_its_kind(trained):
    """A red square beside a blue bar is not a blue square."""
    pictures, colours, _ = draw_squares(200, seed=4)
    differ = (colours >= 0).all(1) & (colours[:, 0] != colours[:, 1])
    named = judge_pictures(trained, pictures[differ]).colours[:, :2].argmax(2)
    assert (named == colours[differ]).all(1).float().mean() > 0.7  # by chance 0.11


def test_the_file_brings_everything_back(trained, tmp_path):
    path = tmp_path / "judge.safetensors"
    save_judge(path, trained)
    loaded = load_judge(path)
    assert (loaded.classes, loaded.shape) == (CLASSES, SMALL) and not loaded.training
    pictures, _, _ = draw_squares(32, seed=5)
    for ours, theirs in zip(judge_pictures(loaded, pictures), judge_pictures(trained, pictures), strict=True):
        torch.testing.assert_close(ours, theirs, atol=0.02, rtol=0)


def test_the_usual_judge_is_small(tmp_path):
    classes = Classes(tuple("abcdefghijklmnopqr"), tuple("abcdefghijkl"), tuple("abcdefghij"), ("x", "y"))
    save_judge(tmp_path / "judge.safetensors", Judge(classes))
    assert 1_000_000 < (tmp_path / "judge.safetensors").stat().st_size < 3_000_000


def test_files_that_are_no_judge_are_problems(tmp_path):
    other, damaged, short = (tmp_path / f"{name}.safetensors" for name in ("other", "damaged", "short"))
    write_safetensors(other, {"weight": torch.zeros(2)})
    write_safetensors(damaged, {"weight": torch.zeros(2)}, {"judge": "{}"})
    save_judge(short, Judge(CLASSES, SMALL))
    short.write_bytes(short.read_bytes()[:-8])
    told = {other: "is not a judge", damaged: "is corrupt", short: "truncated", tmp_path / "none": "cannot be read"}
    for path, words in told.items():
        with pytest.raises(Problems, match=words):
            load_judge(path)


def test_verdicts_keep_their_order():
    assert Verdicts._fields == ("kinds", "colours", "places", "concepts")
