"""The text of one draw: a pure function of the seed, the epoch and the picture."""

import codecs
import math
import random
import re
import string
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from trainer.common.problems import Problem
from trainer.common.rng import python_random
from trainer.data.dataset_config import SubsetConfig

WILDCARD = re.compile(r"\{([^}]+)\}")
LINE_ENDS = re.compile(r"\r\n|\n|\r")  # no others: U+2028, U+0085 and the like stay in the caption
INVISIBLE = string.whitespace + "\u00a0\u200b\u200c\u200d\u2060\ufeff"  # a line of these alone is empty
OPEN, CLOSE = "\x02", "\x03"  # stand for {{ and }}, which mean literal braces


def read_caption(files: Sequence[Path], wildcard: bool) -> tuple[str, ...] | Problem:
    """Read an image's caption from its files; returns its lines, or the problem that makes it unusable.

    files: at least one; several must have the same content. wildcard: whether the subset has enable_wildcard. If so,
    each line that is not empty is returned by itself, else all of them as one caption.
    """
    texts = []
    for file in files:
        try:
            data = file.read_bytes()
            if why := _not_text(data):
                return Problem(str(file), f"the caption {why}", "save it as UTF-8")
            lines = split_caption(data.decode("utf-8-sig"), wildcard)
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


def _not_text(data: bytes) -> str:
    """Why bytes that may be valid UTF-8 are no text; empty if they are."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "is not UTF-8 but UTF-16"
    return "contains zero bytes, as UTF-16 without a byte-order mark does" if b"\0" in data else ""


def split_caption(text: str, wildcard: bool) -> tuple[str, ...]:
    """The captions in the text of a caption file; empty lines are skipped.

    wildcard: whether the subset has enable_wildcard. If so, each line is a caption, of which one is chosen at each use;
    else all lines and paragraphs are joined into one caption. An empty text gives no caption.
    """
    lines = tuple(line.strip() for line in LINE_ENDS.split(text) if line.strip(INVISIBLE))
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
    """The caption of one use of an image in training: a function of its arguments alone, built in kohya's order.

    Dropout, then one line with prefix and suffix, wildcards, tags (kept, warmed up, shuffled, dropped), secondary
    separator. keep_tokens_separator never stays in the text. A dropped caption is the empty text.

    lines: from `split_caption`. key: the sample's key. repeat: how often the epoch has used the sample before. epoch
    and step count from 0; step is the optimizer step, which only token warm-up depends on, with total_steps.
    """
    choices = python_random(seed, "caption", epoch, repeat, key)
    if _is_dropped(subset, epoch, choices):
        return ""
    caption = _with_affixes(subset, choices.choice(lines) if subset.enable_wildcard else lines[0])
    if subset.enable_wildcard:
        caption = _expand_wildcards(caption, choices)
    if subset.shuffle_caption or subset.token_warmup_step > 0 or subset.caption_tag_dropout_rate > 0:
        caption = _arrange_tags(subset, caption, choices, step, total_steps)
    return _finish(subset, caption)


def possible_captions(subset: SubsetConfig, lines: Sequence[str]) -> tuple[str, ...]:
    """The captions of one image, each once, before wildcards are expanded and tags shuffled or dropped.

    Prefix, suffix and separators are applied. lines: from `split_caption`; all are used with enable_wildcard, else the
    first.
    """
    return tuple(dict.fromkeys(_finish(subset, caption) for caption in raw_captions(subset, lines)))


def raw_captions(subset: SubsetConfig, lines: Sequence[str]) -> tuple[str, ...]:
    """The captions of one image with prefix and suffix, otherwise as written.

    lines: from `split_caption`; all are used with enable_wildcard, else the first.
    """
    used = lines if subset.enable_wildcard else lines[:1]
    return tuple(_with_affixes(subset, line) for line in used)


def contains_phrase(caption: str, phrase: str) -> bool:
    """Whether a caption contains the words of a phrase in this order, ignoring case and the kind of white space."""
    pattern = r"\s+".join(map(re.escape, phrase.split()))
    # where words are written apart; a Korean particle may follow its noun at once
    return bool(re.search(rf"(?<![A-Za-z0-9_]){pattern}(?![A-Za-z0-9_])", caption, re.IGNORECASE))


def same_phrase(phrase: str) -> str:
    """What the spellings of a phrase have in common that `contains_phrase` does not tell apart."""
    return " ".join(phrase.split()).lower()


def num_movable_tags(subset: SubsetConfig, caption: str) -> int:
    """How many of a caption's tags may be shuffled or dropped. caption: one of `raw_captions`."""
    return len(_split_tags(subset, caption)[1])


