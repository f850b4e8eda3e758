"""The frozen linear layers of the transformer's blocks, stored in 8 or 4 bits.

`--base_precision fp8` and `int8` multiply in 8 bits, which is faster on GPUs that can; `nf4` only stores
in 4 bits, for cards with little memory. Embedders, norms without weights and the final layer stay as they
are, and so do layers of modulation where a weight is kept in both layouts: they see one row a picture, so
for the same bytes they need not be widened each time. Everything that is stored is a plain `nn.Parameter`
that needs no gradient, so that whatever moves a model's parameters between devices moves these too, unless
layers were joined; never cast such a module to another dtype.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal, NamedTuple

import torch
from torch import nn

from trainer.faults import Fault
from trainer.models import products
from trainer.models.products import FP8, INT8

log = logging.getLogger(__name__)
Precision = Literal["bf16", "fp8", "int8", "nf4"]
EIGHT_BIT = {"fp8": FP8, "int8": INT8}
BLOCKS = ("transformer_blocks.", "single_transformer_blocks.")
MODULATION = ".linear"  # how the names of its layers end
ROOM_FOR_BOTH_LAYOUTS = 40 << 30  # bytes of a device's memory from which on a weight is kept in both
LEAST_CAPABILITY = {"fp8": (8, 9), "int8": (8, 0)}
HALF_RATE_FP8 = 12  # the major capability of GPUs that multiply fp8 at full rate only with scales per 32 numbers
TOLERANCE = 0.1  # quantising the factors costs 0.03 in fp8 and 0.004 in int8, a wrong kernel about 1
BITSANDBYTES = "pip install 'bitsandbytes>=0.46'"


@dataclass(frozen=True)
class Storage:
    """How block layers are stored; both_layouts: also transposed, faster in backward and twice the bytes."""

    precision: Precision
    both_layouts: bool = False

    @classmethod
    def for_device(cls, precision: Precision, device: torch.device | str) -> "Storage":
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
    """A frozen linear layer without its weight until `store` is called.

    weight: [N, K] e4m3 or int8, or nf4 as bitsandbytes packs it; scale: float32, [N] or one per 64 numbers;
    transposed: the weight as [K, N], or None; joined: with the layers whose weights are stored with this one's,
    of which it is the first. peft adapts it as the `nn.Linear` that it is.
    """

    def __init__(self, in_features: int, out_features: int, storage: Storage):
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.storage = in_features, out_features, storage
        self.joined: Joined | None = None
        for name in ("weight", "scale", "transposed", "bias"):
            self.register_parameter(name, None)

    def store(self, weight: torch.Tensor) -> None:
        """Quantise a weight [N, K] on the device where it is."""
        precision = self.storage.precision
        if precision == "nf4":
            values, scale = products.quantize_nf4(weight)
        else:
            values, scale = products.quantize_rows(weight, EIGHT_BIT[precision])
        self.weight, self.scale = _frozen(values), _frozen(scale.flatten())
        if self.storage.both_layouts:
            self.transposed = _frozen(values.t().contiguous())

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        y = products.product(input, self.weight, self.scale, self.transposed, self.out_features)
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.storage}"


def _frozen(tensor: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)


def make_quantized(transformer: nn.Module, storage: Storage) -> None:
    """Put a `QuantizedLinear`, still empty, in the place of each linear layer of the blocks that is stored so."""
    for name, module in list(transformer.named_modules()):
        stays = storage.both_layouts and name.endswith(MODULATION)
        if isinstance(module, nn.Linear) and name.startswith(BLOCKS) and not stays:
            transformer.set_submodule(name, QuantizedLinear(module.in_features, module.out_features, storage))


def join(layers: Sequence[QuantizedLinear]) -> None:
    """Store layers with biases that read one input as one matrix; what each has becomes a view of it."""
    layers[0].joined = Joined(
        weight=_as_one(layers, "weight"),
        scale=_as_one(layers, "scale"),
        transposed=None if layers[0].transposed is None else _as_one(layers, "transposed", dim=1),
        bias=_as_one(layers, "bias"),
    )


def _as_one(layers: Sequence[QuantizedLinear], name: str, dim: int = 0) -> torch.Tensor:
    own = [getattr(layer, name).data for layer in layers]
    if len(own) == 1:
        return own[0]
    whole = torch.cat(own, dim=dim)
    for layer, part in zip(layers, whole.split([each.shape[dim] for each in own], dim=dim), strict=True):
        setattr(layer, name, _frozen(part))
    return whole


def say_storage(storage: Storage, device: torch.device | str) -> None:
    """One line of the log; where the CPU stands in for a GPU's product it says so."""
    layouts = ", in both layouts" if storage.both_layouts else ""
    log.info("the transformer's blocks are kept in %s%s", storage.precision, layouts)
    if torch.device(device).type != "cuda" and storage.precision in EIGHT_BIT:
        log.warning("on the CPU %s gives a GPU's numbers, not its speed", storage.precision)


def precision_faults(precision: Precision, device: torch.device | None = None) -> list[Fault]:
    """Why a device cannot train with a base in this precision; it is tried there on small numbers.

    device: the GPU if there is one.
    """
    where = f"--base_precision={precision}"
    if precision == "nf4" and find_spec("bitsandbytes") is None:
        return [Fault(where, "needs bitsandbytes, which is not installed", f"{BITSANDBYTES}, or use another precision")]
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if precision == "bf16" or device.type != "cuda":
        return []
    name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
    hint = alternative(precision, capability)
    if capability < LEAST_CAPABILITY.get(precision, (0, 0)):
        return [Fault(where, f"{name} has no {precision} products", hint)]
    if precision == "fp8" and capability[0] == HALF_RATE_FP8:
        return [Fault(where, f"{name} multiplies fp8 with one scale per row at half its rate", hint)]
    try:
        error = product_error(precision, device)
    except RuntimeError as refused:
        return [Fault(where, f"torch {torch.__version__} refuses it on {name}: {_first_line(refused)}", hint)]
    if not error < TOLERANCE:
        return [Fault(where, f"torch {torch.__version__} computes it wrongly on {name}", hint)]
    return []


def alternative(precision: Precision, capability: tuple[int, int]) -> str:
    """What to use instead of a precision that a GPU of this capability cannot do."""
    if precision == "fp8" and capability >= LEAST_CAPABILITY["int8"]:
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
        layer = QuantizedLinear(128, 256, Storage(precision, both_layouts))
        layer.store(weight)
        wide = products.widened(layer.weight, layer.scale, torch.float32, 256)
        given = x.clone().requires_grad_()
        with torch.enable_grad():
            y = layer(given)
        (dx,) = torch.autograd.grad(y, given, dy)
        compared = [(y.detach(), x.float() @ wide.t()), (dx, dy.float() @ wide)]
        if precision == "fp8":  # joined layers have their bias added by the product itself
            bias, (values, scale) = dy[0, 0], products.quantize_rows(x[0], FP8)
            y = products.multiply_fp8(values, scale, layer.weight, layer.scale, bias, x.dtype)
            compared.append((y, x[0].float() @ wide.t() + bias.float()))
        for found, expected in compared:
            error = float((found.float() - expected).norm() / expected.norm())
            worst = max(worst, error if error == error else float("inf"))
    return worst


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
