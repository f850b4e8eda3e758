"""The settings of what a run reads: model files, images and captions."""

# ruff: noqa: RUF009 (these make dataclasses' own field())
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trainer.config.groups import OURS
from trainer.config.groups import captions as _captions
from trainer.config.groups import data as _data
from trainer.config.groups import models as _models

Interpolation = Literal["lanczos", "lanczos4", "nearest", "bilinear", "linear", "bicubic", "cubic", "area", "box"]
ALIASES = {"lanczos4": "lanczos", "linear": "bilinear", "cubic": "bicubic"}  # other names of resize filters


@dataclass(frozen=True, kw_only=True)
class InputSettings:
    """The first fields of `TrainConfig`: the groups Models, Data and Captions."""

    pretrained_model_name_or_path: Path | None = _models(
        None,
        "the FLUX.1 transformer: one .safetensors file",
        "a single file in the original (BFL) or ComfyUI layout; a diffusers folder is refused",
    )
    clip_l: Path | None = _models(None, "the CLIP-L text encoder (.safetensors)")
    t5xxl: Path | None = _models(None, "the T5-XXL text encoder (.safetensors)")
    ae: Path | None = _models(None, "the FLUX autoencoder (.safetensors)")
    tokenizer_dir: Path | None = _models(
        None, "folder with tokenizer/ and tokenizer_2/; if not given, the trainer looks next to clip_l", OURS
    )
    model_type: Literal["flux"] = _models("flux", "model family", "flux only; dev or schnell is detected from the file")
    t5xxl_max_token_length: int | None = _models(
        None, "T5 tokens per caption; if not given, 512 for dev and 256 for schnell", ge=1, le=512
    )
    apply_t5_attn_mask: bool = _models(False, "mask T5's padding tokens, in T5 and in the transformer")

    dataset_config: Path | None = _data(None, "TOML file that lists the image folders")
    cache_dir: Path | None = _data(
        None, "folder of the latent and text cache; if not given, .cache next to dataset_config", OURS
    )
    prior_loss_weight: float = _data(1.0, "loss weight of regularization images (is_reg)", ge=0)
    diff_output_preservation: bool = _data(
        False,
        "prior preservation: is_reg images are trained towards the base model's own prediction",
        "a subset's custom_attributes in kohya; this flag sets it for all is_reg subsets",
    )
    class_preservation_weight: float = _data(
        0.0,
        "weight of a loss that keeps each caption, with class words for its triggers, as the base model predicts it",
        OURS,
        ge=0,
    )
    masked_loss: bool = _data(False, "train only what the images' masks show", "a mask can be NAME.mask.png too")
    alpha_mask: bool = _data(False, "use the images' alpha channels as masks", "the mask file of an image wins")
    mask_background: str = _data("ignore", 'outside the masks: "ignore", a weight from 0 to 1, or "preserve"', OURS)
    resolution: str = _data("1024", 'training resolution in pixels, "side" or "width,height"', "default 1024")
    train_batch_size: int = _data(1, "images per batch, unless the dataset sets batch_size", ge=1)
    enable_bucket: bool = _data(False, "sort images into buckets by aspect ratio instead of cropping all to one shape")
    min_bucket_reso: int = _data(256, "shortest bucket side in pixels", ge=16)
    max_bucket_reso: int = _data(1024, "longest bucket side in pixels", ge=16)
    bucket_reso_steps: int = _data(64, "bucket sides are multiples of this many pixels", "any multiple of 16", ge=16)
    bucket_no_upscale: bool = _data(False, "never upscale an image to fit its bucket")
    resize_interpolation: Interpolation | None = _data(
        None, "resize filter; if not given, area to shrink and lanczos to enlarge"
    )
    flip_aug: bool = _data(
        False, "flip each sample horizontally with p = 0.5", "each sample is flipped independently with p = 0.5"
    )
    validation_split: float = _data(0.0, "fraction of the images held out for validation", ge=0, le=0.9)
    validation_seed: int | None = _data(
        None, "seed that selects the held-out images; if not given, seed", "no image is ever in both sets"
    )

    caption_extension: str | None = _captions(
        None,
        "extension of caption files; if not given, .txt or .caption, whichever exists",
        "kohya's default is .caption",
    )
    caption_separator: str = _captions(",", "separator between the tags of a caption", may_be_empty=False)
    shuffle_caption: bool = _captions(
        False, "shuffle the tags of a caption for every sample", "works with cached text; each variant is encoded once"
    )
    keep_tokens: int = _captions(0, "number of leading tags that are never shuffled or dropped", ge=0)
    keep_tokens_separator: str = _captions("", "marker between fixed and shuffled tags, used instead of keep_tokens")
    secondary_separator: str | None = _captions(
        None, "separator inside a group of tags that stay together; replaced by caption_separator"
    )
    caption_prefix: str | None = _captions(None, "text added before every caption")
    caption_suffix: str | None = _captions(None, "text added after every caption")
    enable_wildcard: bool = _captions(
        False, "choose one option of {a|b}, and one line of a caption with several lines", "works with cached text"
    )
    caption_dropout_rate: float = _captions(
        0.0, "probability that a sample's caption is dropped (empty text)", "works with cached text", ge=0, le=1
    )
    caption_dropout_every_n_epochs: int = _captions(
        0, "drop all captions in every n-th epoch", "works with cached text", ge=0
    )
    caption_tag_dropout_rate: float = _captions(
        0.0, "probability that a tag is dropped", "works with cached text", ge=0, le=1
    )
    token_warmup_min: int = _captions(1, "number of tags used at the start of token warm-up", ge=1)
    token_warmup_step: float = _captions(
        0.0,
        "length of token warm-up: steps, or below 1 a fraction of the run, until all tags are used",
        "works with cached text",
        ge=0,
    )
