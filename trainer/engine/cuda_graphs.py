"""Gradients as CUDA graphs: the kernels of one kind of batch are recorded once, then replayed by a single call.

Forward and backward of one image at FLUX's size take about eleven thousand kernels. Launching them one by one takes the
host longer than a fast GPU takes to run them. A replay launches the same kernels on the same memory, so the host only
has to copy the batch to the addresses at which it was recorded.

A graph is bound to the addresses of weights, adapters and gradients. Gradients are therefore zeroed and not freed
between steps. Activations of all graphs share one memory pool.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import psutil
import torch

from trainer.common.devices import free_memory
from trainer.config import TrainConfig
from trainer.data.batches import Batch
from trainer.data.dataset import Draw
from trainer.engine.step import AdaptedModel, batch_gradient
from trainer.lora.adapter import DownLinear
from trainer.memory.bytes import MIN_GRAPH_RESERVE
from trainer.models.offload import BlockSwap, block_swap
from trainer.models.weights import shares_host_memory
from trainer.optim.foreach import gradients_or_zeros, with_gradient

log = logging.getLogger(__name__)
RUNS_BEFORE = 2  # eager runs of a kind of batch before recording: the first compiles, both allocate what remains
PATIENCE = 200  # batches after which recording no longer waits for kinds that are rare or have not occurred yet
Kind = tuple[Any, ...]


class Recorded(Protocol):
    """A gradient computation recorded as a CUDA graph; call it with a batch of the shapes it was recorded with.

    Adds the gradient to `.grad` and returns the batch's loss, a scalar that the next call may overwrite.
    """

    def __call__(self, batch: Batch) -> torch.Tensor: ...


Record = Callable[[AdaptedModel, Batch, Any], Recorded]


class GradientGraphs:
    """Computes gradients as `batch_gradient` does, but by replaying CUDA graphs once every kind of batch has run.

    num_kinds: number of kinds of batches (shapes and tensors) in the run; record: records the gradient of one kind,
    given the model, a batch and the handle of the shared memory pool; free: bytes free on a device. If recording fails
    or leaves too little memory, batches keep running eagerly, and the log says why.
    """

    def __init__(
        self,
        num_kinds: int,
        record: Record | None = None,
        free: Callable[[torch.device], int] | None = None,
    ):
        self.num_kinds = num_kinds
        self.is_broken = False
        self.is_settled = False  # whether batches run at their final speed
        self._record, self._free = record or record_gradient, free or free_device_bytes
        self._recorded: dict[Kind, Recorded] = {}
        self._runs: Counter[Kind] = Counter()
        self._reached: dict[torch.Tensor, None] = {}
        self._pool: Any = None
        self._was_announced = False

    def __call__(self, model: AdaptedModel, batch: Batch) -> torch.Tensor:
        """Add the batch's gradient to `.grad`; returns its weighted loss, like `batch_gradient`."""
        kind = kind_of(batch)
        if kind not in self._recorded and self._may_record(kind):
            self._try_to_record(model, batch, kind)
        all_recorded = 0 < len(self._runs) == len(self._recorded) or self._runs.total() >= PATIENCE
        self.is_settled |= self.is_broken or all_recorded
        if kind in self._recorded:
            return self._recorded[kind](batch)
        self.release()  # an eager run needs the memory that the graphs hold
        loss = batch_gradient(model, batch)
        self._runs[kind] += 1
        self._reached |= dict.fromkeys(with_gradient(model.parameters.values()))
        return loss

    @property
    def holds_gradients(self) -> bool:
        """Whether recorded graphs write to the current `.grad`, which must then be zeroed and not freed."""
        return bool(self._recorded)

    def release(self) -> None:
        """Release the memory of all graphs; each is recorded again when a batch of its kind comes next."""
        if self._recorded:
            self._recorded.clear()
            self._pool = None
            free_memory(next(iter(self._reached)).device)

    def _may_record(self, kind: Kind) -> bool:
        if self.is_broken or self._runs[kind] < RUNS_BEFORE:
            return False
        all_came = len(self._runs) >= self.num_kinds and min(self._runs.values()) >= RUNS_BEFORE
        return all_came or self._runs.total() >= PATIENCE

    def _try_to_record(self, model: AdaptedModel, batch: Batch, kind: Kind) -> None:
        start = time.perf_counter()
        gradients_or_zeros(self._reached)  # a graph adds to existing gradients
        try:
            if self._pool is None and model.device.type == "cuda":
                self._pool = torch.cuda.graph_pool_handle()
            self._recorded[kind] = self._record(model, batch, self._pool)
            if (left := self._free(model.device)) < MIN_GRAPH_RESERVE:
                raise RuntimeError(f"it would leave only {left / 2**30:.1f} GiB of memory")
        except (RuntimeError, torch.OutOfMemoryError) as reason:
            self.is_broken = True
            self.release()
            log.warning("CUDA graph capture failed, running eagerly: %s", _line(reason))
            return
        if not self._was_announced:
            many = f" (first of {self.num_kinds} kinds of batches)" if self.num_kinds > 1 else ""
            log.info("batches recorded as CUDA graphs%s in %.1f s", many, time.perf_counter() - start)
            self._was_announced = True


