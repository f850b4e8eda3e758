"""A ComfyUI node pack for tests alone: core's three loaders give the small FLUX of models/mini, whatever file is named.

Everything behind the loaders is ComfyUI's own, so that graphs made for FLUX.1-dev run as they are.
"""

import sys
from pathlib import Path
from typing import Any

import folder_paths
import nodes

sys.path.append(str(Path(__file__).resolve().parents[3]))
from custom_nodes.flux_dreambooth import mini

FILES = mini.find_files(Path(folder_paths.models_dir) / "mini")
NODE_CLASS_MAPPINGS: dict[str, Any] = {}


def load_checkpoint(_: Any, ckpt_name: str) -> tuple[Any, None, None]:
    assert ckpt_name == "flux1-dev.safetensors"
    return mini.load_transformer(FILES.transformer), None, None


def load_clip(_: Any, clip_name1: str, clip_name2: str, **__: Any) -> tuple[Any]:
    assert {clip_name1, clip_name2} == {"t5xxl_fp16.safetensors", "clip_l.safetensors"}
    return (mini.load_text_encoders(FILES, []),)


def load_vae(_: Any, vae_name: str) -> tuple[Any]:
    assert vae_name == "ae.safetensors"
    return (mini.load_autoencoder(FILES.autoencoder),)


nodes.CheckpointLoaderSimple.load_checkpoint = load_checkpoint
nodes.DualCLIPLoader.load_clip = load_clip
nodes.VAELoader.load_vae = load_vae
