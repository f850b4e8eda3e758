"""One engine for every value that a person writes: type, bounds, choices, conversion, and "did you mean".

Settings, dataset keys, prompt options, `--network_args` and `--optimizer_args` are each a `Schema`: names with a
`Spec` that says what the value may be. `Schema.read` converts what was written and returns every problem with its
place.
"""

import difflib
import json
import math
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from trainer.common.problems import Problem
from trainer.config.paths import path_problem

STEPS_OR_FRACTION = int | float
_TRUTH = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
_EXPECTED = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a path",
    STEPS_OR_FRACTION: "a number",
}


class Invalid(ValueError):
    """A value that cannot be used.

    what: what is wrong, as the rest of a sentence that begins with the value's name: "is 0; it must be at least 1".
    hint: how to fix it.
    """

    def __init__(self, what: str, hint: str = ""):
        self.what, self.hint = what, hint
        super().__init__(what)


@dataclass(frozen=True)
class Given:
    """One named value as a person wrote it.

    where: the flag, or file and line; from_text: numbers and truth values come as text, as on a command line;
    subject: put in front of the messages about it, for a `where` that does not name the value.
    """

    name: str
    value: Any
    where: str
    from_text: bool = False
    subject: str = ""

    def problem(self, what: str, hint: str = "") -> Problem:
        """The `Problem` of this value. what: what is wrong with it, without a subject; hint: how to fix it."""
        return Problem(self.where, f"{self.subject} {what}".strip(), hint)


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What a value may be: its type and bounds.

    type: bool, int, float, str, Path, `STEPS_OR_FRACTION`, or tuple for a list of texts. Bounds: ge <= value <= le,
    gt < value < lt, a multiple of multiple_of. choices: the allowed texts, case ignored. may_be_empty: whether a text
    may be "". parse: replaces bounds, choices and conversion; takes the value as written, returns the converted one
    and raises `Invalid`.
    """

    type: Any = str
    ge: float | None = None
    le: float | None = None
    gt: float | None = None
    lt: float | None = None
    multiple_of: int = 1
    choices: tuple[str, ...] = ()
    may_be_empty: bool = True
    parse: Callable[[Any], Any] | None = None

    @classmethod
    def of(cls, hint: Any, **rest: Any) -> "Spec":
        """The spec for a type hint: `X | None` means X, a Literal gives choices, tuple[str, ...] a list of texts.

        rest: the other fields of `Spec`, such as bounds.
        """
        if get_origin(hint) in (Union, types.UnionType):
            kinds = tuple(each for each in get_args(hint) if each is not types.NoneType)
            hint = kinds[0] if len(kinds) == 1 else STEPS_OR_FRACTION
        if get_origin(hint) is Literal:
            return cls(type=str, choices=get_args(hint), **rest)
        return cls(type=tuple if get_origin(hint) is tuple else hint, **rest)

    def convert(self, value: Any, from_text: bool = False) -> Any:
        """The value, checked and converted to the spec's type. Raises `Invalid`.

        from_text: whether a number or truth value may be given as text, as on a command line.
        """
        if not from_text and self._is_quoted_number(value):
            raise Invalid(f"is the text {shown(value)}, not {_EXPECTED[self.type]}", "write it without quotes")
        if self.parse:
            return self.parse(value)
        if self.choices:
            return self._choice(value)
        converted = _CONVERTERS[self.type](value)
        if converted == "" and not self.may_be_empty:
            raise Invalid("is empty; it must be text that is not empty")
        self._check_bounds(converted)
        return converted

    def _is_quoted_number(self, value: Any) -> bool:
        if not isinstance(value, str):
            return False
        return self.type in (bool, int, float) or (self.type == STEPS_OR_FRACTION and not value.endswith("%"))

    def _choice(self, value: Any) -> str:
        by_lower = {each.lower(): each for each in self.choices}
        if found := by_lower.get(str(value).lower()):
            return found
        near = difflib.get_close_matches(str(value).lower(), by_lower, n=1)
        hint = f"did you mean {by_lower[near[0]]}?" if near else ""
        one_of = "one of " if len(self.choices) > 1 else ""
        raise Invalid(f"is {shown(value)}; it must be {one_of}{listed(self.choices)}", hint)

    def _check_bounds(self, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return
        bounds = (
            (self.ge, lambda bound: value >= bound, "at least"),
            (self.le, lambda bound: value <= bound, "at most"),
            (self.gt, lambda bound: value > bound, "above"),
            (self.lt, lambda bound: value < bound, "below"),
        )
        for bound, holds, words in bounds:
            if bound is not None and not holds(bound):
                raise Invalid(f"is {value}; it must be {words} {bound}")
        if self.multiple_of > 1 and value % self.multiple_of:
            raise Invalid(f"is {value}; it must be a multiple of {self.multiple_of}")
        if self.type == STEPS_OR_FRACTION and isinstance(value, float) and value >= 1:
            raise Invalid(f"is {value}; steps are a whole number, and a fraction of all steps is below 1")


@dataclass
class Read:
    """The result of `Schema.read`: the converted values by name, and the problems of all others.

    ignored: values whose names are accepted but have no effect here.
    """

    values: dict[str, Any] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    ignored: list[Given] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Schema:
    """The names known in one place, such as the config file or a prompt, and the spec of each one's value.

    noun: what an unknown name should have been, as in "is not a setting"; refused, elsewhere: names of other programs
    -> what to do instead (a refused name is no problem if its value turns the feature off); ignored: names that are
    accepted and change nothing -> why; off: refused names -> the value that turns the feature off, where that is not
    false, 0 or empty; other_names: further names for "did you mean"; listing: where all names are listed.
    """

    specs: Mapping[str, Spec]
    noun: str
    refused: Mapping[str, str] = field(default_factory=dict)
    elsewhere: Mapping[str, str] = field(default_factory=dict)
    ignored: Mapping[str, str] = field(default_factory=dict)
    off: Mapping[str, Any] = field(default_factory=dict)
    other_names: tuple[str, ...] = ()
    listing: str = ""

    def read(self, written: Iterable[Given]) -> Read:
        """Convert all valid values, and collect a problem for each of the others.

        A name that is given twice is a problem too; only its first value is used.
        """
        found, first = Read(), {}
        for given in written:
            if first.setdefault(given.name, given) is not given:
                also = first[given.name].where
                where = f" (also at {also})" if also != given.where else ""
                found.problems.append(given.problem(f"is given twice{where}", "keep one of them"))
                continue
            if given.name in self.ignored:
                found.ignored.append(given)
            elif given.name not in self.specs:
                found.problems += self._not_known(given)
            else:
                try:
                    found.values[given.name] = self.specs[given.name].convert(given.value, given.from_text)
                except Invalid as error:
                    found.problems.append(given.problem(error.what, error.hint))
        return found

    def _not_known(self, given: Given) -> list[Problem]:
        name = given.name
        if name in self.refused:
            asks = not (is_off(given.value) or (name in self.off and given.value == self.off[name]))
            return [given.problem("is not supported", self.refused[name])] if asks else []
        return [given.problem(f"is not {self.noun}", self.elsewhere.get(name) or self._nearest(name))]

    def _nearest(self, name: str) -> str:
        known = [*self.specs, *self.ignored, *self.refused, *self.other_names]
        return nearest(name.replace("-", "_"), known) or self.listing


def read_pairs(words: Iterable[str], where: str) -> tuple[list[Given], list[Problem]]:
    """Split words like "key=value"; returns the values, and a problem for each word without "=".

    where: the flag that the words belong to, such as "--optimizer_args".
    """
    pairs, problems = [], []
    for word in words:
        key, equals, text = (part.strip() for part in word.partition("="))
        if equals:
            pairs.append(Given(key, text, where, from_text=True, subject=key))
        else:
            problems.append(Problem(where, f"{shown(word)} is not key=value", "write key=value"))
    return pairs, problems


def nearest(name: str, known: Iterable[str]) -> str:
    """The hint "did you mean …?" with the known name most similar to `name`, or "" if none is similar."""
    near = difflib.get_close_matches(name.lower(), list(known), n=1)
    return f"did you mean {near[0]}?" if near else ""


def is_off(value: Any) -> bool:
    """Whether a value turns a feature off: false, 0, or empty, also if written as text."""
    return value in (False, 0, "", []) or str(value).lower() in ("false", "0", "0.0")


def shown(value: Any) -> str:
    """A value for a message: as JSON, on one line of at most 80 characters."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."


