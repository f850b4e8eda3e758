"""The two text encoders: small versions of FLUX.1's T5 and CLIP, trained jointly with the transformer."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from mini.training.recipe import Recipe
from trainer.common.rng import derive_seed
from trainer.models.text import CLIP_LENGTH, Tokenizers, clip_ids
from trainer.models.transformer import Conditioning


class TextEncoders(nn.Module):
    """T5's encoder and CLIP's text model, with their tokenizers."""

    def __init__(self, recipe: Recipe, tokenizers: Tokenizers):
        super().__init__()
        self.tokenizers, self.text_length = tokenizers, recipe.text_length
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(recipe.seed, "text"))
            self.t5 = T5EncoderModel(_t5_config(recipe, len(tokenizers.t5)))
            self.clip = CLIPTextModel(_clip_config(recipe, tokenizers.clip))
        self.t5.encoder.set_input_embeddings(self.t5.shared)  # one embedding under both names

    def forward(self, t5_ids: Tensor, clip_ids: Tensor) -> tuple[Tensor, Tensor]:
        """T5's hidden states [B, text_length, t5_width] and CLIP's pooled output [B, clip_width].

        t5_ids: [B, text_length], clip_ids: [B, 77]. Padding is attended to, as in FLUX.1.
        """
        return self.t5(input_ids=t5_ids).last_hidden_state, self.clip(input_ids=clip_ids).pooler_output

    def tokenize(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """T5's and CLIP's token ids, int64 on the host: [n, text_length] and [n, 77]."""
        options = {"padding": "max_length", "max_length": self.text_length, "truncation": True}
        t5_ids = self.tokenizers.t5(list(captions), return_tensors="pt", **options).input_ids
        return t5_ids, clip_ids(self.tokenizers.clip, captions)

    def encode(self, captions: Sequence[str]) -> Conditioning:
        """Encode captions to the transformer's conditioning, on the encoders' device."""
        return Conditioning(*self(*(ids.to(self.t5.device) for ids in self.tokenize(captions))))


def _t5_config(recipe: Recipe, vocabulary_size: int) -> T5Config:
    return T5Config(
        vocab_size=vocabulary_size,
        d_model=recipe.t5_width,
        d_kv=recipe.t5_head_width,
        d_ff=recipe.t5_feed_forward,
        num_layers=recipe.t5_layers,
        num_heads=recipe.t5_heads,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        is_encoder_decoder=False,
        use_cache=False,
    )


def _clip_config(recipe: Recipe, tokenizer: Any) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.clip_width,
        intermediate_size=recipe.clip_feed_forward,
        num_hidden_layers=recipe.clip_layers,
        num_attention_heads=recipe.clip_heads,
        max_position_embeddings=CLIP_LENGTH,
        hidden_act="quick_gelu",
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        pad_token_id=None,
    )
