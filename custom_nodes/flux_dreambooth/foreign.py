"""What a file that is no LoRA of FLUX.1 is, as far as the names of its tensors tell."""

import re
from collections.abc import Iterable

_FOREIGN = (
    (r"\.processor\.(qkv|proj)_lora", "an XLabs LoRA, which ComfyUI does not read; convert it first"),
    (r"lora_te2_text_model|lora_unet_(input|output|down|up|mid|middle)_block", "a LoRA of SDXL or SD 1.5"),
    (r"unet\.(down|up|mid)_blocks?\.", "a LoRA of SDXL or SD 1.5"),
    (r"(lora_unet_|diffusion_model\.|^)blocks[._]\d+[._](cross_attn|self_attn)", "a LoRA of Wan"),
    (r"joint_blocks[._]", "a LoRA of Stable Diffusion 3"),
    (r"img_attn_qkv|individual_token_refiner", "a LoRA of HunyuanVideo"),
    (r"transformer_blocks[._]\d+[._](img_mod|img_mlp|txt_mod)", "a LoRA of Qwen-Image"),
    (r"(double_stream_modulation|single_stream_modulation)", "a LoRA or model of FLUX.2"),
    (r"^(?!.*lora)(model\.diffusion_model\.)?double_blocks\.\d+\..*\.weight$", "a whole FLUX transformer, not a LoRA"),
    (r"^(?!.*lora)(single_)?transformer_blocks\.\d+\..*\.weight$", "a whole transformer, not a LoRA"),
    (r"^(?!.*lora)(decoder|encoder)\.(conv_in|down|up|mid)", "an autoencoder (VAE), not a LoRA"),
    (r"^(?!.*lora)text_model\.|^encoder\.block\.\d+\.layer", "a text encoder, not a LoRA"),
    (r"^(clip_l|clip_g|t5xxl|emb_params|string_to_param)$", "a textual inversion embedding, not a LoRA"),
    (r"^(?!.*lora)(model\.diffusion_model\.|first_stage_model\.)", "a whole checkpoint, not a LoRA"),
)


def foreign_kind(keys: Iterable[str]) -> str | None:
    """What these keys are of, as far as names tell: `a LoRA of SDXL or SD 1.5`, `a text encoder, not a LoRA` …"""
    keys = list(keys)
    return next((what for found, what in _FOREIGN if any(re.search(found, key) for key in keys)), None)


def what_it_is(keys: Iterable[str]) -> str:
    """A sentence on what a file without a FLUX.1 LoRA is."""
    keys = list(keys)
    if kind := foreign_kind(keys):
        return f"it is {kind}"
    return f"it holds no LoRA: its keys are {', '.join(keys[:3])} …" if keys else "it holds no tensors"
