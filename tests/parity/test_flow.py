"""Flow matching against independent formulas, diffusers' schedulers, and kohya's functions where they are."""

import argparse
import math
from statistics import NormalDist
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_loss_weighting_for_sd3

from tests.kohya_source import kohya_functions
from trainer.common.problems import Problems
from trainer.config import TrainConfig, parse_config
from trainer.flow import (
    LossSettings,
    TimestepSettings,
    add_noise,
    euler_sigmas,
    flux_mu,
    loss_weights,
    sample_losses,
    shift_sigmas,
    sigma_at_quantile,
    velocity_target,
)

TOKENS = 24 * 40
GRID = (np.arange(997) + 0.5) / 997  # symmetric, so falling functions of it have the same values as rising ones
SAMPLINGS = [
    {"timestep_sampling": "uniform"},
    {"timestep_sampling": "sigmoid"},
    {"timestep_sampling": "sigmoid", "sigmoid_scale": 1.7},
    {"timestep_sampling": "shift"},
    {"timestep_sampling": "shift", "discrete_flow_shift": 1.3, "sigmoid_scale": 0.6},
    {"timestep_sampling": "flux_shift"},
    {"timestep_sampling": "flux_shift", "sigmoid_scale": 2.0},
    {"timestep_sampling": "sigma"},
    {"timestep_sampling": "sigma", "discrete_flow_shift": 1.0},
    {"timestep_sampling": "sigma", "weighting_scheme": "logit_normal"},
    {"timestep_sampling": "sigma", "weighting_scheme": "logit_normal", "logit_mean": -0.5, "logit_std": 0.7},
    {"timestep_sampling": "sigma", "weighting_scheme": "mode"},
    {"timestep_sampling": "sigma", "weighting_scheme": "mode", "mode_scale": 0.8},
]
IDS = [" ".join(map(str, settings.values())) for settings in SAMPLINGS]


def timesteps(**settings) -> TimestepSettings:
    return TrainConfig(**settings).select(TimestepSettings)


def draws(settings: dict, **more) -> np.ndarray:
    sigmas = sigma_at_quantile(torch.from_numpy(GRID), timesteps(**settings, **more), TOKENS)
    assert sigmas.dtype == torch.float32 and sigmas.shape == GRID.shape
    return sigmas.numpy()


def formula(config: TimestepSettings, u: float) -> float:
    """One draw, in words of its own: from the uniform number to sigma in plain Python."""
    if config.timestep_sampling == "uniform":
        return u
    if config.timestep_sampling == "sigma":
        place = {
            "none": u,
            "logit_normal": 1 / (1 + math.exp(-NormalDist(config.logit_mean, config.logit_std).inv_cdf(u))),
            "mode": 1 - u - config.mode_scale * (math.cos(math.pi / 2 * u) ** 2 - 1 + u),
        }[config.weighting_scheme]
        timestep = 1000 - int(place * 1000)
        return 1 / (1 + (1000 / timestep - 1) / config.discrete_flow_shift)
    odds = math.exp(config.sigmoid_scale * NormalDist().inv_cdf(u))
    if config.timestep_sampling == "shift":
        odds *= config.discrete_flow_shift
    if config.timestep_sampling == "flux_shift":
        odds *= math.exp(0.5 + 0.65 * (TOKENS - 256) / 3840)
    return odds / (1 + odds)


def assert_same_distribution(ours: np.ndarray, theirs: np.ndarray, settings: dict) -> None:
    """Equal draws, but for a few that rounding puts one entry further in the table of `sigma`."""
    difference = np.abs(np.sort(ours) - np.sort(theirs))
    table = settings["timestep_sampling"] == "sigma"
    assert np.mean(difference < 2e-6) > (0.99 if table else 0.9999)
    assert difference.max() < (0.0031 if table else 2e-6)


@pytest.mark.parametrize("settings", SAMPLINGS, ids=IDS)
def test_draws_follow_their_formula(settings):
    ours, config = draws(settings), timesteps(**settings)
    assert_same_distribution(ours, np.array([formula(config, u) for u in GRID]), settings)
    assert np.all(np.diff(ours) >= 0), "a quantile function never falls"


class FixedDraws:
    """torch, but with given uniform numbers in place of random ones."""

    def __getattr__(self, name):
        return getattr(torch, name)

    def rand(self, *_, **__):
        return torch.from_numpy(GRID).float()

    def randn(self, *_, **__):
        return torch.special.ndtri(torch.from_numpy(GRID)).float()

    def normal(self, mean, std, **_):
        return mean + std * self.randn()


