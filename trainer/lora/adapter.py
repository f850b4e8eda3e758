"""Low-rank adapters on the linear layers of the transformer's blocks and of CLIP's layers.

PEFT injects them. The down projection is our own class, so that its weight can stay in float32 while the product runs
in the layer's precision, and so that kohya's three dropouts can be applied to its output.
"""

import contextlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import nn

from trainer.common.rng import torch_generator

if TYPE_CHECKING:
    from peft import LoraConfig
    from peft.tuners.lora import LoraLayer

ADAPTER = "default"
BLOCKS = ("transformer_blocks.", "single_transformer_blocks.")
CLIP_LAYERS = ("encoder.layers.", "text_model.encoder.layers.")
FILLED_AT_ONCE = 32  # layers whose initial weights are in host memory at a time: at most 0.5 GB at rank 256
CLIP_LEVEL = "text_model."  # in every file; in the module tree only before transformers 5


@dataclass(frozen=True)
class Dropouts:
    """kohya's three dropout probabilities, applied while a module is in training mode.

    network: of each hidden activation (the output of the down projection); rank: of a rank, for a complete sample;
    module: of a layer's complete adapter, for one forward pass. As with torch's dropout, network and rank scale up what
    remains; module does not.
    """

    network: float = 0.0
    rank: float = 0.0
    module: float = 0.0


NO_DROPOUTS = Dropouts()


class AdapterLinear(nn.Linear):
    """A linear layer without bias that computes in the precision of its input."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return F.linear(input, self.weight.to(input.dtype))


class DownLinear(AdapterLinear):
    """An adapter's down projection, without bias; in training mode, `dropouts` are applied to its output."""

    def __init__(self, in_features: int, rank: int, dropouts: Dropouts, **factory):
        super().__init__(in_features, rank, bias=False, **factory)
        self.dropouts = dropouts
        self.drops = dropouts != NO_DROPOUTS

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        hidden = super().forward(input)
        return drop(hidden, self.dropouts) if self.training and self.drops else hidden


def drop(hidden: torch.Tensor, dropouts: Dropouts) -> torch.Tensor:
    """Apply dropouts to hidden activations [B, r] or [B, L, r]; returns the result, without host synchronization."""
    if dropouts.network:
        hidden = F.dropout(hidden, dropouts.network)
    if dropouts.rank:
        shape = (hidden.shape[0], *[1] * (hidden.ndim - 2), hidden.shape[-1])
        kept = torch.rand(shape, device=hidden.device) >= dropouts.rank
        hidden = hidden * (kept / (1 - dropouts.rank)).to(hidden.dtype)
    if dropouts.module:
        kept = torch.rand((), device=hidden.device) >= dropouts.module
        hidden = hidden * kept.to(hidden.dtype)
    return hidden


def linear_modules(model: nn.Module) -> list[str]:
    """The names of the linear layers that can be adapted, as in `model.named_modules()` and in its order.

    In a FLUX transformer, all of the double and single blocks, including modulation (494 in FLUX.1-dev); in CLIP,
    attention and MLP of each layer (72 in CLIP-L).
    """
    found = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return [name for name in found if name.startswith(BLOCKS + CLIP_LAYERS)]


def add_lora(
    model: nn.Module,
    ranks: Mapping[str, int],
    alpha: float | None,
    seed: int,
    dtype: torch.dtype = torch.float32,
    dropouts: Dropouts = NO_DROPOUTS,
) -> None:
    """Adapt the named linear layers in place and freeze everything else.

    ranks: module name, as in `linear_modules` -> rank; 0 leaves a layer unadapted. alpha: for all layers, each scaled
    by alpha / rank as in kohya; None or 0 means alpha = rank, a scale of 1. dtype: of the adapters' weights. The down
    weight is Kaiming-uniform, a pure function of seed and name; the up weight is zero.
    """
    ranks = {name: rank for name, rank in ranks.items() if rank > 0}
    assert ranks, "nothing to adapt"
    model.requires_grad_(False)
    from peft import inject_adapter_in_model  # imported late: a check needs the names of layers alone

    inject_adapter_in_model(_peft_config(ranks, alpha), model, ADAPTER, low_cpu_mem_usage=True)
    layers = dict(_adapted_layers(model))
    assert layers.keys() == ranks.keys(), layers.keys() ^ ranks.keys()
    named = [(file_module(model, name), layer) for name, layer in layers.items()]

    def down_weight(each: tuple[str, "LoraLayer"]) -> torch.Tensor:
        return _down_weight(*each, seed=seed)

    with ThreadPoolExecutor(thread_name_prefix="adapters") as pool:  # 600 million random numbers at rank 256
        for begin in range(0, len(named), FILLED_AT_ONCE):
            some = named[begin : begin + FILLED_AT_ONCE]
            for (_, layer), weight in zip(some, pool.map(down_weight, some), strict=True):
                _fill_layer(layer, weight, dtype, dropouts)


