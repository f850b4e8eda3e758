"""Flow matching as FLUX was trained: timesteps, shift, noise, loss. Pure functions of tensors.

Convention: sigma in [0, 1], x_sigma = (1 - sigma) * x_0 + sigma * noise, velocity = noise - x_0
(rectified flow: Liu et al. 2022, Esser et al. 2024). The timestep given to the model is sigma.
"""

import math
from collections.abc import Callable

import torch

from trainer.config import TrainConfig

FLUX_BASE_SHIFT, FLUX_MAX_SHIFT = 0.5, 1.15  # mu at 256 and at 4096 image tokens
TABLE_SIZE = 1000  # sigmas in the table that timestep_sampling="sigma" indexes


def flux_mu(num_img_tokens: int, base_shift: float = FLUX_BASE_SHIFT, max_shift: float = FLUX_MAX_SHIFT) -> float:
    """FLUX's shift exponent: linear in the number of image tokens, 0.5 at 256 and 1.15 at 4096."""
    return base_shift + (max_shift - base_shift) * (num_img_tokens - 256) / (4096 - 256)


def shift_sigmas(sigmas: torch.Tensor, shift: float) -> torch.Tensor:
    """Move sigmas towards noise: shift * s / (1 + (shift - 1) * s) (Esser et al. 2024, eq. 23).

    FLUX's own form e^mu / (e^mu + 1/s - 1) is the same with shift = e^mu.
    """
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def sigma_at_quantile(quantiles: torch.Tensor, config: TrainConfig, num_img_tokens: int) -> torch.Tensor:
    """The sigma below which the given share of training draws falls.

    quantiles: values in (0, 1), any shape. Returns float32 of that shape. Every way of sampling
    timesteps is a monotone function of a uniform number, so one function serves the draws, their
    restriction to [min_timestep, max_timestep], and validation at fixed quantiles.
    """
    sampling = _sampling_function(config, num_img_tokens)
    quantiles = quantiles.double().clamp(1e-9, 1 - 1e-9)
    low, high = _quantile_range(sampling, config.min_timestep / 1000, config.max_timestep / 1000)
    sigmas = sampling(low + (high - low) * quantiles)
    return sigmas.clamp(config.min_timestep / 1000, config.max_timestep / 1000).float()


def _sampling_function(config: TrainConfig, num_img_tokens: int) -> Callable[[torch.Tensor], torch.Tensor]:
    def logistic_normal(u: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(config.sigmoid_scale * torch.special.ndtri(u))

    if config.timestep_sampling == "uniform":
        return lambda u: u
    if config.timestep_sampling == "sigmoid":
        return logistic_normal
    if config.timestep_sampling == "shift":
        return lambda u: shift_sigmas(logistic_normal(u), config.discrete_flow_shift)
    if config.timestep_sampling == "flux_shift":
        shift = math.exp(flux_mu(num_img_tokens))
        return lambda u: shift_sigmas(logistic_normal(u), shift)
    assert config.timestep_sampling == "sigma", config.timestep_sampling
    return lambda u: _table_sigma(_density(u, config), config.discrete_flow_shift)


def _density(u: torch.Tensor, config: TrainConfig) -> torch.Tensor:
    """The place in the table, counted from its noisy end, so falling with u (Esser et al. 2024, 3.1)."""
    if config.weighting_scheme == "logit_normal":
        return torch.sigmoid(config.logit_mean + config.logit_std * torch.special.ndtri(1 - u))
    if config.weighting_scheme == "mode":
        return 1 - u - config.mode_scale * (torch.cos(math.pi * u / 2) ** 2 - 1 + u)
    return 1 - u


def _table_sigma(position: torch.Tensor, shift: float) -> torch.Tensor:
    index = (position * TABLE_SIZE).floor().clamp(0, TABLE_SIZE - 1)
    return shift_sigmas((TABLE_SIZE - index) / TABLE_SIZE, shift)


def _quantile_range(
    sampling: Callable[[torch.Tensor], torch.Tensor], sigma_min: float, sigma_max: float
) -> tuple[float, float]:
    low = _quantile_of(sampling, sigma_min) if sigma_min > 0 else 0.0
    high = _quantile_of(sampling, sigma_max) if sigma_max < 1 else 1.0
    return low, high


def _quantile_of(sampling: Callable[[torch.Tensor], torch.Tensor], sigma: float) -> float:
    low, high = 0.0, 1.0
    for _ in range(60):  # bisection to the last bit of a double
        middle = (low + high) / 2
        below = float(sampling(torch.tensor(middle, dtype=torch.float64))) < sigma
        low, high = (middle, high) if below else (low, middle)
    return (low + high) / 2


def add_noise(latents: torch.Tensor, noise: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    """x_sigma of latents [B, C, H, W] and sigmas [B], in float32."""
    sigmas = sigmas.view(-1, 1, 1, 1)
    return (1 - sigmas) * latents + sigmas * noise


def velocity_target(latents: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """What the model has to predict at every sigma: noise - x_0."""
    return noise - latents


def loss_weights(sigmas: torch.Tensor, weighting_scheme: str) -> torch.Tensor:
    """The weight of each sample's loss, [B] (Esser et al. 2024, 3.1; as diffusers' SD3 training)."""
    if weighting_scheme == "sigma_sqrt":
        return sigmas.clamp_min(1e-4) ** -2.0
    if weighting_scheme == "cosmap":
        return 2 / (math.pi * (1 - 2 * sigmas + 2 * sigmas**2))
    return torch.ones_like(sigmas)


def sample_losses(
    prediction: torch.Tensor, target: torch.Tensor, sigmas: torch.Tensor, config: TrainConfig
) -> torch.Tensor:
    """The unweighted mean loss of each sample, [B], in float32.

    huber and smooth_l1 are kohya's pseudo-Huber forms (2c(sqrt(d^2 + c^2) - c), without the factor c
    for smooth_l1), their c constant or falling exponentially with the timestep.
    """
    difference = prediction.float() - target.float()
    if config.loss_type == "l2":
        values = difference.square()
    elif config.loss_type == "l1":
        values = difference.abs()
    else:
        c = _huber_c(sigmas, config).view(-1, *[1] * (difference.ndim - 1))
        values = 2 * ((difference.square() + c**2).sqrt() - c)
        values = values * c if config.loss_type == "huber" else values
    return values.flatten(1).mean(1)


def _huber_c(sigmas: torch.Tensor, config: TrainConfig) -> torch.Tensor:
    if config.huber_schedule == "exponential":
        return config.huber_c**sigmas * config.huber_scale
    return torch.full_like(sigmas, config.huber_c * config.huber_scale)


def euler_sigmas(num_steps: int, num_img_tokens: int, shifted: bool = True) -> torch.Tensor:
    """The sampler's sigmas from 1 to 0, [num_steps + 1]: a line, shifted for the picture's size."""
    sigmas = torch.linspace(1, 0, num_steps + 1, dtype=torch.float64)
    return (shift_sigmas(sigmas, math.exp(flux_mu(num_img_tokens))) if shifted else sigmas).float()
