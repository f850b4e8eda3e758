"""Every key of the dataset file: where it may be, what it may hold, how it differs from kohya's."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.config.fields import Invalid, Schema, Spec, shown
from trainer.config.kohya import DOCS
from trainer.config.values import MIN_SIDE, SPECS, sides

GENERAL, DATASETS, SUBSETS = "[general]", "[[datasets]]", "[[datasets.subsets]]"
TABLES = (GENERAL, DATASETS, SUBSETS)
OF_DATASET = (GENERAL, DATASETS)
ONLY_SUBSET = (SUBSETS,)
FLAGS = {"batch_size": "train_batch_size"}  # keys whose flag has another name


@dataclass(frozen=True)
class Key:
    """A key of the dataset file.

    spec: what its value may be. tables: the tables in which it may be. doc: how it differs from kohya's key.
    """

    spec: Spec
    tables: tuple[str, ...]
    doc: str


def _size(value: Any) -> int | list[int]:
    """A side, or [width, height]."""
    try:
        if isinstance(value, str):
            raise Invalid("is text")
        found = sides(value)
    except Invalid:
        hint = f"it must be a side or [width, height], each at least {MIN_SIDE}"
        raise Invalid(f"is {shown(value)}", hint) from None
    return list(found) if len(found) == 2 else found[0]


def _attributes(value: Any) -> dict[str, bool]:
    pairs = value.items() if isinstance(value, dict) else [("", None)]
    if not all(name == "diff_output_preservation" and isinstance(on, bool) for name, on in pairs):
        raise Invalid(f"is {shown(value)}", "it must be { diff_output_preservation = true or false }")
    return value


def _setting(name: str, tables: tuple[str, ...], doc: str) -> Key:
    """A key that may hold what the setting of its name may."""
    return Key(SPECS[FLAGS.get(name, name)], tables, doc)


_CACHED = "different: works with cached text"
SUPPORTED = {
    "resolution": Key(Spec(parse=_size), OF_DATASET, "different: without enable_bucket, sides are multiples of 16"),
    "batch_size": _setting("batch_size", OF_DATASET, "same"),
    "enable_bucket": _setting("enable_bucket", OF_DATASET, "same"),
    "min_bucket_reso": _setting("min_bucket_reso", OF_DATASET, "same"),
    "max_bucket_reso": _setting("max_bucket_reso", OF_DATASET, "same"),
    "bucket_reso_steps": _setting("bucket_reso_steps", OF_DATASET, "different: any multiple of 16, not only of 64"),
    "bucket_no_upscale": _setting("bucket_no_upscale", OF_DATASET, "same"),
    "validation_split": _setting("validation_split", OF_DATASET, "different: no image is ever in both sets"),
    "validation_seed": _setting("validation_seed", OF_DATASET, "different: if not given, the run's seed"),
    "resize_interpolation": _setting(
        "resize_interpolation", TABLES, "different: bilinear and bicubic antialias when shrinking"
    ),
    "image_dir": Key(Spec(type=Path), ONLY_SUBSET, "different: also looked for next to the dataset file"),
    "is_reg": Key(Spec(type=bool), ONLY_SUBSET, "different: images beyond what an epoch needs take turns"),
    "num_repeats": Key(Spec(type=int, ge=1), TABLES, "different: less than 1 is an error"),
    "class_tokens": Key(Spec(), TABLES, "different: required if an image has no caption file"),
    "caption_extension": _setting(
        "caption_extension", TABLES, "different: if not given, .txt or .caption, whichever exists"
    ),
    "caption_separator": _setting("caption_separator", TABLES, "same"),
    "caption_prefix": _setting(
        "caption_prefix", TABLES, "different: applies to cached text too, and to every line of a wildcard caption"
    ),
    "caption_suffix": _setting("caption_suffix", TABLES, "different: as caption_prefix"),
    "shuffle_caption": _setting("shuffle_caption", TABLES, _CACHED),
    "keep_tokens": _setting("keep_tokens", TABLES, "same"),
    "keep_tokens_separator": _setting("keep_tokens_separator", TABLES, "different: it never reaches the text encoders"),
    "secondary_separator": _setting("secondary_separator", TABLES, "same"),
    "enable_wildcard": _setting("enable_wildcard", TABLES, _CACHED),
    "caption_dropout_rate": _setting("caption_dropout_rate", TABLES, f"{_CACHED}; a dropped caption is empty text"),
    "caption_dropout_every_n_epochs": _setting("caption_dropout_every_n_epochs", TABLES, _CACHED),
    "caption_tag_dropout_rate": _setting("caption_tag_dropout_rate", TABLES, _CACHED),
    "token_warmup_min": _setting("token_warmup_min", TABLES, "same"),
    "token_warmup_step": _setting("token_warmup_step", TABLES, _CACHED),
    "masked_loss": _setting("masked_loss", TABLES, "ours: only a flag in kohya; every image needs a mask, as there"),
    "conditioning_data_dir": Key(
        Spec(type=Path),
        ONLY_SUBSET,
        "different: masks are cropped like images; NAME.mask.png needs no folder",
    ),
    "alpha_mask": _setting("alpha_mask", TABLES, "different: the mask file of an image, if there is one, wins"),
    "mask_background": _setting(
        "mask_background",
        TABLES,
        'ours: the loss weight outside the masks; "ignore" is 0, as in kohya; "preserve": the target there is the base'
        " model's own prediction",
    ),
    "mask_dilation": Key(Spec(type=int, ge=0, le=256), TABLES, "ours: grow masks by this many pixels after resizing"),
    "flip_aug": _setting("flip_aug", TABLES, "different: each sample is flipped independently with p = 0.5"),
    "custom_attributes": Key(Spec(parse=_attributes), TABLES, "different: only { diff_output_preservation = ... }"),
}
REFUSED = {
    "color_aug": "latents are cached, so colors cannot change; add altered copies to the folder",
    "random_crop": "latents are cached, so the crop is central; enable_bucket crops less",
    "face_crop_aug_range": "latents are cached, so the crop is fixed; crop the images yourself",
    "network_multiplier": "the LoRA is trained at full strength; weight datasets with num_repeats",
    "metadata_file": "folders are read instead; put captions into .txt files next to the images",
}
MEANINGLESS = {"cache_info": "every image is read and checked at each start"}
# names from other trainers whose spelling is not close to ours
MEANT = {
    **dict.fromkeys(("train_data_dir", "folder_path", "path", "dataset_path", "instance_data_dir"), "use image_dir"),
    **dict.fromkeys(("trigger_word", "instance_prompt", "class_prompt", "default_caption"), "use class_tokens"),
    "repeats": "use num_repeats",
    "caption_ext": "use caption_extension",
    "train_batch_size": "use batch_size",
}

KEYS: dict[str, str] = {
    **{name: key.doc for name, key in SUPPORTED.items()},
    **{name: f"accepted, without effect: {why}" for name, why in MEANINGLESS.items()},
    **{name: f"refused: {why}" for name, why in REFUSED.items()},
}


def _schema(table: str) -> Schema:
    misplaced = {
        name: f"put it into {' or '.join(key.tables)}" for name, key in SUPPORTED.items() if table not in key.tables
    }
    return Schema(
        specs={name: key.spec for name, key in SUPPORTED.items() if table in key.tables},
        noun=f"a key of {table}",
        refused=REFUSED,
        elsewhere={**MEANT, **misplaced},
        ignored=MEANINGLESS,
        off={"network_multiplier": 1.0},
        listing=f"{DOCS} lists the keys",
    )


SCHEMAS = {table: _schema(table) for table in TABLES}
