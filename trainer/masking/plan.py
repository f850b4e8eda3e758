"""Which images need a mask, which have one, and every problem that can be found before a model is loaded."""

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from trainer.common.disk import write_problems
from trainer.common.problems import Problem, Problems, raise_if_any
from trainer.data.class_words import class_word_of
from trainer.data.dataset_config import SubsetConfig
from trainer.data.masks import find_mask_files
from trainer.images.decode import NotReadable, decode
from trainer.images.folder import OWN_MASK, Folder, read_folder
from trainer.masking.files import Mark, read_mark


@dataclass(frozen=True)
class Concept:
    """A folder of images and the class word to look for in them, such as "toy"; "" if none is known."""

    subset: SubsetConfig
    class_word: str

    @property
    def where(self) -> str:
        """The subset's place in the dataset file or, if it is from none, its folder, for messages."""
        return self.subset.where or str(self.subset.image_dir)

    def target(self, image: Path) -> Path:
        """The mask file to write for an image: where training looks for it."""
        if self.subset.conditioning_data_dir:
            return self.subset.conditioning_data_dir / f"{image.stem}.png"
        return image.with_name(f"{image.stem}{OWN_MASK}")


@dataclass(frozen=True)
class Due:
    """An image that gets a mask, written to `target`.

    former: if that replaces a mask from an earlier run, what the old file records; None if there is no file.
    """

    image: Path
    target: Path
    former: Mark | None = None


@dataclass(frozen=True)
class Kept:
    """An image that already has a mask, which is kept.

    mask: the file, None if it is the image's alpha channel. mark: what the file records if an earlier run created it
    and nobody has edited it, else None. hint: what to change so that training reads the mask; "" if it does.
    """

    image: Path
    mask: Path | None
    mark: Mark | None = None
    hint: str = ""

    @property
    def source(self) -> str:
        """Who made the mask, in words for the user: an earlier run, a person, or the image's alpha channel."""
        if self.mask is None:
            return "alpha channel"
        return f"created for {self.mark.class_word!r}" if self.mark else "made or edited by hand"


@dataclass(frozen=True)
class ConceptPlan:
    """What to do in one folder of images.

    name: the name of its contact sheet. due: the images that get a mask. kept: those that have one already.
    """

    name: str
    class_word: str
    due: tuple[Due, ...]
    kept: tuple[Kept, ...]

    @property
    def images(self) -> tuple[Path, ...]:
        """All images of the folder, sorted by path."""
        return tuple(sorted([*(each.image for each in self.due), *(each.image for each in self.kept)]))


def concepts_of(subsets: Sequence[SubsetConfig]) -> tuple[list[Concept], list[str]]:
    """The concepts that the subsets of a dataset file teach, one for each folder, and notes for the user.

    A note names each subset that is left out because it teaches no concept, and each class word that is not looked for
    because an earlier subset has another one for the same folder.
    """
    concepts: dict[Path, Concept] = {}
    notes = []
    for subset in subsets:
        if subset.is_reg or subset.diff_output_preservation:
            notes.append(f"{subset.image_dir}: left out, since it preserves the model and teaches no concept")
            continue
        concept = Concept(subset, class_word_of(subset.class_tokens))
        first = concepts.setdefault(subset.image_dir.resolve(), concept)
        if first.class_word != concept.class_word:
            notes.append(
                f"{concept.where}: not looked for: {concept.class_word!r}, but {first.class_word!r} ({first.where})"
            )
    return list(concepts.values()), notes


def make_plan(concepts: Sequence[Concept], output: Path, redo: bool = False) -> list[ConceptPlan]:
    """Look at every image and decide which ones get a mask; writes nothing.

    output: the folder for the contact sheets. redo: whether to replace masks that an earlier run created and nobody has
    edited. Raises `Problems` with everything that would stop the run: missing class words, images that cannot be read,
    files in the way, folders that cannot be written to.
    """
    plans, problems = [], [_word_problem(concept) for concept in concepts if not concept.class_word]
    for concept, name in zip(concepts, _sheet_names(concepts), strict=True):
        try:
            plans.append(_plan_folder(concept, name, redo))
        except Problems as found:
            problems += found.problems
    folders = dict.fromkeys(each.target.parent for plan in plans for each in plan.due)
    problems += write_problems([*(("masks", folder) for folder in folders), ("--output", output)])
    raise_if_any(dict.fromkeys(problems))
    return plans


