"""LoRA files as other tools write them, each with the changes of a small FLUX that it means, by ComfyUI's keys."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from tests.nodes.lora_layouts import RANK, SCALE, Layer, Tensors, make_clip_layers, make_layers, parts

LAYERS, CLIP = make_layers(), make_clip_layers()
BLOCKS = [layer for layer in LAYERS if layer.name.startswith("double_blocks.0.") or "single_blocks.1." in layer.name]
ATTENTION = [layer for layer in BLOCKS if layer.name.endswith(("qkv", "_attn.proj", "linear2"))]
HIDDEN = 256


@dataclass(frozen=True)
class OtherFile:
    """A file's tensors and metadata; changes: weight or bias -> what is added, new_values: what is put in its place."""

    tensors: Tensors
    metadata: dict[str, str] = field(default_factory=dict)
    changes: Tensors = field(default_factory=dict)
    new_values: Tensors = field(default_factory=dict)


def _changes(layers: list[Layer], scale: float = 1.0) -> Tensors:
    return {f"diffusion_model.{layer.name}.weight": scale / SCALE * layer.change for layer in layers}


def _diffusers(down: str, up: str, prefix: str = "transformer.", flat: bool = False, layers: list[Layer] = BLOCKS):
    """Keys of diffusers' module names, each of q, k and v for itself; {} stands for the module."""
    tensors = {}
    for layer in layers:
        for name, rows in parts(layer):
            module = prefix + (name.replace(".", "_") if flat else name)
            tensors |= {module + down: layer.down, module + up: rows}
    return tensors


def _bfl(down: str, up: str, prefix: str = "", layers: list[Layer] = BLOCKS) -> Tensors:
    return {
        f"{prefix}{layer.name}{end}": tensor for layer in layers for end, tensor in ((down, layer.down), (up, layer.up))
    }


def _with_alpha(tensors: Tensors, down: str, alpha: torch.Tensor) -> Tensors:
    return tensors | {f"{key.removesuffix(down)}.alpha": alpha.clone() for key in tensors if key.endswith(down)}


