"""Every key of the dataset file: where it may stand, what it holds, how it differs from kohya's."""

import json
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from trainer.common.problems import Problem
from trainer.data.images import INTERPOLATIONS

GENERAL, DATASETS, SUBSETS = "[general]", "[[datasets]]", "[[datasets.subsets]]"
OF_DATASET = (GENERAL, DATASETS)
OF_SUBSET = (GENERAL, DATASETS, SUBSETS)
ONLY_SUBSET = (SUBSETS,)


@dataclass(frozen=True)
class Key:
    """kind: what the value is, in words; tables: where it may stand; least, most: its bounds."""

    kind: str
    tables: tuple[str, ...]
    doc: str
    least: float | None = None
    most: float | None = None


TRUTH, WHOLE, NUMBER, TEXT, SOME_TEXT = "true or false", "a whole number", "a number", "text", "text that is not empty"

CACHED = "different: works with cached text"

SUPPORTED = {
    "resolution": Key(
        "a side or [width, height]", OF_DATASET, "different: without enable_bucket, sides are multiples of 16"
    ),
    "batch_size": Key(WHOLE, OF_DATASET, "same", least=1),
    "enable_bucket": Key(TRUTH, OF_DATASET, "same"),
    "min_bucket_reso": Key(WHOLE, OF_DATASET, "same", least=16),
    "max_bucket_reso": Key(WHOLE, OF_DATASET, "same", least=16),
    "bucket_reso_steps": Key(WHOLE, OF_DATASET, "different: any multiple of 16, not only of 64", least=16),
    "bucket_no_upscale": Key(TRUTH, OF_DATASET, "same"),
    "validation_split": Key(NUMBER, OF_DATASET, "different: no picture is ever on both sides", least=0, most=0.9),
    "validation_seed": Key(WHOLE, OF_DATASET, "different: the run's seed if not given"),
    "resize_interpolation": Key(
        "one of " + ", ".join(INTERPOLATIONS),
        OF_SUBSET,
        "different: bilinear and bicubic smooth when shrinking",
    ),
    "image_dir": Key(TEXT, ONLY_SUBSET, "different: then looked for beside the TOML file"),
    "is_reg": Key(TRUTH, ONLY_SUBSET, "different: pictures beyond what an epoch needs take turns"),
    "num_repeats": Key(WHOLE, OF_SUBSET, "different: less than 1 is an error", least=1),
    "class_tokens": Key(TEXT, OF_SUBSET, "different: needed where a picture has no caption file"),
    "caption_extension": Key(TEXT, OF_SUBSET, "different: .txt or .caption, whichever is there, if not given"),
    "caption_separator": Key(SOME_TEXT, OF_SUBSET, "same"),
    "caption_prefix": Key(TEXT, OF_SUBSET, "different: cached text has it too, and every line of a wildcard caption"),
    "caption_suffix": Key(TEXT, OF_SUBSET, "different: as caption_prefix"),
    "shuffle_caption": Key(TRUTH, OF_SUBSET, CACHED),
    "keep_tokens": Key(WHOLE, OF_SUBSET, "same", least=0),
    "keep_tokens_separator": Key(TEXT, OF_SUBSET, "same"),
    "secondary_separator": Key(TEXT, OF_SUBSET, "same"),
    "enable_wildcard": Key(TRUTH, OF_SUBSET, CACHED),
    "caption_dropout_rate": Key(NUMBER, OF_SUBSET, CACHED + "; dropped = the empty text", least=0, most=1),
    "caption_dropout_every_n_epochs": Key(WHOLE, OF_SUBSET, CACHED, least=0),
    "caption_tag_dropout_rate": Key(NUMBER, OF_SUBSET, CACHED, least=0, most=1),
    "token_warmup_min": Key(WHOLE, OF_SUBSET, "same", least=1),
    "token_warmup_step": Key(NUMBER, OF_SUBSET, CACHED, least=0),
    "flip_aug": Key(TRUTH, OF_SUBSET, "different: an independent even coin for each draw"),
    "custom_attributes": Key(
        "{ diff_output_preservation = true or false }", OF_SUBSET, "different: this and nothing else"
    ),
}