def _word_problem(concept: Concept) -> Problem:
    subset = concept.subset
    tokens = f"class_tokens {subset.class_tokens!r} has" if subset.class_tokens else "without class_tokens, there is"
    hint = f'write class_tokens = "TRIGGER toy", or run: python -m trainer mask {subset.image_dir} --class_word toy'
    return Problem(concept.where, f"{tokens} no class word to look for", hint)


def _sheet_names(concepts: Sequence[Concept]) -> list[str]:
    """The folders' own names, with a number where several have the same."""
    names: list[str] = []
    for concept in concepts:
        own, count = concept.subset.image_dir.resolve().name, 1
        while (name := own if count == 1 else f"{own}-{count}") in names:
            count += 1
        names.append(name)
    return names


def _plan_folder(concept: Concept, name: str, redo: bool) -> ConceptPlan:
    image_dir = concept.subset.image_dir
    try:
        folder = read_folder(image_dir, concept.where)
    except OSError as error:
        what = f"image_dir {image_dir} cannot be opened: {error.strerror}"
        raise Problems([Problem(concept.where, what, "name an existing folder of images")]) from None
    if not folder.images:
        raise Problems([Problem(concept.where, f"image_dir {image_dir} has no images", "put the images into it")])
    files = _existing(concept.subset, folder)
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        looked = dict(zip(folder.images, pool.map(_is_cut_out, folder.images), strict=True))
    due, kept = [], []
    for image in folder.images:
        found = _decide(concept, image, files[image], looked[image] is True, redo)
        (due if isinstance(found, Due) else kept).append(found)
    unreadable = [found for found in looked.values() if isinstance(found, Problem)]
    raise_if_any([*unreadable, *_target_problems(due)])
    return ConceptPlan(name, concept.class_word, tuple(due), tuple(kept))


def _decide(concept: Concept, image: Path, held: Sequence[Path], is_cut_out: bool, redo: bool) -> Due | Kept:
    """Whether an image gets a mask. held: the mask files that it has."""
    target, subset = concept.target(image), concept.subset
    if held:
        mark = read_mark(held[0])
        if redo and mark and list(held) == [target]:
            return Due(image, target, mark)
        is_read = subset.conditioning_data_dir in (None, held[0].parent)
        hint = "" if is_read else f"training reads the masks in {subset.conditioning_data_dir} only: move it there"
        return Kept(image, held[0], mark, hint)
    if not is_cut_out:
        return Due(image, target)
    if subset.conditioning_data_dir:
        hint = f"training reads the masks in {subset.conditioning_data_dir} only: leave out conditioning_data_dir"
    else:
        hint = "" if subset.alpha_mask else "training reads it with alpha_mask = true"
    return Kept(image, None, hint=hint)


def _existing(subset: SubsetConfig, folder: Folder) -> dict[Path, list[Path]]:
    """The mask files of each image: those that training reads, then others next to it."""
    read, _ = find_mask_files(subset, folder, folder.images)
    return {each: list(dict.fromkeys([*read.get(each, ()), *folder.masks.get(each, ())])) for each in folder.images}


def _is_cut_out(path: Path) -> bool | Problem:
    """Whether an image has an alpha channel that is not opaque everywhere, or why it cannot be read."""
    try:
        alpha = decode(path.read_bytes(), path.suffix).to_alpha()
    except NotReadable as error:
        return Problem(str(path), str(error), error.hint)
    except OSError as error:
        return Problem(str(path), f"cannot be read: {error.strerror}", "let this user read it")
    return alpha is not None and alpha.getextrema()[0] != 255


def _target_problems(due: Sequence[Due]) -> Iterator[Problem]:
    """Masks that two images would share, and files that are no masks under a mask's name."""
    by_target: dict[Path, list[Due]] = defaultdict(list)
    for each in due:
        by_target[each.target].append(each)
    for target, several in by_target.items():
        if len(several) > 1:
            names = " and ".join(each.image.name for each in several)
            yield Problem(str(several[0].image), f"{names} would share the mask {target.name}", "rename one of them")
        if os.path.lexists(target) and not several[0].former:
            yield Problem(str(target), f"is in the way of the mask of {several[0].image.name}", "move it away")
