"""`python tests/compile_wave.py FOLDER`: compile a function with a gradient of its own, cached in FOLDER.

Prints how many of its graphs, forward and backward, came from the cache.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from torch._dynamo.utils import counters

from trainer.engine.compilation import compile_report, use_cache


class Wave(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x.sin() + 1

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return dy * ctx.saved_tensors[0].cos()


if __name__ == "__main__":
    use_cache(Path(sys.argv[1]))
    torch._inductor.config.cpp.vec_isa_ok = False  # else ten programs are compiled to learn what the processor can do
    torch.compile(Wave.apply)(torch.ones(8, requires_grad=True)).sum().backward()
    print(counters["aot_autograd"]["autograd_cache_hit"], compile_report())
