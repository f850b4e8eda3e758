"""Words of a command line and values of a TOML file, turned into the type that a setting has."""

import math
import types
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from trainer.config.settings import TrainConfig

FIELDS: dict[str, Field[Any]] = {field.name: field for field in fields(TrainConfig)}
_HINTS = get_type_hints(TrainConfig)
_TRUTH = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def kind(name: str) -> Any:
    """The setting's type without `None`: bool, int, float, str, Path, a Literal, or a tuple of str."""
    hint = _HINTS[name]
    if isinstance(hint, types.UnionType):
        rest = tuple(each for each in get_args(hint) if each is not types.NoneType)
        return rest[0] if len(rest) == 1 else (int | float)
    return hint


def choices(name: str) -> tuple[str, ...]:
    """The values that a setting may have, if they are listed; else ()."""
    return get_args(kind(name)) if get_origin(kind(name)) is Literal else ()


def is_switch(name: str) -> bool:
    """True for a flag that needs no value."""
    return kind(name) is bool


def takes_many(name: str) -> bool:
    """True for a flag that takes every word up to the next flag."""
    return get_origin(kind(name)) is tuple or name == "text_encoder_lr"


def convert(name: str, value: Any, from_words: bool = True) -> Any:
    """The value in the setting's type. Raises ValueError that says what is expected.

    from_words: numbers and truth values come as text, as on a command line.
    """
    if not from_words and isinstance(value, str) and _is_quoted_number(kind(name), value):
        raise ValueError(f"is the text {value!r}; write it without quotes")
    if name == "resolution":
        return _resolution(value)
    if name == "text_encoder_lr":
        value = _clip_learning_rate(value)
    converted = _convert(kind(name), value)
    _check_bounds(name, converted)
    return converted


def _is_quoted_number(wanted: Any, value: str) -> bool:
    return wanted in (bool, int, float) or (wanted == int | float and not value.endswith("%"))


def _convert(wanted: Any, value: Any) -> Any:
    if get_origin(wanted) is Literal:
        return _choice(get_args(wanted), value)
    if get_origin(wanted) is tuple:
        return _words(value)
    if wanted is bool:
        return _bool(value)
    if wanted in (int, float, int | float):
        return _number(wanted, value)
    if not isinstance(value, str):
        raise ValueError(f"is {value!r}, not a text in quotes")
    if wanted is Path:
        if not value.strip():
            raise ValueError("is empty; name a path or leave the setting out")
        return Path(value).expanduser()
    return value


def _choice(allowed: tuple[str, ...], value: Any) -> str:
    for each in allowed:
        if str(value).lower() == each.lower():
            return each
    raise ValueError(f"is {value!r}; one of {', '.join(allowed)} is possible")


def _words(value: Any) -> tuple[str, ...]:
    words = [value] if isinstance(value, str) else value
    if not isinstance(words, list | tuple) or not all(isinstance(word, str) for word in words):
        raise ValueError(f'is {value!r}, not a list of texts like ["key=value"]')
    return tuple(words)


def _bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in _TRUTH:
        return _TRUTH[value.lower()]
    raise ValueError(f"is {value!r}, neither true nor false")


def _number(wanted: Any, value: Any) -> int | float:
    expected = "a whole number" if wanted is int else "a number"
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"is {value!r}, not {expected}")
    number = _parse_number(value) if isinstance(value, str) else value
    if number is None or (wanted is int and isinstance(number, float)):
        raise ValueError(f"is {value!r}, not {expected}")
    if not math.isfinite(number):
        raise ValueError(f"is {value!r}, which is not finite")
    return float(number) if wanted is float else number


def _parse_number(text: str) -> int | float | None:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text.removesuffix("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def _check_bounds(name: str, value: Any) -> None:
    bounds = FIELDS[name].metadata
    if not isinstance(value, int | float) or isinstance(value, bool):
        return
    if bounds["least"] is not None and value < bounds["least"]:
        raise ValueError(f"is {value}; the least is {bounds['least']}")
    if bounds["most"] is not None and value > bounds["most"]:
        raise ValueError(f"is {value}; the most is {bounds['most']}")
    if bounds["above"] is not None and value <= bounds["above"]:
        raise ValueError(f"is {value}; it must be above {bounds['above']}")
    if kind(name) == int | float and isinstance(value, float) and value >= 1:
        raise ValueError(f"is {value}; steps are a whole number, a share of all steps is below 1")


def _resolution(value: Any) -> str:
    """Text "side" or "width,height" from a number, a list of two, or a text."""
    sides = value if isinstance(value, list | tuple) else str(value).strip("()[] ").split(",")
    try:
        numbers = [_number(int, side.strip() if isinstance(side, str) else side) for side in sides]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2):
        raise ValueError(f'is {value!r}; write a side like "1024" or width and height like "1152,896"')
    if min(numbers) < 16:
        raise ValueError(f"is {value!r}; the least side is 16")
    return ",".join(str(number) for number in numbers)


def _clip_learning_rate(value: Any) -> Any:
    """kohya takes one rate, or two for CLIP-L and T5; T5 is never trained here."""
    rates = list(value) if isinstance(value, list | tuple) else [value]
    if not 1 <= len(rates) <= 2:
        raise ValueError(f"is {value!r}; give one learning rate, that of CLIP-L")
    if len(rates) == 2 and _number(float, rates[1]) != 0:
        raise ValueError(f"has {rates[1]} for T5, which is never trained here; give the rate of CLIP-L alone")
    return rates[0]
