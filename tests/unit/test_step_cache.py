"""Sampling that skips steps: which are evaluated, how far off the others are, and that it says so."""

from itertools import pairwise

import pytest
import torch
from PIL import Image

from tests.parity.test_transformer import make_transformer
from trainer.__main__ import main
from trainer.flow import euler_sigmas
from trainer.models.transformer import Conditioning
from trainer.sampling.prompts import SamplePrompt
from trainer.sampling.sampler import sample_latents
from trainer.sampling.step_cache import StepCache

SIGMAS = euler_sigmas(20, 1024).tolist()


class Sampler:
    """Twenty Euler steps with a velocity that is a function of sigma alone."""

    def __init__(self, velocity, tolerance: float) -> None:
        self.cache, self.at = StepCache(tolerance, 20), []
        self.x = torch.ones(1, 4)
        for sigma, following in pairwise(SIGMAS):

            def evaluate(sigma=sigma) -> torch.Tensor:
                self.at.append(sigma)
                return torch.full((1, 4), float(velocity(sigma)))

            self.x = self.x + (following - sigma) * self.cache.velocity(sigma, self.x, evaluate)


def test_a_velocity_that_is_linear_in_sigma_is_extrapolated_exactly():
    complete, skipping = (Sampler(lambda sigma: 3 + 2 * sigma, tolerance) for tolerance in (1e-9, 0.3))
    assert complete.cache.evaluated == 20 and complete.cache.error == 0
    assert skipping.cache.evaluated == len(skipping.at) < 12
    torch.testing.assert_close(skipping.x, complete.x, rtol=1e-5, atol=1e-6)
    assert skipping.cache.error < 1e-5


def test_the_first_steps_and_the_last_are_evaluated():
    found = Sampler(lambda _sigma: 1.0, tolerance=100.0)  # which never changes
    assert found.at == [*SIGMAS[:3], SIGMAS[19]] and found.cache.evaluated == 4


def test_where_nothing_moves_or_a_number_is_not_finite_all_steps_are_evaluated():
    assert Sampler(lambda _sigma: 0.0, tolerance=100.0).cache.evaluated == 20
    assert Sampler(lambda _sigma: float("nan"), tolerance=100.0).cache.evaluated == 20


def test_the_error_is_what_the_extrapolation_missed():
    def bent(sigma: float) -> float:
        return 1.0 if sigma > 0.5 else 2.0

    found = Sampler(bent, tolerance=100.0)
    assert found.cache.error == pytest.approx(0.5)  # the last step: 1 was expected, 2 is right
    assert found.cache.summary == "4 of 20 steps evaluated, velocities off by at most 50.0%"


def test_more_tolerance_evaluates_less_and_errs_more():
    runs = [Sampler(lambda sigma: 1 + sigma**3, tolerance) for tolerance in (0.02, 0.1, 0.5)]
    assert 20 > runs[0].cache.evaluated > runs[1].cache.evaluated > runs[2].cache.evaluated
    assert runs[0].cache.error < runs[1].cache.error < runs[2].cache.error


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_the_sampler_evaluates_what_the_cache_asks_for(cfg):
    """With cfg both texts are skipped together; a cache that skips nothing changes nothing."""
    transformer, calls = make_transformer(), []
    transformer.transformer_blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    prompt = SamplePrompt("", width=96, height=64, steps=12, cfg=cfg)
    texts = [Conditioning(torch.randn(1, 5, 24), torch.randn(1, 20)) for _ in range(2)]
    negative = texts[1] if cfg > 1 else None
    complete = sample_latents(transformer, prompt, 1, texts[0], negative)
    assert torch.equal(sample_latents(transformer, prompt, 1, texts[0], negative, StepCache(1e-9, 12)), complete)
    calls.clear()
    cache = StepCache(0.5, 12)
    found = sample_latents(transformer, prompt, 1, texts[0], negative, cache)
    assert cache.evaluated < 12 and len(calls) == cache.evaluated * (2 if negative else 1)
    assert 0 < float((found - complete).norm() / complete.norm()) < 0.2


def test_an_image_says_how_it_was_sampled(tiny_flux, tmp_path):
    names = ("clip_l", "t5xxl", "ae", "tokenizer_dir")
    files = {"pretrained_model_name_or_path": tiny_flux.transformer} | {
        name: getattr(tiny_flux, name) for name in names
    }
    size = {"t5xxl_max_token_length": 16, "mixed_precision": "no", "width": 64, "height": 64, "steps": 12}
    words = {
        "pretrained_model_name_or_path": tiny_flux.transformer,
        **files,
        **size,
        "prompt": "a toy",
        "output": tmp_path / "out",
        "step_cache": 0.5,
    }
    assert main(["sample", *(f"--{name}={value}" for name, value in words.items())]) == 0
    (path,) = (tmp_path / "out").glob("*.png")
    assert "of 12 steps evaluated, velocities off by at most" in Image.open(path).info["step_cache"]
