"""From what a model says about an image to a caption that teaches a trigger.

What a caption says is not learned as part of the concept, and what it leaves out is. So the first mention of the
concept becomes its class_tokens, without the words that describe the concept itself; what it does, where it is and
what else there is stay. "The image shows a small red plush toy with button eyes sitting on a desk." becomes "tjtoy toy
sitting on a desk".
"""

import re
from dataclasses import dataclass

from trainer.data.captions import contains_phrase
from trainer.data.class_words import class_word_of

_IMAGE = r"(?:image|picture|photo|photograph|close-up|view)"
LEAD = re.compile(
    rf"^(?:(?:this|the|an?) (?:\w+ ){{0,2}}?{_IMAGE}(?: (?:shows|depicts|features|captures|is of|contains|of|is)|,)"
    rf"|in (?:this|the) {_IMAGE},? (?:we can see|we see|there (?:is|are))"
    rf"|there (?:is|are)|we can see|it is|it shows|it depicts)(?: an? {_IMAGE} of)? ",
    re.IGNORECASE,
)
DETERMINER = r"(?:an?|the|one|this|that|his|her|their|its|some|two|three|several)"
DESCRIBES = r"(?:with|made (?:of|from|out of)|that (?:is|has)|which (?:is|has)|in the shape of|shaped like|having)"
ELSEWHERE = (  # begins what is not the concept
    r"(?:on|in|at|next to|near|under|behind|beside|between|by|against|over|above|below|inside|outside|along|among|"
    r"surrounded by|in front of|on top of|\w+ing)"
)
NOT_DESCRIBING = rf"(?:{DETERMINER}|of|with|and|is|are|{ELSEWHERE})"
SECOND_NOUN = re.compile(
    rf"^ (?!{NOT_DESCRIBING}\b|(?:that|which|who)\b)\w+(?= (?:is|are|{ELSEWHERE})\b|[.,]|$)", re.IGNORECASE
)
OWN_SENTENCE = re.compile(r"^(?:it|he|she|its|his|her) (?:is|has|appears|looks|seems|features)\b", re.IGNORECASE)
MAX_DESCRIBING = 6  # words between "a" and the class word
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'])")
IS_DOING = re.compile(r"^(?:is|are|that is|which is) (?=\w+ing\b|on\b|in\b|at\b|next\b|near\b|under\b|behind\b|by\b)")


@dataclass(frozen=True)
class Written:
    """A caption, and why it should be looked at ("" if there is no reason)."""

    text: str
    doubt: str = ""


def caption_for(said: str, class_tokens: str) -> Written:
    """The caption for an image about which a model said this. class_tokens: trigger and class word, "tjtoy toy"."""
    tokens = " ".join(class_tokens.split())
    class_word = class_word_of(tokens) or tokens
    sentences = [sentence.strip() for sentence in SENTENCE_END.split(" ".join(said.split())) if sentence.strip()]
    if not sentences:
        return Written(tokens, "the model said nothing about the image")
    sentences[0] = LEAD.sub("", sentences[0], count=1)
    place = _mention(sentences, class_word)
    if place is None:
        rest = _joined(sentences)
        text = rest if contains_phrase(rest, tokens) else f"{tokens}, {rest}".rstrip(", ")
        return Written(text, f"the model did not mention {class_word!r}: {' '.join(said.split())!r}")
    number, found = place
    before, after = sentences[number][: found.start()], sentences[number][found.end() :]
    sentences[number] = f"{before}{tokens}{_without_description(after)}"
    kept = [s for at, s in enumerate(sentences) if at == number or not _describes_concept(s, class_word)]
    return Written(_joined(kept))


def _mention(sentences: list[str], class_word: str) -> tuple[int, re.Match[str]] | None:
    """The first mention of the concept: its sentence, and the noun phrase up to the class word, with its article.

    Of a class word with several words, the last one alone counts if the whole is not mentioned.
    """
    names = dict.fromkeys((class_word, class_word.split()[-1]))
    for name in names:
        phrase = r"\s+".join(re.escape(word) for word in name.split())
        noun = rf"{phrase}(?:e?s)?(?![\w-])"
        words = rf"(?:(?!{NOT_DESCRIBING}\b)[\w'-]+,?\s+(?:and\s+)?){{0,{MAX_DESCRIBING}}}?"
        described = rf"(?<!\w){DETERMINER}\s+{words}{noun}"
        for pattern in (described, rf"(?<![\w-]){noun}"):
            for number, sentence in enumerate(sentences):
                if found := re.search(pattern, sentence, re.IGNORECASE):
                    return number, found
    return None


def _without_description(rest: str) -> str:
    """What follows the class word, without a description of the concept that follows it directly."""
    rest = SECOND_NOUN.sub("", rest, count=1)  # "toy bear"
    without = re.sub(rf"^,? {DESCRIBES} .*?(?=,? {ELSEWHERE}\b|[.,;!?]|$)", "", rest, count=1, flags=re.IGNORECASE)
    text = without.lstrip(" ,")
    text = IS_DOING.sub("", text, count=1)
    return f" {text}" if text and text[0] not in ".;!?" else text


def _describes_concept(sentence: str, class_word: str) -> bool:
    """Whether a sentence says what the concept is like, and not what it does or where it is."""
    name = re.escape(class_word.split()[-1])
    own = re.match(rf"^the (?:[\w-]+ )?{name} (?:is|has|appears|looks|seems|features)\b", sentence, re.IGNORECASE)
    if not own and not OWN_SENTENCE.match(sentence):
        return False
    rest = sentence[(own or OWN_SENTENCE.match(sentence)).end() :]  # type: ignore[union-attr]
    return not re.match(rf" (?:{ELSEWHERE})\b", rest, re.IGNORECASE)


def _joined(sentences: list[str]) -> str:
    """Sentences as one caption: without a full stop at its end, and no capital at its beginning."""
    text = " ".join(sentences).strip().rstrip(". ")
    first = text.split(" ", 1)[0]
    return text[:1].lower() + text[1:] if first[1:].islower() or len(first) == 1 else text
