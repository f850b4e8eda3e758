"""LoRA files in every combination of names, suffixes and alpha that tools write, and in other kinds than LoRA."""

from collections.abc import Callable, Iterator

import torch

from tests.nodes.lora_layouts import RANK, Layer, Tensors, make_layers, parts

BLOCKS = [layer for layer in make_layers() if layer.name.startswith(("double_blocks.0.", "single_blocks.1."))]
Modules = Iterator[tuple[str, Layer, torch.Tensor]]  # name, layer, its rows of up


def _fused(prefix: str, flat: bool = False) -> Callable[[], Modules]:
    """BFL's modules."""
    return lambda: ((prefix + (x.name.replace(".", "_") if flat else x.name), x, x.up) for x in BLOCKS)


def _split(prefix: str, flat: bool = False) -> Callable[[], Modules]:
    """diffusers' modules."""
    return lambda: (
        (prefix + (name.replace(".", "_") if flat else name), layer, up)
        for layer in BLOCKS
        for name, up in parts(layer)
    )


NAMES = {
    "kohya": _fused("lora_unet_", flat=True),
    "bfl": _fused("diffusion_model."),
    "diffusers": _split("transformer."),
    "bare diffusers": _split(""),
    "onetrainer": _split("lora_transformer_", flat=True),
    "lycoris": _split("lycoris_", flat=True),
}
SUFFIXES = {
    "up and down": (".lora_down.weight", ".lora_up.weight"),
    "A and B": (".lora_A.weight", ".lora_B.weight"),
    "A and B, default": (".lora_A.default.weight", ".lora_B.default.weight"),
    "A and B alone": (".lora_A", ".lora_B"),
    "lora.up": (".lora.down.weight", ".lora.up.weight"),
    "_lora.up": ("_lora.down.weight", "_lora.up.weight"),
    "lora_linear_layer": (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
}


def _loha(name: str, layer: Layer) -> Tensors:
    generator = torch.Generator().manual_seed(5)
    outputs, inputs = len(layer.up), layer.down.shape[1]
    sizes = {"w1_a": (outputs, RANK), "w1_b": (RANK, inputs), "w2_a": (outputs, RANK), "w2_b": (RANK, inputs)}
    return {f"{name}.hada_{key}": 0.1 * torch.randn(*size, generator=generator) for key, size in sizes.items()}


def _lokr(name: str, layer: Layer) -> Tensors:
    generator = torch.Generator().manual_seed(6)
    outputs, inputs = len(layer.up), layer.down.shape[1]
    sizes = {"w1": (2, 2), "w2_a": (outputs // 2, RANK), "w2_b": (RANK, inputs // 2)}
    return {f"{name}.lokr_{key}": 0.1 * torch.randn(*size, generator=generator) for key, size in sizes.items()}


def _glora(name: str, layer: Layer) -> Tensors:
    generator = torch.Generator().manual_seed(8)
    outputs, inputs = len(layer.up), layer.down.shape[1]
    sizes = {"a1": (RANK, inputs), "a2": (inputs, RANK), "b1": (RANK, inputs), "b2": (outputs, RANK)}
    return {f"{name}.{key}.weight": 0.1 * torch.randn(*size, generator=generator) for key, size in sizes.items()}


def _dora(name: str, layer: Layer) -> Tensors:
    factors = {f"{name}.lora_down.weight": layer.down, f"{name}.lora_up.weight": layer.up}
    return factors | {
        f"{name}.dora_scale": 1 + torch.rand(len(layer.up), 1, generator=torch.Generator().manual_seed(9))
    }


def _difference(name: str, layer: Layer) -> Tensors:
    return {f"{name}.diff": layer.change, f"{name}.diff_b": layer.up[:, 0]}


def _oft(name: str, layer: Layer) -> Tensors:
    size = len(layer.up) // 4
    generator = torch.Generator().manual_seed(10)
    return {
        f"{name}.oft_blocks": 0.01 * torch.randn(4, size, size, generator=generator),
        f"{name}.alpha": torch.tensor(1.0),
    }


KINDS = {"LoHa": _loha, "LoKr": _lokr, "GLoRA": _glora, "DoRA": _dora, "diff": _difference, "OFT": _oft}


def battery() -> dict[str, Tensors]:
    """Each file's tensors, by what is special about it."""
    found: dict[str, Tensors] = {}
    for names, modules in NAMES.items():
        for suffix, (down, up) in SUFFIXES.items():
            plain = {}
            for name, layer, rows in modules():
                plain |= {name + down: layer.down, name + up: rows}
            alphas = {f"{name}.alpha": torch.tensor(RANK / 2) for name, _, _ in modules()}
            found |= {f"{names}, {suffix}": plain, f"{names}, {suffix}, alpha": plain | alphas}
    for kind, write in KINDS.items():
        for names in ("kohya", "bfl"):
            tensors: Tensors = {}
            for name, layer, _ in NAMES[names]():
                tensors |= write(name, layer)
            found[f"{kind}, {names}"] = tensors
    return found
