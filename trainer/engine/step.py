"""One optimizer step: the gradient of a group of micro-batches, summed over processes."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import islice

import torch
import torch.distributed as dist
from accelerate import Accelerator
from diffusers import FluxTransformer2DModel
from torch import nn

from trainer.common.rng import derive_seed
from trainer.config import TrainConfig
from trainer.data.batches import Batch
from trainer.flow import LossSettings, add_noise, loss_weights, sample_losses, velocity_target
from trainer.lora.adapter import DownLinear, adapter_alphas, adapter_parameters, disabled_adapter
from trainer.models.transformer import Conditioning, RotaryTable, predict_velocity, rotary_table
from trainer.optim.foreach import chunks, flat_copies, gradients, gradients_or_zeros, with_gradient

REDUCE_ELEMENTS = 64 << 20  # gradients travel between processes in pieces of this many numbers


@dataclass
class AdaptedModel:
    """The frozen transformer with its adapter, CLIP too when it is trained, and what they were told to do."""

    config: TrainConfig
    transformer: FluxTransformer2DModel
    text_encoder: nn.Module | None = None
    process_index: int = 0

    def __post_init__(self) -> None:
        self.parameters: dict[str, nn.Parameter] = adapter_parameters(self.transformer, self.text_encoder)
        self.alphas: dict[str, float] = adapter_alphas(self.transformer, self.text_encoder)
        self.device = self.transformer.device
        self.dtype = self.transformer.x_embedder.weight.dtype
        self._rotary: dict[tuple[int, int, int], RotaryTable] = {}

    def train(self, mode: bool = True) -> None:
        """Switch the dropouts of the adapters on or off; compiled blocks stay valid, as the base stays as loaded."""
        models = [model for model in (self.transformer, self.text_encoder) if model is not None]
        for module in (module for model in models for module in model.modules()):
            if isinstance(module, DownLinear):
                module.train(mode)

    def rotary(self, height: int, width: int, txt_length: int) -> RotaryTable:
        """The rotary table of a latent shape, made once."""
        shape = (height, width, txt_length)
        if shape not in self._rotary:
            self._rotary[shape] = rotary_table(self.transformer, *shape, self.device)
        return self._rotary[shape]

    def conditioning(
        self,
        txt: torch.Tensor,
        pooled: torch.Tensor,
        txt_mask: torch.Tensor | None,
        clip_ids: torch.Tensor | None,
    ) -> Conditioning:
        """Text on the device in the compute dtype; where CLIP is trained it reads clip_ids [B, 77] afresh."""
        if self.text_encoder is not None:
            assert clip_ids is not None
            pooled = self.text_encoder(clip_ids.to(self.device)).pooler_output
        return Conditioning(txt, pooled, txt_mask).to(self.device, self.dtype)

    def losses(self, batch: Batch) -> torch.Tensor:
        """The unweighted loss of each sample, [B], float32, with its graph."""
        config = self.config
        noisy = add_noise(batch.latents, batch.noise, batch.sigmas).to(self.dtype)
        conditioning = self.conditioning(batch.txt, batch.pooled, batch.txt_mask, batch.clip_ids)
        height, width = noisy.shape[-2:]
        rotary = self.rotary(height, width, batch.txt.shape[1])

        target = velocity_target(batch.latents, batch.noise)
        if batch.preserve is not None:
            target = self._preserved(batch, batch.preserve, noisy, rotary, target)
        checkpointed = config.gradient_checkpointing or config.checkpoint_blocks or 0
        prediction = predict_velocity(
            self.transformer, noisy, batch.sigmas, conditioning, config.guidance_scale, rotary, checkpointed
        )
        return sample_losses(prediction, target, batch.sigmas, config.select(LossSettings))

    def _preserved(
        self, batch: Batch, preserve: torch.Tensor, noisy: torch.Tensor, rotary: RotaryTable, target: torch.Tensor
    ) -> torch.Tensor:
        """`target`, and the base model's own prediction, without its and CLIP's adapter, where `preserve` is 1.

        A CPU predicts those pictures alone. A GPU predicts the batch: choosing would wait for the GPU, and make
        batches of other sizes.
        """
        text = Conditioning(batch.txt, batch.pooled, batch.txt_mask).to(self.device, self.dtype)
        rows = preserve.nonzero().flatten() if self.device.type == "cpu" else slice(None)
        with torch.no_grad(), disabled_adapter(self.transformer):
            predicted = predict_velocity(
                self.transformer, noisy[rows], batch.sigmas[rows], text.at(rows), self.config.guidance_scale, rotary
            )
        own = torch.zeros_like(target)
        own[rows] = predicted.to(own.dtype)
        return torch.where(preserve.view(-1, 1, 1, 1) > 0, own, target)


def batch_gradient(model: AdaptedModel, batch: Batch) -> torch.Tensor:
    """Add the gradient of a batch on the device to `.grad`; returns its loss, the sum over pictures, weighted."""
    weights = batch.weights * loss_weights(batch.sigmas, model.config.weighting_scheme)
    loss = (model.losses(batch) * weights).sum()
    loss.backward()
    return loss.detach()


def clear_gradients(parameters: Iterable[nn.Parameter], in_place: bool = False) -> None:
    """Forget the gradients of a step that is done. in_place: as zeros where they are, for what writes there again."""
    reached = with_gradient(parameters)
    if in_place:
        torch._foreach_zero_(gradients(reached))
        return
    for parameter in reached:
        parameter.grad = None


def accumulate_gradients(
    model: AdaptedModel,
    batches: Iterable[Batch],
    num_batches: int,
    num_pictures: int,
    step: int,
    gradient: Callable[[AdaptedModel, Batch], torch.Tensor] = batch_gradient,
) -> torch.Tensor:
    """Run this process's share of a group; gradients add up in `.grad`.

    num_batches: how many of `batches` belong to the group; num_pictures: pictures in the whole group,
    those of other processes included, so that each picture weighs the same and a smaller last group
    is divided by its true size; gradient: `batch_gradient`, or the same recorded. Returns this process's
    share of the group's mean loss, a scalar on the device.
    """
    total = torch.zeros((), device=model.device)
    for index, batch in enumerate(islice(batches, num_batches)):
        batch = batch.to(model.device)
        torch.manual_seed(derive_seed(model.config.seed, "dropout", step, index, model.process_index))
        total += gradient(model, replace(batch, weights=batch.weights / num_pictures))
    return total


def sum_over_processes(parameters: Iterable[nn.Parameter], loss: torch.Tensor, accelerator: Accelerator) -> None:
    """Add up gradients and loss over the processes, in place and in float32; a process without a batch adds zeros."""
    if accelerator.num_processes == 1:
        return
    found = gradients_or_zeros(parameters)
    dist.all_reduce(loss)
    for piece in chunks(found, lambda gradient: gradient.dtype, REDUCE_ELEMENTS):
        flat, parts = flat_copies(piece)
        dist.all_reduce(flat)
        # all at once: a thousand launches fill the device's queue, and the host is no longer ahead for the rest
        torch._foreach_copy_(piece, parts)
