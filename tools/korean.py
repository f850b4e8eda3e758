"""Report where README.ko.md has fallen behind README.md. It only reports: a contributor need not know Korean.

python tools/korean.py
"""

import re
from collections import Counter
from itertools import zip_longest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "README.ko.md")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^(#+) (.+)$", re.MULTILINE)
CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"!?\[[^]]*\]\(([^)]+)\)|(https?://[^\s`)]+)")
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


def differences(english: str, korean: str) -> list[str]:
    """What the Korean page lacks or has too much of, one line each, by section.

    Compared are headings, code blocks without their comments, links, code, figures and table rows: everything that
    is the same in both languages. Where the headings differ, nothing else is compared.
    """
    ours, theirs = headings(english), headings(korean)
    if [level for level, _ in ours] != [level for level, _ in theirs]:
        return [f"headings: {len(ours)} in English, {len(theirs)} in Korean, or their levels differ"]
    found = []
    if blocks(english) != blocks(korean):
        pairs = zip_longest(blocks(english), blocks(korean))
        number = next(number for number, (block, other) in enumerate(pairs, 1) if block != other)
        found.append(f"code block {number}: not the same lines")
    for (_, title), section, other in zip(ours, sections(english), sections(korean), strict=True):
        found += [f"{title}: {line}" for line in _section_differences(section, other)]
    return found


def _section_differences(english: str, korean: str) -> list[str]:
    lines = _missing("link", links(english), links(korean))
    lines += _missing("code", CODE.findall(english), CODE.findall(korean))
    numbers = set(NUMBER.findall(english)) - set(NUMBER.findall(korean))  # Korean may have figures of its own
    lines += [f"lacks the figure {number}" for number in sorted(numbers)]
    ours, theirs = table_rows(english), table_rows(korean)
    if ours != theirs:
        lines.append(f"table rows: {len(ours)} in English, {len(theirs)} in Korean, or their cells differ")
    return lines


def _missing(what: str, english: list[str], korean: list[str]) -> list[str]:
    ours, theirs = Counter(english), Counter(korean)
    lacks = [f"lacks the {what} {item}" for item in sorted((ours - theirs).elements())]
    return lacks + [f"has a {what} that English lacks: {item}" for item in sorted((theirs - ours).elements())]


def blocks(page: str) -> list[tuple[str, list[str]]]:
    """The code blocks: language, and lines without comments."""
    return [(language, list(map(without_comment, body.splitlines()))) for language, body in FENCE.findall(page)]


def without_comment(line: str) -> str:
    """A line of a code block up to its `#`."""
    return re.sub(r"(^|\s+)#( .*|$)", "", line)


def prose(page: str) -> str:
    """The page without its code blocks."""
    return FENCE.sub("", page)


def headings(page: str) -> list[tuple[int, str]]:
    """Level and title of each heading."""
    return [(len(marks), title) for marks, title in HEADING.findall(prose(page))]


def sections(page: str) -> list[str]:
    """The text below each heading, without code blocks."""
    return HEADING.split(prose(page))[3::3]


def links(page: str) -> list[str]:
    """Addresses and images. Anchors count as one, since they are in the page's language, and so do the pages' own."""
    found = [(inside or bare).rstrip(".,") for inside, bare in LINK.findall(page)]
    return [link.split("#")[0] or "#" for link in found if link not in PAGES]


def table_rows(page: str) -> list[tuple[int, list[str]]]:
    """Each row's number of cells, and the code in it."""
    rows = [line.replace(r"\|", "¦") for line in page.splitlines() if line.startswith("|")]
    return [(row.count("|"), sorted(CODE.findall(row))) for row in rows]


def main() -> None:
    """Print the differences; the exit status is 0 either way."""
    english, korean = ((ROOT / name).read_text(encoding="utf-8") for name in PAGES)
    found = differences(english, korean)
    print("\n".join(f"README.ko.md: {line}" for line in found) or "README.ko.md is up to date.")


if __name__ == "__main__":
    main()
