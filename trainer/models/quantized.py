"""Frozen linear layers of the transformer's blocks, stored in 8 or 4 bits.

`--base_precision fp8` and `int8` multiply in 8 bits, which is faster on GPUs that support it. `nf4` only stores in 4
bits, for cards with little memory. Embedders and the final layer are not quantized. Neither are modulation layers where
weights are kept in both layouts: these layers see one row per image, and unquantized they take the same memory and need
no dequantization. Stored tensors are ordinary `nn.Parameter`s without gradient, so they move between devices with the
model, except joined layers, which share memory. Never cast such a module to another dtype.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal, NamedTuple, cast

import torch
from torch import nn

from trainer.common.problems import Problem
from trainer.kernels import mx
from trainer.kernels.quantize import FP8, INT8, quantize_rows
from trainer.models import products

log = logging.getLogger(__name__)
Precision = Literal["bf16", "fp8", "int8", "nf4"]
EIGHT_BIT = {"fp8": FP8, "int8": INT8}
BLOCKS = ("transformer_blocks.", "single_transformer_blocks.")
MODULATION = ".linear"  # suffix of the names of modulation layers
ROOM_FOR_BOTH_LAYOUTS = 40 << 30  # a device with this many bytes keeps weights in both layouts
MIN_CAPABILITY = {"fp8": (8, 9), "int8": (8, 0)}
TOLERANCE = 0.1  # quantization has an error of 0.03 in fp8 and 0.004 in int8, a wrong kernel about 1
BITSANDBYTES = "pip install 'bitsandbytes>=0.46'"


@dataclass(frozen=True)
class WeightFormat:
    """How the blocks' linear layers are stored.

    both_layouts: 8-bit weights are also stored transposed: a faster backward pass for twice the memory.
    """

    precision: Precision
    both_layouts: bool = False

    @classmethod
    def for_device(cls, precision: Precision, device: torch.device | str) -> "WeightFormat":
        """The format for a device; 8-bit weights are stored in both layouts on a GPU of 40 GiB or more."""
        device = torch.device(device)
        roomy = device.type == "cuda" and torch.cuda.get_device_properties(device).total_memory >= ROOM_FOR_BOTH_LAYOUTS
        return cls(precision, both_layouts=roomy and precision in EIGHT_BIT)

    def bytes_per_weight(self) -> float:
        """Bytes per weight in fp8, int8 or nf4. Includes nf4's scales, but not those of 8-bit rows."""
        return 4.5 / 8 if self.precision == "nf4" else 1.0 + self.both_layouts


class Joined(NamedTuple):
    """Layers with a common input as one: weight [N, K], scale [N], transposed [K, N] or None, bias [N].

    N: the sum of their output features.
    """

    weight: torch.Tensor
    scale: torch.Tensor
    transposed: torch.Tensor | None
    bias: torch.Tensor


class QuantizedLinear(nn.Linear):
    """A frozen linear layer in fp8, int8 or nf4, without a weight until `store` is called.

    weight: [N, K] in e4m3 or int8, or nf4 as bitsandbytes packs it. scale: float32, [N] or one per 64 numbers.
    transposed: the weight as [K, N], or None. joined: set on the first of several layers that are stored as one.
    `allocate` may give a layer uninitialized memory earlier. As an `nn.Linear` it can be adapted by peft.
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
        """Quantize a weight [N, K] on its device and keep it, in the memory from `allocate` if there is any."""
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
    """Set a module's frozen parameter `name`: copy the tensor into its memory, or register it if there is none."""
    own = getattr(module, name)
    if own is None or own.is_meta:
        setattr(module, name, _frozen(tensor.contiguous()))
    else:
        own.data.copy_(tensor)


def make_quantized(transformer: nn.Module, weight_format: WeightFormat) -> None:
    """Replace, in place, the linear layers of the transformer's blocks by empty `QuantizedLinear` layers.

    Modulation layers stay as they are if weights are stored in both layouts.
    """
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
    """Allocate, uninitialized, the memory of all 8-bit weights before the first of them arrives; does nothing for nf4.

    Weights that are being quantized come and go in pieces of many sizes. Permanent memory allocated in between would be
    scattered, with gigabytes of gaps that cannot be returned to the device. joined: groups of layers with a common
    input and biases (in dtype), stored as one in fp8. waiting: prefixes of the names of layers that are kept in host
    memory.
    """
    if weight_format.precision == "nf4":
        return  # bitsandbytes allocates its own
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
    """Allocate one uninitialized matrix for layers with a common input; each layer's parameters become views of it.

    dtype: of the bias, which every layer gets. The first layer's `joined` holds the tensors.
    """
    weight, scale, transposed = _allocate_weights(layers, device)
    bias = _split_among(layers, "bias", torch.empty(len(scale), device=device, dtype=dtype))
    layers[0].joined = Joined(weight, scale, transposed, bias)


