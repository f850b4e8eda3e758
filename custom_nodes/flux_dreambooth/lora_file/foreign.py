"""What a file that is no LoRA of FLUX.1 is, as far as the names of its tensors tell."""

import re
from collections.abc import Iterable

_FOREIGN = (
    (r"lora_te2_text_model|lora_unet_(input|output|down|up|mid|middle)_block", "a LoRA of SDXL or SD 1.5"),
    (r"unet\.(down|up|mid)_blocks?\.", "a LoRA of SDXL or SD 1.5"),
    (r"(lora_unet_|diffusion_model\.|^)_?blocks[._]\d+[._](cross_attn|self_attn)", "a LoRA of Wan"),
    (r"joint_blocks[._]", "a LoRA of Stable Diffusion 3"),
    (r"\.img_attn_qkv\.|individual_token_refiner", "a LoRA of HunyuanVideo"),
    (r"transformer_blocks[._]\d+[._](img_mod|img_mlp|txt_mod)", "a LoRA of Qwen-Image"),
    (
        r"(?<!single_)(transformer|double)_blocks[._](19|[2-9]\d|\d{3,})[._]",
        "a LoRA of a model with more blocks than FLUX.1, such as Qwen-Image",
    ),
    (r"double_stream_modulation|single_stream_modulation|to_qkv_mlp_proj", "a LoRA or model of FLUX.2"),
    (r"distilled_guidance_layer", "a LoRA or model of Chroma"),
    (r"layers[._]\d+[._](attention[._](to_|qkv|out)|feed_forward|adaLN)", "a LoRA of Z-Image or Lumina"),
    (
        r"^(?!.*(lora|lokr|hada))(model\.diffusion_model\.)?double_blocks\.\d+\..*\.weight$",
        "a complete FLUX transformer, not a LoRA",
    ),
    (r"^(?!.*(lora|lokr|hada))(single_)?transformer_blocks\.\d+\..*\.weight$", "a complete transformer, not a LoRA"),
    (r"^controlnet_|^controlnet_blocks", "a ControlNet, not a LoRA"),
    (r"^(?!.*lora)(decoder|encoder)\.(conv_in|down|up|mid)", "an autoencoder (VAE), not a LoRA"),
    (r"^(?!.*lora)text_model\.|^(?!.*lora)encoder\.block\.\d+\.layer", "a text encoder, not a LoRA"),
    (r"^(clip_l|clip_g|t5xxl|emb_params|string_to_param)$", "a textual inversion embedding, not a LoRA"),
    (r"^(?!.*lora)(model\.diffusion_model\.|first_stage_model\.)", "a complete checkpoint, not a LoRA"),
    (r"^(ip_adapter|image_proj|proj_in|perceiver_resampler|latents$)", "an IP-Adapter or image projector, not a LoRA"),
)


def foreign_kind(keys: Iterable[str]) -> str | None:
    """What a file is instead of a LoRA of FLUX.1, such as "a LoRA of Wan" or "a text encoder, not a LoRA".

    keys: the names of its tensors. None if they are not known.
    """
    keys = list(keys)
    return next((what for found, what in _FOREIGN if any(re.search(found, key) for key in keys)), None)


def what_it_is(keys: Iterable[str]) -> str:
    """What a file is that holds no LoRA of FLUX.1, as the clause of a message, such as "it is a LoRA of Wan".

    keys: the names of its tensors.
    """
    keys = list(keys)
    if kind := foreign_kind(keys):
        return f"it is {kind}"
    if not keys:
        return "it holds no tensors"
    if any(re.search(r"lora|lokr|hada|oft_", key) for key in keys):
        return f"it is a LoRA of another model or layout: its keys are {_some(keys)}"
    return f"it holds no LoRA: its keys are {_some(keys)}"


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (" …" if len(keys) > 3 else "")