def names_of_tools() -> dict[str, OtherFile]:
    """One strength, 1, under many names."""
    named = {
        "lora_linear_layer": _diffusers(".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
        "underscore_lora": _diffusers("_lora.down.weight", "_lora.up.weight"),
        "dot_lora": _diffusers(".lora.down.weight", ".lora.up.weight"),
        "no_weight": _bfl(".lora_A", ".lora_B", "diffusion_model."),
        "bare_bfl": _bfl(".lora_A.weight", ".lora_B.weight"),
        "bare_diffusers": _diffusers(".lora_A.weight", ".lora_B.weight", ""),
        "two_prefixes": _diffusers(".lora_A.weight", ".lora_B.weight", "transformer.base_model.model."),
        "comfyui_diffusers": _diffusers(".lora_A.weight", ".lora_B.weight", "diffusion_model."),
        "model_prefix": _bfl(".lora_down.weight", ".lora_up.weight", "model.diffusion_model."),
        "named_adapter": _diffusers(".lora_A.toy.weight", ".lora_B.toy.weight", "base_model.model."),
        "trailing_underscore": _diffusers("_.lora_down.weight", "_.lora_up.weight", "lora_unet_", flat=True),
        "simpletuner": _diffusers(".lora_down.weight", ".lora_up.weight", "lycoris_", flat=True),
    }
    return {name: OtherFile(tensors, {}, _changes(BLOCKS)) for name, tensors in named.items()}


def strengths_of_tools() -> dict[str, OtherFile]:
    """The same names with alpha in all the places where it may be."""
    plain = _diffusers(".lora_A.weight", ".lora_B.weight")

    def header(**settings: object) -> dict[str, str]:
        named = {f"transformer.{key}": value for key, value in settings.items()}
        return {"lora_adapter_metadata": json.dumps(named)}

    pattern = {"attn.to_q": 1.0, r"transformer_blocks\.0\.ff\.net\.2": 8.0}
    by_pattern = {}
    for layer in BLOCKS:
        scales = [
            1.0 if name.endswith("attn.to_q") else 8.0 if ".ff.net.2" in name else 2.0 for name, _ in parts(layer)
        ]
        rows = [scale / RANK * up for scale, (_, up) in zip(scales, parts(layer), strict=True)]
        by_pattern[f"diffusion_model.{layer.name}.weight"] = torch.cat(rows) @ layer.down
    fp8 = {key: value.to(torch.float8_e4m3fn) for key, value in plain.items()}
    of_fp8 = {
        f"diffusion_model.{layer.name}.weight": layer.up.to(torch.float8_e4m3fn).float()
        @ layer.down.to(torch.float8_e4m3fn).float()
        for layer in BLOCKS
    }
    shapes = {
        "vector": torch.tensor([2.0]),
        "matrix": torch.tensor([[2.0]]),
        "integer": torch.tensor(2),
        "fp8": torch.tensor(2.0).to(torch.float8_e4m3fn),
    }
    return {
        "header": OtherFile(plain, header(lora_alpha=2, r=RANK), _changes(BLOCKS, 0.5)),
        "rslora": OtherFile(plain, header(lora_alpha=2, use_rslora=True), _changes(BLOCKS, 1.0)),
        "alpha_pattern": OtherFile(plain, header(lora_alpha=2, alpha_pattern=pattern), by_pattern),
        "plain_header": OtherFile(plain, {"lora_alpha": "8", "lora_rank": str(RANK)}, _changes(BLOCKS, 2.0)),
        "json_header": OtherFile(plain, {"lora_config": '{"lora_alpha": 8, "r": 4}'}, _changes(BLOCKS, 2.0)),
        "fp8": OtherFile(fp8, {}, of_fp8),
        "fp64": OtherFile({key: value.double() for key, value in plain.items()}, {}, _changes(BLOCKS)),
    } | {
        f"alpha_{name}": OtherFile(_with_alpha(plain, ".lora_A.weight", alpha), {}, _changes(BLOCKS, 0.5))
        for name, alpha in shapes.items()
    }


def more_than_matrices() -> dict[str, OtherFile]:
    """Processors of XLabs and USO, biases, norms, a wider input."""
    generator = torch.Generator().manual_seed(7)

    def numbers(*shape: int) -> torch.Tensor:
        return 0.05 * torch.randn(*shape, generator=generator)

    biases = {f"diffusion_model.{layer.name}.bias": numbers(len(layer.up)) for layer in BLOCKS}
    norms = {
        f"double_blocks.0.{stream}_attn.norm.{norm}_norm.scale": 1 + numbers(128)
        for stream in ("img", "txt")
        for norm in ("query", "key")
    }
    wide = Layer("img_in", numbers(RANK, 128), numbers(HIDDEN, RANK), (HIDDEN,))
    control = _bfl(".lora_A.weight", ".lora_B.weight", layers=[*BLOCKS, wide]) | norms
    control |= {f"{key.split('.', 1)[1].removesuffix('.bias')}.lora_B.bias": value for key, value in biases.items()}
    peft = _diffusers(".lora_A.weight", ".lora_B.weight")
    for layer in BLOCKS:
        bias = biases[f"diffusion_model.{layer.name}.bias"].split(layer.rows)
        peft |= {f"transformer.{name}.lora_B.bias": rows for (name, _), rows in zip(parts(layer), bias, strict=True)}
    differences = {
        "transformer.transformer_blocks.0.attn.norm_q.diff": numbers(128),
        "lora_unet_double_blocks_0_txt_attn_norm_key_norm.w_norm": numbers(128),
        "lora_unet_single_blocks_1_linear2.diff_b": numbers(HIDDEN),
    }
    changed = dict(
        zip(
            (
                "diffusion_model.double_blocks.0.img_attn.norm.query_norm.scale",
                "diffusion_model.double_blocks.0.txt_attn.norm.key_norm.scale",
                "diffusion_model.single_blocks.1.linear2.bias",
            ),
            differences.values(),
            strict=True,
        )
    )
    return {
        "uso": OtherFile(_processors(), {}, _changes(ATTENTION) | _single_qkv()[1]),
        "control": OtherFile(
            control, {}, _changes([*BLOCKS, wide]) | biases, {f"diffusion_model.{key}": v for key, v in norms.items()}
        ),
        "lora_bias": OtherFile(
            peft, {"lora_alpha": "8"}, _changes(BLOCKS, 2.0) | {k: 2 * v for k, v in biases.items()}
        ),
        "differences": OtherFile(differences, {}, changed),
        "text_dots": OtherFile(
            {f"lora_te1.{layer.name}.{end}": tensor for layer in CLIP for end, tensor in _factors(layer)},
            {},
            {f"clip_l.transformer.{layer.name}.weight": layer.change / SCALE for layer in CLIP},
        ),
    }


def _factors(layer: Layer):
    return ("lora_down.weight", layer.down), ("lora_up.weight", layer.up)


def _processors() -> Tensors:
    names = {
        "img_attn.qkv": "processor.qkv_lora1", "txt_attn.qkv": "processor.qkv_lora2", "linear2": "processor.proj_lora",
        "img_attn.proj": "processor.proj_lora1", "txt_attn.proj": "processor.proj_lora2",
    }  # fmt: skip
    tensors = _single_qkv()[0]
    for layer in ATTENTION:
        kind, number, rest = layer.name.split(".", 2)
        name = f"{kind}.{number}.{names[rest]}"
        tensors |= {f"{name}.down.weight": layer.down, f"{name}.up.weight": layer.up}
    return tensors


def _single_qkv() -> tuple[Tensors, Tensors]:
    layer = next(layer for layer in BLOCKS if layer.name == "single_blocks.1.linear1")
    up = layer.up[: 3 * HIDDEN]
    name = "single_blocks.1.processor.qkv_lora"
    change = torch.cat([up @ layer.down, torch.zeros(4 * HIDDEN, HIDDEN)])
    tensors = {f"{name}.down.weight": layer.down, f"{name}.up.weight": up}
    return tensors, {f"diffusion_model.{layer.name}.weight": change}


def peft_dora() -> OtherFile:
    """What PEFT writes of DoRA: its change depends on the model's weights, so it is computed there."""
    tensors = _diffusers(".lora_A.weight", ".lora_B.weight")
    generator = torch.Generator().manual_seed(3)
    for layer in BLOCKS:
        for name, rows in parts(layer):
            magnitude = 1 + torch.rand(len(rows), generator=generator)
            tensors[f"transformer.{name}.lora_magnitude_vector"] = magnitude
    return OtherFile(tensors, {"lora_alpha": "8"})


FILES: dict[str, Callable[[], dict[str, OtherFile]]] = {
    "names": names_of_tools,
    "strengths": strengths_of_tools,
    "more": more_than_matrices,
}


def all_files() -> dict[str, OtherFile]:
    """Every file by its name."""
    return {name: file for make in FILES.values() for name, file in make().items()}