FLAGS = {"batch_size": "train_batch_size"}  # keys whose flag has another name

# key → the value that asks for nothing and is let pass, and what to do instead
REFUSED: dict[str, tuple[Any, str]] = {
    "color_aug": (False, "latents are cached, so colours cannot change; put changed copies into the folder"),
    "random_crop": (False, "latents are cached, so the crop is central; enable_bucket loses less"),
    "face_crop_aug_range": (None, "latents are cached, so the crop is fixed; crop the pictures yourself"),
    "alpha_mask": (False, "the loss is not masked; transparency is flattened on white"),
    "network_multiplier": (1.0, "the LoRA is trained at full strength; use num_repeats to weigh datasets"),
    "metadata_file": (None, "folders are read instead; captions go into .txt files beside the pictures"),
    "conditioning_data_dir": (None, "this trains a LoRA, not a ControlNet"),
}
MEANINGLESS = {"cache_info": "every picture is read and checked at each start"}

KEYS: dict[str, str] = {
    **{name: key.doc for name, key in SUPPORTED.items()},
    **{name: f"accepted, without meaning: {why}" for name, why in MEANINGLESS.items()},
    **{name: f"refused: {why}" for name, (_, why) in REFUSED.items()},
}


def asks_for_nothing(name: str, value: Any) -> bool:
    """Whether a refused key is set to what is done anyway, as in `color_aug = false`."""
    return name in REFUSED and REFUSED[name][0] is not None and value == REFUSED[name][0]


def check_key(where: str, name: str, value: Any, table: str) -> Problem | None:
    """What is wrong with one key of one table; None if it is supported and its value is in order."""
    if name in REFUSED:
        return Problem(where, f"{name} is not supported", REFUSED[name][1])
    if name not in SUPPORTED:
        near = get_close_matches(name, KEYS, n=1)
        hint = f"did you mean {near[0]}?" if near else "docs/reference/kohya.md lists the keys"
        return Problem(where, f"{name} is not a key of {table}", hint)
    key = SUPPORTED[name]
    if table not in key.tables:
        return Problem(where, f"{name} cannot stand in {table}", f"put it into {' or '.join(key.tables)}")
    return check_value(where, name, value)


def check_value(where: str, name: str, value: Any) -> Problem | None:
    """What is wrong with the value of a supported key, if anything."""
    key = SUPPORTED[name]
    shown = json.dumps(value, ensure_ascii=False, default=str)  # as TOML would write it
    if not _is_kind(key, value):
        return Problem(where, f"{name} is {shown}", f"it must be {key.kind}")
    if key.least is not None and value < key.least:
        return Problem(where, f"{name} is {shown}", f"it must be at least {key.least}")
    if key.most is not None and value > key.most:
        return Problem(where, f"{name} is {shown}", f"it must be at most {key.most}")
    return None


def _is_kind(key: Key, value: Any) -> bool:
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if key.kind == TRUTH:
        return isinstance(value, bool)
    if key.kind == WHOLE:
        return is_whole
    if key.kind == NUMBER:
        return is_whole or (isinstance(value, float) and value == value)
    if key.kind == TEXT:
        return isinstance(value, str)
    if key.kind == SOME_TEXT:
        return isinstance(value, str) and value != ""
    if key.kind.startswith("{"):
        attributes = value.items() if isinstance(value, dict) else [("", None)]
        return all(name == "diff_output_preservation" and isinstance(on, bool) for name, on in attributes)
    if key.kind.startswith("one of"):
        return value in INTERPOLATIONS
    sides = value if isinstance(value, list) and len(value) == 2 else [value]
    return all(isinstance(side, int) and not isinstance(side, bool) and side >= 16 for side in sides)
