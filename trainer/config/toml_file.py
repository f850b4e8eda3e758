"""A TOML file that remembers the line of each key."""

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.common.problems import Problem, Problems
from trainer.common.utf8 import read_utf8, split_lines
from trainer.config.paths import backslash_hint

KEY = r"""(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')"""
DOTTED = rf"{KEY}(?:\s*\.\s*{KEY})*"
HEADER = re.compile(rf"^\s*(\[\[?)\s*({DOTTED})\s*\]\]?\s*(?:#.*)?$")
ASSIGNMENT = re.compile(rf"^\s*({DOTTED})\s*=")
# a key that looks like a secret's, and the rest of its line
SECRET_KEY = re.compile(r"((?<![A-Za-z0-9])(?:[\w-]*[_-])?(?:token|(?:api)?key|secret|password)\b)(.+)", re.IGNORECASE)
SECRET_HIDDEN = r"\1 [secret]"
POSITION = re.compile(r"\s*\(at line (\d+), column (\d+)\)$")
BACKSLASH_IN_QUOTES = re.compile(r'"([^"]*\\[^"]*)"?')
APOSTROPHE = re.compile(r"'[^']*'[^'\s,\]}#]")
UNQUOTED = re.compile(rf"^({DOTTED})\s*=\s*([^\s\"'\[{{#=][^\"'\[{{#=]*)$")
CURLY_QUOTES = re.compile("[\u201c\u201d\u201e\u2018\u2019]")

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True)
class TomlFile:
    """A parsed TOML file.

    values: its content; lines: the line of each table and key, by the path of keys that leads there. A table of an
    array has its index in the path: ("datasets", 0, "resolution").
    """

    path: Path
    values: dict[str, Any]
    lines: dict[KeyPath, int]

    def where(self, *keys: str | int) -> str:
        """`file:line` of a key, or of the nearest table around it if the key has no line of its own.

        keys: the path to it, such as "datasets", 0, "resolution". The file alone if no part of the path has a line.
        """
        while keys and keys not in self.lines:
            keys = keys[:-1]
        return f"{self.path}:{self.lines[keys]}" if keys else str(self.path)

    def table(self, *keys: str | int) -> dict[str, Any]:
        """The table at a path of keys, such as "datasets", 0; an empty one if a name on the path is missing."""
        value: Any = self.values
        for key in keys:
            value = value[key] if isinstance(key, int) else value.get(key, {})
        return value


def read_toml(path: Path) -> TomlFile:
    """Parse a UTF-8 TOML file.

    Raises `Problems` if it cannot be read, or, with line, column and a hint, if it is not valid TOML.
    """
    text = read_utf8(path)
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise Problems([_syntax_problem(path, text, str(error))]) from None
    return TomlFile(path, values, _key_lines(text))


def _syntax_problem(path: Path, text: str, message: str) -> Problem:
    lines = split_lines(text)
    if position := POSITION.search(message):
        line, column = int(position[1]), int(position[2])
    else:  # "(at end of document)"
        line, column = len(lines), len(lines[-1]) + 1
    reason = message.rsplit(" (at ", 1)[0]
    source = lines[line - 1].strip() if line <= len(lines) else ""
    return Problem(f"{path}:{line}:{column}", f"not valid TOML: {reason}", _remedy(source))


def _remedy(line: str) -> str:
    """What to do about a line that is not TOML: how to write its path, or the line itself without secrets."""
    if SECRET_KEY.search(line):
        return f"the line is: {SECRET_KEY.sub(SECRET_HIDDEN, line)}"
    if backslash := BACKSLASH_IN_QUOTES.search(line):
        return backslash_hint(backslash[1])
    if CURLY_QUOTES.search(line):
        return f"write straight quotes, not curly ones; the line is: {line}"
    if APOSTROPHE.search(line):
        return f"' ends text in single quotes: write it in double quotes, with / for \\; the line is: {line}"
    if unquoted := UNQUOTED.match(line):
        return f"write text in quotes: {unquoted[1]} = '{unquoted[2].strip()}'"
    return f"the line is: {line}" if line else ""


def _key_lines(text: str) -> dict[KeyPath, int]:
    lines: dict[KeyPath, int] = {}
    last_index: dict[KeyPath, int] = {}
    table: KeyPath = ()
    quote = ""
    for number, line in enumerate(split_lines(text), start=1):
        inside, quote = bool(quote), _open_quote(line, quote)
        if inside:
            continue
        if header := HEADER.match(line):
            table = _table_path(header[2], header[1] == "[[", last_index)
            lines[table] = number
        elif assignment := ASSIGNMENT.match(line):
            lines.setdefault((*table, *_names(assignment[1])), number)
    return lines


def _open_quote(line: str, quote: str) -> str:
    """The triple quote that is still open at the end of the line, or nothing."""
    for mark in re.findall(r'"""|\'\'\'', line):
        quote = mark if not quote else "" if mark == quote else quote
    return quote


def _names(dotted: str) -> list[str]:
    return [name.strip("\"'") for name in re.findall(KEY, dotted)]


def _table_path(dotted: str, is_array: bool, last_index: dict[KeyPath, int]) -> KeyPath:
    names = _names(dotted)
    path: KeyPath = ()
    for depth, name in enumerate(names, start=1):
        path = (*path, name)
        if is_array and depth == len(names):
            last_index[path] = last_index.get(path, -1) + 1
        if path in last_index:
            path = (*path, last_index[path])
    return path
