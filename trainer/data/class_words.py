"""Class words: what a concept is, as the base model knows it, in place of the trigger that it does not know."""

VOWELS = tuple("aeiou")


def class_word_of(class_tokens: str | None) -> str:
    """What follows the first word, the trigger, in class_tokens: "toy" for "tjtoy toy"; "" if nothing does."""
    _, _, rest = (class_tokens or "").strip().partition(" ")
    return rest.strip(" ,.")


def with_article(words: str) -> str:
    """The words after "a" or "an", chosen by their first letter: "an orange ball"."""
    return f"{'an' if words.lower().startswith(VOWELS) else 'a'} {words}"
