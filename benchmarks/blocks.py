"""Measure one block of FLUX.1-dev, forward and backward, and list its kernels: in seconds instead of minutes.

    python -m benchmarks.blocks [--precisions bf16 fp8] [--ranks 16] [--resolutions 1024] [--json FILE]

For each kind of block, a few blocks with random weights run one after another, compiled and recorded as CUDA graphs, as
in training. The sum over the model's 19 and 38 blocks is a step to within 1 or 2 %. A second pass without recording
counts the kernels; `--detail 30` lists the 30 longest.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import FluxTransformer2DModel
from torch.profiler import ProfilerActivity, profile

from benchmarks.kernels import Breakdown, read_trace
from benchmarks.machine import describe
from trainer.common.files import write_json
from trainer.engine.compilation import compile_blocks
from trainer.lora.adapter import add_lora, linear_modules
from trainer.lora.blocks import layers_on_one_input, place_adapters_together, use_training_blocks
from trainer.models.attention import choose_attention
from trainer.models.description import FLUX1
from trainer.models.quantized import QuantizedLinear, WeightFormat, allocate, fill, make_quantized
from trainer.models.transformer import rotary_table, takes_joint_sequence

CUDA = torch.device("cuda")
TXT_TOKENS = 512
NUM_BLOCKS = {"double": FLUX1.blocks.double, "single": FLUX1.blocks.single}
WARM_UP, REPEATS, PROFILED = 5, 30, 2
GIB = 2**30


@dataclass(frozen=True)
class Cost:
    """One block's cost, forward and backward: milliseconds of a replay, GiB kept for backward, and its kernels."""

    kind: str
    precision: str
    rank: int
    resolution: int
    batch: int
    milliseconds: float
    kept_gib: float
    kernels: Breakdown | None

    def line(self) -> str:
        name = f"{self.kind:6} {self.precision:4} rank {self.rank:3} {self.resolution:4} px x {self.batch}"
        return f"{name}: {self.milliseconds:7.3f} ms, {self.kept_gib:.3f} GiB kept"


