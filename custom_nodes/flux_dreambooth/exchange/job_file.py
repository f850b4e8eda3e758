"""A job as a TOML file: a training's settings, or one table that names another kind of work.

A training is exactly a --config_file, so that one can be dropped into runs/queue/ by hand. [check] takes the same
settings. [caption], [mask] and [compare] take the keys of `WORK`.
"""

import errno
import json
import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from .files import read_file

try:
    import tomllib
except ImportError:  # Python 3.10
    tomllib = None

TRAIN, CHECK, CAPTION, MASK, COMPARE = "train", "check", "caption", "mask", "compare"
KINDS = (TRAIN, CHECK, CAPTION, MASK, COMPARE)
WORK = {  # the keys of each kind, first what it works on
    CAPTION: ("folder", "class_tokens", "redo"),
    MASK: ("folder", "class_word", "redo"),
    COMPARE: ("run",),
}
UNUSABLE_HINT = "a job is a TOML file in UTF-8 with the settings of a training, and no link"
MAX_JOB = 64 * 2**10  # bytes
USUAL_NAME = "flux_dreambooth"  # the output_name of a training that names none
ID = re.compile(r"[^\W_][\w -]{0,79}")  # no dot: ID.status.json and the like are told apart by theirs
_TAKEN_BY_RUNS = ("config", "log")  # config.toml would make the queue look like a run
_KEY = re.compile(r"[A-Za-z0-9_-]+")


class Unusable(ValueError):
    """A job file that cannot be read; the text says why."""


def is_id(name: str) -> bool:
    """Whether a name can be a job's, and so that of its files."""
    return bool(ID.fullmatch(name)) and name == name.strip() and name.casefold() not in _TAKEN_BY_RUNS


def id_for(name: str, taken: Collection[str]) -> str:
    """A job's id from the name of what it makes, with a number if that is taken (case ignored)."""
    own = re.sub(r"[^\w -]", "-", name).strip(" -_")[:60].strip(" -_") or "job"
    if not is_id(own):
        own = f"job {own}"
    lower = {each.casefold() for each in taken}
    count = 1
    while (found := own if count == 1 else f"{own}-{count}").casefold() in lower:
        count += 1
    return found


def job_text(kind: str, settings: Mapping[str, Any]) -> str:
    """The content of a job's file. Raises ValueError for a value that TOML or a flat table cannot hold."""
    return f"[{kind}]\n{settings_text(settings)}"


def settings_text(settings: Mapping[str, Any]) -> str:
    """Settings as lines of TOML. Raises ValueError for a value that TOML or a flat table cannot hold."""
    return "".join(f"{key_text(name)} = {value_text(value)}\n" for name, value in settings.items())


def key_text(name: str) -> str:
    """A bare key. Raises ValueError if the name cannot be one."""
    if not isinstance(name, str) or not _KEY.fullmatch(name):
        raise ValueError(f"{name!r} is no name of a setting.")
    return name


def value_text(value: Any) -> str:
    """A text, number, truth value or list of texts and numbers in TOML. Raises ValueError for anything else."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and abs(value) < 2**63:
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return repr(value)
    if isinstance(value, str) and not re.search("[\ud800-\udfff]", value):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list) and not any(isinstance(each, list) for each in value):
        return f"[{', '.join(map(value_text, value))}]"
    raise ValueError(f"{value!r} cannot be a setting's value.")


def read_job(path: Path) -> tuple[str, dict[str, Any]]:
    """A job's kind and settings. Raises `Unusable`."""
    values = read_settings(path)
    if not values:
        raise Unusable("is empty")
    if len(values) == 1 and isinstance(table := values.get(kind := next(iter(values))), dict) and kind in KINDS:
        return kind, table
    return TRAIN, flat(values)


def read_settings(path: Path) -> dict[str, Any]:
    """The tables of a small TOML file. Raises `Unusable`."""
    try:
        return parse_settings(read_file(path, MAX_JOB + 1))
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise Unusable("cannot be read: it is a link, which is not followed") from None
        raise Unusable(f"cannot be read: {error.strerror or error}") from None


def parse_settings(data: bytes) -> dict[str, Any]:
    """The tables of a small TOML file, from its content. Raises `Unusable`."""
    if tomllib is None:
        raise Unusable("reading TOML needs Python 3.11 or newer")
    if len(data) > MAX_JOB:
        raise Unusable(f"has more than {MAX_JOB:,} bytes")
    try:
        return tomllib.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise Unusable(f"is not UTF-8 (byte {error.start})") from None
    except (ValueError, RecursionError) as error:
        raise Unusable(f"is not valid TOML: {error}") from None


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without their sections, whose names have no meaning."""
    settings = {name: value for name, value in values.items() if not isinstance(value, dict)}
    for table in values.values():
        settings |= table if isinstance(table, dict) else {}
    return settings


def name_of(kind: str, settings: Mapping[str, Any]) -> str:
    """What a job makes or works on: a training's output_name, a folder of images, or a run."""
    name = settings.get(WORK[kind][0], "") if kind in WORK else settings.get("output_name", USUAL_NAME)
    return name if isinstance(name, str) else ""