def _allocate_weights(
    layers: Sequence[QuantizedLinear], device: torch.device | str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """The tensors of `Joined` without the bias; each layer gets a view of them."""
    weight_format, columns = layers[0].weight_format, layers[0].in_features
    rows, dtype = sum(layer.out_features for layer in layers), EIGHT_BIT[weight_format.precision]
    weight = _split_among(layers, "weight", torch.empty(rows, columns, device=device, dtype=dtype))
    scale = _split_among(layers, "scale", torch.empty(rows, device=device))
    if not weight_format.both_layouts:
        return weight, scale, None
    transposed = torch.empty(columns, rows, device=device, dtype=dtype)
    return weight, scale, _split_among(layers, "transposed", transposed, dim=1)


def _split_among(layers: Sequence[QuantizedLinear], name: str, joined: torch.Tensor, dim: int = 0) -> torch.Tensor:
    """`joined`, after each layer got its rows or columns of it as a parameter."""
    parts = joined.split([layer.out_features for layer in layers], dim=dim)
    for layer, part in zip(layers, parts, strict=True):
        setattr(layer, name, _frozen(part))
    return joined


def log_format(weight_format: WeightFormat, device: torch.device | str) -> None:
    """Log how the blocks are stored, with a warning if the CPU emulates a GPU's products."""
    layouts = ", in both layouts" if weight_format.both_layouts else ""
    log.info("the transformer's blocks are stored in %s%s", weight_format.precision, layouts)
    if torch.device(device).type != "cuda" and weight_format.precision in EIGHT_BIT:
        log.warning("%s is emulated on the CPU: a GPU's numbers, not its speed", weight_format.precision)


def precision_problems(precision: Precision, device: torch.device | None = None) -> list[Problem]:
    """Reasons why a device cannot train with this base precision, found with a small product; [] if it can.

    device: the GPU if there is one; None for the default device.
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
        return [Problem(where, f"{name} has no {precision} matrix products", hint)]
    if precision == "fp8" and capability[0] == mx.MAJOR and not mx.works(device):
        what = f"{name} multiplies fp8 with one scale per row at half rate only, and our kernel is no remedy there"
        return [Problem(where, what, hint)]
    try:
        error = product_error(precision, device)
    except RuntimeError as refused:
        return [Problem(where, f"torch {torch.__version__} refuses it on {name}: {_first_line(refused)}", hint)]
    if not error < TOLERANCE:
        return [Problem(where, f"torch {torch.__version__} computes it wrongly on {name}", hint)]
    return []


def alternative(precision: Precision, capability: tuple[int, int]) -> str:
    """A hint for messages: what to use instead of a precision that a GPU does not support.

    capability: the GPU's compute capability, (major, minor).
    """
    if precision == "fp8" and capability >= MIN_CAPABILITY["int8"]:
        return "use --base_precision int8: as little memory, and fast there"
    return "use --base_precision bf16" + ("" if precision == "nf4" else ", or nf4 where memory is short")


def product_error(precision: Precision, device: torch.device) -> float:
    """The largest relative error of a `QuantizedLinear`'s output and input gradient; inf if any is NaN.

    Compared with float32 products of the stored weight, so a correct product only has the rounding of its other factor.
    Both layouts are tried, on small random inputs.
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
        if precision == "fp8":  # the product adds the bias of joined layers itself
            bias, (values, scale) = dy[0, 0], quantize_rows(x[0], FP8)
            y = products.multiply_fp8(values, scale, layer.weight, layer.scale, bias, x.dtype)
            compared.append((y, x[0].float() @ wide.t() + bias.float()))
        for found, expected in compared:
            error = float((found.float() - expected).norm() / expected.norm())
            worst = max(worst, error if error == error else float("inf"))
    return worst


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
