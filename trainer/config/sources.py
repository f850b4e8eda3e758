"""A command line or a TOML file, split into settings as they were written; nothing is validated yet."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.common.problems import Problem, Problems
from trainer.config.fields import Given
from trainer.config.kohya import ALWAYS, ALWAYS_WITH_VALUE
from trainer.config.toml_file import TomlFile, read_toml
from trainer.config.values import FIELDS, SPECS, is_switch, takes_many

CONFIG_FILE = "config_file"


@dataclass(frozen=True)
class Written:
    """The settings of one source by name, as they were written, not validated.

    problems, notices: about how they were written, such as a flag without a value.
    """

    settings: Mapping[str, Given]
    problems: Sequence[Problem] = ()
    notices: Sequence[str] = ()


def read_flags(argv: Sequence[str]) -> Written:
    """Split a command line into flags: `--name value`, `--name=value`, or `--switch`, which is true.

    argv: its words after the subcommand. Of a repeated flag the last one counts, with a notice. Unknown names are kept.
    """
    given: dict[str, Given] = {}
    problems: list[Problem] = []
    notices: list[str] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            problems.append(_stray(word))
            continue
        name, equals, text = word[2:].partition("=")
        value = _flag_value(name, [text] if equals else [], words)
        if value is None:
            problems.append(Problem(f"--{name}", "needs a value", f"write --{name}=VALUE"))
            continue
        if name in given:
            notices.append(f"--{name}: given more than once; the last one counts")
        given[name] = Given(name, value, f"--{name}", from_text=True)
    return Written(given, problems, notices)


def _flag_value(name: str, taken: list[str], words: list[str]) -> Any:
    """The value of a flag, removed from `words`; None if it is missing."""
    if (name in FIELDS and is_switch(name)) or (name in ALWAYS and name not in ALWAYS_WITH_VALUE):
        return taken[0] if taken else True
    ours = name in FIELDS or name == CONFIG_FILE
    many = name != CONFIG_FILE and (name not in FIELDS or takes_many(name))  # an unknown flag keeps its words
    while words and not _is_flag(words[0]) and (many or not taken):
        taken.append(words.pop(0))
    if not ours:
        return " ".join(taken) if taken else True
    if not taken:
        return () if name in FIELDS and SPECS[name].type is tuple else None
    return taken if many else taken[0]


def _is_flag(word: str) -> bool:
    return word.startswith("-") and not re.match(r"-\.?\d", word)


def _stray(word: str) -> Problem:
    if word[:1] in "–—−":
        return Problem(word, "starts with a typographic dash", f"write --{word.lstrip('–—−-')}")
    hint = "flags begin with --; --switch=false turns a switch off"
    return Problem(word or "''", "is not the value of any flag", hint)


def read_config_file(name: str) -> Written:
    """Read the settings of a --config_file. If the file cannot be read, the result has problems; nothing is raised.

    name: its path; ".toml" may be left out. Keys in a [section] count as if they were outside it, as in kohya.
    """
    path = Path(name if name.endswith(".toml") else f"{name}.toml").expanduser()
    try:
        file = read_toml(path)
    except Problems as error:
        return Written({}, error.problems)
    given: dict[str, Given] = {}
    problems: list[Problem] = []
    for keys, value in _leaves(file):
        name, is_array = keys[-1], isinstance(value, list) and any(isinstance(each, dict) for each in value)
        where = f"{file.where(*keys, 0) if is_array else file.where(*keys)}: {name}"
        if isinstance(value, dict) or is_array:
            problems.append(
                Problem(where, "is a table, not a setting", "image folders are listed in the --dataset_config file")
            )
        elif name == CONFIG_FILE:
            problems.append(Problem(where, "a config file cannot name another", "leave it out"))
        elif name in given:
            problems.append(Problem(where, f"is given twice (also at {given[name].where})", "keep one of them"))
        else:
            given[name] = Given(name, value, where)
    return Written(given, problems)


def _leaves(file: TomlFile) -> list[tuple[tuple[str, ...], Any]]:
    leaves = []
    for key, value in file.values.items():
        inner = value.items() if isinstance(value, dict) else ()
        leaves += [((key, name), each) for name, each in inner] if isinstance(value, dict) else [((key,), value)]
    return leaves
