"""The prompts that checkpoints are compared on, made from the concepts of a run's dataset.

Every prompt says which concepts its image should show; whatever else of a concept appears in the image is bleed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from trainer.config import TrainConfig
from trainer.data.captions import plain_caption
from trainer.data.dataset import Sample, TrainingData
from trainer.masking.plan import class_word_of

PROMPTS = 6  # of each kind, unless the user says otherwise
ALONE, BESIDE, TOGETHER, CLASS, NEUTRAL = "alone", "beside", "together", "class", "neutral"
KINDS = {
    ALONE: "a concept alone",
    BESIDE: "a concept next to something else",
    TOGETHER: "two concepts in one image",
    CLASS: "the class word without the trigger",
    NEUTRAL: "neither trigger nor class word",
}
PLACES = (
    "in a kitchen",
    "on a beach",
    "in the snow",
    "in a forest",
    "on a desk",
    "in a desert",
    "in a studio",
    "in a meadow",
)
THINGS = ("a red cube", "a blue ball", "a green mug", "a white car", "a pink house", "a red mushroom", "a yellow ball")
RELATIONS = ("next to", "in front of", "holding")


@dataclass(frozen=True)
class Concept:
    """Something that a run teaches.

    name: its class_tokens, as prompts name it, or its folder's name if it has none. class_word: what kind of thing it
    is, such as "toy"; "" if unknown. samples: its training images. captioned: whether it has no class_tokens, so that
    prompts have to name it by its captions.
    """

    name: str
    class_word: str
    samples: tuple[Sample, ...]
    captioned: bool = False


@dataclass(frozen=True)
class ComparePrompt:
    """A prompt, its kind (a key of KINDS), the names of the concepts that its image should show, and its seed."""

    text: str
    kind: str
    shows: tuple[str, ...]
    seed: int

    @property
    def is_plain(self) -> bool:
        """Whether it names no concept, so that a LoRA should change nothing."""
        return not self.shows

    def is_of_class(self, concept: Concept) -> bool:
        """Whether it names the concept's class word and no concept."""
        return self.kind == CLASS and bool(concept.class_word) and f" {concept.class_word} " in f" {self.text} "


def concepts_of(data: TrainingData) -> list[Concept]:
    """The concepts that a run teaches, in the dataset's order; subsets with the same class_tokens are one concept.

    Subsets that only preserve the base model teach none.
    """
    samples: dict[str, list[Sample]] = {}
    named: dict[str, bool] = {}
    for sample in (*data.samples, *data.validation):
        if not (sample.is_reg or sample.preserves_output or sample.composition is not None):
            samples.setdefault(sample.subset.concept, []).append(sample)
            named[sample.subset.concept] = bool(sample.subset.class_tokens)
    return [
        Concept(name, class_word_of(name) if named[name] else "", tuple(found), captioned=not named[name])
        for name, found in samples.items()
    ]


def compare_prompts(concepts: Sequence[Concept], count: int, seed: int = 0) -> list[ComparePrompt]:
    """The prompts for these concepts: `count` of each kind, for each concept, class word or pair of concepts.

    A concept that is known only by its captions has `count` of these instead. seed: of the first image; the next has
    the next seed.
    """
    texts = list(dict.fromkeys(_texts(concepts, count)))
    return [ComparePrompt(text, kind, shows, seed + index) for index, (text, kind, shows) in enumerate(texts)]


def _texts(concepts: Sequence[Concept], count: int) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    for concept in concepts:
        if concept.captioned:
            yield from ((caption, ALONE, (concept.name,)) for caption in _evenly(_captions(concept), count))
            continue
        for index in range(count):
            yield f"{concept.name} {_turn(PLACES, index)}", ALONE, (concept.name,)
        for index in range(count):
            thing, place = _turn(THINGS, index), _turn(PLACES, index + 3)
            yield f"{concept.name} next to {thing} {place}", BESIDE, (concept.name,)
    for one, other in combinations([each.name for each in concepts if not each.captioned], 2):
        for index in range(count):
            yield f"{one} {_turn(RELATIONS, index)} {other} {_turn(PLACES, index)}", TOGETHER, (one, other)
    for word in dict.fromkeys(each.class_word for each in concepts if each.class_word):
        for index in range(count):
            yield f"{_with_article(word)} {_turn(PLACES, index + 1)}", CLASS, ()
    for index in range(count):
        yield f"{_turn(THINGS, index)} {_turn(PLACES, index + 2)}", NEUTRAL, ()


def _captions(concept: Concept) -> list[str]:
    captions = (plain_caption(each.subset, each.lines, 0, each.key) for each in concept.samples)
    return list(dict.fromkeys(captions))


def _evenly(items: Sequence[str], count: int) -> list[str]:
    count = min(count, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def _turn(items: Sequence[str], index: int) -> str:
    return items[index % len(items)]


def _with_article(word: str) -> str:
    return f"{'an' if word[:1].lower() in 'aeiou' else 'a'} {word}"


def evaluation_texts(config: TrainConfig, data: TrainingData) -> list[str]:
    """The texts that --evaluate_every_n_epochs needs encoded, beyond the captions: its prompts and the empty text."""
    if not config.evaluate_every_n_epochs:
        return []
    concepts = concepts_of(data)
    captions = [text for concept in concepts for text in _captions(concept)]
    return ["", *(prompt.text for prompt in compare_prompts(concepts, PROMPTS)), *captions]
