"""A LoRA on the models that generate images: its layers added to them, and texts encoded with it."""

from collections.abc import Sequence

import torch
from torch import nn

from trainer.common.devices import free_memory
from trainer.config import TrainConfig
from trainer.lora.adapter import adapter_alphas, adapter_parameters, add_lora
from trainer.lora.file import LoraFile, copy_into, ranks_from
from trainer.models.load import base_model_of, load_clip, load_t5
from trainer.models.text import Tokenizers, clip_ids, encode_t5
from trainer.models.transformer import Conditioning


def apply_lora(lora: LoraFile | None, model: nn.Module, prefix: str, where: str = "--lora") -> None:
    """Add to a model, in place, the adapter modules of a LoRA whose names start with `prefix`, if there are any.

    prefix: "transformer." or "text_encoder."; where: the flag or file to name in problems. Raises `Problems` if they do
    not fit the model.
    """
    part = {name: module for name, module in lora.modules.items() if name.startswith(prefix)} if lora else {}
    if not part:
        return
    found = LoraFile(part, {})
    add_lora(model, ranks_from(found, model), alpha=None, seed=0)
    copy_into(found, adapter_parameters(model), adapter_alphas(model), where)


@torch.inference_mode()
def encode_texts(
    config: TrainConfig,
    lora: LoraFile | None,
    texts: Sequence[str],
    tokenizers: Tokenizers,
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, Conditioning]:
    """Encode texts with CLIP and T5: the transformer's conditioning for each text, on `device` in `dtype`.

    The LoRA (None: none) is applied to CLIP if it has layers of CLIP. Both encoders are loaded and released here.
    Raises `Problems` if these layers do not fit.
    """
    assert config.pretrained_model_name_or_path and config.clip_l and config.t5xxl
    clip = load_clip(config.clip_l, device, torch.float32, tokenizers.clip.eos_token_id)
    apply_lora(lora, clip, "text_encoder.")
    pooled = [clip(clip_ids(tokenizers.clip, [text]).to(device)).pooler_output for text in texts]
    t5 = load_t5(config.t5xxl, device, dtype)
    length = config.t5xxl_max_token_length or base_model_of(config.pretrained_model_name_or_path).t5_tokens
    masked = config.apply_t5_attn_mask
    encoded = [encode_t5(t5, tokenizers.t5, [text], length, masked) for text in texts]
    del clip, t5
    free_memory(device)
    return {
        text: Conditioning(txt, vector, mask if masked else None).to(device, dtype)
        for text, vector, (txt, mask) in zip(texts, pooled, encoded, strict=True)
    }
