"""Prompts that name the concepts of a LoRA file. Pure: strings in, strings out.

A concept's trigger is the phrase of its captions (kohya's class_tokens): only the very same words call it.
"""

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from .lora_file.concepts import Concept

LONGEST_PROMPT = 4000  # characters in which mistyped triggers are looked for
ALIKE = 0.75  # difflib's ratio above which words are taken for a trigger that was mistyped
State = Literal["present", "differs", "missing"]


@dataclass(frozen=True)
class Found:
    """How a prompt names a concept. written: the words in it that are almost the trigger ("differs" only)."""

    concept: Concept
    state: State
    written: str = ""


@dataclass(frozen=True)
class Built:
    """A prompt for the text encoders, and what its writer should know."""

    text: str
    found: tuple[Found, ...]
    unknown: tuple[str, ...]  # placeholders that stand for nothing

    @property
    def warnings(self) -> list[str]:
        """Sentences in English; the browser says the same in the user's language."""
        lines = [f'No concept is called "{{{name}}}".' for name in self.unknown]
        for found in self.found:
            if found.state == "differs":
                lines.append(f'"{found.written}" is not how the LoRA knows it: "{found.concept.trigger}".')
        if self.found and all(found.state == "missing" for found in self.found):
            known = ", ".join(f'"{found.concept.trigger}"' for found in self.found)
            lines.append(f"The prompt names nothing that the LoRA was taught: {known}.")
        return lines


def find(text: str, concepts: Iterable[Concept]) -> tuple[Found, ...]:
    """How `text` names each of the concepts."""
    plain = _without_escapes(text)
    return tuple(_find_one(plain, concept) for concept in concepts)


def build_prompt(
    text: str, concepts: Iterable[Concept], weights: bool = False, elsewhere: Iterable[Concept] = ()
) -> Built:
    """Put triggers in the place of `{name}` or `{1}`, and make parentheses plain characters.

    weights: parentheses of the text keep ComfyUI's meaning, "(word:1.2)"; those of triggers are always escaped.
    elsewhere: concepts that are looked for in the text, too, and that no placeholder stands for.
    """
    known, others = list(concepts), list(elsewhere)
    filled, unknown = _fill(text, known)
    escaped = _escape_triggers(filled, known + others) if weights else escape_parentheses(filled)
    return Built(escaped, find(filled, known + others), tuple(unknown))


def escape_parentheses(text: str) -> str:
    r"""`(` as `\(`, so that ComfyUI reads a character and not a weight; what is escaped already stays so."""
    return re.sub(r"(?<!\\)([()])", r"\\\1", text)


def _without_escapes(text: str) -> str:
    return re.sub(r"\\([()])", r"\1", text)


def _fill(text: str, concepts: list[Concept]) -> tuple[str, list[str]]:
    values = {concept.name.casefold(): concept.trigger for concept in reversed(concepts)}
    values |= {str(number): concept.trigger for number, concept in enumerate(concepts, 1)}
    unknown = []

    def trigger(match: re.Match[str]) -> str:
        name = match[1].strip()
        if name.casefold() not in values:
            unknown.append(name)
            return match[0]
        return values[name.casefold()]

    return re.sub(r"\{([^{}|\n]{1,200})\}", trigger, text), unknown


def _escape_triggers(text: str, concepts: list[Concept]) -> str:
    for concept in concepts:
        if "(" in concept.trigger or ")" in concept.trigger:
            text = text.replace(concept.trigger, escape_parentheses(concept.trigger))
    return text


def _find_one(text: str, concept: Concept) -> Found:
    if _as_words(concept.trigger).search(text):
        return Found(concept, "present")
    if match := _as_words(concept.trigger, loosely=True).search(text):
        return Found(concept, "differs", match[0])
    written = _mistyped(text, concept.trigger)
    return Found(concept, "differs", written) if written else Found(concept, "missing")


def _as_words(trigger: str, loosely: bool = False) -> re.Pattern[str]:
    """The trigger, not as a part of a longer word; loosely: in any case, with other gaps between its words."""
    if not loosely:
        return re.compile(rf"(?<!\w){re.escape(trigger)}(?!\w)")
    words = [re.escape(word) for word in re.split(r"[\s_-]+", trigger) if word]
    loose = r"[\s_-]*".join(words)
    return re.compile(rf"(?<!\w){loose}(?!\w)", re.IGNORECASE)


def _mistyped(text: str, trigger: str) -> str:
    """Neighbouring words of the text that are almost the trigger's letters, whatever the gaps; the best of them."""
    words = list(re.finditer(r"[^\s,.;:!?]+", text[:LONGEST_PROMPT]))
    count = len(trigger.split())
    like_a_word = [any(_likeness(word[0], part, 0.5) for part in trigger.split()) for word in words]
    best, most = "", ALIKE
    for length in range(max(1, count - 1), count + 2):
        for first in range(len(words) - length + 1):
            last = first + length - 1
            written = text[words[first].start() : words[last].end()]
            if like_a_word[first] and like_a_word[last] and (likeness := _likeness(written, trigger, most)):
                best, most = written, likeness
    return best


def _likeness(written: str, trigger: str, least: float) -> float:
    """difflib's ratio of their letters, 0 if it is not above `least`."""
    matcher = difflib.SequenceMatcher(None, _letters(written), _letters(trigger))
    bounds = (matcher.real_quick_ratio, matcher.quick_ratio, matcher.ratio)  # the cheap ones first
    return matcher.ratio() if all(bound() > least for bound in bounds) else 0.0


def _letters(text: str) -> str:
    return re.sub(r"[\W_]", "", text.casefold())
