"""Pictures of scenes: what they show, that they are a pure function of the scene, and the fused kernel's numbers."""

import importlib.util
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mini.render import march as marching
from mini.render.backgrounds import PAINTERS
from mini.render.brushes import edge, smooth
from mini.render.geometry import geometry_of, ray_directions
from mini.render.march import distances, march
from mini.render.pictures import render
from mini.render.shade import MOODS, pool, tone
from mini.world.parts import MAX_PARTS, Part, part_table
from mini.world.scene import INDOORS, PLACES, Labels, Scene, SceneBatch, stack_scenes

UPRIGHT = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])  # a part's own z axis points up
BALL = Part(np.array([0.0, 0.7, 0.0]), (0.8, 0.06, 0.06), np.eye(3), rounding=0.6)
CONE = Part(np.array([0.0, 0.6, 0.0]), (0.1, 0.2, 0.8), UPRIGHT, (1, 1, 1), (0.4, 0.0, 0.5), 0.05, True, 0.0, 0.9)
RING = Part(np.array([0.0, 0.7, 0.3]), (0.9, 0.8, 0.1), np.eye(3), rounding=0.1, around=True, ring=0.4, metal=0.5)
BOX = Part(np.array([0.2, 0.5, 0.0]), (0.2, 0.8, 0.2), np.eye(3), (1.0, 0.8, 1.2), (0.3, 0.4, 0.2), 0.05)


def scene(place: str, *parts: Part, pitch: float = 0.2, elevation: float = 0.9) -> Scene:
    camera = np.array([0.2, pitch, 4.6, 0.0, 0.7, 0.0], np.float32)
    light = np.array([0.7, elevation, 0.5, 0.5], np.float32)
    phases = np.linspace(0.05, 0.75, 8, dtype=np.float32)
    return Scene(place, part_table(list(parts)), camera, light, phases, "", Labels(place, ()))


def batch(place: str, *parts: Part, **settings: float) -> SceneBatch:
    return stack_scenes([scene(place, *parts, **settings)])


def picture(place: str, *parts: Part, size: int = 32, supersampling: int = 1, **settings: float) -> torch.Tensor:
    return render(batch(place, *parts, **settings), size, supersampling)[0].float()


def test_pictures_have_the_size_asked_for_and_are_a_pure_function():
    two = stack_scenes([scene("desk", BALL), scene("desk", CONE)])
    first = render(two, 24, 2)
    assert first.shape == (2, 3, 24, 24)
    assert first.dtype == torch.uint8
    assert torch.equal(first, render(two, 24, 2))


def test_a_picture_does_not_depend_on_its_batch():
    alone = render(batch("meadow", CONE), 24, 1)[0]
    among_others = render(
        stack_scenes([scene("meadow", BALL), scene("meadow", CONE, BOX), scene("meadow", CONE)]), 24, 1
    )
    assert torch.equal(alone, among_others[2])


def test_supersampling_comes_near_the_mean_of_many_rays():
    many = picture("studio", BALL, RING, supersampling=8)
    errors = [(picture("studio", BALL, RING, supersampling=rays) - many).abs().mean() for rays in (1, 2, 3)]
    assert errors[0] > 1.5 * errors[1]
    assert errors[1] > errors[2]


@pytest.mark.parametrize("pitch", [0.05, 0.3])
def test_every_place_has_a_look_of_its_own(pitch):
    pictures = [picture(place, pitch=pitch) for place in PLACES]
    for index, one in enumerate(pictures):
        assert one.std() > 2  # not one flat colour
        assert all((one - other).abs().mean() > 8 for other in pictures[:index])
    assert set(PAINTERS) == set(MOODS) == set(PLACES)


@pytest.mark.parametrize("place", PLACES)
def test_phases_change_a_place(place):
    one = batch(place)
    other = replace(one, phases=(one.phases + 0.37) % 1)
    assert (render(one, 32, 1).float() - render(other, 32, 1).float()).abs().mean() > 1


@pytest.mark.parametrize("place", PLACES)
def test_backgrounds_are_smooth(place):
    """An autoencoder that sees eight pixels as one must be able to keep them: little is lost by blurring."""
    full = picture(place, size=256)
    small = torch.nn.functional.avg_pool2d(full[None], 4)
    again = torch.nn.functional.interpolate(small, scale_factor=4, mode="bicubic")[0]
    assert (full - again).square().mean().sqrt() < 11


def test_a_ball_is_round_red_and_hides_the_place():
    seen = picture("studio", BALL, size=64)
    changed = (seen - picture("studio", size=64)).abs().sum(0) > 60
    middle = seen[:, 30:34, 30:34].mean((1, 2))
    assert middle[0] > 2 * middle[1]
    assert changed[32, 32]
    wide = 2 * 0.6 / (2 * 0.32 * 4.6) * 64  # the ball's width in pixels, without perspective
    assert abs(int(changed[32].sum()) - wide) < 5


def test_the_nearer_solid_is_seen():
    near = replace(BALL, centre=np.array([0.1, 0.7, 0.9]), colour=(0.05, 0.1, 0.8), rounding=0.3)
    for parts in ((BALL, near), (near, BALL)):
        middle = picture("studio", *parts)[:, 15:19, 15:19].mean((1, 2))
        assert middle[2] > 2 * middle[0]


