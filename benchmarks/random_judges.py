"""Write DINOv2 and SigLIP 2 with random weights: the published layout, written by transformers' own classes.

The full size is that of `sh download.sh --judges`, for measuring without the download. Its tokenizer knows few words.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import Dinov2Config, Dinov2Model, SiglipConfig, SiglipModel

PATCH = 14  # pixels of DINOv2's patches
WORDS = ("<pad>", "<eos>", "<bos>", "<unk>", "toy", "tjtoy", "a")


@dataclass(frozen=True)
class JudgeSize:
    """The dimensions of both models; the defaults are those of dinov2-base and siglip2-base-patch16-224."""

    width: int = 768
    mlp_ratio: int = 4
    layers: int = 12
    heads: int = 12
    dino_side: int = 518
    siglip_side: int = 224
    vocabulary: int = 256_000

    @property
    def tower(self) -> dict[str, int]:
        """What both towers of SigLIP have in common."""
        return {
            "hidden_size": self.width,
            "intermediate_size": self.mlp_ratio * self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
        }


FULL = JudgeSize()
TINY = JudgeSize(width=16, mlp_ratio=2, layers=2, heads=2, dino_side=56, siglip_side=32, vocabulary=64)


def write_dinov2(folder: Path, size: JudgeSize = TINY, seed: int = 0) -> Path:
    """Write config.json and model.safetensors; returns the folder."""
    torch.manual_seed(seed)
    config = Dinov2Config(
        hidden_size=size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        mlp_ratio=size.mlp_ratio,
        image_size=size.dino_side,
        patch_size=PATCH,
    )
    Dinov2Model(config).save_pretrained(folder)
    return folder


def write_siglip2(folder: Path, size: JudgeSize = TINY, seed: int = 0) -> Path:
    """Write config.json, model.safetensors and a tokenizer.json of a few words that ends texts as Gemma's does."""
    torch.manual_seed(seed)
    text = {"vocab_size": size.vocabulary, "max_position_embeddings": 64, "projection_size": size.width}
    vision = {"image_size": size.siglip_side, "patch_size": 16}
    SiglipModel(
        SiglipConfig(text_config={**size.tower, **text}, vision_config={**size.tower, **vision})
    ).save_pretrained(folder)
    vocabulary = {token: index for index, token in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
