"""What calls each adapter, what the base model calls the same thing, and what is wrong with either. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Trigger:
    """What calls a concept, such as "tjtoy toy", and the words for which the base model draws one, such as "a toy".

    class_words: with the article or adjectives that the class prompt shall have, "" if they are not known; attention is
    measured to the last of these words, the noun.
    """

    phrase: str
    class_words: str

    @property
    def noun(self) -> str:
        """The last of the class words."""
        return self.class_words.split()[-1]


@dataclass(frozen=True)
class Mistake:
    """Why adapters cannot be routed as a user asked. where: the file or setting; what: is wrong; hint: the fix."""

    where: str
    what: str
    hint: str


def usual_class_words(phrase: str) -> str:
    """The class words within a trigger: what follows its first word, such as "toy" in "tjtoy toy"; "" if nothing."""
    return " ".join(phrase.split()[1:])


def read_class_words(line: str) -> tuple[str, str] | None:
    """The trigger and the class words in a text like "tjtoy toy = a plush toy"; None if it is not of this form."""
    trigger, _, words = (part.strip() for part in line.partition("="))
    return (trigger, words) if trigger and words else None


def read_triggers(
    adapters: Sequence[tuple[str, Mapping[str, str]]], class_words: Mapping[str, str]
) -> tuple[list[tuple[Trigger, ...]], list[Mistake]]:
    """The triggers of each adapter, and what is wrong with them.

    adapters: for each, its file, and its triggers with the class words that the file states, "" for none; class_words:
    the user's, by trigger, which come first. Without either, what follows a trigger's first word is taken.
    """
    known = [trigger for _, triggers in adapters for trigger in triggers]
    mistakes, seen, taken = [], set(), set()
    for file, triggers in adapters:
        if not triggers:
            mistakes.append(Mistake(file, "names no trigger, so no word would call it", "train it with class_tokens"))
        hint = "it must be clear which LoRA a trigger calls"
        mistakes += [
            Mistake(file, f"has the trigger {each!r} of another LoRA", hint)
            for each in triggers
            if _same(each) in taken
        ]
        taken |= {_same(each) for each in triggers}
        seen |= triggers.keys()
    hint = f"the triggers are {', '.join(map(repr, known))}"
    mistakes += [
        Mistake(f"class words of {each!r}", "it is no trigger of the LoRAs", hint)
        for each in class_words
        if each not in seen
    ]
    found = [
        tuple(Trigger(each, class_words.get(each) or own or usual_class_words(each)) for each, own in triggers.items())
        for _, triggers in adapters
    ]
    return found, mistakes


def _same(phrase: str) -> str:
    """What two triggers have in common that a prompt cannot tell apart."""
    return " ".join(phrase.split()).casefold()


def without_class_words(files: Sequence[str], triggers: Sequence[Sequence[Trigger]]) -> list[Mistake]:
    """A mistake for each trigger without class words. files: of the adapters."""
    return [
        Mistake(file, f"what the base model calls {each.phrase!r} is not known", f'state it: "{each.phrase} = a toy"')
        for file, group in zip(files, triggers, strict=True)
        for each in group
        if not each.class_words
    ]