@pytest.mark.parametrize("settings", SAMPLINGS, ids=IDS)
def test_draws_are_kohyas(settings):
    names = ("get_noisy_model_input_and_timesteps", "time_shift", "get_lin_function", "get_sigmas")
    noisy_model_input, *_ = kohya_functions(
        "flux_train_utils.py", *names, "compute_density_for_timestep_sampling", torch=FixedDraws(), math=math
    )
    config = TrainConfig(**settings)
    args = argparse.Namespace(**{**vars(config), "ip_noise_gamma": None})
    scheduler = FlowMatchEulerDiscreteScheduler(1000, shift=config.discrete_flow_shift)
    latents, noise = torch.randn(2, len(GRID), 1, 48, 80)
    noisy, _, sigmas = noisy_model_input(args, scheduler, latents, noise, torch.device("cpu"), torch.float32)
    assert_same_distribution(draws(settings), sigmas.flatten().numpy(), settings)
    torch.testing.assert_close(add_noise(latents, noise, sigmas.flatten()), noisy)


@pytest.mark.parametrize("scheme", ["none", "logit_normal", "mode"])
def test_density_is_the_one_of_diffusers(scheme):
    """Against diffusers' own random draws: the two empirical distributions agree."""
    generator = torch.Generator().manual_seed(0)
    places = compute_density_for_timestep_sampling(scheme, 40_000, 0.3, 0.8, 1.29, "cpu", generator)
    settings = {"timestep_sampling": "sigma", "weighting_scheme": scheme, "logit_mean": 0.3, "logit_std": 0.8}
    ours = draws(settings, discrete_flow_shift=1.0)
    theirs = np.quantile(1 - places.numpy(), GRID)
    assert np.abs(ours - theirs).max() < 0.02


@pytest.mark.parametrize("shift", [1.0, 3.0, 3.158])
def test_table_of_sigmas_is_the_schedulers(shift):
    scheduler = FlowMatchEulerDiscreteScheduler(1000, shift=shift)
    config = timesteps(timestep_sampling="sigma", discrete_flow_shift=shift)
    middle_of_each = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    ours = sigma_at_quantile(middle_of_each, config, TOKENS)
    torch.testing.assert_close(ours.flip(0), scheduler.sigmas[:1000], rtol=1e-6, atol=0)


@pytest.mark.parametrize("settings", SAMPLINGS, ids=IDS)
@pytest.mark.parametrize(("low", "high"), [(200, 700), (0, 450), (600, 1000)])
def test_limits_cut_the_distribution_and_pile_nothing_up(settings, low, high):
    inside = draws(settings, min_timestep=low, max_timestep=high)
    assert low / 1000 <= inside.min() and inside.max() <= high / 1000
    config = timesteps(**settings)
    fine = np.array([formula(config, u) for u in (np.arange(10_000) + 0.5) / 10_000])
    kept = np.sort(fine[(fine >= low / 1000) & (fine <= high / 1000)])
    expected = np.quantile(kept, GRID, method="inverted_cdf")
    step = 0.004 if settings["timestep_sampling"] == "sigma" else 0.0005
    assert np.abs(inside - expected).max() < step + 2 * np.diff(kept).max()
    share_of_commonest = np.unique(inside, return_counts=True)[1].max() / len(inside)
    in_plain_draws = np.unique(kept.astype(np.float32), return_counts=True)[1].max() / len(kept)
    assert share_of_commonest <= in_plain_draws + 0.003


def test_every_scheme_stays_inside_at_the_ends():
    ends = torch.tensor([0.0, 1e-12, 1 - 1e-12, 1.0], dtype=torch.float64)
    for settings in SAMPLINGS:
        sigmas = sigma_at_quantile(ends, timesteps(**settings), TOKENS)
        assert bool(((sigmas >= 0) & (sigmas <= 1)).all())


@pytest.mark.parametrize("tokens", [256, 1024, 4096, 9000])
def test_shift_exponent_is_the_pipelines(tokens):
    assert flux_mu(tokens) == pytest.approx(calculate_shift(tokens), rel=1e-12)
    assert math.exp(flux_mu(4096)) == pytest.approx(3.158, abs=1e-3)


