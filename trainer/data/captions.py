"""The text of one draw: a pure function of the seed, the epoch and the picture."""

import math
import random
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from trainer.common.problems import Problem
from trainer.common.rng import python_random
from trainer.data.dataset_file import SubsetConfig

WILDCARD = re.compile(r"\{([^}]+)\}")
LINE_ENDS = re.compile(r"\r\n|\n|\r")  # no others: U+2028, U+0085 and the like stay in the caption
OPEN, CLOSE = "\x02", "\x03"  # stand for {{ and }}, which mean literal braces


def read_caption(files: Sequence[Path], wildcard: bool) -> tuple[str, ...] | Problem:
    """The lines of an image's caption files as `split_caption` gives them; they have to agree. Or what is wrong."""
    texts = []
    for file in files:
        try:
            lines = split_caption(file.read_bytes().decode("utf-8-sig"), wildcard)
        except UnicodeDecodeError as error:
            return Problem(str(file), f"the caption is not UTF-8 (byte {error.start})", "save it as UTF-8")
        except OSError as error:
            return Problem(str(file), f"the caption cannot be read: {error.strerror}")
        if not lines:
            return Problem(str(file), "the caption is empty", "write one, or delete the file to use class_tokens")
        texts.append(lines)
    if any(lines != texts[0] for lines in texts):
        hint = "delete one of the two, or set caption_extension"
        return Problem(str(files[0]), f"{files[1].name} next to it says something else", hint)
    return texts[0]


def split_caption(text: str, wildcard: bool) -> tuple[str, ...]:
    """The lines that a wildcard chooses from; without enable_wildcard, one caption of all lines and paragraphs."""
    lines = tuple(line.strip() for line in LINE_ENDS.split(text) if line.strip())
    return lines if wildcard or not lines else (" ".join(lines),)


def caption_variant(
    subset: SubsetConfig,
    lines: Sequence[str],
    seed: int,
    epoch: int,
    key: str,
    repeat: int,
    step: int = 0,
    total_steps: int = 0,
) -> str:
    """The caption of one draw, built in kohya's order.

    Dropout, then one line with prefix and suffix, wildcards, tags (kept, warmed up, shuffled,
    dropped), secondary separator. epoch and step count from 0; step is the optimizer step, which
    only the token warm-up looks at. A dropped caption is the empty text.
    """
    draw = python_random(seed, "caption", epoch, repeat, key)
    if _is_dropped(subset, epoch, draw):
        return ""
    caption = draw.choice(lines) if subset.enable_wildcard else lines[0]
    caption = " ".join(part for part in (subset.caption_prefix, caption, subset.caption_suffix) if part)
    if subset.enable_wildcard:
        caption = _expand_wildcards(caption, draw)
    if subset.shuffle_caption or subset.token_warmup_step > 0 or subset.caption_tag_dropout_rate > 0:
        caption = _arrange_tags(subset, caption, draw, step, total_steps)
    if subset.secondary_separator:
        caption = caption.replace(subset.secondary_separator, subset.caption_separator)
    return caption


def plain_caption(subset: SubsetConfig, lines: Sequence[str], seed: int, key: str) -> str:
    """The caption with nothing dropped or shuffled, for validation and for listings."""
    steady = replace(
        subset,
        shuffle_caption=False,
        token_warmup_step=0,
        caption_dropout_rate=0.0,
        caption_dropout_every_n_epochs=0,
        caption_tag_dropout_rate=0.0,
    )
    return caption_variant(steady, lines, seed, 0, key, 0)


def caption_varies(subset: SubsetConfig) -> bool:
    """Whether two draws of one picture can have different captions."""
    return bool(
        subset.enable_wildcard
        or subset.shuffle_caption
        or subset.token_warmup_step > 0
        or subset.caption_dropout_rate > 0
        or subset.caption_dropout_every_n_epochs > 0
        or subset.caption_tag_dropout_rate > 0
    )


def _is_dropped(subset: SubsetConfig, epoch: int, draw: random.Random) -> bool:
    every = subset.caption_dropout_every_n_epochs
    by_rate = draw.random() < subset.caption_dropout_rate
    return by_rate or (every > 0 and (epoch + 1) % every == 0)


def _expand_wildcards(caption: str, draw: random.Random) -> str:
    caption = caption.replace("{{", OPEN).replace("}}", CLOSE)
    caption = WILDCARD.sub(lambda match: draw.choice(match[1].split("|")), caption)
    return caption.replace(OPEN, "{").replace(CLOSE, "}")


def _arrange_tags(subset: SubsetConfig, caption: str, draw: random.Random, step: int, total: int) -> str:
    head, tags, tail = _split_tags(subset, caption)
    tags = tags[: _warmed_up(subset, len(tags), step, total)]
    if subset.shuffle_caption:
        draw.shuffle(tags)
    tags = [tag for tag in tags if draw.random() >= subset.caption_tag_dropout_rate]
    return ", ".join(head + tags + tail)


def _split_tags(subset: SubsetConfig, caption: str) -> tuple[list[str], list[str], list[str]]:
    """Tags that stay in front, tags that move, tags that stay at the end."""
    mark, separator = subset.keep_tokens_separator, subset.caption_separator
    if mark and mark in caption:
        head, tags, *tail = (
            [tag.strip() for tag in part.split(separator) if tag.strip()] for part in caption.split(mark, 2)
        )
        return head, tags, tail[0] if tail else []
    tags = [tag.strip() for tag in caption.strip().split(separator)]
    return tags[: subset.keep_tokens], tags[subset.keep_tokens :], []


def _warmed_up(subset: SubsetConfig, count: int, step: int, total_steps: int) -> int:
    """How many of `count` tags are in use at `step`; a warm-up below 1 is a share of the run."""
    warmup = subset.token_warmup_step
    warmup = math.floor(warmup * total_steps) if warmup < 1 else warmup
    if not warmup or step >= warmup:
        return count
    return math.floor(step * ((count - subset.token_warmup_min) / warmup)) + subset.token_warmup_min
