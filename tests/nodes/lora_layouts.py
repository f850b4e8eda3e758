"""One weight change of a small FLUX and its CLIP, written in the five layouts that users have."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from trainer.lora_file.flux_names import diffusers_modules, kohya_name

RANK, SCALE = 4, 0.5  # alpha is half the rank
Tensors = dict[str, torch.Tensor]
METADATA = {
    "flux_dreambooth": json.dumps(
        {
            "version": "1.0",
            "concepts": [{"concept": "toy", "trigger": "tjtoy toy", "is_reg": False, "pictures": 6, "num_repeats": 1}],
            "config": {"network_dim": RANK, "network_alpha": RANK * SCALE, "learning_rate": 1e-4},
        }
    ),
    "ss_network_dim": str(RANK),
    "ss_network_alpha": str(RANK * SCALE),
    "ss_steps": "120",
    "modelspec.architecture": "flux-1-dev/lora",
    "modelspec.trigger_phrase": "tjtoy toy",
}


@dataclass(frozen=True)
class Layer:
    """One BFL matrix (or CLIP layer) with a change SCALE * up @ down; rows: outputs of each diffusers part."""

    name: str
    down: torch.Tensor
    up: torch.Tensor
    rows: tuple[int, ...]

    @property
    def change(self) -> torch.Tensor:
        return SCALE * self.up @ self.down


def make_layers(hidden: int = 256, double: int = 2, single: int = 2, rank: int = RANK, seed: int = 0) -> list[Layer]:
    """Changes of all linear layers of the blocks; sizes as `benchmarks.random_flux` has them."""
    generator = torch.Generator().manual_seed(seed)
    layers = []
    for name, inputs, rows in _sizes(hidden, double, single):
        down = torch.randn(rank, inputs, generator=generator) / inputs**0.5
        layers.append(Layer(name, down, 0.05 * torch.randn(sum(rows), rank, generator=generator), rows))
    return layers


def _sizes(hidden: int, double: int, single: int) -> Iterator[tuple[str, int, tuple[int, ...]]]:
    for block in range(double):
        for stream in ("img", "txt"):
            name = f"double_blocks.{block}.{stream}"
            yield f"{name}_mod.lin", hidden, (6 * hidden,)
            yield f"{name}_attn.qkv", hidden, (hidden,) * 3
            yield f"{name}_attn.proj", hidden, (hidden,)
            yield f"{name}_mlp.0", hidden, (4 * hidden,)
            yield f"{name}_mlp.2", 4 * hidden, (hidden,)
    for block in range(single):
        yield f"single_blocks.{block}.modulation.lin", hidden, (3 * hidden,)
        yield f"single_blocks.{block}.linear1", hidden, (hidden, hidden, hidden, 4 * hidden)
        yield f"single_blocks.{block}.linear2", 5 * hidden, (hidden,)


def make_clip_layers(width: int = 64, layers: int = 2, mlp: int = 128, rank: int = RANK) -> list[Layer]:
    """Changes of CLIP-L's layers, named like `text_model.encoder.layers.0.mlp.fc1`."""
    generator = torch.Generator().manual_seed(99)
    found = []
    for index in range(layers):
        sizes = {f"self_attn.{part}_proj": (width, width) for part in ("q", "k", "v", "out")}
        for module, (inputs, outputs) in (sizes | {"mlp.fc1": (width, mlp), "mlp.fc2": (mlp, width)}).items():
            down = torch.randn(rank, inputs, generator=generator) / inputs**0.5
            up = 0.05 * torch.randn(outputs, rank, generator=generator)
            found.append(Layer(f"text_model.encoder.layers.{index}.{module}", down, up, (outputs,)))
    return found


def parts(layer: Layer) -> Iterator[tuple[str, torch.Tensor]]:
    """A layer's diffusers modules with their rows of up."""
    yield from zip(diffusers_modules(layer.name), layer.up.split(layer.rows), strict=True)


def ours(layers: list[Layer], clip: list[Layer]) -> tuple[Tensors, dict[str, str]]:
    tensors = {}
    for layer in layers:
        for name, up in parts(layer):
            tensors |= _peft(f"transformer.{name}", layer.down, up * SCALE, alpha=float(len(layer.down)))
    for layer in clip:
        tensors |= _peft(f"text_encoder.{layer.name}", layer.down, layer.up * SCALE, alpha=float(len(layer.down)))
    return tensors, METADATA


def kohya(layers: list[Layer], clip: list[Layer]) -> tuple[Tensors, dict[str, str]]:
    tensors = {}
    for layer in layers:
        tensors |= _kohya(kohya_name(layer.name), layer.down, layer.up)
    for layer in clip:
        tensors |= _kohya(f"lora_te1_{layer.name.replace('.', '_')}", layer.down, layer.up)
    return tensors, {"ss_network_dim": str(RANK), "ss_network_alpha": str(RANK * SCALE), "ss_steps": "120"}


