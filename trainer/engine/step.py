"""The gradient of one optimizer step: the loss of its batches, accumulated and summed over processes."""

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

REDUCE_ELEMENTS = 64 << 20  # gradients are summed over processes in pieces of this many numbers


@dataclass
class AdaptedModel:
    """The frozen transformer with its adapter, CLIP if it is trained too, and the settings of the run.

    config: the settings, with the memory plan's choices; parameters, alphas: the adapters', by their names in the LoRA
    file; process_index: of this process, from 0, so that each has its own dropout.
    """

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
        """Switch the adapters' dropouts on (True) or off. The base is left alone, so compiled blocks stay valid."""
        models = [model for model in (self.transformer, self.text_encoder) if model is not None]
        for module in (module for model in models for module in model.modules()):
            if isinstance(module, DownLinear):
                module.train(mode)

    def rotary(self, height: int, width: int, txt_length: int) -> RotaryTable:
        """The transformer's rotary table for latents of this height and width and a text of txt_length tokens.

        It is computed once for each shape.
        """
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
        """The text inputs of the transformer, on its device and in its dtype.

        txt: T5's hidden states [B, L, D]; pooled: CLIP's cached output [B, P]; txt_mask: [B, L] or None. If CLIP is
        trained, its output is computed from clip_ids [B, 77] instead of `pooled`.
        """
        if self.text_encoder is not None:
            assert clip_ids is not None
            pooled = self.text_encoder(clip_ids.to(self.device)).pooler_output
        return Conditioning(txt, pooled, txt_mask).to(self.device, self.dtype)

    def losses(self, batch: Batch) -> torch.Tensor:
        """The unweighted loss of each image of a batch on the device: [B] in float32, differentiable."""
        config = self.config
        noisy = add_noise(batch.latents, batch.noise, batch.sigmas).to(self.dtype)
        conditioning = self.conditioning(batch.txt, batch.pooled, batch.txt_mask, batch.clip_ids)
        height, width = noisy.shape[-2:]
        rotary = self.rotary(height, width, batch.txt.shape[1])

        target = velocity_target(batch.latents, batch.noise)
        if batch.preserve is not None:
            assert batch.preserved_rows is not None
            target = self._preserved(batch, batch.preserve, batch.preserved_rows, noisy, rotary, target)
        checkpointed = config.gradient_checkpointing or config.checkpoint_blocks or 0
        prediction = predict_velocity(
            self.transformer, noisy, batch.sigmas, conditioning, config.guidance_scale, rotary, checkpointed
        )
        return sample_losses(prediction, target, batch.sigmas, config.select(LossSettings), batch.loss_mask)

    def class_losses(self, batch: Batch) -> torch.Tensor:
        """How far the adapter moves what the model predicts for class words: [K] in float32, differentiable.

        For each row that has a caption with class words, it is the mean squared difference between the predictions with
        and without the adapter, for that caption and the row's noisy latents.
        """
        rows, txt, pooled = batch.class_rows, batch.class_txt, batch.class_pooled
        assert rows is not None and txt is not None and pooled is not None
        config, sigmas = self.config, batch.sigmas[rows]
        noisy = add_noise(batch.latents[rows], batch.noise[rows], sigmas).to(self.dtype)
        height, width = noisy.shape[-2:]
        rotary = self.rotary(height, width, txt.shape[1])
        text = Conditioning(txt, pooled, batch.class_mask).to(self.device, self.dtype)
        with torch.no_grad(), disabled_adapter(self.transformer):
            target = predict_velocity(self.transformer, noisy, sigmas, text, config.guidance_scale, rotary)
        text = self.conditioning(txt, pooled, batch.class_mask, batch.class_clip_ids)
        checkpointed = config.gradient_checkpointing or config.checkpoint_blocks or 0
        prediction = predict_velocity(
            self.transformer, noisy, sigmas, text, config.guidance_scale, rotary, checkpointed
        )
        return (prediction.float() - target.float()).square().flatten(1).mean(1)

    def _preserved(
        self,
        batch: Batch,
        preserve: torch.Tensor,
        rows: torch.Tensor,
        noisy: torch.Tensor,
        rotary: RotaryTable,
        target: torch.Tensor,
    ) -> torch.Tensor:
        """`target`, moved towards the base model's own prediction (without any adapter) by `preserve` [B, 1, H, W].

        Only images that preserve something are predicted. rows: [P] on the device, which of the batch they are.
        """
        text = Conditioning(batch.txt, batch.pooled, batch.txt_mask).to(self.device, self.dtype)
        with torch.no_grad(), disabled_adapter(self.transformer):
            predicted = predict_velocity(
                self.transformer, noisy[rows], batch.sigmas[rows], text.at(rows), self.config.guidance_scale, rotary
            )
        own = torch.zeros_like(target).index_copy(0, rows, predicted.to(target.dtype))
        return torch.lerp(target, own, preserve)


def batch_gradient(model: AdaptedModel, batch: Batch) -> torch.Tensor:
    """Run forward and backward on a batch: adds its gradient to `.grad` and returns its loss, a detached scalar.

    batch: on the model's device. The loss is the sum over images of loss times weight. Where images have captions with
    class words, the weighted `class_losses` are added, in a backward pass of their own, so that they need no memory at
    the same time.
    """
    weights = batch.weights * loss_weights(batch.sigmas, model.config.weighting_scheme)
    loss = (model.losses(batch) * weights).sum()
    loss.backward()
    if batch.class_rows is None:
        return loss.detach()
    kept = (model.class_losses(batch) * weights[batch.class_rows]).sum() * model.config.class_preservation_weight
    kept.backward()
    return loss.detach() + kept.detach()


def clear_gradients(parameters: Iterable[nn.Parameter], in_place: bool = False) -> None:
    """Free the gradients of `parameters`. in_place: zero them instead, for CUDA graphs that write to them."""
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
    num_images: int,
    step: int,
    gradient: Callable[[AdaptedModel, Batch], torch.Tensor] = batch_gradient,
) -> torch.Tensor:
    """Forward and backward over this process's share of a step's batches; gradients add up in `.grad`.

    batches: the first num_batches are taken from it; num_images: images in the step, those of other processes included,
    so that every image has the same weight and a smaller last step is divided by its true size; step: the number of the
    step, which seeds dropout; gradient: `batch_gradient`, or the same recorded as CUDA graphs. Returns this process's
    share of the mean loss, a scalar on the device.
    """
    total = torch.zeros((), device=model.device)
    for index, batch in enumerate(islice(batches, num_batches)):
        batch = batch.to(model.device)
        torch.manual_seed(derive_seed(model.config.seed, "dropout", step, index, model.process_index))
        total += gradient(model, replace(batch, weights=batch.weights / num_images))
    return total


def sum_over_processes(parameters: Iterable[nn.Parameter], loss: torch.Tensor, accelerator: Accelerator) -> None:
    """Sum gradients and loss over the processes, in place and in float32; a process without a batch adds zeros."""
    if accelerator.num_processes == 1:
        return
    found = gradients_or_zeros(parameters)
    dist.all_reduce(loss)
    for piece in chunks(found, lambda gradient: gradient.dtype, REDUCE_ELEMENTS):
        flat, parts = flat_copies(piece)
        dist.all_reduce(flat)
        # in one call: a thousand launches would fill the device's queue, and the host would no longer be ahead
        torch._foreach_copy_(piece, parts)
