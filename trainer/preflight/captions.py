"""Captions read as an experienced trainer reads them: what the LoRA would learn besides, or instead."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from trainer.common.problems import Problem
from trainer.common.text import counted
from trainer.data.captions import WILDCARD, contains_phrase, num_movable_tags, possible_captions, raw_captions
from trainer.data.dataset import Sample, TrainingData
from trainer.data.dataset_config import SubsetConfig
from trainer.images.folder import some
from trainer.models.text import CLIP_LENGTH, Tokenizers, truncated_captions

SHARED = 0.8  # a phrase in this share of a concept's captions is learned with its trigger
FEWEST = 3  # captions from which a shared phrase can be told from chance
LONGEST_PHRASE = 6  # words
PHRASES_SHOWN = 3
MOST_TOKENS = 6  # of a trigger, in CLIP's tokenizer
RARE = 40_000  # CLIP's vocabulary is sorted by how frequent its tokens are; rare ones such as "sks" come after this
# fmt: off
ORDINARY = frozenset("""
    animal anime art artist baby backpack bag ball beach bear bed bicycle bike bird boat book bottle bowl boy brand
    building bunny bus cake camera candle car card cartoon castle cat chair character child city clock clothes coat
    computer cow creature cup dinosaur dog doll dragon dress drawing duck elephant face figure fish flower food fox
    frog furniture game girl glasses glitter gpu guitar guy hair hat helmet horse house human illustration jacket
    jewelry kid kitten knight lady lamp landscape lion logo machine man material model monkey monster motorcycle
    mouse mug object old painting pen penguin people person pet phone photo picture plane plant plush portrait
    product puppy rabbit red render robot sculpture ship shirt shoe shoes sketch sneaker sneakers soldier statue
    style suit sunglasses sword table teapot texture tiger toy train tree truck vase vehicle watch wolf woman world
    young black white blue green yellow big small new little happy beautiful the a an of my
""".split())
STOP_WORDS = frozenset("""
    a an and are as at behind beside but by down for from front has have having he her his in inside into is it its
    near next of off on onto or out outside over she that the their them there they this to under up very was were
    what when where which while who with within without
""".split())
# fmt: on


WANTED = frozenset("\t\n\r\u200c\u200d")  # what may be meant among control and format characters


@dataclass(frozen=True)
class Concept:
    """A trigger word or phrase (class_tokens) and all captions that teach it.

    where: the place in the dataset file of the first subset with this trigger, for messages; captions: each caption
    that training can use, with its image's path.
    """

    trigger: str
    where: str
    captions: tuple[tuple[Path, str], ...]


def caption_warnings(data: TrainingData, tokenizers: Tokenizers) -> list[Problem]:
    """Warnings about captions and triggers that may teach the LoRA something unintended, each saying what to change."""
    concepts = _concepts(data)
    return [
        *(warning for concept in concepts for warning in _of_concept(concept, tokenizers.clip)),
        *_overlapping(concepts, tokenizers.clip),
        *_lost_triggers(data),
        *_idle_for_captions(data),
        *_unknown_characters(data, tokenizers.t5),
        *_invisible_characters(data),
    ]


def long_caption_warnings(
    data: TrainingData, captions: Sequence[str], tokenizers: Tokenizers, t5_length: int
) -> Iterator[Problem]:
    """One warning for each text encoder, T5 and CLIP, that does not read some texts to their end.

    captions: all texts to encode, sample prompts included; t5_length: the number of tokens that T5 reads.
    """
    files = {caption: sample.picture.path.name for sample in _all_samples(data) for caption in _texts(sample)}
    for reader, tokenizer, length, hint in (
        ("T5", tokenizers.t5, t5_length, "shorten them, or raise --t5xxl_max_token_length"),
        ("CLIP", tokenizers.clip, CLIP_LENGTH, "put what matters most first; T5 reads on"),
    ):
        cut = [
            f"{files.get(text) or repr(text[:60] + '…')} ({len(_tokens(tokenizer, text, special=True))} tokens)"
            for text in truncated_captions(tokenizer, captions, length)
        ]
        if cut:
            names = ", ".join(cut[:20]) + (f" and {len(cut) - 20} more" if len(cut) > 20 else "")
            what = f"{reader} reads only the first {length} tokens of {counted(len(cut), 'caption')}: {names}"
            yield Problem("captions", what, hint)


def is_taught(sample: Sample) -> bool:
    """Whether a sample teaches its concept: it is no regularisation image and does not preserve the base's output."""
    return not sample.is_reg and not sample.preserves_output


def _all_samples(data: TrainingData) -> tuple[Sample, ...]:
    return (*data.samples, *data.validation)


def _texts(sample: Sample) -> tuple[str, ...]:
    return possible_captions(sample.subset, sample.lines)


