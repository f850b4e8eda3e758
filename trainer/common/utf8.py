"""Text files that people write: UTF-8, with or without a byte-order mark."""

import codecs
import difflib
import re
from pathlib import Path

from trainer.common.problems import Problem, Problems

LINE_END = re.compile(r"\r\n|\r|\n")  # not U+2028 and its like, which `str.splitlines` splits at too


def read_utf8(path: Path) -> str:
    """The text of a UTF-8 file, without its byte-order mark.

    Raises `Problems` if the file cannot be read, is not UTF-8, or contains zero bytes.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise Problems([Problem(str(path), "there is no such file", _hint_for_missing(path))]) from None
    except OSError as error:
        hint = "give a text file that you may read"
        raise Problems([Problem(str(path), f"cannot be read: {error.strerror}", hint)]) from None
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise Problems(
            [Problem(str(path), "is UTF-16, not UTF-8", 'save it as UTF-8 (in Notepad: "Save as", Encoding)')]
        )
    if b"\0" in data:
        line = 1 + len(LINE_END.findall(data[: data.index(b"\0")].decode("utf-8", "replace")))
        hint = "save it as UTF-8; UTF-16 without a byte-order mark looks like this"
        raise Problems([Problem(f"{path}:{line}", "contains zero bytes, so it is no UTF-8 text", hint)])
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = 1 + len(LINE_END.findall(data[: error.start].decode("utf-8", "replace")))
        what = f"cannot be read: it is not UTF-8 (byte {error.start})"
        raise Problems([Problem(f"{path}:{line}", what, "save it as UTF-8")]) from None


def _hint_for_missing(path: Path) -> str:
    """The file that may be meant, else where the path begins."""
    try:
        names = [each.name for each in path.parent.iterdir()]
    except OSError:
        names = []
    if near := difflib.get_close_matches(path.name, names, 1):
        return f"did you mean {path.with_name(near[0])}?"
    return "give an existing file" + ("" if path.is_absolute() else f"; the path begins in {Path.cwd()}")


def split_lines(text: str) -> list[str]:
    """The lines of a text, split at \\n, \\r\\n and \\r; unlike with `str.splitlines`, at no other character."""
    return LINE_END.split(text)