def diffusers(layers: list[Layer], clip: list[Layer]) -> tuple[Tensors, dict[str, str]]:
    """alpha in the header alone, as PEFT's settings."""
    tensors = {}
    for layer in layers:
        for name, up in parts(layer):
            tensors |= _peft(f"transformer.{name}", layer.down, up)
    for layer in clip:
        tensors |= _peft(f"text_encoder.{layer.name}", layer.down, layer.up)
    alphas = {f"{part}.lora_alpha": RANK * SCALE for part in ("transformer", "text_encoder")}
    return tensors, {"format": "pt", "lora_adapter_metadata": json.dumps(alphas | {"transformer.r": RANK})}


def ai_toolkit(layers: list[Layer], _clip: list[Layer]) -> tuple[Tensors, dict[str, str]]:
    """The transformer alone, no alpha at all."""
    tensors = {}
    for layer in layers:
        for name, up in parts(layer):
            tensors |= _peft(f"transformer.{name}", layer.down, up * SCALE)
    return tensors, {"software": json.dumps({"name": "ai-toolkit"}), "ss_base_model_version": "flux1"}


def onetrainer(layers: list[Layer], clip: list[Layer]) -> tuple[Tensors, dict[str, str]]:
    tensors = {}
    for layer in layers:
        for name, up in parts(layer):
            tensors |= _kohya(f"lora_transformer_{name.replace('.', '_')}", layer.down, up)
    for layer in clip:
        tensors |= _kohya(f"lora_te1_{layer.name.replace('.', '_')}", layer.down, layer.up)
    return tensors, {"ot_branch": "master"}


LAYOUTS = {"ours": ours, "kohya": kohya, "diffusers": diffusers, "ai_toolkit": ai_toolkit, "onetrainer": onetrainer}


def write_layout(path: Path, layout: str, layers: list[Layer], clip: list[Layer]) -> Path:
    """Write the layers in one of LAYOUTS."""
    tensors, metadata = LAYOUTS[layout](layers, clip)
    return write_tensors(path, tensors, metadata)


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path, metadata=dict(metadata))
    return path


def changes(layers: list[Layer], clip: list[Layer]) -> Tensors:
    """The whole weight changes by ComfyUI's keys."""
    found = {f"diffusion_model.{layer.name}.weight": layer.change for layer in layers}
    return found | {f"clip_l.transformer.{layer.name}.weight": layer.change for layer in clip}


def write_refused(folder: Path, good: Path, layers: list[Layer]) -> dict[str, str]:
    """Files that no loader may take, and what the message about each has to say."""
    data = good.read_bytes()
    qkv = kohya_name("double_blocks.0.img_attn.qkv")
    wide, odd = torch.zeros(RANK, 320), torch.zeros(768, RANK + 1)
    files = {
        "empty": (b"", "empty file"),
        "truncated": (data[:-1000], "truncated"),
        "pickle": (b"\x80\x02}q\x00.".ljust(64, b"\0"), "pickle"),
        "zip": (b"PK\x03\x04".ljust(64, b"\0"), "pickle"),
        "html": (b"<!DOCTYPE html><html>Access denied</html>", "web page"),
        "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git-lfs"),
    }
    for name, (content, _) in files.items():
        (folder / f"{name}.safetensors").write_bytes(content)
    some = _kohya(kohya_name(layers[0].name), layers[0].down, layers[0].up)
    tensors = {
        "sdxl": (_kohya("lora_unet_input_blocks_4_1_proj_in", torch.zeros(4, 8), torch.zeros(8, 4)), "SDXL"),
        "xlabs": ({"double_blocks.0.processor.qkv_lora1.up.weight": torch.zeros(8, 4)}, "has no down"),
        "transformer": ({"double_blocks.0.img_attn.qkv.weight": torch.zeros(8, 8)}, "not a LoRA"),
        "width": (_kohya(qkv, wide, torch.zeros(960, RANK)), "wrong shape"),
        "rank": (_kohya(qkv, layers[1].down, odd), f"rank {RANK} in down and {RANK + 1} in up"),
        "half": ({key: value for key, value in some.items() if "down" not in key}, "no down"),
        "part": (some | _kohya("lora_unet_double_blocks_7_img_mlp_0", wide, wide.T), "only in part: 1 of 2"),
    }
    for name, (content, _) in tensors.items():
        write_tensors(folder / f"{name}.safetensors", content, {})
    return {name: message for name, (_, message) in (files | tensors).items()}


def _peft(name: str, down: torch.Tensor, up: torch.Tensor, alpha: float | None = None) -> Tensors:
    tensors = {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    return tensors | ({} if alpha is None else {f"{name}.alpha": torch.tensor(alpha)})


def _kohya(name: str, down: torch.Tensor, up: torch.Tensor) -> Tensors:
    alpha = torch.tensor(len(down) * SCALE)
    return {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": alpha}
