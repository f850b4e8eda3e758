"""A small random Florence-2 in the published layout, written by transformers' own class."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import BartConfig, Florence2Config, Florence2ForConditionalGeneration

SIDE = 64  # pixels of its input
WORDS = "<s> <pad> </s> <unk> Describe in detail what is shown the image a toy on desk red standing sofa .".split()
IMAGE_TOKEN = len(WORDS)


def write_captioner(folder: Path, seed: int = 0) -> Path:
    """A Florence-2 of one layer, with a tokenizer that knows a few words."""
    torch.manual_seed(seed)
    vision = {
        "depths": [1, 1, 1, 1], "embed_dim": [8, 8, 16, 16], "num_heads": [1, 1, 2, 2], "num_groups": [1, 1, 2, 2],
        "window_size": 4, "projection_dim": 16,
    }  # fmt: skip
    text = BartConfig(
        vocab_size=IMAGE_TOKEN + 1, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=256,
    )  # fmt: skip
    config = Florence2Config(text_config=text.to_dict(), vision_config=vision, image_token_id=IMAGE_TOKEN)
    model = Florence2ForConditionalGeneration(config)
    for parameter in model.parameters():
        parameter.data.mul_(8)  # else all words are as likely
    model.save_pretrained(folder)
    tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def tokenizer() -> Tokenizer:
    """BART's shape: <s> and </s> around the words; each word is a token."""
    vocabulary = {word: index for index, word in enumerate((*WORDS, "<image>"))}
    found = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    found.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    found.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<image>"])
    found.post_processor = processors.BertProcessing(("</s>", 2), ("<s>", 0))
    found.decoder = decoders.Fuse()
    return found
