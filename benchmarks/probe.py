"""What measuring each step's effect on the adapter costs (`trainer.engine.probe`), at FLUX.1-dev's full size.

    python -m benchmarks.probe [--ranks 16 256] [--repeats 50] [--output FILE.json]

Adapters of all layers and gradients for them, without a base model. A step with the probe takes longer by the sum of
both times on the device, or by the host's time where that is not hidden behind the device's work.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import torch
from accelerate import init_empty_weights
from diffusers import FluxTransformer2DModel
from torch import nn

from trainer.common.files import write_json
from trainer.engine.metrics import Timestamp
from trainer.engine.probe import StepProbe
from trainer.lora.adapter import linear_modules

WARM_UP = 5


def adapters(rank: int, device: torch.device, blocks: tuple[int, int]) -> dict[str, nn.Parameter]:
    """Random adapters of a FLUX.1-dev, with gradients, by names like those of a LoRA file."""
    with init_empty_weights():
        transformer = FluxTransformer2DModel(guidance_embeds=True, num_layers=blocks[0], num_single_layers=blocks[1])
    found = {}
    for name in linear_modules(transformer):
        layer = transformer.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        for half, shape in (("lora_A", (rank, layer.in_features)), ("lora_B", (layer.out_features, rank))):
            parameter = nn.Parameter(0.01 * torch.randn(shape, device=device))
            parameter.grad = torch.randn(shape, device=device)
            found[f"transformer.{name}.{half}.weight"] = parameter
    return found


def times(call: Callable[[], None], device: torch.device, repeats: int) -> tuple[float, float]:
    """The median milliseconds of a call on the device, and on the host."""
    on_device, on_host = [], []
    for _ in range(WARM_UP + repeats):
        begin, start = Timestamp(device), time.perf_counter()
        call()
        on_host.append(time.perf_counter() - start)
        end = Timestamp(device)
        end.wait()
        on_device.append(end.seconds_since(begin))
    return 1000 * median(on_device[WARM_UP:]), 1000 * median(on_host[WARM_UP:])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[16, 256])
    parser.add_argument("--blocks", type=int, nargs=2, default=[19, 38], help="double and single (%(default)s)")
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = {}
    for rank in given.ranks:
        parameters = adapters(rank, device, tuple(given.blocks))
        probe = StepProbe(parameters, {name.split(".lora_")[0]: float(rank) for name in parameters})
        parts = {"see_gradient": probe.see_gradient, "see_update": probe.see_update}
        found[rank] = {name: times(call, device, given.repeats) for name, call in parts.items()}
        each = ", ".join(f"{name} {d:.3f} ms (host {h:.3f})" for name, (d, h) in found[rank].items())
        print(f"rank {rank}, {len(parameters)} tensors: {each}", flush=True)
        if given.output:
            write_json(given.output, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
