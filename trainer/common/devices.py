"""What a device supports, and releasing its memory."""

import gc

import torch


def computes_bf16(device: torch.device) -> bool:
    """Whether bfloat16 is faster than float32 on a device: on GPUs, and on CPUs with instructions for it."""
    if device.type != "cpu":
        return True
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # not in every torch
    return any(supported for name, supported in capabilities.items() if name.endswith("bf16"))


def free_memory(device: torch.device) -> None:
    """Release the device memory of models that have gone out of scope."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