def _concepts(data: TrainingData) -> list[Concept]:
    groups: dict[str, list[Sample]] = defaultdict(list)
    for sample in _all_samples(data):
        if is_taught(sample) and (trigger := (sample.subset.class_tokens or "").strip()):
            groups[trigger].append(sample)
    return [
        Concept(
            trigger,
            samples[0].subset.where,
            tuple(dict.fromkeys((sample.picture.path, text) for sample in samples for text in _texts(sample))),
        )
        for trigger, samples in groups.items()
    ]


def _of_concept(concept: Concept, clip: Any) -> Iterator[Problem]:
    yield from _missing_trigger(concept)
    yield from _shared_phrases(concept)
    yield from _trigger_words(concept, clip)


def _missing_trigger(concept: Concept) -> Iterator[Problem]:
    without = [path for path, text in concept.captions if not contains_phrase(text, concept.trigger)]
    if not without:
        return
    where, total = concept.where, len(concept.captions)
    hint = f'put it into them, or set caption_prefix = "{concept.trigger}"'
    if len(without) == total:
        what = f"class_tokens {concept.trigger!r} is in none of the {counted(total, 'caption')}: {some(without)}"
        yield Problem(where, what, hint + "; it is no trigger of the LoRA as it is")
    else:
        missing = f"{len(without)} of {counted(total, 'caption')}"
        what = f"class_tokens {concept.trigger!r} is missing in {missing}: {some(without)}"
        yield Problem(where, what, hint)


def _shared_phrases(concept: Concept) -> Iterator[Problem]:
    texts = [text for _, text in concept.captions]
    if len(texts) < FEWEST:
        return
    counts = Counter(phrase for text in texts for phrase in set(_phrases(text, concept.trigger)))
    shared = {phrase: count for phrase, count in counts.items() if count >= SHARED * len(texts)}
    longest = [
        phrase for phrase in shared if not any(phrase != other and f" {phrase} " in f" {other} " for other in shared)
    ]
    for phrase in sorted(longest, key=lambda phrase: (-shared[phrase], phrase))[:PHRASES_SHOWN]:
        often = f"{shared[phrase]} of {counted(len(texts), 'caption')}"
        what = f"{phrase!r} is in {often}: it will share the trigger's meaning"
        hint = f"vary it, or leave it out if {concept.trigger!r} is to mean it too"
        yield Problem(concept.where, what, hint)


def _phrases(text: str, trigger: str) -> Iterator[str]:
    """Every run of words that does not cross punctuation or the trigger, from a content word to a content word."""
    own = set(trigger.casefold().split())
    pattern = r"\s+".join(map(re.escape, trigger.casefold().split()))
    for part in re.split(r"[^\w\s'’-]+|\n", re.sub(pattern, "\n", text.casefold())):
        words = [word for raw in part.split() if (word := raw.strip("-'’_"))]
        for start in range(len(words)):
            for end in range(start + 1, min(start + LONGEST_PHRASE, len(words)) + 1):
                ends = {words[start], words[end - 1]}
                if not ends & STOP_WORDS and not set(words[start:end]) <= own | STOP_WORDS:
                    yield " ".join(words[start:end])


def _trigger_words(concept: Concept, clip: Any) -> Iterator[Problem]:
    where, trigger = concept.where, concept.trigger
    identifier = _identifier(trigger, clip)
    if not identifier:
        one = len(trigger.split()) == 1
        what = f"class_tokens {trigger!r} {'is an ordinary word' if one else 'are ordinary words'}"
        words = [word for word in trigger.split() if word.lower() not in ("a", "an", "the")] or trigger.split()
        better = f"tj{words[-1]} {' '.join(words)}"
        hint = f'its usual meaning changes too; put a made-up word in front, such as "{better}"'
        yield Problem(where, what, hint)
        return
    if identifier == trigger and len(trigger.split()) == 1:
        what = f"class_tokens {trigger!r} has no class word after the trigger"
        yield Problem(where, what, f'add what it is, as in "{trigger} toy": the model then starts from what it knows')
    if (count := len(_tokens(clip, identifier))) > MOST_TOKENS:
        what = f"the trigger {identifier!r} is {count} tokens for CLIP"
        yield Problem(where, what, f"choose a shorter made-up word: at most {MOST_TOKENS} tokens are learned well")


def _overlapping(concepts: Sequence[Concept], clip: Any) -> Iterator[Problem]:
    for first, second in combinations(concepts, 2):
        short, long = sorted((first, second), key=lambda concept: len(_core(concept, clip)))
        if _core(short, clip) not in _core(long, clip) and contains_phrase(short.trigger, long.trigger):
            short, long = long, short  # "man" has no made-up word, and "tjx man" contains it
        if _core(short, clip) in _core(long, clip) or contains_phrase(long.trigger, short.trigger):
            what = (
                f"{long.trigger!r} contains the trigger of {short.trigger!r} ({short.where}): each will call the other"
            )
            yield Problem(long.where, what, "give one of them a made-up word that shares nothing with the other")


