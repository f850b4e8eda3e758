"""Small random GroundingDINO and SAM 2 in the published layout, written by transformers' own classes."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    Sam2VideoConfig,
    Sam2VideoModel,
    SwinConfig,
)

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
SAM_SIDE = 64  # pixels of its input


def write_detector(folder: Path, seed: int = 0) -> Path:
    """A GroundingDINO of two layers, with a tokenizer that knows a few words."""
    torch.manual_seed(seed)
    swin = SwinConfig(
        embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], window_size=4, out_indices=[2, 3, 4], image_size=64
    )
    bert = BertConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=64,
    )  # fmt: skip
    config = GroundingDinoConfig(
        backbone_config=swin.to_dict(), text_config=bert.to_dict(), d_model=32, num_queries=12, encoder_layers=1,
        decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16,
        num_feature_levels=4, max_text_len=32,
    )  # fmt: skip
    GroundingDinoForObjectDetection(config).save_pretrained(folder)
    sizes = {"size": {"shortest_edge": 96, "longest_edge": 192}}
    (folder / "preprocessor_config.json").write_text(json.dumps(sizes))
    word_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def word_tokenizer() -> Tokenizer:
    """BERT's shape: lower case, pieces of words, [CLS] and [SEP] around them."""
    vocabulary = {token: index for index, token in enumerate((*SPECIAL, ".", "toy", "gpu", "plush", "##s"))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return tokenizer


def write_segmenter(folder: Path, seed: int = 0) -> Path:
    """The video model, as it is published; it contains the model for images."""
    torch.manual_seed(seed)
    widths, grids = [8, 16, 32, 64], [[SAM_SIDE // cells] * 2 for cells in (4, 8, 16)]
    backbone = {
        "hidden_size": 8, "image_size": [SAM_SIDE, SAM_SIDE], "blocks_per_stage": [1, 1, 2, 1],
        "embed_dim_per_stage": widths, "num_attention_heads_per_stage": [1, 1, 1, 1],
        "window_size_per_stage": [4, 4, 4, 2], "global_attention_blocks": [3],
        "window_positional_embedding_background_size": [4, 4],
    }  # fmt: skip
    vision = {
        "backbone_config": {"model_type": "sam2_hiera_det_model", **backbone}, "model_type": "sam2_vision_model",
        "backbone_channel_list": widths[::-1], "backbone_feature_sizes": grids, "fpn_hidden_size": 16,
    }  # fmt: skip
    prompt = {"hidden_size": 16, "image_size": SAM_SIDE, "patch_size": 16, "mask_input_channels": 4}
    decoder = {
        "hidden_size": 16, "mlp_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "iou_head_hidden_dim": 16,
    }  # fmt: skip
    memory = {
        "memory_attention_hidden_size": 16, "memory_attention_num_layers": 1, "memory_attention_num_attention_heads": 1,
        "memory_attention_feed_forward_hidden_size": 16, "memory_attention_rope_feat_sizes": grids[-1],
        "memory_encoder_hidden_size": 16, "memory_encoder_output_channels": 8, "mask_downsampler_embed_dim": 16,
        "memory_fuser_embed_dim": 16, "memory_fuser_intermediate_dim": 16, "image_size": SAM_SIDE,
    }  # fmt: skip
    config = Sam2VideoConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder, **memory)
    model = Sam2VideoModel(config)
    model.prompt_encoder.shared_embedding.positional_embedding.copy_(model.shared_image_embedding.positional_embedding)
    model.save_pretrained(folder)
    return folder
