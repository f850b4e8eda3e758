"""The frozen linear layers of the transformer's blocks, stored in 8 or 4 bits.

`--base_precision fp8` and `int8` multiply in 8 bits, which is faster on GPUs that can; `nf4` only stores
in 4 bits, for cards with little memory. Embedders, norms without weights and the final layer stay as they
are, and so do layers of modulation where a weight is kept in both layouts: they see one row a picture, so
for the same bytes they need not be dequantized each time. Everything that is stored is a plain `nn.Parameter`
that needs no gradient, so that whatever moves a model's parameters between devices moves these too, unless
layers were joined, which share their memory; never cast such a module to another dtype.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal, NamedTuple, cast

import torch
from torch import nn

from trainer.common.problems import Problem
from trainer.kernels.quantize import FP8, INT8, quantize_rows
from trainer.models import products

log = logging.getLogger(__name__)
Precision = Literal["bf16", "fp8", "int8", "nf4"]
EIGHT_BIT = {"fp8": FP8, "int8": INT8}
BLOCKS = ("transformer_blocks.", "single_transformer_blocks.")
MODULATION = ".linear"  # how the names of its layers end
ROOM_FOR_BOTH_LAYOUTS = 40 << 30  # bytes of a device's memory from which on a weight is kept in both
MIN_CAPABILITY = {"fp8": (8, 9), "int8": (8, 0)}
HALF_RATE_FP8 = 12  # the major capability of GPUs that multiply fp8 at full rate only with scales per 32 numbers
TOLERANCE = 0.1  # quantising the factors costs 0.03 in fp8 and 0.004 in int8, a wrong kernel about 1
BITSANDBYTES = "pip install 'bitsandbytes>=0.46'"


@dataclass(frozen=True)
class WeightFormat:
    """How block layers are stored; both_layouts: also transposed, faster in backward and twice the bytes."""

    precision: Precision
    both_layouts: bool = False

    @classmethod
    def for_device(cls, precision: Precision, device: torch.device | str) -> "WeightFormat":
        """In both layouts where the device has room for them."""
        device = torch.device(device)
        roomy = device.type == "cuda" and torch.cuda.get_device_properties(device).total_memory >= ROOM_FOR_BOTH_LAYOUTS
        return cls(precision, both_layouts=roomy and precision in EIGHT_BIT)

    def bytes_per_weight(self) -> float:
        """What one number of a layer takes, without the scales of rows."""
        return 4.5 / 8 if self.precision == "nf4" else 1.0 + self.both_layouts


class Joined(NamedTuple):
    """Layers that read one input as one: weight [N, K], scale [N], transposed [K, N] or None, bias [N].

    N: the widths of what all of them give, one after another.
    """

    weight: torch.Tensor
    scale: torch.Tensor
    transposed: torch.Tensor | None
    bias: torch.Tensor


class QuantizedLinear(nn.Linear):
    """A frozen linear layer without its weight until `store` is called; `allocate` may give it memory before.

    weight: [N, K] e4m3 or int8, or nf4 as bitsandbytes packs it; scale: float32, [N] or one per 64 numbers;
    transposed: the weight as [K, N], or None; joined: with the layers whose weights are stored with this one's,
    of which it is the first. peft adapts it as the `nn.Linear` that it is.
    """

    scale: nn.Parameter
    transposed: nn.Parameter | None

    def __init__(self, in_features: int, out_features: int, weight_format: WeightFormat):
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.weight_format = in_features, out_features, weight_format
        self.joined: Joined | None = None
        for name in ("weight", "scale", "transposed", "bias"):
            self.register_parameter(name, None)

    def store(self, weight: torch.Tensor) -> None:
        """Quantise a weight [N, K] on the device where it is, into the layer's own memory if it has some."""
        precision = self.weight_format.precision
        if precision == "nf4":
            values, scale = products.quantize_nf4(weight)
        else:
            values, scale = quantize_rows(weight, EIGHT_BIT[precision])
        stored = {"weight": values, "scale": scale.flatten()}
        if self.weight_format.both_layouts:
            stored["transposed"] = values.t()
        for name, tensor in stored.items():
            fill(self, name, tensor)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        y = products.product(input, self.weight, self.scale, self.transposed, self.out_features)
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.weight_format}"


def _frozen(tensor: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)


