"""Which images get a caption, which have one, and every problem that can be found before a model is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.common.disk import write_problems
from trainer.common.problems import Problem, Problems, raise_if_any
from trainer.common.utf8 import read_utf8
from trainer.data.class_words import class_word_of
from trainer.data.dataset_config import SubsetConfig
from trainer.exchange.caption_record import is_by_model, read_record, record_folder
from trainer.images.folder import CAPTION_EXTENSIONS, read_folder


@dataclass(frozen=True)
class Concept:
    """A folder of images and the class_tokens that its captions name, such as "tjtoy toy".

    extension: of caption files, such as ".txt". where: the place in the dataset file, or the folder, for messages.
    """

    folder: Path
    class_tokens: str
    where: str
    extension: str | None = None


@dataclass(frozen=True)
class Due:
    """An image that gets a caption.

    target: the file that is written. former: the text that it replaces; None if there is no file.
    """

    image: Path
    target: Path
    former: str | None = None


@dataclass(frozen=True)
class ConceptPlan:
    """What to do in one folder. kept: its images whose captions are left as they are, and who wrote them."""

    concept: Concept
    due: tuple[Due, ...]
    kept: dict[Path, str]


def concepts_of(subsets: Sequence[SubsetConfig]) -> tuple[list[Concept], list[str]]:
    """The concepts that the subsets of a dataset file teach, one for each folder, and notes on what is left out."""
    concepts: dict[Path, Concept] = {}
    notes = []
    for subset in subsets:
        if subset.is_reg or subset.diff_output_preservation:
            notes.append(f"{subset.image_dir}: left out, since it preserves the model and teaches no concept")
            continue
        own = Concept(subset.image_dir, subset.class_tokens or "", subset.where, subset.caption_extension)
        first = concepts.setdefault(subset.image_dir.resolve(), own)
        if first.class_tokens != own.class_tokens:
            notes.append(f"{own.where}: not written: {own.class_tokens!r}, but {first.class_tokens!r} ({first.where})")
    return list(concepts.values()), notes


def make_plan(concepts: Sequence[Concept], redo: bool = False) -> list[ConceptPlan]:
    """Look at every folder and decide which images get a caption; writes nothing.

    redo: whether to replace captions that this program wrote and nobody has edited. Raises `Problems` with everything
    that would stop the run.
    """
    plans, problems = [], [problem for concept in concepts for problem in _word_problems(concept)]
    for concept in concepts:
        try:
            plans.append(_plan_folder(concept, redo))
        except Problems as found:
            problems += found.problems
    busy = [plan.concept.folder for plan in plans if plan.due]
    folders = dict.fromkeys([*busy, *map(record_folder, busy)])
    problems += write_problems(("captions", folder) for folder in folders)
    raise_if_any(dict.fromkeys(problems))
    return plans


def _word_problems(concept: Concept) -> list[Problem]:
    if class_word_of(concept.class_tokens):
        return []
    tokens = f"class_tokens {concept.class_tokens!r} has" if concept.class_tokens else "without class_tokens, there is"
    hint = 'write class_tokens = "TRIGGER toy", the trigger and what the images show'
    return [
        Problem(concept.where, f"{tokens} no class word, so the concept cannot be found in what a model says", hint)
    ]


def _plan_folder(concept: Concept, redo: bool) -> ConceptPlan:
    try:
        folder = read_folder(concept.folder, concept.where, concept.extension)
    except OSError as error:
        what = f"{concept.folder} cannot be opened: {error.strerror}"
        raise Problems([Problem(concept.where, what, "name an existing folder of images")]) from None
    if not folder.images:
        raise Problems([Problem(concept.where, f"{concept.folder} has no images", "put the images into it")])
    record, due, kept = read_record(concept.folder), [], {}
    targets: dict[Path, Path] = {}
    for image in folder.images:
        held = folder.captions.get(image, ())
        if not held:
            target = image.with_suffix(concept.extension or CAPTION_EXTENSIONS[0])
            if other := targets.get(target):
                what = f"{other.name} and {image.name} would share the caption {target.name}"
                raise Problems([Problem(str(image), what, "rename one of them")])
            targets[target] = image
            due.append(Due(image, target))
            continue
        text = read_utf8(held[0]).strip()
        ours = is_by_model(record, held[0].name, text)
        if text == "" or (redo and ours):
            due.append(Due(image, held[0], text))
        else:
            kept[image] = "written by the model" if ours else "written by a person"
    return ConceptPlan(concept, tuple(due), kept)
