"""The images that [[datasets.preservation]] asks for, as samples: what the base model generates, with its prompts.

Training keeps what the base model predicts for them, so that a LoRA for "tjtoy toy" leaves other toys as they are. They
show the class words of the concepts, alone, in pairs, and next to other things, and scenes without any of them.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from random import Random

from trainer.common.problems import Problem, Problems
from trainer.common.rng import python_random
from trainer.common.text import counted
from trainer.common.utf8 import read_utf8, split_lines
from trainer.data.class_words import class_word_of, with_article
from trainer.data.dataset_config import DatasetConfig, DatasetSection, SubsetConfig
from trainer.data.generated import Generator
from trainer.data.preservation_file import PreservationConfig
from trainer.data.relations import RELATIONS, USUAL
from trainer.data.samples import Sample

COLORED = 0.7  # probability that a thing in a prompt has a colour
STYLED = 0.4  # probability that a prompt with class words names a style


@dataclass(frozen=True)
class Preserved:
    """The images of all [[datasets.preservation]] as samples. problems stop the run; warnings do not."""

    samples: tuple[Sample, ...] = ()
    problems: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()


def preserved_samples(
    dataset_config: DatasetConfig, samples: Sequence[Sample], generator: Generator, loss_weight: float
) -> Preserved:
    """Plan the images of every [[datasets.preservation]] of a dataset file; nothing is generated yet.

    samples: the images to train, whose class_tokens name the concepts. loss_weight: of each image. Problems are
    returned, not raised.
    """
    made: list[Sample] = []
    problems: list[Problem] = []
    warnings: list[Problem] = []
    seen: dict[str, str] = {}  # where each image was first asked for, by its digest
    for index, section in enumerate(dataset_config.sections):
        own = [sample for sample in samples if sample.dataset_index == index]
        for number, preservation in enumerate(section.preservation):
            try:
                prompts = _prompts(section, preservation, own, warnings)
            except Problems as found:
                problems += found.problems
                continue
            new = [
                _as_sample(section, preservation, (index, number), image, prompt, generator, loss_weight)
                for image, prompt in enumerate(prompts)
            ]
            warnings += _repeated(preservation, [sample.picture.sha256 for sample in new], seen)
            seen = {sample.picture.sha256: preservation.where for sample in new} | seen
            made += new
    return Preserved(tuple(made), tuple(problems), tuple(warnings))


def _repeated(preservation: PreservationConfig, digests: Sequence[str], seen: Mapping[str, str]) -> Iterator[Problem]:
    """A warning for each earlier table that asks for some of the same images. seen: its place, by digest."""
    for where, count in Counter(seen[digest] for digest in digests if digest in seen).items():
        some = counted(count, "image is", "images are")
        what = f"{some} the same as in {where}, and trained more often than the others"
        yield Problem(preservation.where, what, "set another seed, or remove one of the two")


def _prompts(
    section: DatasetSection, preservation: PreservationConfig, samples: Sequence[Sample], warnings: list[Problem]
) -> list[str]:
    """The prompt of each image. Raises `Problems` if a file of prompts cannot be used or no class word is known."""
    given = preservation.prompts
    if isinstance(given, Path):
        if not given.exists():
            hint = "name a text file with one prompt a line, as seen from the folder where the command is started"
            raise Problems([Problem(preservation.where, f"prompts {given}: there is no such file", hint)])
        lines = (line.strip() for line in split_lines(read_utf8(given)))
        given = tuple(line for line in lines if line and not line.startswith("#"))
        if not given:
            hint = "write one prompt a line; lines that begin with # do not count"
            raise Problems([Problem(f"{preservation.where}", f"prompts {preservation.prompts} has no prompt", hint)])
    if given is not None:
        return [given[number % len(given)] for number in range(preservation.num_images)]
    return _BuiltIn(section, preservation, _class_words(preservation, samples, warnings)).prompts()


def _class_words(
    preservation: PreservationConfig, samples: Sequence[Sample], warnings: list[Problem]
) -> tuple[str, ...]:
    """The class word of each concept, in the order of `concepts` or of the dataset file."""
    known = dict.fromkeys(
        sample.subset.class_tokens
        for sample in samples
        if sample.subset.class_tokens and not sample.is_reg and not sample.preserves_output
    )
    unknown = [name for name in preservation.concepts if name not in known]
    if unknown:
        hint = f"known are {', '.join(map(repr, known))}" if known else "set class_tokens in its subset"
        raise Problems(
            [Problem(preservation.where, f"no subset has class_tokens = {name!r}", hint) for name in unknown]
        )
    names = preservation.concepts or tuple(known)
    without = [name for name in names if not class_word_of(name)]
    hint = 'write what it is after the trigger, as in class_tokens = "tjtoy toy", or set prompts'
    if len(without) == len(names):
        raise Problems([Problem(preservation.where, "no concept has a class word to generate images of", hint)])
    for name in without:
        warnings.append(Problem(preservation.where, f"class_tokens {name!r} has no class word to generate", hint))
    return tuple(class_word_of(name) for name in names if class_word_of(name))


class _BuiltIn:
    """Built-in prompts, in turn: a class word alone, two together, one next to another thing, and a scene without any.

    A prompt is a pure function of the table, the class words and its number.
    """

    def __init__(self, section: DatasetSection, preservation: PreservationConfig, words: Sequence[str]):
        self.preservation, self.words = preservation, words
        of_composites = (relation.name for each in section.compositions for relation in each.relations)
        usual = tuple(dict.fromkeys(of_composites)) or tuple(relation.name for relation in USUAL)
        self.relations = preservation.relations or usual
        self.pairs = list(combinations(words, 2))
        self.objects = [each for each in preservation.objects if each not in words]

    def prompts(self) -> list[str]:
        kinds = [self._alone]
        kinds += [self._pair] if self.pairs else []
        kinds += [self._beside] if self.objects else []
        count = len(kinds) + bool(self.preservation.scenes)
        made = []
        for number in range(self.preservation.num_images):
            turn, kind = divmod(number, count)
            if kind == len(kinds):
                made.append(self._shuffled(self.preservation.scenes, "scenes", turn))
                continue
            rng = python_random(self.preservation.sampler.seed, "preserved", number)
            place = self._shuffled(self.preservation.places, f"places {kind}", turn)
            made.append(self._styled(rng, f"{kinds[kind](rng, turn)} {place}"))
        return made

    def _shuffled(self, values: Sequence[str], name: str, turn: int) -> str:
        """One of the values: each comes once before any comes again, in another order each time."""
        lap, at = divmod(turn, len(values))
        return python_random(self.preservation.sampler.seed, name, lap).sample(values, len(values))[at]

    def _alone(self, rng: Random, turn: int) -> str:
        return self._thing(rng, self.words[turn % len(self.words)])

    def _pair(self, rng: Random, turn: int) -> str:
        return self._together(rng, turn, self.pairs[turn % len(self.pairs)])

    def _beside(self, rng: Random, turn: int) -> str:
        return self._together(rng, turn, (self.words[turn % len(self.words)], rng.choice(self.objects)))

    def _together(self, rng: Random, turn: int, words: tuple[str, str]) -> str:
        relation = self.relations[turn // len(self.words) % len(self.relations)]
        swaps = relation in RELATIONS and RELATIONS[relation].both_ways and rng.random() < 0.5
        first, second = words[::-1] if swaps else words
        return f"{self._thing(rng, first)} {relation} {self._thing(rng, second)}"

    def _thing(self, rng: Random, word: str) -> str:
        colors = self.preservation.colors
        return with_article(f"{rng.choice(colors)} {word}" if colors and rng.random() < COLORED else word)

    def _styled(self, rng: Random, words: str) -> str:
        styles = self.preservation.styles
        return f"{rng.choice(styles)} of {words}" if styles and rng.random() < STYLED else words


def _as_sample(
    section: DatasetSection,
    preservation: PreservationConfig,
    index: tuple[int, int],
    number: int,
    prompt: str,
    generator: Generator,
    loss_weight: float,
) -> Sample:
    size = preservation.resolution or section.resolution
    image = generator.image(f"generated {number:03}", prompt, number, size, preservation.sampler)
    return Sample(
        key=f"{index[0]}.preservation {index[1]}/{number:03}",
        picture=image,
        subset=SubsetConfig(
            image_dir=Path("preservation"), where=preservation.where, is_reg=True, diff_output_preservation=True
        ),
        dataset_index=index[0],
        lines=(prompt,),
        bucket=image.size,
        resized=image.size,
        crop=(0, 0),
        interpolation="area",
        num_repeats=1,
        is_reg=True,
        loss_weight=loss_weight,
        preserves_output=True,
        preservation=index[1],
    )
