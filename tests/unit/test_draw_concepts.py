"""The pictures of the two example concepts: the drawing program at a very small scale."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import draw_concepts
from concept_art import designs, shapes
from concept_art.render import Scene, distance, draw, march, openness


def pictures() -> list[draw_concepts.Picture]:
    return [*draw_concepts.toy_pictures(), *draw_concepts.card_pictures()]


def test_six_toys_and_seven_cards_of_differing_sizes():
    names = [picture.name for picture in pictures()]
    assert len(set(names)) == 13
    assert sum(name.startswith("tjtoy/") for name in names) == 6
    assert sum(name.startswith("sparkgpu/") for name in names) == 7
    assert {Path(name).suffix for name in names} == {".png", ".jpg"}
    assert len({(picture.width, picture.height) for picture in pictures()}) >= 5
    assert all(0.7e6 < picture.width * picture.height < 1.2e6 for picture in pictures())


@pytest.mark.parametrize("picture", [draw_concepts.toy_pictures()[3], draw_concepts.card_pictures()[6]])
def test_the_same_scene_gives_the_same_picture(picture):
    scene = Scene(picture.shapes, picture.place, picture.camera)
    one, two = (draw(scene, 20, 16, edge_rays=1) for _ in range(2))
    assert one.shape == (3, 16, 20)
    assert torch.equal(one, two)
    assert one.min() >= 0
    assert one.max() <= 1
    assert one.std() > 0.05


def test_a_picture_shows_its_subject(tmp_path):
    """Orange head left of the eye, teal egg beside its belly patch."""
    draw_concepts.main(["--out", str(tmp_path), "--scale", "0.04", "--only", "tjtoy/01", "--threads", "1"])
    with Image.open(tmp_path / "tjtoy" / "01_studio.png") as picture:
        values = np.asarray(picture).astype(float)
    height, width, _ = values.shape
    assert (height, width) == (41, 41)
    red, _, blue = values[int(height * 0.42), int(width * 0.39)]
    assert red > 1.5 * blue
    red, green, _ = values[int(height * 0.57), int(width * 0.43)]
    assert green > 1.5 * red


def test_checked_in_pictures_have_the_sizes_of_the_program():
    root = Path(__file__).parents[2] / "flux_data"
    for picture in pictures():
        with Image.open(root / picture.name) as image:
            image.load()
            assert image.size == (picture.width, picture.height)
            assert image.mode == "RGB"


@pytest.mark.parametrize(
    ("field", "inside", "outside", "gap"),
    [
        (shapes.ball(0.5), (0, 0, 0.2), (0, 2, 0), 1.5),
        (shapes.box(0.5, 0.4, 0.3, 0.1), (0.3, 0, 0), (2, 0, 0), 1.5),
        (shapes.cylinder(0.5, 0.2, 0.05), (0.2, 0.2, 0.1), (0, 0, 1), 0.8),
        (shapes.ring(1.0, 0.2), (1, 0, 0.1), (0, 0, 0), 0.8),
        (shapes.round_cone(0.4, 0.2, 0.5), (0, 0.3, 0), (0, 1, 0), 0.3),
        (shapes.prism([(0, 0), (1, 0), (1, 1), (0, 1)], 0.2, 0.01), (0.5, 0.5, 0), (0.5, -1, 0), 0.99),
    ],
)
def test_distances(field, inside, outside, gap):
    points = torch.tensor([inside, outside], dtype=torch.float32).T
    near, far = field(points).tolist()
    assert near < 0
    assert far == pytest.approx(gap, abs=1e-4)


@pytest.mark.parametrize("concept", [designs.tjtoy(), designs.sparkgpu()])
def test_reach_holds_the_shape(concept):
    """Tiles skip shapes by their reach, so no surface may lie outside it."""
    generator = torch.Generator().manual_seed(0)
    rays = torch.nn.functional.normalize(torch.randn(3, 2000, generator=generator), dim=0)
    for part in concept:
        for factor in (1.02, 1.2, 1.6):
            skin = part.centre[:, None] + rays * part.reach * factor
            assert (part.distance(skin) > 0).all()


def test_a_ray_stops_at_the_surface_and_a_corner_is_dark():
    ball = shapes.shape(shapes.ball(0.5), 0.5, designs.TEAL, (0, 0.5, 0))
    origins = torch.tensor([[0.0, 3.0], [0.5, 0.5], [5.0, 5.0]])
    directions = torch.tensor([[0.0, 0.0], [0.0, 0.0], [-1.0, -1.0]])
    travel, hit = march([ball], origins, directions, torch.full((2,), 20.0))
    assert hit.tolist() == [True, False]
    assert travel[0].item() == pytest.approx(4.5, abs=1e-3)
    floor = torch.tensor([[0.05, 2.0], [0.0, 0.0], [0.0, 0.0]])
    up = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    close, away = openness([ball], floor, up).tolist()
    assert close < 0.5 < away
    assert distance([ball], floor)[1].item() == pytest.approx((4 + 0.25) ** 0.5 - 0.5, abs=1e-4)
