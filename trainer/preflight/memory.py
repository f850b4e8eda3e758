"""The memory plan of a checked run."""

from dataclasses import replace

import torch

from trainer.config import TrainConfig
from trainer.data.batches import sequence_tokens
from trainer.data.cache import CacheKeys
from trainer.data.dataset import TrainingData
from trainer.memory.bytes import Work
from trainer.memory.choose import MemoryPlan, allowed_by, make_memory_plan, with_faster
from trainer.memory.device import query_device
from trainer.memory.record import find_measured, record_key
from trainer.memory.watch import floor_bytes
from trainer.preflight.plan import AdapterPlan, RunPlan, optimizer_bytes_per_number, trained_itemsize


def plan_memory(
    config: TrainConfig, data: TrainingData, adapter: AdapterPlan, keys: CacheKeys, device: torch.device
) -> MemoryPlan:
    """The fastest plan that fits into the memory of `device`, or the smallest one if none fits.

    The plan says which blocks are recomputed or swapped, the precision of the base model, and the expected bytes. On a
    GPU that shares the host's memory, it leaves free what --min_free_memory asks for.
    """
    work = work_of(config, data, adapter, keys)
    gpu = query_device(device)
    if gpu and gpu.unified:
        gpu = replace(gpu, free=gpu.free - floor_bytes(config.min_free_memory, device))
    plan = make_memory_plan(work, gpu, allowed_by(config, len(work.blocks), gpu, device), device)
    if config.base_precision != "bf16" or not plan.choice.swapped:
        return plan
    return with_faster(plan, allowed_by(replace(config, base_precision="auto"), len(work.blocks), gpu, device))


def with_measured(plan: RunPlan) -> RunPlan:
    """A copy of the plan with the speed and memory of an earlier run like it on this machine, if one was recorded."""
    return replace(plan, memory=replace(plan.memory, measured=find_measured(plan.cache_dir, measured_key(plan))))


def measured_key(plan: RunPlan) -> str:
    """The key under which speed and memory of runs like this one are recorded in the cache folder."""
    memory, config = plan.memory, plan.config
    device = memory.device.name if memory.device else "cpu"
    runs = (config.torch_compile, config.cuda_graphs, config.gradient_accumulation_steps, plan.world_size)
    runs += ("class words",) if config.class_preservation_weight else ()
    return record_key(device, memory.work, memory.choice, config.optimizer_type, runs)


def work_of(config: TrainConfig, data: TrainingData, adapter: AdapterPlan, keys: CacheKeys) -> Work:
    """What a training step computes and holds in memory, for the largest batch of the first epoch.

    keys: the run's cache keys, which have the number of T5 tokens.
    """
    batches = data.batches(0)
    img_tokens, batch = max(
        ((sequence_tokens(draws[0].sample), len(draws)) for draws in batches),
        key=lambda shape: shape[1] * (shape[0] + keys.t5_length),
    )
    paged, averages = config.optimizer_type.lower().startswith("paged"), 4 * bool(config.ema_decay)
    clip = 2 * config.clip_l.stat().st_size if config.text_encoder_lr > 0 and config.clip_l else 0  # fp16 to float32
    return Work(
        blocks=adapter.blocks,
        outside=adapter.outside,
        img_tokens=img_tokens,
        txt_tokens=keys.t5_length,
        batch=batch,
        itemsize=2 if config.mixed_precision == "bf16" else 4,
        trained=adapter.num_parameters,
        trained_itemsize=trained_itemsize(config),
        optimizer=int(adapter.num_parameters * (averages if paged else optimizer_bytes_per_number(config))),
        accumulates=config.gradient_accumulation_steps > 1,
        compiled=config.torch_compile,
        beside=clip,
        recorded=config.cuda_graphs,
        drops=bool(config.network_dropout or adapter.network.rank_dropout or adapter.network.module_dropout),
        through_all=config.text_encoder_lr > 0,
    )
