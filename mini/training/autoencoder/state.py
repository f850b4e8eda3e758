"""The state of the autoencoder's training, in memory and on disk."""

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors import safe_open
from torch import Tensor

from mini.training.recipe import Recipe
from trainer.common.files import write_safetensors
from trainer.optim.ema import Ema

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass
class Training:
    """A training in progress. step: number of completed steps. folded_at: the step at which the latents' scale was
    folded in and the encoder frozen; None before that."""

    autoencoder: AutoencoderKL
    optimizer: torch.optim.AdamW
    ema: Ema
    step: int = 0
    folded_at: int | None = None

    @property
    def folded(self) -> bool:
        """Whether only the decoder is still trained."""
        return self.folded_at is not None

    @property
    def phase_start(self) -> int:
        """The step at which the current learning-rate schedule began."""
        return self.folded_at or 0

    def parameters(self) -> list[Tensor]:
        """The parameters that are still trained, in a fixed order."""
        return list(trained_parameters(self.autoencoder).values())

    @torch.no_grad()
    def take_over_averages(self) -> None:
        """Continue from the averaged weights."""
        for name, parameter in self.ema.parameters.items():
            parameter.copy_(self.ema.averages[name])

    def freeze_encoder(self, recipe: Recipe) -> None:
        """From now on train only the decoder, with a new optimizer and new averages."""
        self.autoencoder.encoder.requires_grad_(False)
        parameters = trained_parameters(self.autoencoder)
        self.optimizer, self.ema = _optimizer(parameters, recipe), Ema(parameters, recipe.autoencoder_ema)
        self.folded_at = self.step


def start(autoencoder: AutoencoderKL, recipe: Recipe) -> Training:
    """A new training that starts from the given weights."""
    parameters = trained_parameters(autoencoder.train())
    return Training(autoencoder, _optimizer(parameters, recipe), Ema(parameters, recipe.autoencoder_ema))


def trained_parameters(autoencoder: AutoencoderKL) -> dict[str, Tensor]:
    """The parameters that still learn, by name."""
    return {name: parameter for name, parameter in autoencoder.named_parameters() if parameter.requires_grad}


def save(training: Training, file: Path) -> None:
    """Write everything that the next step depends on, atomically."""
    tensors = {f"weights.{name}": value for name, value in training.autoencoder.state_dict().items()}
    tensors |= {f"averages.{name}": value for name, value in training.ema.state_dict().items()}
    for name, parameter in trained_parameters(training.autoencoder).items():
        moments = training.optimizer.state[parameter]
        tensors |= {f"{moment}.{name}": moments[moment] for moment in MOMENTS if moment in moments}
    numbers = {"step": str(training.step), "folded_at": str(training.folded_at)}
    write_safetensors(file, tensors, numbers)


@torch.no_grad()
def load(training: Training, recipe: Recipe, file: Path) -> None:
    """Restore a saved training into a new one, bit for bit."""
    with safe_open(file, framework="pt") as opened:
        numbers = opened.metadata()
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (it is no mapping)
    training.step = int(numbers["step"])
    training.autoencoder.load_state_dict(_under("weights.", tensors))
    if numbers["folded_at"] != "None":
        training.freeze_encoder(recipe)
        training.folded_at = int(numbers["folded_at"])
    training.ema.load_state_dict(_under("averages.", tensors))
    for name, parameter in trained_parameters(training.autoencoder).items():
        if f"{MOMENTS[0]}.{name}" not in tensors:
            continue
        done = torch.tensor(float(training.step - training.phase_start))
        moments = {moment: torch.empty_like(parameter).copy_(tensors[f"{moment}.{name}"]) for moment in MOMENTS}
        on_device = {"step": done.to(parameter.device) if parameter.is_cuda else done}
        training.optimizer.state[parameter] = on_device | moments


def _optimizer(parameters: dict[str, Tensor], recipe: Recipe) -> torch.optim.AdamW:
    values = list(parameters.values())
    fused = values[0].is_cuda
    return torch.optim.AdamW(values, lr=0.0, betas=recipe.autoencoder_betas, weight_decay=0.0, fused=fused)


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
