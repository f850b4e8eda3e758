"""Gradients as CUDA graphs: what one kind of batch launches is recorded once, and then replayed by one call.

A picture at FLUX's size takes some eleven thousand kernels, forward and backward, and launching them one by
one takes the host longer than a fast GPU takes to run them. A replay launches the same kernels on the same
memory, so the host only copies the batch to where it was when the graph was recorded.

What a graph is bound to: the addresses of weights, adapters and their gradients, which therefore stay where
they are, zeroed instead of dropped; its activations live in memory that is set apart for all graphs together.
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
from trainer.memory.bytes import LEAST_ROOM
from trainer.models.offload import BlockSwap, block_swap
from trainer.models.weights import shares_host_memory
from trainer.optim.foreach import gradients_or_zeros, with_gradient

log = logging.getLogger(__name__)
RUNS_BEFORE = 2  # of a kind of batch, kernel by kernel: the first compiles, and both allocate what stays
PATIENCE = 200  # batches until what is recorded no longer waits for kinds that have not come yet
Kind = tuple[Any, ...]


class Recorded(Protocol):
    """A recorded gradient: adds that of a batch of its kind to `.grad` and returns the loss, a scalar."""

    def __call__(self, batch: Batch) -> torch.Tensor: ...


Record = Callable[[AdaptedModel, Batch, Any], Recorded]


class GradientGraphs:
    """`batch_gradient`, recorded once every kind of batch has run.

    num_kinds: how many kinds of batches the run has (`kinds_of`); record: how one is recorded, with the
    handle of the memory that all share; free: how many bytes a device has left. Where recording fails or
    leaves too little, batches go on kernel by kernel, and the log says why.
    """

    def __init__(
        self,
        num_kinds: int,
        record: Record | None = None,
        free: Callable[[torch.device], int] | None = None,
    ):
        self.num_kinds = num_kinds
        self.is_broken = False
        self.is_settled = False  # whether batches run as fast as they will
        self._record, self._free = record or record_gradient, free or free_bytes
        self._recorded: dict[Kind, Recorded] = {}
        self._runs: Counter[Kind] = Counter()
        self._reached: dict[torch.Tensor, None] = {}
        self._pool: Any = None
        self._was_announced = False

    def __call__(self, model: AdaptedModel, batch: Batch) -> torch.Tensor:
        """Add the batch's gradient to `.grad`; returns its weighted loss, as `batch_gradient`."""
        kind = kind_of(batch)
        if kind not in self._recorded and self._may_record(kind):
            self._try_to_record(model, batch, kind)
        all_recorded = 0 < len(self._runs) == len(self._recorded) or self._runs.total() >= PATIENCE
        self.is_settled |= self.is_broken or all_recorded
        if kind in self._recorded:
            return self._recorded[kind](batch)
        self.release()  # what runs kernel by kernel needs the room that the graphs hold
        loss = batch_gradient(model, batch)
        self._runs[kind] += 1
        self._reached |= dict.fromkeys(with_gradient(model.parameters.values()))
        return loss

    @property
    def holds_gradients(self) -> bool:
        """Whether graphs write into `.grad` as it is, so that it must be zeroed and not dropped."""
        return bool(self._recorded)

    def release(self) -> None:
        """Give back the memory of all graphs; they are recorded again when their kinds come next."""
        if self._recorded:
            self._recorded.clear()
            self._pool = None
            free_memory(next(iter(self._reached)).device)

    def _may_record(self, kind: Kind) -> bool:
        if self.is_broken or self._runs[kind] < RUNS_BEFORE:
            return False
        all_came = len(self._runs) >= self.num_kinds or self._runs.total() >= PATIENCE
        return all_came and min(self._runs.values()) >= RUNS_BEFORE

    def _try_to_record(self, model: AdaptedModel, batch: Batch, kind: Kind) -> None:
        start = time.perf_counter()
        gradients_or_zeros(self._reached)  # a graph adds to what is there
        try:
            if self._pool is None and model.device.type == "cuda":
                self._pool = torch.cuda.graph_pool_handle()
            self._recorded[kind] = self._record(model, batch, self._pool)
            if (left := self._free(model.device)) < LEAST_ROOM:
                raise RuntimeError(f"they would leave {left / 2**30:.1f} GiB of memory")
        except (RuntimeError, torch.OutOfMemoryError) as reason:
            self.is_broken = True
            self.release()
            log.warning("batches are not recorded as CUDA graphs, each kernel is launched by itself: %s", _line(reason))
            return
        if not self._was_announced:
            many = f", the first of {self.num_kinds} kinds" if self.num_kinds > 1 else ""
            log.info("batches recorded as CUDA graphs%s (%.1f s)", many, time.perf_counter() - start)
            self._was_announced = True


def why_not(config: TrainConfig, model: AdaptedModel) -> str | None:
    """What keeps a run's gradients from being recorded, in words; None where nothing does."""
    if model.device.type != "cuda":
        return "there is no GPU"
    if not config.cuda_graphs:
        return "--cuda_graphs=false"
    if config.torch_compile and config.dynamo_backend == "cudagraphs":
        return "--dynamo_backend=cudagraphs records by itself"
    if model.text_encoder is not None:
        return "CLIP is trained"
    if any(isinstance(module, DownLinear) and module.drops for module in model.transformer.modules()):
        return "dropouts are drawn anew in each step"
    return None


def kind_of(batch: Batch) -> Kind:
    """What batches of one kind have in common: which tensors there are, their shapes and types."""
    return tuple((name, tensor.shape, tensor.dtype) for name, tensor in batch.tensors().items())


def kinds_of(batches: Iterable[tuple[Draw, ...]]) -> int:
    """How many kinds these draws will make."""
    return len(
        {(len(draws), draws[0].sample.bucket, any(draw.sample.preserves_output for draw in draws)) for draws in batches}
    )


def free_bytes(device: torch.device) -> int:
    """What a GPU has left; of memory that it shares with the host, what the system would give back too."""
    free, _ = torch.cuda.mem_get_info(device)
    return max(free, psutil.virtual_memory().available) if shares_host_memory(device) else free


def record_gradient(model: AdaptedModel, batch: Batch, pool: Any) -> Recorded:
    """Record `batch_gradient` without running it. Raises RuntimeError where something cannot be recorded."""
    inputs = batch.copied()
    loss = torch.zeros((), device=model.device)  # outside of the graphs' memory, which the next replay overwrites
    graph, swap = torch.cuda.CUDAGraph(), block_swap(model.transformer)
    if swap:
        swap.rewind()
    free_memory(model.device)
    try:
        # other threads may go on using the GPU: pictures are prepared meanwhile
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            loss.copy_(batch_gradient(model, inputs))
            if swap:
                swap.rewind()
    except BaseException:
        if swap:
            swap.forget()
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
