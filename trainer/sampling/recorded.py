"""Sampling steps as CUDA graphs: one forward pass is recorded, then replayed for every step of every image."""

import logging
from collections.abc import Hashable

import torch
from diffusers import FluxTransformer2DModel

from trainer.models.transformer import Conditioning, RotaryTable, predict_velocity

log = logging.getLogger(__name__)
Inputs = dict[str, torch.Tensor]


class RecordedVelocity:
    """Computes `predict_velocity` without gradients, from its third call with inputs of one shape on as a CUDA graph.

    The first two calls compile and allocate. If recording fails, kernels are launched as before, and the log says why.
    It belongs to one transformer on a GPU, whose weights and adapters have to stay at their addresses. Call it in
    inference mode, as `denoising_steps` does. The caller owns what it returns.
    """

    def __init__(self, runs_before: int = 2) -> None:
        self.runs_before = runs_before
        self.is_broken = False
        self._runs: dict[Hashable, int] = {}
        self._recorded: dict[Hashable, tuple[torch.cuda.CUDAGraph, Inputs, torch.Tensor]] = {}

    def __call__(
        self,
        transformer: FluxTransformer2DModel,
        noisy: torch.Tensor,
        sigmas: torch.Tensor,
        conditioning: Conditioning,
        guidance: float,
        rotary: RotaryTable,
    ) -> torch.Tensor:
        """The velocity [B, C, H, W]; the arguments are those of `predict_velocity`."""
        inputs = _by_name(noisy, sigmas, conditioning, rotary)
        kind = (guidance, *((name, tensor.shape, tensor.dtype) for name, tensor in inputs.items()))
        if kind not in self._recorded and not self.is_broken:
            self._runs[kind] = self._runs.get(kind, 0) + 1
            if self._runs[kind] > self.runs_before:
                self._try_to_record(transformer, inputs, guidance, kind)
        if kind not in self._recorded:
            return predict_velocity(transformer, noisy, sigmas, conditioning, guidance, rotary)
        graph, own, velocity = self._recorded[kind]
        for name, tensor in inputs.items():
            own[name].copy_(tensor, non_blocking=True)
        graph.replay()
        return velocity.clone()

    def _try_to_record(
        self, transformer: FluxTransformer2DModel, inputs: Inputs, guidance: float, kind: Hashable
    ) -> None:
        try:
            self._recorded[kind] = _record(transformer, inputs, guidance)
        except RuntimeError as reason:  # out of memory too
            self.is_broken = True
            log.warning("CUDA graph capture failed, running eagerly: %s", str(reason).strip().partition("\n")[0])


def _by_name(noisy: torch.Tensor, sigmas: torch.Tensor, text: Conditioning, rotary: RotaryTable) -> Inputs:
    named = {"noisy": noisy, "sigmas": sigmas, "txt": text.txt, "pooled": text.pooled, "txt_mask": text.txt_mask}
    named |= {"cosines": rotary[0], "sines": rotary[1]}
    return {name: tensor for name, tensor in named.items() if tensor is not None}


def _record(
    transformer: FluxTransformer2DModel, inputs: Inputs, guidance: float
) -> tuple[torch.cuda.CUDAGraph, Inputs, torch.Tensor]:
    """A graph, the tensors that it reads, and the one that it writes."""
    own = {name: tensor.clone() for name, tensor in inputs.items()}
    text = Conditioning(own["txt"], own["pooled"], own.get("txt_mask"))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        rotary = own["cosines"], own["sines"]
        velocity = predict_velocity(transformer, own["noisy"], own["sigmas"], text, guidance, rotary)
    return graph, own, velocity