def fill(module: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Make a tensor the module's frozen parameter: in the memory that it has already, or as its own."""
    own = getattr(module, name)
    if own is None or own.is_meta:
        setattr(module, name, _frozen(tensor.contiguous()))
    else:
        own.data.copy_(tensor)


def make_quantized(transformer: nn.Module, weight_format: WeightFormat) -> None:
    """Put a `QuantizedLinear`, still empty, in the place of each linear layer of the blocks that is stored so."""
    for name, module in list(transformer.named_modules()):
        stays = weight_format.both_layouts and name.endswith(MODULATION)
        if isinstance(module, nn.Linear) and name.startswith(BLOCKS) and not stays:
            transformer.set_submodule(name, QuantizedLinear(module.in_features, module.out_features, weight_format))


def allocate(
    transformer: nn.Module,
    weight_format: WeightFormat,
    device: torch.device | str,
    dtype: torch.dtype,
    joined: Sequence[Sequence[nn.Module]] = (),
    waiting: tuple[str, ...] = (),
) -> None:
    """Take the memory of all 8-bit weights before the first of them comes.

    What is quantised comes and goes in pieces of many sizes. If what stays were taken in between, it would lie
    scattered, and the gaps, gigabytes of them, could be given back to nobody. joined: layers with biases (in
    dtype) that read one input, stored as one where they are in fp8. waiting: how the names begin of what is kept
    in host memory.
    """
    if weight_format.precision == "nf4":
        return  # bitsandbytes makes its own
    layers = {layer: name for name, layer in transformer.named_modules() if isinstance(layer, QuantizedLinear)}
    places = {layer: "cpu" if waiting and name.startswith(waiting) else device for layer, name in layers.items()}
    for group in joined if weight_format.precision == "fp8" else ():
        if all(isinstance(layer, QuantizedLinear) for layer in group):
            together = cast(Sequence[QuantizedLinear], group)
            join(together, places[together[0]], dtype)
    for layer, place in places.items():
        if layer.weight is None:
            _allocate_weights([layer], place)


def join(layers: Sequence[QuantizedLinear], device: torch.device | str, dtype: torch.dtype) -> None:
    """Let layers that read one input have one matrix, still without numbers; each has a view of it."""
    weight, scale, transposed = _allocate_weights(layers, device)
    bias = _shared_out(layers, "bias", torch.empty(len(scale), device=device, dtype=dtype))
    layers[0].joined = Joined(weight, scale, transposed, bias)


def _allocate_weights(
    layers: Sequence[QuantizedLinear], device: torch.device | str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """What `Joined` has of these layers but their biases, and for each layer a view of it."""
    weight_format, columns = layers[0].weight_format, layers[0].in_features
    rows, dtype = sum(layer.out_features for layer in layers), EIGHT_BIT[weight_format.precision]
    weight = _shared_out(layers, "weight", torch.empty(rows, columns, device=device, dtype=dtype))
    scale = _shared_out(layers, "scale", torch.empty(rows, device=device))
    if not weight_format.both_layouts:
        return weight, scale, None
    turned = torch.empty(columns, rows, device=device, dtype=dtype)
    return weight, scale, _shared_out(layers, "transposed", turned, dim=1)


def _shared_out(layers: Sequence[QuantizedLinear], name: str, whole: torch.Tensor, dim: int = 0) -> torch.Tensor:
    """`whole`, of whose rows or columns each layer gets its own as a parameter."""
    parts = whole.split([layer.out_features for layer in layers], dim=dim)
    for layer, part in zip(layers, parts, strict=True):
        setattr(layer, name, _frozen(part))
    return whole


def log_format(weight_format: WeightFormat, device: torch.device | str) -> None:
    """One line of the log; where the CPU stands in for a GPU's product it says so."""
    layouts = ", in both layouts" if weight_format.both_layouts else ""
    log.info("the transformer's blocks are kept in %s%s", weight_format.precision, layouts)
    if torch.device(device).type != "cuda" and weight_format.precision in EIGHT_BIT:
        log.warning("on the CPU %s gives a GPU's numbers, not its speed", weight_format.precision)


def precision_problems(precision: Precision, device: torch.device | None = None) -> list[Problem]:
    """Why a device cannot train with a base in this precision; it is tried there on small numbers.

    device: the GPU if there is one.
    """
    where = f"--base_precision={precision}"
    if precision == "nf4" and find_spec("bitsandbytes") is None:
        return [
            Problem(where, "needs bitsandbytes, which is not installed", f"{BITSANDBYTES}, or use another precision")
        ]
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if precision == "bf16" or device.type != "cuda":
        return []
    name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
    hint = alternative(precision, capability)
    if capability < MIN_CAPABILITY.get(precision, (0, 0)):
        return [Problem(where, f"{name} has no {precision} products", hint)]
    if precision == "fp8" and capability[0] == HALF_RATE_FP8:
        return [Problem(where, f"{name} multiplies fp8 with one scale per row at half its rate", hint)]
    try:
        error = product_error(precision, device)
    except RuntimeError as refused:
        return [Problem(where, f"torch {torch.__version__} refuses it on {name}: {_first_line(refused)}", hint)]
    if not error < TOLERANCE:
        return [Problem(where, f"torch {torch.__version__} computes it wrongly on {name}", hint)]
    return []


def alternative(precision: Precision, capability: tuple[int, int]) -> str:
    """What to use instead of a precision that a GPU of this capability cannot do."""
    if precision == "fp8" and capability >= MIN_CAPABILITY["int8"]:
        return "use --base_precision int8: as little memory, and fast there"
    return "use --base_precision bf16" + ("" if precision == "nf4" else ", or nf4 where memory is short")


def product_error(precision: Precision, device: torch.device) -> float:
    """The largest relative error of a layer's output and gradient against its stored numbers in float32.

    What is left is the rounding of the other factor. Both layouts are tried.
    """
    generator = torch.Generator().manual_seed(0)
    x, weight, dy = (
        torch.randint(-4, 5, shape, generator=generator).to(device, torch.bfloat16)
        for shape in ((1, 64, 128), (256, 128), (1, 64, 256))
    )
    worst = 0.0
    for both_layouts in (False, True) if precision in EIGHT_BIT else (False,):
        layer = QuantizedLinear(128, 256, WeightFormat(precision, both_layouts))
        layer.store(weight)
        wide = products.dequantized(layer.weight, layer.scale, torch.float32, 256)
        given = x.clone().requires_grad_()
        with torch.enable_grad():
            y = layer(given)
        (dx,) = torch.autograd.grad(y, given, dy)
        compared = [(y.detach(), x.float() @ wide.t()), (dx, dy.float() @ wide)]
        if precision == "fp8":  # joined layers have their bias added by the product itself
            bias, (values, scale) = dy[0, 0], quantize_rows(x[0], FP8)
            y = products.multiply_fp8(values, scale, layer.weight, layer.scale, bias, x.dtype)
            compared.append((y, x[0].float() @ wide.t() + bias.float()))
        for found, expected in compared:
            error = float((found.float() - expected).norm() / expected.norm())
            worst = max(worst, error if error == error else float("inf"))
    return worst


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