@pytest.mark.parametrize("place", PLACES)
def test_a_shadow_darkens_the_floor_on_the_side_away_from_the_light(place):
    geometry = geometry_of(batch(place, BALL, elevation=0.6), "cpu")
    surface = march(geometry, 48)
    shaded = (surface.part[0] < 0) & (surface.sunlight[0] < 0.2) & (surface.normal[0, 1] == 1)
    assert 20 < shaded.sum() < 48 * 48 / 4
    assert (torch.arange(48).repeat(48)[shaded]).float().mean() < 24  # the light comes from the right
    darker = picture(place, size=48, elevation=0.6) - picture(place, BALL, size=48, elevation=0.6)
    assert darker.mean(0).flatten()[shaded].mean() > 8


def test_distances_are_right_for_plain_solids_and_never_too_long_for_tapered_ones():
    def distance(part: Part, *point: float) -> float:
        solids = geometry_of(batch("desk", part), "cpu").solids[0, :1]
        return distances(torch.tensor(point)[:, None], solids).item()

    assert distance(BALL, 0.0, 0.7, 1.0) == pytest.approx(0.4, abs=1e-5)
    assert distance(RING, 0.4, 0.7, 0.3) == pytest.approx(-0.1, abs=1e-3)
    assert distance(BOX, 0.2, 1.2, 0.0) == pytest.approx(0.8 * (0.7 / 0.8 - 0.45), abs=1e-5)
    for height in (0.2, 0.5, 0.8, 1.0):
        width = (0.45) * (1 - 0.9 * (height - 0.05) / 1.1)
        assert 0 < distance(CONE, width + 0.3, height, 0.0) < 0.3


def test_the_bounds_hold_every_solid():
    geometry = geometry_of(batch("desk", BALL, CONE, RING, BOX), "cpu")
    points = torch.rand(3, 20000, generator=torch.Generator().manual_seed(0)) * 4 - 2
    inside = distances(points, geometry.solids[0, :4]).amin(0) < 0
    away = (points - geometry.bounds[0, :3, None]).norm(dim=0)
    assert inside.any()
    assert away[inside].max() <= geometry.bounds[0, 3]


def test_a_scene_without_solids_is_drawn():
    surface = march(geometry_of(batch("beach"), "cpu"), 16)
    assert (surface.part == -1).all()
    assert (surface.sunlight == 1).all()


def test_as_many_solids_as_there_can_be_are_drawn():
    tower = [replace(BALL, centre=np.array([0.0, 0.02 * n, 0.0]), rounding=0.2) for n in range(MAX_PARTS)]
    assert march(geometry_of(batch("desk", *tower), "cpu"), 32).part.max() == MAX_PARTS - 1


def test_marching_in_chunks_changes_nothing():
    geometry = geometry_of(stack_scenes([scene("kitchen", BALL, RING), scene("kitchen", CONE)]), "cpu")
    whole, chunked = march(geometry, 30), march(geometry, 30, rays_at_once=101)
    assert torch.equal(whole.part, chunked.part)
    for name in ("normal", "sunlight", "openness"):
        assert torch.allclose(getattr(whole, name), getattr(chunked, name), atol=1e-4)


def test_the_camera_looks_where_it_is_told():
    geometry = geometry_of(batch("desk"), "cpu")
    four = ray_directions(geometry.frame, torch.arange(4), 2).mean(1)
    towards = torch.tensor([0.0, 0.7, 0.0]) - geometry.frame[0, :3]
    assert torch.allclose(four / four.norm(), towards / towards.norm(), atol=1e-6)
    assert geometry.frame[0, 0] > 0  # a positive yaw stands to the right
    assert geometry_of(batch("beach"), "cpu").wall < geometry.wall
    assert "desk" in INDOORS


def test_brushes_and_tone():
    assert smooth(0, 1, torch.tensor([-1.0, 0.5, 2.0])).tolist() == [0, 0.5, 1]
    assert edge(torch.tensor([-1.0, 0.0, 1.0]), 0.5).tolist() == [0, 0.5, 1]
    values = tone(torch.linspace(0, 6, 100))
    assert (values.diff() >= 0).all()
    assert 0 <= values[0] < values[-1] <= 1
    rays = torch.arange(16.0).view(1, 16)
    assert pool(rays, 4).tolist() == [[2.5, 4.5, 10.5, 12.5]]


COMPARE = """
import sys

sys.path[:0] = ["tests/unit"]
from mini.render.fused import march_fused
from mini.render.geometry import geometry_of
from mini.render.march import march
from test_rendering import BALL, BOX, CONE, RING, batch, largest_difference
for place, parts in (("desk", (BALL, CONE)), ("beach", (RING, BOX))):
    geometry = geometry_of(batch(place, *parts), "cpu")
    parts_differ, most = largest_difference(march_fused(geometry, 20), march(geometry, 20))
    assert parts_differ == 0 and most < 1e-3, (place, parts_differ, most)
"""


def largest_difference(one: marching.Surface, other: marching.Surface) -> tuple[float, float]:
    """The share of rays that meet another part, and the largest difference of the rest."""
    same = one.part == other.part
    fields = [(one.normal - other.normal).abs().amax(1)]
    fields += [(getattr(one, name) - getattr(other, name)).abs() for name in ("sunlight", "openness")]
    return (~same).float().mean().item(), max(field[same].max().item() for field in fields)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.skipif(np.lib.NumpyVersion(np.__version__) >= "2.4.0", reason="Triton's interpreter needs an older NumPy")
def test_the_fused_kernel_agrees_under_tritons_interpreter():
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONDONTWRITEBYTECODE": "1"}
    root = Path(__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", COMPARE], cwd=root, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
