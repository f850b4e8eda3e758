"""Flow matching as FLUX.1 is trained: noise, timesteps and their shift, the target, the loss.

Pure functions of tensors. Conventions (rectified flow: Liu et al. 2022, arXiv:2209.03003; Esser et al. 2024,
arXiv:2403.03206):

- x_0 are latents [B, C, H, W], noise is standard normal, sigma in [0, 1] says how noisy a sample is:
  x_sigma = (1 - sigma) * x_0 + sigma * noise.
- The model predicts the velocity d x_sigma / d sigma = noise - x_0.
- The timestep that the model sees is sigma; kohya's timesteps, 0 to 1000, are 1000 * sigma.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

FLUX_BASE_SHIFT, FLUX_MAX_SHIFT = 0.5, 1.15  # mu at 256 and at 4096 image tokens
TABLE_SIZE = 1000  # sigmas in the table that timestep_sampling="sigma" indexes

# the inverse distribution function of sigma: from quantiles in (0, 1), float64, to sigmas; it never falls
QuantileFunction = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class TimestepSettings:
    """How training timesteps are distributed; the field names are those of the settings.

    timestep_sampling: with n standard normal and u uniform in (0, 1),
        uniform     sigma = u
        sigmoid     sigma = sigmoid(sigmoid_scale * n)
        shift       the same, shifted by discrete_flow_shift (`shift_sigmas`)
        flux_shift  the same, shifted by e^mu, which depends on the image size (`flux_mu`)
        sigma       an entry of a table of 1000 sigmas shifted by discrete_flow_shift, at a random index
    weighting_scheme: the density of that index: logit_normal (with logit_mean and logit_std), mode (with mode_scale),
        or uniform for any other scheme.
    min_timestep, max_timestep: limits of 1000 * sigma; the distribution is cut there, so nothing accumulates at them.
    """

    timestep_sampling: Literal["flux_shift", "shift", "sigmoid", "uniform", "sigma"]
    sigmoid_scale: float
    discrete_flow_shift: float
    weighting_scheme: str
    logit_mean: float
    logit_std: float
    mode_scale: float
    min_timestep: int
    max_timestep: int


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """How the loss of a prediction is computed; the field names are those of the settings.

    huber_c: the threshold of huber and smooth_l1 between quadratic and linear; huber_schedule: "constant" uses huber_c,
    "exponential" huber_c^sigma; huber_scale: a factor of either. The formulas are those of `sample_losses`.
    """

    loss_type: Literal["l2", "l1", "huber", "smooth_l1"]
    huber_schedule: Literal["constant", "exponential"]
    huber_c: float
    huber_scale: float


# --- noise and target


def add_noise(latents: Tensor, noise: Tensor, sigmas: Tensor) -> Tensor:
    """Noisy latents (1 - sigma) * latents + sigma * noise, on a straight path (Liu et al. 2022).

    latents, noise: [B, C, H, W]; sigmas: [B], in [0, 1]. Returns [B, C, H, W].
    """
    sigmas = sigmas.view(-1, 1, 1, 1)
    return (1 - sigmas) * latents + sigmas * noise


def velocity_target(latents: Tensor, noise: Tensor) -> Tensor:
    """What the model should predict, at every sigma: noise - latents.

    latents, noise: any one shape, which is that of the result. Liu et al. 2022, eq. 1, with time running towards noise.
    """
    return noise - latents


# --- timesteps


def flux_mu(num_img_tokens: int, base_shift: float = FLUX_BASE_SHIFT, max_shift: float = FLUX_MAX_SHIFT) -> float:
    """FLUX's shift exponent mu: linear in the number of image tokens, base_shift at 256 and max_shift at 4096.

    From black-forest-labs/flux, `get_lin_function`. More tokens need more noise to hide the same image.
    """
    return base_shift + (max_shift - base_shift) * (num_img_tokens - 256) / (4096 - 256)


def shift_sigmas(sigmas: Tensor, shift: float) -> Tensor:
    """Move sigmas towards noise: shift * s / (1 + (shift - 1) * s) (Esser et al. 2024, eq. 23).

    sigmas: in [0, 1], any shape, kept. shift: above 0; 1 changes nothing, and below 1 moves them towards the image.
    FLUX's own form e^mu / (e^mu + 1/s - 1) is the same with shift = e^mu.
    """
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def sigma_at_quantile(quantiles: Tensor, settings: TimestepSettings, num_img_tokens: int) -> Tensor:
    """The sigma below which the given fraction of all training sigmas lies.

    quantiles: values in (0, 1), any shape; num_img_tokens: matters for flux_shift only. Returns float32 of the same
    shape. A uniformly random quantile gives a random training sigma, fixed quantiles give the sigmas of validation;
    because every way of sampling is a monotone function of the quantile, this also restricts sigmas to
    [min_timestep, max_timestep] / 1000 exactly.
    """
    sampling = _quantile_function(settings, num_img_tokens)
    sigma_min, sigma_max = settings.min_timestep / 1000, settings.max_timestep / 1000
    quantiles = quantiles.double().clamp(1e-9, 1 - 1e-9)
    low = _quantile_of(sampling, sigma_min) if sigma_min > 0 else 0.0
    high = _quantile_of(sampling, sigma_max) if sigma_max < 1 else 1.0
    sigmas = sampling(low + (high - low) * quantiles)
    return sigmas.clamp(sigma_min, sigma_max).float()


def _quantile_function(settings: TimestepSettings, num_img_tokens: int) -> QuantileFunction:
    def logistic_normal(u: Tensor) -> Tensor:
        return torch.sigmoid(settings.sigmoid_scale * torch.special.ndtri(u))

    if settings.timestep_sampling == "uniform":
        return lambda u: u
    if settings.timestep_sampling == "sigmoid":
        return logistic_normal
    if settings.timestep_sampling == "shift":
        return lambda u: shift_sigmas(logistic_normal(u), settings.discrete_flow_shift)
    if settings.timestep_sampling == "flux_shift":
        shift = math.exp(flux_mu(num_img_tokens))
        return lambda u: shift_sigmas(logistic_normal(u), shift)
    assert settings.timestep_sampling == "sigma", settings.timestep_sampling
    return lambda u: _table_sigma(_table_position(u, settings), settings.discrete_flow_shift)


def _table_position(u: Tensor, settings: TimestepSettings) -> Tensor:
    """The position in the table, 0 at its noisy end and 1 at its clean end, so it falls with u.

    logit_normal and mode are the densities of Esser et al. 2024, section 3.1.
    """
    if settings.weighting_scheme == "logit_normal":
        return torch.sigmoid(settings.logit_mean + settings.logit_std * torch.special.ndtri(1 - u))
    if settings.weighting_scheme == "mode":
        return 1 - u - settings.mode_scale * (torch.cos(math.pi * u / 2) ** 2 - 1 + u)
    return 1 - u


def _table_sigma(position: Tensor, shift: float) -> Tensor:
    index = (position * TABLE_SIZE).floor().clamp(0, TABLE_SIZE - 1)
    return shift_sigmas((TABLE_SIZE - index) / TABLE_SIZE, shift)


def _quantile_of(sampling: QuantileFunction, sigma: float) -> float:
    low, high = 0.0, 1.0
    for _ in range(60):  # bisection to the last bit of a double
        middle = (low + high) / 2
        below = float(sampling(torch.tensor(middle, dtype=torch.float64))) < sigma
        low, high = (middle, high) if below else (low, middle)
    return (low + high) / 2


# --- loss


def sample_losses(
    prediction: Tensor, target: Tensor, sigmas: Tensor, settings: LossSettings, mask: Tensor | None = None
) -> Tensor:
    """The mean loss of each sample, not yet weighted by timestep.

    prediction, target: [B, C, H, W]; sigmas: [B]. Returns [B], float32. With d = prediction - target:
        l2         d^2
        l1         |d|
        smooth_l1  2 * (sqrt(d^2 + c^2) - c)
        huber      2 * c * (sqrt(d^2 + c^2) - c)
    The last two are pseudo-Huber losses as in kohya's `conditional_loss`; c is `huber_c` times `huber_scale`, or
    with huber_schedule "exponential" huber_c^sigma times huber_scale.
    mask: [B, 1, H, W], multiplied with each element's loss. As in kohya's `apply_masked_loss` the mean is still over
    all elements, so a small mask makes a small loss.
    """
    difference = prediction.float() - target.float()
    if settings.loss_type == "l2":
        values = difference.square()
    elif settings.loss_type == "l1":
        values = difference.abs()
    else:
        c = _huber_threshold(sigmas, settings).view(-1, *[1] * (difference.ndim - 1))
        values = 2 * ((difference.square() + c**2).sqrt() - c)
        values = values * c if settings.loss_type == "huber" else values
    values = values if mask is None else values * mask
    return values.flatten(1).mean(1)


def _huber_threshold(sigmas: Tensor, settings: LossSettings) -> Tensor:
    if settings.huber_schedule == "exponential":
        return settings.huber_c**sigmas * settings.huber_scale
    return torch.full_like(sigmas, settings.huber_c * settings.huber_scale)


def loss_weights(sigmas: Tensor, weighting_scheme: str) -> Tensor:
    """The weight of each sample's loss; 1 for every scheme but sigma_sqrt and cosmap.

    sigmas: [B]. Returns [B]. sigma_sqrt is 1 / sigma^2, cosmap 2 / (pi * (1 - 2 sigma + 2 sigma^2)) (Esser et al.
    2024, section 3.1), both as in diffusers' `compute_loss_weighting_for_sd3`.
    """
    if weighting_scheme == "sigma_sqrt":
        return sigmas.clamp_min(1e-4) ** -2.0
    if weighting_scheme == "cosmap":
        return 2 / (math.pi * (1 - 2 * sigmas + 2 * sigmas**2))
    return torch.ones_like(sigmas)


# --- sampling images


def euler_sigmas(num_steps: int, num_img_tokens: int, shifted: bool = True) -> Tensor:
    """The sigmas that an Euler sampler visits, from 1 to 0: evenly spaced, then shifted for the image size.

    shifted: whether they are shifted; false for FLUX.1-schnell. Returns [num_steps + 1], float32.
    """
    sigmas = torch.linspace(1, 0, num_steps + 1, dtype=torch.float64)
    return (shift_sigmas(sigmas, math.exp(flux_mu(num_img_tokens))) if shifted else sigmas).float()
