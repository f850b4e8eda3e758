"""The small FLUX that the nodes' tests draw with: the project's own where it is, else random numbers."""

import json
import re
from pathlib import Path

import torch
from safetensors.torch import save_file

from trainer.models.weights import read_header

MINI = ("flux1-mini", "ae-mini", "clip_l-mini", "t5-mini")
RANDOM = ("checkpoints/flux1-dev", "vae/ae", "text_encoders/clip_l", "text_encoders/t5xxl_fp16")
METADATA = {"clip_l-mini": {"num_attention_heads": "2"}, "t5-mini": {"max_token_length": "64"}}


def write_mini(folder: Path, trained: Path, random: Path) -> bool:
    """Fill models/mini: links to `trained` if it is complete, else copies of the random files. True: it is trained."""
    found = all((trained / f"{name}.safetensors").is_file() for name in MINI)
    for name, other in zip(MINI, RANDOM, strict=True):
        target = folder / f"{name}.safetensors"
        if found:
            target.symlink_to(trained / target.name)
        else:
            copy_with_metadata(random / f"{other}.safetensors", target, METADATA.get(name, {}))
    (folder / "tokenizers").symlink_to((trained if found else random) / "tokenizers")
    return found


def copy_with_metadata(source: Path, target: Path, metadata: dict[str, str]) -> None:
    """A copy of a safetensors file whose header says more."""
    data = source.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = header.get("__metadata__", {}) | metadata
    text = json.dumps(header).encode()
    text = text.ljust(len(text) + -len(text) % 8)
    target.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def write_lora(
    path: Path, mini: Path, metadata: dict[str, str] | None = None, seed: int = 0, size: float = 0.1
) -> Path:
    """A random LoRA of rank 4 in kohya's names for the small FLUX in `mini`: its blocks' layers and CLIP's."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    parts = (("flux1-mini", "lora_unet", r"(double|single)_blocks\..*(qkv|proj|linear\d|mlp\.\d)\.weight"),)
    for file, prefix, pattern in (*parts, ("clip_l-mini", "lora_te1", r".*(_proj|fc\d)\.weight")):
        header = read_header(mini / f"{file}.safetensors")
        for name in sorted(header.tensors):
            if re.fullmatch(pattern, name):
                outputs, inputs = header.shape(name)
                key = f"{prefix}_{name.removesuffix('.weight').replace('.', '_')}"
                tensors[f"{key}.lora_down.weight"] = torch.randn(4, inputs, generator=generator) / inputs**0.5
                tensors[f"{key}.lora_up.weight"] = torch.randn(outputs, 4, generator=generator) * size
                tensors[f"{key}.alpha"] = torch.tensor(4.0)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata or {})
    return path
