"""Paths as people write them: of Windows, too long, or with escapes of TOML that nobody meant."""

import argparse
import os
import re
from pathlib import Path

_ESCAPES = str.maketrans({"\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r"})
MAX_NAME = 255  # bytes, of a file or folder
_DRIVE = re.compile(r"([A-Za-z]):[\\/]")


def path_problem(text: str) -> tuple[str, str] | None:
    """What is wrong with a path, and the hint, for a message; None if nothing is, or if the path exists."""
    if long := next((part for part in Path(text).parts if len(os.fsencode(part)) > MAX_NAME), ""):
        what = f"has a name of {len(os.fsencode(long))} bytes, {long[:20]}…; file systems take {MAX_NAME}"
        return what, "shorten it (in UTF-8 a letter takes 1 to 4 bytes)"
    odd = any(ord(letter) < 32 for letter in text)
    windows = os.name == "posix" and ("\\" in text or _DRIVE.match(text))
    if not (odd or windows) or _exists(text):
        return None
    if odd:
        meant = text.translate(_ESCAPES)
        return f'has control characters: "{meant}"', backslash_hint(meant)
    return f"is {text}, a path of Windows", _posix_hint(text)


def backslash_hint(path: str) -> str:
    """The hint that shows how to write a path with backslashes in TOML, where \\ begins an escape in double quotes."""
    forward = path.replace("\\", "/")
    quoted = "" if "'" in path else f"'{path}' or "
    return f'\\ is an escape in double quotes: write {quoted}"{forward}"'


def _posix_hint(path: str) -> str:
    forward = path.replace("\\", "/")
    if drive := _DRIVE.match(path):
        return f"in WSL it is /mnt/{drive[1].lower()}/{forward[3:]}; in a container, name the mounted folder"
    return "name a folder of this machine" if forward.startswith("//") else f"write {forward}"


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except OSError:  # such as a name that is too long
        return False


def path_flag(text: str) -> Path:
    """A path on the command line, for argparse. Raises argparse's error for one with a `path_problem`."""
    if problem := path_problem(text):
        raise argparse.ArgumentTypeError("; ".join(problem))
    return Path(text)
