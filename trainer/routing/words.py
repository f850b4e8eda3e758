"""Triggers in a prompt, the same prompt with class words in their place, and the tokens of both. Pure.

The base model does not know a trigger like "tjtoy toy". It draws the same scene from the class prompt, in which "a toy"
is in its place, and its attention to the word "toy" shows where the concept will be.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .triggers import Trigger

DETERMINERS = frozenset(
    "a an the this that these those my your his her its our their one two three some any each".split()
)
# Words after which a noun phrase starts: there, class words without an article get one.
OPENERS = frozenset(
    """about above across after against along and around as at before behind below beneath beside between beyond by
    for from in inside into is like near next of on onto or outside over past plus through to toward towards under
    versus vs was with within without""".split()
)
# Those of them after which a place is named, as in "on a desk", rather than another thing, as in "next to a desk".
BEFORE_PLACES = frozenset(
    "above across against along around at below beneath by in inside into on onto outside over through under".split()
)
Span = tuple[int, int]  # start and end in a text, in characters or tokens
CountTokens = Callable[[str], int]


@dataclass(frozen=True)
class Other:
    """What a prompt names besides the concepts, such as "red ball". span: in the class prompt, in characters; is_place:
    whether it is named as a place, as in "on a red ball"."""

    span: Span
    is_place: bool


@dataclass(frozen=True)
class RoutedPrompt:
    """A prompt and its class prompt, with the places of one group of triggers for each adapter.

    triggers: for each adapter, the spans of its triggers in `text`, in characters; nouns: the spans of the nouns of
    their class words in `class_text`. Both are empty for an adapter that the prompt does not call. others: what else
    the class prompt names.
    """

    text: str
    class_text: str
    triggers: tuple[tuple[Span, ...], ...]
    nouns: tuple[tuple[Span, ...], ...]
    others: tuple[Other, ...] = ()

    @property
    def called(self) -> tuple[int, ...]:
        """The indices of the adapters that the prompt calls."""
        return tuple(index for index, spans in enumerate(self.triggers) if spans)

    @property
    def groups(self) -> tuple[tuple[Span, ...], ...]:
        """The spans in `class_text` to which attention is measured: each adapter's nouns, then each other thing."""
        return self.nouns + tuple((other.span,) for other in self.others)

    @property
    def is_in_one_place(self) -> bool:
        """Whether one concept is named once, next to another thing: then it cannot be in two places of the image."""
        return sum(map(len, self.nouns)) == 1 and any(not other.is_place for other in self.others)


def route_prompt(text: str, adapters: Sequence[Sequence[Trigger]]) -> RoutedPrompt:
    """Find the triggers of each adapter in a prompt, and write its class prompt.

    A trigger counts only as complete words, whatever their case; of two that overlap, the longer one. Class words
    without an article get "a" or "an" where a noun phrase starts: at the beginning, after punctuation, and after a
    word like "of" or "holding".
    """
    class_text, end = "", 0
    triggers: list[list[Span]] = [[] for _ in adapters]
    nouns: list[list[Span]] = [[] for _ in adapters]
    for start, stop, index, trigger in _occurrences(text, adapters):
        class_text += text[end:start]
        words = _with_article(class_text, trigger.class_words)
        class_text += words
        triggers[index].append((start, stop))
        nouns[index].append((len(class_text) - len(trigger.noun), len(class_text)))
        end = stop
    class_text += text[end:]
    others = _others(class_text, [span for spans in nouns for span in spans])
    return RoutedPrompt(text, class_text, tuple(map(tuple, triggers)), tuple(map(tuple, nouns)), others)


def _occurrences(text: str, adapters: Sequence[Sequence[Trigger]]) -> list[tuple[int, int, int, Trigger]]:
    """The triggers in a text, in its order: start, end, index of the adapter, trigger."""
    every = [(index, trigger) for index, group in enumerate(adapters) for trigger in group]
    taken: list[tuple[int, int, int, Trigger]] = []
    for index, trigger in sorted(every, key=lambda each: -len(each[1].phrase)):
        phrase = r"\s+".join(map(re.escape, trigger.phrase.split()))
        # words as training finds them in captions: a Korean particle may follow its noun at once
        for match in re.finditer(rf"(?<![A-Za-z0-9_]){phrase}(?![A-Za-z0-9_])", text, re.IGNORECASE):
            if all(match.end() <= start or end <= match.start() for start, end, *_ in taken):
                taken.append((match.start(), match.end(), index, trigger))
    return sorted(taken, key=lambda each: each[:3])


def _with_article(before: str, words: str) -> str:
    """Class words with an article if they have none and a noun phrase starts here; before: the text up to here."""
    if words.split()[0].casefold() in DETERMINERS:
        return words
    previous = re.search(r"(\w+)\s*$", before)
    opens = previous is None or previous[1].casefold() in OPENERS or previous[1].endswith("ing")
    article = "an" if words[0].casefold() in "aeiou" else "a"
    return f"{article} {words}" if opens else words


def _others(text: str, nouns: Sequence[Span]) -> tuple[Other, ...]:
    """The noun phrases of a text without a concept's noun: words between those of `OPENERS`, without determiners.

    What comes before "of" is left out: it is the kind of image, as in "a photo of", or where, as in "in front of". So
    is what has neither a determiner nor such a word before it: a style, as in ", highly detailed".
    """
    found: list[Other] = []
    words: list[re.Match[str]] = []
    opener = previous = ""
    has_determiner = False
    for match in re.finditer(r"[\w'-]+|[^\w\s]|$", text):
        word = match[0].casefold()
        if word in OPENERS or not word[:1].isalnum() or (word.endswith("ing") and previous not in DETERMINERS):
            is_named = has_determiner or (opener[:1].isalnum() and opener not in ("is", "was"))
            if words and is_named and word != "of":
                span = words[0].start(), words[-1].end()
                if not any(start < span[1] and span[0] < end for start, end in nouns):
                    found.append(Other(span, opener in BEFORE_PLACES))
            words, opener, has_determiner = [], word, False
        elif word in DETERMINERS:
            has_determiner = True
        else:
            words.append(match)
        previous = word
    return tuple(found)


def token_spans(text: str, spans: Sequence[Span], count: CountTokens) -> tuple[Span, ...]:
    """The tokens of parts of a text. spans: in characters; returns them in tokens.

    count: the number of tokens of a text, without start, end and padding. A part that begins within a token, as after
    an opening quote, includes that token.
    """
    found = []
    for start, end in spans:
        first, stop = count(text[:start].rstrip()), count(text[:end])
        found.append((min(first, stop - 1), stop))
    return tuple(found)
