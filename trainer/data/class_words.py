"""Class words: what a concept is, as the base model knows it, in place of the trigger that it does not know."""

import re
from collections.abc import Mapping

VOWELS = tuple("aeiou")


def class_word_of(class_tokens: str | None) -> str:
    """What follows the first word, the trigger, in class_tokens: "toy" for "tjtoy toy"; "" if nothing does."""
    _, _, rest = (class_tokens or "").strip().partition(" ")
    return rest.strip(" ,.")


def with_article(words: str) -> str:
    """The words after "a" or "an", chosen by their first letter: "an orange ball"."""
    return f"{'an' if words.lower().startswith(VOWELS) else 'a'} {words}"


def in_class_words(caption: str, class_words: Mapping[str, str]) -> str:
    """A caption with each concept's class word in place of its class_tokens: "tjtoy toy on a desk" -> "toy on a desk".

    class_words: by class_tokens. Case and the kind of white space are ignored, as by `captions.contains_phrase`; the
    caption is returned unchanged if it names none of the concepts.
    """
    by_phrase = {" ".join(tokens.split()).lower(): word for tokens, word in class_words.items()}
    if not by_phrase:
        return caption
    phrases = (r"\s+".join(map(re.escape, phrase.split())) for phrase in sorted(by_phrase, key=len, reverse=True))
    pattern = rf"(?<![A-Za-z0-9_])(?:{'|'.join(phrases)})(?![A-Za-z0-9_])"
    return re.sub(pattern, lambda found: by_phrase[" ".join(found[0].split()).lower()], caption, flags=re.IGNORECASE)
