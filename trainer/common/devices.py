"""What the device can do, and giving its memory back."""

import gc

import torch


def computes_bf16(device: torch.device) -> bool:
    """Whether a device has instructions for bfloat16, which then is faster than float32: GPUs, and newer CPUs."""
    if device.type != "cpu":
        return True
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # not in every torch
    return any(there for name, there in capabilities.items() if name.endswith("bf16"))


def free_memory(device: torch.device) -> None:
    """Give the memory of models that went out of scope back to the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