def _peft_config(ranks: Mapping[str, int], alpha: float | None) -> "LoraConfig":
    from peft import LoraConfig

    usual = Counter(ranks.values()).most_common(1)[0][0]
    others = {_escaped(name): rank for name, rank in ranks.items() if rank != usual}  # regular expressions
    return LoraConfig(
        r=usual,
        lora_alpha=alpha or usual,  # type: ignore  (peft accepts a float)
        rank_pattern=others,
        alpha_pattern={} if alpha else dict(others),
        target_modules="|".join(_escaped(name) for name in ranks),
    )


def _escaped(name: str) -> str:
    return name.replace(".", r"\.")


def _down_weight(name: str, layer: "LoraLayer", seed: int) -> torch.Tensor:
    """The initial down projection of a layer, [r, K] in float32 in host memory. name: in the LoRA file."""
    weight = torch.empty(layer.r[ADAPTER], cast(nn.Linear, layer.get_base_layer()).in_features)
    bound = 1 / math.sqrt(weight.shape[1])  # Kaiming uniform with a = sqrt(5), as in torch's and kohya's linear layers
    return weight.uniform_(-bound, bound, generator=torch_generator(seed, "lora", name))


def _fill_layer(layer: "LoraLayer", down_weight: torch.Tensor, dtype: torch.dtype, dropouts: Dropouts) -> None:
    base = cast(nn.Linear, layer.get_base_layer())
    rank, device = layer.r[ADAPTER], base.weight.device
    down = DownLinear(base.in_features, rank, dropouts, device="meta")
    up = AdapterLinear(rank, base.out_features, bias=False, device="meta")
    down.weight = nn.Parameter(down_weight.to(device, dtype))
    up.weight = nn.Parameter(torch.zeros(base.out_features, rank, device=device, dtype=dtype))
    layer.lora_A[ADAPTER], layer.lora_B[ADAPTER] = down, up
    layer.cast_input_dtype_enabled = False  # our linear layers cast the weight instead


def _adapted_layers(model: nn.Module) -> Iterator[tuple[str, "LoraLayer"]]:
    from peft.tuners.lora import LoraLayer

    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


def file_module(model: nn.Module, name: str) -> str:
    """The name in the LoRA file of the module that `model.named_modules()` calls `name`.

    model: a transformer ("transformer." is put in front) or a CLIP text model ("text_encoder.text_model.").
    """
    if name.startswith(BLOCKS):
        return f"transformer.{name}"
    assert name.startswith(CLIP_LAYERS), f"{name} of {type(model).__name__}"
    return f"text_encoder.{CLIP_LEVEL}{name.removeprefix(CLIP_LEVEL)}"


def adapter_parameters(transformer: nn.Module, text_encoder: nn.Module | None = None) -> dict[str, nn.Parameter]:
    """The adapters' weights by their names in the LoRA file, in the models' order.

    For each adapted layer, `NAME.lora_A.weight` (down, [r, in]), then `NAME.lora_B.weight` (up, [out, r]).
    """
    return {
        f"{name}.{key}.weight": getattr(layer, key)[ADAPTER].weight
        for name, layer in _named_layers(transformer, text_encoder)
        for key in ("lora_A", "lora_B")
    }


def adapter_alphas(transformer: nn.Module, text_encoder: nn.Module | None = None) -> dict[str, float]:
    """Each adapted module's alpha, by its name in the LoRA file; its scale is alpha / rank."""
    return {name: layer.scaling[ADAPTER] * layer.r[ADAPTER] for name, layer in _named_layers(transformer, text_encoder)}


def _named_layers(transformer: nn.Module, text_encoder: nn.Module | None) -> Iterator[tuple[str, "LoraLayer"]]:
    for model in (transformer, text_encoder):
        if model is not None:
            yield from ((file_module(model, name), layer) for name, layer in _adapted_layers(model))


@contextlib.contextmanager
def disabled_adapter(*models: nn.Module) -> Iterator[None]:
    """While the block runs, the models' adapters are switched off, so that they predict as before they were adapted."""
    layers = [layer for model in models for _, layer in _adapted_layers(model)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