def plain_caption(subset: SubsetConfig, lines: Sequence[str], seed: int, key: str) -> str:
    """The caption of an image with nothing dropped, shuffled or warmed up, for validation and for listings.

    Wildcards are resolved by seed and key, always alike. lines: from `split_caption`. key: the sample's key.
    """
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
    """Whether the caption of one image can differ between two uses in training."""
    return bool(
        subset.enable_wildcard
        or subset.shuffle_caption
        or subset.token_warmup_step > 0
        or subset.caption_dropout_rate > 0
        or subset.caption_dropout_every_n_epochs > 0
        or subset.caption_tag_dropout_rate > 0
    )


def _with_affixes(subset: SubsetConfig, line: str) -> str:
    return " ".join(part for part in (subset.caption_prefix, line, subset.caption_suffix) if part)


def _finish(subset: SubsetConfig, caption: str) -> str:
    if subset.keep_tokens_separator and subset.keep_tokens_separator in caption:
        head, tags, tail = _split_tags(subset, caption)
        caption = _join(subset, [*head, *tags, *tail])
    if subset.secondary_separator:
        caption = caption.replace(subset.secondary_separator, subset.caption_separator)
    return caption


def _is_dropped(subset: SubsetConfig, epoch: int, choices: random.Random) -> bool:
    every = subset.caption_dropout_every_n_epochs
    by_rate = choices.random() < subset.caption_dropout_rate
    return by_rate or (every > 0 and (epoch + 1) % every == 0)


def _expand_wildcards(caption: str, choices: random.Random) -> str:
    caption = caption.replace("{{", OPEN).replace("}}", CLOSE)
    caption = WILDCARD.sub(lambda match: choices.choice(match[1].split("|")), caption)
    return caption.replace(OPEN, "{").replace(CLOSE, "}")


def _arrange_tags(subset: SubsetConfig, caption: str, choices: random.Random, step: int, total: int) -> str:
    head, tags, tail = _split_tags(subset, caption)
    tags = tags[: _warmed_up(subset, len(tags), step, total)]
    if subset.shuffle_caption:
        choices.shuffle(tags)
    tags = [tag for tag in tags if choices.random() >= subset.caption_tag_dropout_rate]
    return _join(subset, head + tags + tail)


def _join(subset: SubsetConfig, tags: list[str]) -> str:
    separator = subset.caption_separator
    return (separator if separator[-1].isspace() else f"{separator} ").join(tags)


def _split_tags(subset: SubsetConfig, caption: str) -> tuple[list[str], list[str], list[str]]:
    """Tags that stay in front, tags that move, tags that stay at the end."""
    mark, separator = subset.keep_tokens_separator, subset.caption_separator
    if mark and mark in caption:
        head, tags, *tails = (
            [tag.strip() for tag in part.split(separator) if tag.strip()] for part in caption.split(mark)
        )
        return head, tags, [tag for tail in tails for tag in tail]
    tags = [tag.strip() for tag in caption.strip().split(separator)]
    return tags[: subset.keep_tokens], tags[subset.keep_tokens :], []


def _warmed_up(subset: SubsetConfig, count: int, step: int, total_steps: int) -> int:
    """How many of `count` tags are in use at `step`; a warm-up below 1 is a share of the run."""
    warmup = subset.token_warmup_step
    warmup = math.floor(warmup * total_steps) if warmup < 1 else warmup
    if not warmup or step >= warmup:
        return count
    return math.floor(step * ((count - subset.token_warmup_min) / warmup)) + subset.token_warmup_min