def listed(words: Iterable[str]) -> str:
    """The words as "a, b or c"; at least one is needed."""
    *most, last = words
    return f"{', '.join(most)} or {last}" if most else last


def number(value: Any, wanted: Any = float) -> int | float:
    """A finite number from a number or its text, in which "5%" is 0.05. Raises `Invalid`.

    wanted: int, float, or `STEPS_OR_FRACTION` for either.
    """
    expected = _EXPECTED[wanted]
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise Invalid(f"is {shown(value)}, not {expected}")
    found = _parse_number(value) if isinstance(value, str) else value
    if found is None or (wanted is int and isinstance(found, float)):
        if value == "":
            raise Invalid("has no value", f"give it {expected}")
        raise Invalid(f"is {shown(value)}, not {expected}", _comma_hint(value) if isinstance(value, str) else "")
    if not math.isfinite(found):
        raise Invalid(f"is {value}, not a finite number")
    return float(found) if wanted is float else found


def _comma_hint(text: str) -> str:
    if text.endswith(",") and _parse_number(text.rstrip(", ")) is not None:
        return "leave the comma out"
    return (
        "write a decimal point, not a comma"
        if "," in text and _parse_number(text.replace(",", ".")) is not None
        else ""
    )


def _parse_number(text: str) -> int | float | None:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text.removesuffix("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def _bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in _TRUTH:
        return _TRUTH[value.lower()]
    raise Invalid(f"is {shown(value)}, not true or false")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise Invalid(f"is {shown(value)}, not text in quotes")
    return value


def path_of(value: Any) -> Path:
    """The path that a text names. Raises `Invalid` if it is empty or has a `path_problem`."""
    text = _text(value)
    if not text.strip():
        raise Invalid("is empty", "name a path or leave it out")
    if problem := path_problem(text):
        raise Invalid(*problem)
    return Path(text).expanduser()


def _texts(value: Any) -> tuple[str, ...]:
    words = [value] if isinstance(value, str) else value
    if not isinstance(words, list | tuple) or not all(isinstance(word, str) for word in words):
        raise Invalid(f'is {shown(value)}, not a list of texts like ["key=value"]')
    return tuple(words)


_CONVERTERS: dict[Any, Callable[[Any], Any]] = {
    bool: _bool,
    int: lambda value: number(value, int),
    float: number,
    STEPS_OR_FRACTION: lambda value: number(value, STEPS_OR_FRACTION),
    str: _text,
    Path: path_of,
    tuple: _texts,
}