class Chain:
    """A few blocks of one kind with adapters, one after another, and a gradient for their output."""

    def __init__(
        self, kind: str, depth: int, weight_format: WeightFormat, rank: int, resolution: int, batch: int, compiled: bool
    ):
        transformer = make_transformer(depth, weight_format)
        use_training_blocks(transformer)
        img_tokens = (resolution // FLUX1.latents.token_side) ** 2
        choose_attention(transformer, TXT_TOKENS, {(batch, img_tokens): 1})
        add_lora(transformer, dict.fromkeys(linear_modules(transformer), rank), None, seed=0)
        for name, parameter in transformer.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=0.01)
        place_adapters_together(transformer)
        if compiled:
            compile_blocks(transformer, "inductor", "auto", 1)
        kinds = {"double": transformer.transformer_blocks, "single": transformer.single_transformer_blocks}
        self.blocks, self.depth = list(kinds[kind]), depth
        self.rotary = rotary_table(transformer, resolution // 8, resolution // 8, TXT_TOKENS, CUDA)
        hidden = transformer.x_embedder.out_features
        tokens = torch.randn(batch, TXT_TOKENS + img_tokens, hidden, device=CUDA, dtype=torch.bfloat16)
        self.tokens = tokens.requires_grad_()
        self.temb = torch.randn(batch, hidden, device=CUDA, dtype=torch.bfloat16)
        with torch.no_grad():
            self.gradients = [torch.randn_like(output) for output in self.forward()]

    def forward(self) -> list[torch.Tensor]:
        """The output of the last block: text and image, or both as one tensor."""
        txt, img = None, self.tokens
        if not takes_joint_sequence(self.blocks[0]):
            txt, img = self.tokens[:, :TXT_TOKENS].contiguous(), self.tokens[:, TXT_TOKENS:].contiguous()
        for block in self.blocks:
            txt, img = block(img, txt, self.temb, self.rotary, None)
        return [img] if txt is None else [txt, img]

    def __call__(self) -> None:
        torch.autograd.backward(self.forward(), self.gradients)

    def kept_bytes(self) -> int:
        """Bytes that each block keeps for backward."""
        before = torch.cuda.memory_allocated()
        outputs = self.forward()
        taken = torch.cuda.memory_allocated() - before
        del outputs
        return taken // self.depth


def make_transformer(depth: int, weight_format: WeightFormat) -> FluxTransformer2DModel:
    """A transformer of FLUX.1-dev's width with `depth` blocks of each kind, frozen, with random weights, on the GPU."""
    with init_empty_weights(include_buffers=False):
        transformer = FluxTransformer2DModel(num_layers=depth, num_single_layers=depth, guidance_embeds=True)
    shapes = {name: parameter.shape for name, parameter in transformer.named_parameters()}
    if weight_format.precision != "bf16":
        make_quantized(transformer, weight_format)
        allocate(transformer, weight_format, CUDA, torch.bfloat16, layers_on_one_input(transformer))
    for name, shape in shapes.items():
        owner, _, leaf = name.rpartition(".")
        module = transformer.get_submodule(owner)
        weight = random_weight(shape)
        if leaf == "weight" and isinstance(module, QuantizedLinear):
            module.store(weight)
        else:
            fill(module, leaf, weight)
    return transformer.to(device=CUDA).eval().requires_grad_(False)  # type: ignore[call-arg]


def random_weight(shape: Sequence[int]) -> torch.Tensor:
    """A weight with which activations keep their scale; ones for a bias or a norm's scale."""
    if len(shape) == 1:
        return torch.ones(shape, device=CUDA, dtype=torch.bfloat16)
    return torch.randn(*shape, device=CUDA, dtype=torch.bfloat16) / shape[1] ** 0.5


def replay_milliseconds(chain: Chain) -> float:
    """The median time of the chain's forward and backward, recorded as a CUDA graph."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            chain()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        chain()
    times = []
    for _ in range(WARM_UP + REPEATS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return median(times[WARM_UP:])


def count_kernels(chain: Chain, rank: int, detail: int) -> Breakdown | None:
    """The kernels of one block, launched one by one."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA], record_shapes=True) as profiler:
        for _ in range(PROFILED):
            chain()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        return read_trace(trace, PROFILED * chain.depth, rank, on_gpu=True, num_longest=detail)


def measure(kind: str, arguments: argparse.Namespace, precision: str, rank: int, resolution: int) -> Cost:
    weight_format = WeightFormat.for_device(precision, CUDA)  # type: ignore[arg-type]
    chain = Chain(kind, arguments.depth, weight_format, rank, resolution, arguments.batch, not arguments.eager)
    found = replay_milliseconds(chain) / arguments.depth
    kept = chain.kept_bytes() / GIB
    kernels = count_kernels(chain, rank, arguments.detail)
    torch.compiler.reset()
    return Cost(kind, precision, rank, resolution, arguments.batch, found, kept, kernels)


def say(cost: Cost) -> None:
    """Print a cost and its breakdown."""
    print(cost.line(), flush=True)
    if not cost.kernels:
        return
    classes = ", ".join(f"{kind} {1e3 * seconds:.3f}" for kind, seconds in cost.kernels.seconds.items())
    print(f"    {cost.kernels.launches:.0f} kernels, ms: {classes}")
    for kernel in cost.kernels.longest:
        print(
            f"    {1e3 * kernel['seconds']:7.3f} ms  {kernel['launches']:5.1f} x  {kernel['class']}: {kernel['name']}"
        )


def whole_model(costs: Sequence[Cost]) -> list[str]:
    """The time of all blocks of FLUX.1-dev, for each setting of which both kinds were measured."""
    found: dict[tuple[Any, ...], dict[str, Cost]] = {}
    for cost in costs:
        found.setdefault((cost.precision, cost.rank, cost.resolution, cost.batch), {})[cost.kind] = cost
    lines = []
    for (precision, rank, resolution, batch), kinds in found.items():
        if kinds.keys() == NUM_BLOCKS.keys():
            seconds = sum(count * kinds[kind].milliseconds for kind, count in NUM_BLOCKS.items()) / 1e3
            name = f"{precision} rank {rank} {resolution} px x {batch}"
            lines.append(f"{name}: all blocks {seconds:.3f} s, {seconds / batch:.3f} s per image")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", default=list(NUM_BLOCKS), choices=list(NUM_BLOCKS))
    parser.add_argument("--precisions", nargs="+", default=["bf16", "fp8"], choices=["bf16", "fp8", "int8", "nf4"])
    parser.add_argument("--ranks", nargs="+", type=int, default=[16])
    parser.add_argument("--resolutions", nargs="+", type=int, default=[1024])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--depth", type=int, default=4, help="blocks one after another (%(default)s)")
    parser.add_argument("--detail", type=int, default=0, help="number of kernels to list (%(default)s)")
    parser.add_argument("--eager", action="store_true", help="do not compile")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("needs a CUDA device")
    machine = describe(seconds=0.5)
    print(json.dumps(machine["machine"]), *(f"{name} {p['tflops']:.0f}" for name, p in machine["peaks"].items()))
    costs = []
    for precision in arguments.precisions:
        for rank in arguments.ranks:
            for resolution in arguments.resolutions:
                for kind in arguments.kinds:
                    costs.append(measure(kind, arguments, precision, rank, resolution))
                    say(costs[-1])
    print("\n".join(whole_model(costs)))
    if arguments.json:
        write_json(arguments.json, {**machine, "costs": [asdict(cost) for cost in costs]})


if __name__ == "__main__":
    main()
