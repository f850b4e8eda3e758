"""Which keys of a dataset file have an effect; one that has none anywhere gives a notice."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from trainer.common.problems import Problem

Place = tuple[str | int, ...]  # of a table in the file; () for the flags
# key, whether it has an effect given the values of its dataset or subset, and the rest of the message where it has none
Rules = tuple[tuple[str, Callable[[Mapping[str, Any]], Any], str], ...]
_ARRANGING = "without shuffle_caption, caption_tag_dropout_rate or token_warmup_step"
_ALL_DROPPED = "because every caption is dropped"


def _arranges(v: Mapping[str, Any]) -> bool:
    """Whether tags are shuffled, dropped or warmed up."""
    return bool(v["shuffle_caption"] or v["caption_tag_dropout_rate"] or v["token_warmup_step"])


def _captions_remain(v: Mapping[str, Any]) -> bool:
    return v["caption_dropout_rate"] < 1 and v["caption_dropout_every_n_epochs"] != 1


OF_SECTION: Rules = (
    ("min_bucket_reso", lambda v: v["enable_bucket"], "has no effect without enable_bucket"),
    ("max_bucket_reso", lambda v: v["enable_bucket"], "has no effect without enable_bucket"),
    ("bucket_reso_steps", lambda v: v["enable_bucket"], "has no effect without enable_bucket"),
    ("bucket_no_upscale", lambda v: v["enable_bucket"], "has no effect without enable_bucket"),
    ("min_bucket_reso", lambda v: not v["bucket_no_upscale"], "has no effect with bucket_no_upscale"),
    ("max_bucket_reso", lambda v: not v["bucket_no_upscale"], "has no effect with bucket_no_upscale"),
    ("validation_seed", lambda v: v["validation_split"] > 0, "has no effect without validation_split"),
)
OF_SUBSET: Rules = (
    ("keep_tokens", _arranges, f"has no effect {_ARRANGING}"),
    ("keep_tokens_separator", _arranges, f"keeps no tags in place {_ARRANGING}"),
    ("secondary_separator", _arranges, f"groups no tags {_ARRANGING}; it is only replaced by caption_separator"),
    (
        "secondary_separator",
        lambda v: v["secondary_separator"] != v["caption_separator"],
        "has no effect: it is the same as caption_separator",
    ),
    (
        "caption_separator",
        lambda v: _arranges(v) or bool(v["secondary_separator"]),
        f"has no effect {_ARRANGING}",
    ),
    *(
        (name, lambda v: v["masked_loss"] or v["alpha_mask"], "has no effect without masked_loss or alpha_mask")
        for name in ("conditioning_data_dir", "mask_background", "mask_dilation")
    ),
    ("token_warmup_min", lambda v: v["token_warmup_step"] > 0, "has no effect without token_warmup_step"),
    *(
        (name, _captions_remain, f"has no effect {_ALL_DROPPED}")
        for name in ("shuffle_caption", "caption_tag_dropout_rate", "token_warmup_step", "keep_tokens")
    ),
    (
        "caption_dropout_rate",
        lambda v: v["caption_dropout_every_n_epochs"] != 1,
        "has no effect: caption_dropout_every_n_epochs = 1 drops every caption",
    ),
)


def idle_keys(values: Mapping[str, Any], rules: Rules) -> dict[str, str]:
    """The keys that have no effect given the values of one dataset or subset, each with the reason as a message.

    values: all of its keys. rules: those of its kind of table.
    """
    return {name: why for name, acts, why in reversed(rules) if not acts(values)}


@dataclass
class _Entry:
    where: str
    value: Any
    is_default: bool
    is_used: bool = False
    acts: bool = False
    why: str = ""
    overridden_by: list[Any] = field(default_factory=list)


class Usage:
    """Collects where keys are written and whether they have an effect in any dataset or subset.

    `wrote` and `resolved` are called while the file is read, `notices` at the end.
    """

    def __init__(self) -> None:
        self._entries: dict[tuple[Place, str], _Entry] = {}

    def wrote(self, place: Place, name: str, value: Any, where: str, default: Any) -> None:
        """Record that a key is written; a flag is recorded only if its value differs from the default.

        place: the table, () for a flag. where: file and line, or the flag, for messages. default: the key's.
        """
        if place or value != default:
            self._entries[place, name] = _Entry(where, value, is_default=value == default)

    def resolved(self, name: str, places: tuple[Place, ...], why_idle: str | None) -> None:
        """Record that a dataset or subset takes a key from the first of these places that has it.

        why_idle: why the key has no effect in that dataset or subset, None if it has one.
        """
        found = [entry for place in places if (entry := self._entries.get((place, name)))]
        for entry in found[:1]:
            entry.is_used = True
            entry.acts = entry.acts or why_idle is None
            entry.why = entry.why or why_idle or ""
        for entry in found[1:]:
            entry.overridden_by.append(found[0].value)

    def notices(self) -> Iterator[Problem]:
        """One notice for each key or flag that is written and changes nothing in any dataset or subset."""
        for (place, name), entry in self._entries.items():
            subject = f"{name} " if place else ""
            overrider = "every table below" if place else "the dataset file"
            if not entry.is_used and any(value != entry.value for value in entry.overridden_by):
                yield Problem(entry.where, f"{subject}has no effect: {overrider} sets its own {name}")
            elif entry.is_used and not entry.acts and not entry.is_default:
                yield Problem(entry.where, f"{subject}{entry.why}")