def _core(concept: Concept, clip: Any) -> str:
    return (_identifier(concept.trigger, clip) or concept.trigger).casefold()


def _identifier(trigger: str, clip: Any) -> str:
    """The class_tokens without the ordinary words at their end, which name the class; "" where all are ordinary."""
    words = trigger.split()
    while words and _is_ordinary(words[-1], clip):
        words.pop()
    return " ".join(words)


def _is_ordinary(word: str, clip: Any) -> bool:
    word = word.strip(".,;:!?\"'").lower()
    if word in ORDINARY or not word:
        return True
    tokens = _tokens(clip, word)
    return word.isalpha() and len(word) > 1 and len(tokens) == 1 and tokens[0] < RARE


def _lost_triggers(data: TrainingData) -> Iterator[Problem]:
    subsets = {sample.subset.where: sample.subset for sample in data.samples if is_taught(sample)}
    for where, subset in subsets.items():
        if _may_drop_first_tag(subset):
            what = "caption_tag_dropout_rate drops the trigger too, as it drops any tag"
            yield Problem(where, what, "set keep_tokens = 1, with the trigger in front of each caption")


def _idle_for_captions(data: TrainingData) -> Iterator[Problem]:
    """Settings of captions that no caption of their subset gives anything to do."""
    lines: dict[SubsetConfig, list[str]] = defaultdict(list)
    for sample in data.samples:
        lines[sample.subset] += raw_captions(sample.subset, sample.lines)
    for subset, texts in lines.items():
        captions = f"the {counted(len(texts), 'caption')}" if len(texts) > 1 else "the caption"
        mark, second, tags = subset.keep_tokens_separator, subset.secondary_separator, subset.caption_separator
        arranges = subset.shuffle_caption or subset.caption_tag_dropout_rate > 0 or subset.token_warmup_step > 0
        if mark and arranges and not any(mark in text for text in texts):
            yield Problem(subset.where, f"keep_tokens_separator {mark!r} is in none of {captions}: it has no effect")
        if second and arranges and not any(second in text for text in texts):
            yield Problem(subset.where, f"secondary_separator {second!r} is in none of {captions}: it has no effect")
        if subset.shuffle_caption and all(num_movable_tags(subset, text) < 2 for text in texts):
            what = f"shuffle_caption has no effect: no caption has two tags to shuffle, separated by {tags!r}"
            yield Problem(subset.where, what, "check caption_separator and keep_tokens, or leave shuffle_caption out")
        several = any(len(sample.lines) > 1 for sample in data.samples if sample.subset == subset)
        if subset.enable_wildcard and not several and not any(WILDCARD.search(text) for text in texts):
            what = "enable_wildcard has no effect: no caption has several lines or a choice such as {red|blue}"
            yield Problem(subset.where, what)


def _may_drop_first_tag(subset: SubsetConfig) -> bool:
    kept = subset.keep_tokens or subset.keep_tokens_separator
    return bool(subset.class_tokens and subset.caption_tag_dropout_rate > 0 and not kept)


def _unknown_characters(data: TrainingData, t5: Any) -> Iterator[Problem]:
    if t5.unk_token_id is None:
        return
    names: dict[str, str] = {text: s.picture.path.name for s in _all_samples(data) for text in _texts(s)}
    found = {
        name: unknown
        for text, name in names.items()
        if t5.unk_token_id in _tokens(t5, text) and (unknown := _unknown(text, t5))
    }
    if found:
        shown = ", ".join(f"{name} ({' '.join(unknown[:8])})" for name, unknown in list(found.items())[:20])
        what = f"T5 does not know characters of {counted(len(found), 'caption')}: {shown}"
        yield Problem("captions", what, "leave them out, and write in English: T5 reads all of them as the same token")


def _invisible_characters(data: TrainingData) -> Iterator[Problem]:
    """Control and format characters, as of copied web pages and chats; joiners, which some scripts need, are not."""
    found: dict[str, list[str]] = {}
    for sample in _all_samples(data):
        odd = {c for text in _texts(sample) for c in text if unicodedata.category(c) in ("Cc", "Cf")} - WANTED
        if odd:
            found[sample.picture.path.name] = [f"U+{ord(character):04X}" for character in sorted(odd)]
    if found:
        shown = ", ".join(f"{name} ({' '.join(codes[:8])})" for name, codes in list(found.items())[:20])
        what = f"{counted(len(found), 'caption has', 'captions have')} invisible characters: {shown}"
        yield Problem("captions", what, "delete them: the text encoders may read them")


def _unknown(text: str, t5: Any) -> list[str]:
    characters = dict.fromkeys(character for character in text if not character.isspace())
    return [character for character in characters if t5.unk_token_id in _tokens(t5, character)]


def _tokens(tokenizer: Any, text: str, special: bool = False) -> list[int]:
    return tokenizer(text, add_special_tokens=special, verbose=False).input_ids
