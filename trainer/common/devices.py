"""What a device supports, and releasing its memory."""

import gc

import torch


def computes_bf16(device: torch.device) -> bool:
    """Whether a device computes faster in bfloat16 than in float32: every GPU, and CPUs with instructions for it."""
    if device.type != "cpu":
        return True
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # not in every torch
    return any(supported for name, supported in capabilities.items() if name.endswith("bf16"))


def free_memory(device: torch.device) -> None:
    """Return the memory of models that have gone out of scope to the device, where other programs can use it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
