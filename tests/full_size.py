"""FLUX.1-dev's full size without its weights, and a GPU: for what is planned from shapes alone."""

from dataclasses import replace
from functools import cache

from accelerate import init_empty_weights
from diffusers import FluxTransformer2DModel

from trainer.lora.adapter import linear_modules
from trainer.memory.bytes import GIB, Work, blocks_of
from trainer.memory.device import Device

GPU = Device("a GPU", free=80 * GIB, host_free=64 * GIB, flops=450e12, link=20e9, is_measured=True)


@cache
def full_size() -> FluxTransformer2DModel:
    """Its modules, on meta."""
    with init_empty_weights():
        return FluxTransformer2DModel(guidance_embeds=True)


def full_work(rank: int = 16, pixels: int = 1024, **changes) -> Work:
    """One picture with 512 text tokens, an adapter on all linear layers of all blocks, no optimizer."""
    blocks, outside = blocks_of(full_size(), dict.fromkeys(linear_modules(full_size()), rank))
    trained = sum(block.adapter for block in blocks)
    work = Work(blocks, outside, (pixels // 16) ** 2, 512, 1, 2, trained, 2, 0, False, True)
    return replace(work, **changes)
