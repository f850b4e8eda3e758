"""Measure how fast a GPU multiplies FLUX.1's layers in each precision, with and without the cost of quantization.

    python -m benchmarks.products [--tokens 4608] [--precisions bf16 fp8 int8 nf4] [--json FILE]

It prints one line for each layer shape, direction and precision: TFLOP/s of the product alone and of the product with
quantization of its input (compiled, as in training), and the error relative to float32 with the same bf16 numbers. The
numbers are random, the times medians. Backward is measured with one stored weight layout and with both.
"""

import argparse
import json
import platform
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F

from trainer.kernels.quantize import FP8, quantize_rows
from trainer.models import products
from trainer.models.quantized import EIGHT_BIT, QuantizedLinear, WeightFormat, precision_problems

# (in features, out features): the layer of FLUX.1-dev with this shape
SHAPES = (
    (3072, 3072, "query, key or value"),
    (3072, 9216, "query, key and value as one"),
    (3072, 12288, "up projection of an MLP"),
    (12288, 3072, "down projection of an MLP"),
    (3072, 21504, "input projections of a single block, as one"),
    (15360, 3072, "output projection of a single block"),
)
WARM_UP, REPEATS, INNER = 3, 20, 5
CUDA = torch.device("cuda")


@dataclass(frozen=True)
class Timing:
    """One measured product. direction: "forward", "backward" or "backward, both layouts". error: relative, or None."""

    precision: str
    direction: str
    tokens: int
    in_features: int
    out_features: int
    product_ms: float | None
    whole_ms: float
    error: float

    def tflops(self, milliseconds: float) -> float:
        return 2e-9 * self.tokens * self.in_features * self.out_features / milliseconds

    def line(self) -> str:
        alone = f"{self.tflops(self.product_ms):8.0f}" if self.product_ms else "        "
        return (
            f"{self.in_features:6} x {self.out_features:<6} {self.precision:5} {self.direction:22} {alone}"
            f" {self.tflops(self.whole_ms):8.0f} {self.whole_ms:9.3f} ms  error {self.error:.4f}"
        )


def milliseconds(work: Callable[[], object]) -> float:
    """The median time of a call on the GPU, measured over several calls in a row to hide the cost of launching."""
    for _ in range(WARM_UP):
        work()
    times = []
    for _ in range(REPEATS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(INNER):
            work()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / INNER)
    return median(times)


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.float() - expected).norm() / expected.norm())


def measure(precision: str, tokens: int, in_features: int, out_features: int) -> Iterator[Timing]:
    """Both directions of one layer."""
    torch.manual_seed(0)
    weight = torch.randn(out_features, in_features, device=CUDA, dtype=torch.bfloat16) / in_features**0.5
    x = torch.randn(1, tokens, in_features, device=CUDA, dtype=torch.bfloat16)
    dy = torch.randn(1, tokens, out_features, device=CUDA, dtype=torch.bfloat16)
    y, dx = x.float() @ weight.float().t(), dy.float() @ weight.float()
    shape = (tokens, in_features, out_features)
    if precision == "bf16":
        found = milliseconds(lambda: F.linear(x, weight))
        yield Timing(precision, "forward", *shape, found, found, relative_error(F.linear(x, weight), y))
        found = milliseconds(lambda: dy @ weight)
        yield Timing(precision, "backward", *shape, found, found, relative_error(dy @ weight, dx))
        return
    for both_layouts in (False, True) if precision in EIGHT_BIT else (False,):
        layer = QuantizedLinear(in_features, out_features, WeightFormat(precision, both_layouts))  # type: ignore
        layer.store(weight)
        forward, backward = compiled_directions(layer)
        if not both_layouts:
            alone = milliseconds(product_alone(x, layer.weight, layer.scale)) if precision in EIGHT_BIT else None
            whole = milliseconds(lambda call=forward: call(x))
            yield Timing(precision, "forward", *shape, alone, whole, relative_error(forward(x), y))
        alone = None
        if layer.transposed is not None:
            alone = milliseconds(product_alone(dy, layer.transposed, layer.scale.new_ones(in_features)))
        whole = milliseconds(lambda call=backward: call(dy))
        direction = "backward, both layouts" if both_layouts else "backward"
        yield Timing(precision, direction, *shape, alone, whole, relative_error(backward(dy), dx))
    torch.compiler.reset()


def compiled_directions(layer: QuantizedLinear) -> tuple[Callable, Callable]:
    """A layer's forward and backward as functions of x and of dy, compiled to one graph each."""
    weight, scale, transposed = layer.weight, layer.scale, layer.transposed

    def forward(x: torch.Tensor) -> torch.Tensor:
        return products.product(x, weight, scale, transposed, layer.out_features)

    def backward(dy: torch.Tensor) -> torch.Tensor:
        return products.input_gradient(dy, weight, scale, transposed)

    return torch.compile(forward, fullgraph=True), torch.compile(backward, fullgraph=True)


def product_alone(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> Callable[[], torch.Tensor]:
    """The product with an already quantized input."""
    values, row_scale = quantize_rows(x[0], weight.dtype)
    if weight.dtype == FP8:
        return lambda: products.fp8_product(values, row_scale, weight, scale, torch.bfloat16)
    return lambda: products.int8_product(values, weight)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4608, help="1024 px and 512 text tokens make 4608")
    parser.add_argument("--precisions", nargs="+", default=["bf16", "fp8", "int8"], choices=["bf16", *EIGHT_BIT, "nf4"])
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("needs a CUDA device")
    machine = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "python": platform.python_version()}
    print(f"{machine['device']}, torch {machine['torch']}, {arguments.tokens} tokens")
    print("layer           kind  direction               product + quantizing, TFLOP/s")
    timings = []
    for precision in arguments.precisions:
        if problems := precision_problems(precision, CUDA):
            print(problems[0])
            continue
        for in_features, out_features, _ in SHAPES:
            for timing in measure(precision, arguments.tokens, in_features, out_features):
                print(timing.line(), flush=True)
                timings.append(asdict(timing))
    if arguments.json:
        arguments.json.write_text(json.dumps({**machine, "timings": timings}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