def why_not(config: TrainConfig, model: AdaptedModel) -> str | None:
    """Why a run's gradients cannot be recorded as CUDA graphs, in words; None if they can."""
    if model.device.type != "cuda":
        return "there is no GPU"
    if not config.cuda_graphs:
        return "--cuda_graphs=false"
    if config.torch_compile and config.dynamo_backend == "cudagraphs":
        return "--dynamo_backend=cudagraphs does its own recording"
    if model.text_encoder is not None:
        return "CLIP is trained"
    if any(isinstance(module, DownLinear) and module.drops for module in model.transformer.modules()):
        return "dropout masks differ in each step"
    return None


def kind_of(batch: Batch) -> Kind:
    """What two batches must have in common to share a CUDA graph: names, shapes and dtypes of their tensors."""
    return tuple((name, tensor.shape, tensor.dtype) for name, tensor in batch.tensors().items())


def kinds_of(batches: Iterable[tuple[Draw, ...]], class_caption: Callable[[Draw], str | None] | None = None) -> int:
    """How many CUDA graphs a run needs, one for each kind of batch.

    batches: the draws of each batch. class_caption: as in `BatchMaker`.
    """
    return len(
        {
            (
                len(draws),
                draws[0].sample.bucket,
                sum(draw.sample.preserves_some for draw in draws),
                any(draw.sample.weighs_places for draw in draws),
                sum(class_caption(draw) is not None for draw in draws) if class_caption else 0,
            )
            for draws in batches
        }
    )


def free_device_bytes(device: torch.device) -> int:
    """Free memory of a GPU in bytes.

    If the GPU shares memory with the host, this includes what the system would release on demand.
    """
    free, _ = torch.cuda.mem_get_info(device)
    return max(free, psutil.virtual_memory().available) if shares_host_memory(device) else free


def record_gradient(model: AdaptedModel, batch: Batch, pool: Any) -> Recorded:
    """Record `batch_gradient` for batches like this one as a CUDA graph, without running it.

    pool: handle of the memory pool that graphs share, from `torch.cuda.graph_pool_handle`. Raises RuntimeError if
    something cannot be recorded.
    """
    inputs = batch.copied()
    loss = torch.zeros((), device=model.device)  # outside the graphs' pool, which the next replay overwrites
    graph, swap = torch.cuda.CUDAGraph(), block_swap(model.transformer)
    if swap:
        swap.rewind()
    free_memory(model.device)
    try:
        # other threads may use the GPU meanwhile: they prepare batches
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            loss.copy_(batch_gradient(model, inputs))
            if swap:
                swap.rewind()
    except BaseException:
        if swap:
            swap.invalidate()
        raise
    return _Graph(graph, inputs, loss, swap)


@dataclass(frozen=True)
class _Graph:
    graph: torch.cuda.CUDAGraph
    inputs: Batch
    loss: torch.Tensor
    swap: BlockSwap | None

    def __call__(self, batch: Batch) -> torch.Tensor:
        if self.swap:
            self.swap.rewind()
        given = batch.tensors()
        for name, tensor in self.inputs.tensors().items():
            tensor.copy_(given[name], non_blocking=True)
        self.graph.replay()
        return self.loss


def _line(reason: Exception) -> str:
    return str(reason).strip().partition("\n")[0]
