"""What each setting may be, from the types and bounds in `trainer.config.settings`."""

from dataclasses import Field, fields
from typing import Any, get_type_hints

from trainer.config.fields import Invalid, Spec, number, shown
from trainer.config.settings import TrainConfig

FIELDS: dict[str, Field[Any]] = {field.name: field for field in fields(TrainConfig)}
MIN_SIDE = 16  # pixels; one token of the transformer


def choices(name: str) -> tuple[str, ...]:
    """The values that the setting called `name` may have, if they are listed; else ()."""
    return SPECS[name].choices


def is_switch(name: str) -> bool:
    """Whether the setting called `name` is true or false, so that its flag needs no value."""
    return SPECS[name].type is bool


def takes_many(name: str) -> bool:
    """Whether the flag of the setting called `name` takes every word up to the next flag."""
    return SPECS[name].type is tuple or name == "text_encoder_lr"


def sides(value: Any) -> tuple[int, ...]:
    """A size in pixels, as one side or as width and height.

    value: a number, or a list of one or two. Raises `Invalid`, also for a side below MIN_SIDE.
    """
    given = value if isinstance(value, list | tuple) else [value]
    if len(given) not in (1, 2):
        raise Invalid(f"has {len(given)} numbers")
    found = tuple(int(number(side, int)) for side in given)
    if min(found) < MIN_SIDE:
        raise Invalid(f"is {shown(value)}; a side must be at least {MIN_SIDE}")
    return found


def _resolution(value: Any) -> str:
    """Text "side" or "width,height" from a number, a list of two, or a text."""
    parts = value if isinstance(value, list | tuple) else str(value).strip("()[] ").split(",")
    try:
        found = sides([side.strip() if isinstance(side, str) else side for side in parts])
    except Invalid:
        hint = f'write a side like "1024", or width and height like "1152,896", each at least {MIN_SIDE}'
        raise Invalid(f"is {shown(value)}", hint) from None
    return ",".join(map(str, found))


def _clip_learning_rate(value: Any) -> float:
    """kohya takes one rate, or two for CLIP-L and T5; T5 is never trained here."""
    rates = list(value) if isinstance(value, list | tuple) else [value]
    if not 1 <= len(rates) <= 2:
        raise Invalid(f"is {shown(value)}; give one learning rate, that of CLIP-L")
    if len(rates) == 2 and number(rates[1]) != 0:
        raise Invalid(f"has {rates[1]} for T5, which is never trained here", "give only the rate of CLIP-L")
    return Spec(type=float, ge=0).convert(rates[0], from_text=True)


def _mask_background(value: Any) -> str:
    """A word, or a loss weight as text."""
    if value in ("ignore", "preserve"):
        return value
    try:
        return str(Spec(type=float, ge=0, le=1).convert(number(value)))
    except Invalid:
        raise Invalid(f"is {shown(value)}", 'it must be a weight from 0 to 1, "ignore" or "preserve"') from None


_PARSERS = {
    "resolution": _resolution,
    "text_encoder_lr": _clip_learning_rate,
    "mask_background": _mask_background,
}
_HINTS = get_type_hints(TrainConfig)
SPECS: dict[str, Spec] = {
    name: Spec.of(_HINTS[name], **field.metadata["rules"], parse=_PARSERS.get(name)) for name, field in FIELDS.items()
}
