"""The fused kernel on the GPU: the same pictures as the plain march, and how many a second."""

import time

import pytest
import torch

from mini.render.geometry import geometry_of
from mini.render.march import march
from mini.render.pictures import render
from mini.world.scene import PLACES, SceneBatch, stack_scenes
from mini.world.scenes import random_scene

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: run `make test` on one"),
]


def scenes(place: str, count: int) -> SceneBatch:
    return stack_scenes([random_scene(0, index, place) for index in range(count)])


@pytest.mark.parametrize("place", PLACES)
def test_the_fused_kernel_draws_what_the_plain_march_draws(place):
    from mini.render.fused import march_fused  # needs Triton

    geometry = geometry_of(scenes(place, 4), "cuda")
    fused, plain = march_fused(geometry, 128), march(geometry, 128)
    same = fused.part == plain.part
    assert same.float().mean() > 0.999
    for name, most in (("normal", 2e-3), ("sunlight", 2e-3), ("openness", 1e-3)):
        difference = (getattr(fused, name) - getattr(plain, name)).abs()
        assert difference.mean() < most, name


@pytest.mark.parametrize("place", PLACES)
def test_the_gpu_draws_what_the_cpu_draws(place):
    batch = scenes(place, 2)
    difference = render(batch, 64, 2, "cuda").cpu().float() - render(batch, 64, 2).float()
    assert difference.abs().mean() < 0.25  # of 255


def test_sides_that_are_no_multiple_of_a_tile():
    assert render(scenes("desk", 2), 37, 3, "cuda").shape == (2, 3, 37, 37)


def test_rate(capsys):
    batches = [scenes(place, 64) for place in PLACES]
    render(batches[0], device="cuda")
    torch.cuda.synchronize()
    started = time.perf_counter()
    for batch in batches:
        render(batch, device="cuda")
    torch.cuda.synchronize()
    rate = 64 * len(batches) / (time.perf_counter() - started)
    with capsys.disabled():
        print(f" {rate:.0f} pictures/s at 256 px, 2x2 rays a pixel, on {torch.cuda.get_device_name()} ")
    assert rate > 500
