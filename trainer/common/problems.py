"""Mistakes of the user, collected so that all of them are reported together."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

SECRET = re.compile(r"\bhf_[A-Za-z0-9]{8,}\b")  # a Hugging Face token
CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff]")  # of names that a user did not choose


def redact(text: str) -> str:
    """The text with each Hugging Face access token replaced by "[secret]"; used for all that is printed or logged."""
    return SECRET.sub("[secret]", text)


def printable(text: str) -> str:
    """The text with control characters other than line feeds, and invalid UTF-8, replaced by escapes like \\x1b."""
    return CONTROL.sub(lambda match: repr(match[0])[1:-1], text)


@dataclass(frozen=True)
class Problem:
    """One thing that the user has to fix, in their words.

    where: the file, file and line, flag or key; what: what is wrong; hint: how to fix it.
    """

    where: str
    what: str
    hint: str = ""

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}"
        return redact(printable(f"{text}\n    -> {self.hint}" if self.hint else text))

    def as_dict(self) -> dict[str, str]:
        """Its three texts by name, for JSON, without access tokens."""
        return {"where": redact(self.where), "what": redact(self.what), "hint": redact(self.hint)}


class Problems(ValueError):
    """An error with all mistakes of the user that were found: in `problems`, and one after the other in its message."""

    def __init__(self, problems: Iterable[Problem]):
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


def raise_if_any(problems: Iterable[Problem]) -> None:
    """Raise one `Problems` error with all given problems; do nothing if there are none."""
    found = tuple(problems)
    if found:
        raise Problems(found)