@pytest.mark.parametrize("steps", [1, 4, 28])
@pytest.mark.parametrize("tokens", [256, 1536, 4096])
def test_sampler_sigmas_are_the_schedulers(steps, tokens):
    line = np.linspace(1.0, 1 / steps, steps)
    dev = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    dev.set_timesteps(sigmas=line, mu=calculate_shift(tokens))
    torch.testing.assert_close(euler_sigmas(steps, tokens), dev.sigmas, rtol=1e-6, atol=1e-7)
    schnell = FlowMatchEulerDiscreteScheduler(shift=1.0)
    schnell.set_timesteps(sigmas=line)
    torch.testing.assert_close(euler_sigmas(steps, tokens, shifted=False), schnell.sigmas, rtol=1e-6, atol=1e-7)


def test_shift_of_the_sigmas_is_a_factor_on_their_odds():
    sigmas = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    shifted = shift_sigmas(sigmas, 2.5)
    torch.testing.assert_close(shifted / (1 - shifted), 2.5 * sigmas / (1 - sigmas))


def test_the_path_from_picture_to_noise_has_the_target_as_its_velocity():
    latents, noise = torch.randn(2, 3, 4, 6, 8, dtype=torch.float64)
    sigmas = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    noisy = add_noise(latents, noise, sigmas)
    torch.testing.assert_close(noisy[0], latents[0])
    torch.testing.assert_close(noisy[2], noise[2])
    moved = add_noise(latents, noise, sigmas + 1e-3)
    torch.testing.assert_close((moved - noisy) / 1e-3, velocity_target(latents, noise))


@pytest.mark.parametrize("scheme", ["none", "sigma_sqrt", "cosmap", "logit_normal", "mode"])
def test_loss_weights_are_those_of_diffusers(scheme):
    sigmas = torch.linspace(0.001, 1, 200)
    theirs = compute_loss_weighting_for_sd3(scheme, sigmas)
    torch.testing.assert_close(loss_weights(sigmas, scheme), theirs)
    assert torch.isfinite(loss_weights(torch.zeros(1), scheme)).all()


def loss_of_one(difference: float, sigma: float, config: LossSettings) -> float:
    if config.loss_type == "l2":
        return difference**2
    if config.loss_type == "l1":
        return abs(difference)
    c = config.huber_c * config.huber_scale
    if config.huber_schedule == "exponential":
        c = config.huber_scale * math.exp(math.log(config.huber_c) * sigma)
    value = 2 * (math.hypot(difference, c) - c)
    return value * c if config.loss_type == "huber" else value


LOSSES = [
    {"loss_type": "l2"},
    {"loss_type": "l1"},
    {"loss_type": "huber"},
    {"loss_type": "huber", "huber_schedule": "exponential", "huber_c": 0.05, "huber_scale": 1.5},
    {"loss_type": "smooth_l1", "huber_c": 0.3},
    {"loss_type": "smooth_l1", "huber_schedule": "exponential"},
]


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(5)
    prediction, target = torch.randn(2, 3, 2, 4, 4, generator=generator)
    return prediction, target, torch.tensor([0.1, 0.5, 0.95])


@pytest.mark.parametrize("settings", LOSSES)
def test_losses_follow_their_formula(settings, pair):
    prediction, target, sigmas = pair
    config = TrainConfig(**settings).select(LossSettings)
    ours = sample_losses(prediction, target, sigmas, config)
    expected = [
        np.mean([loss_of_one(float(d), float(sigma), config) for d in row.flatten()])
        for row, sigma in zip(prediction - target, sigmas, strict=True)
    ]
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-5)
    assert sample_losses(prediction.bfloat16(), target, sigmas, config).dtype == torch.float32


@pytest.mark.parametrize("settings", LOSSES)
def test_losses_are_kohyas(settings, pair):
    prediction, target, sigmas = pair
    config = TrainConfig(**settings).select(LossSettings)
    loss, threshold = kohya_functions(
        "train_util.py", "conditional_loss", "get_huber_threshold_if_needed", torch=torch, math=math
    )
    scheduler = SimpleNamespace(config=SimpleNamespace(num_train_timesteps=1000))
    c = threshold(argparse.Namespace(**vars(config)), sigmas * 1000, scheduler)
    theirs = loss(prediction, target, config.loss_type, "none", c).mean([1, 2, 3])
    torch.testing.assert_close(sample_losses(prediction, target, sigmas, config), theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("scale", [-1.0, 1.75])
def test_mode_never_folds_back_within_its_bounds(scale):
    """Past them the density would not be monotone and quantiles would mean nothing."""
    ours = draws({"timestep_sampling": "sigma", "weighting_scheme": "mode", "mode_scale": scale})
    assert np.all(np.diff(ours) >= 0)
    with pytest.raises(Problems, match="mode_scale"):
        parse_config(["--weighting_scheme=mode", f"--mode_scale={scale * 1.01}"])
