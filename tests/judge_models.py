"""Small random DINOv2 and SigLIP 2 in the published layout, written by transformers' own classes."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import Dinov2Config, Dinov2Model, SiglipConfig, SiglipModel

PATCH = 14
SIGLIP_SIDE = 32  # pixels of its input


def write_dinov2(folder: Path, seed: int = 0) -> Path:
    """A DINOv2 of two layers, of the published patch size."""
    torch.manual_seed(seed)
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=56, patch_size=PATCH
    )
    Dinov2Model(config).save_pretrained(folder)
    return folder


def write_siglip2(folder: Path, seed: int = 0) -> Path:
    """A SigLIP of one layer a tower, with Gemma's way to write tokens."""
    torch.manual_seed(seed)
    width = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = SiglipConfig(
        text_config={**width, "vocab_size": 64, "max_position_embeddings": 64, "projection_size": 16},
        vision_config={**width, "image_size": SIGLIP_SIDE, "patch_size": 16},
    )
    SiglipModel(config).save_pretrained(folder)
    vocabulary = {token: index for index, token in enumerate(("<pad>", "<eos>", "<bos>", "<unk>", "toy", "tjtoy", "a"))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
