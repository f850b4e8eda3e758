"""`python -m trainer mask`: creates masks for a concept's images from its class word, next to the images.

GroundingDINO finds the object and SAM 2 outlines it (`sh download.sh --masks` fetches both). Images that have a mask of
any kind are left alone, so the command can be interrupted and repeated. Look at output/masks/CONCEPT.jpg afterwards.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.common.files import atomic_write
from trainer.common.pace import Pace
from trainer.common.problems import Problem, Problems, raise_if_any
from trainer.common.process import ended_by_sigterm, set_up_logging
from trainer.common.text import counted
from trainer.config.paths import path_flag
from trainer.masking.description import DETECTOR, MASK_MODELS, SEGMENTER

if TYPE_CHECKING:  # imported late, so that a mistake in a flag is reported at once
    from trainer.data.concept_folders import NamedImages
    from trainer.masking.create import Models, Outcome
    from trainer.masking.plan import Concept, ConceptPlan, Due
    from trainer.masking.sheet import Entry

THRESHOLD = 0.3  # GroundingDINO's authors use 0.25 to 0.35
STOPPED = "Stopped. Masks that were written are complete; run it again for the others."


def run(argv: Sequence[str]) -> int:
    """Create the masks that are missing, and a contact sheet of each concept.

    argv: the arguments after `mask`. Returns the exit status, 0. Raises `Problems`.
    """
    given = _parser().parse_args(argv)
    raise_if_any(_argument_problems(given))
    set_up_logging()
    with ended_by_sigterm(STOPPED):
        return _run(given)


def _run(given: argparse.Namespace) -> int:
    from trainer.masking.load import model_problems
    from trainer.masking.plan import make_plan

    problems: list[Problem] = []
    plans, notes = [], []
    try:
        concepts, notes = _concepts(given, problems)
        plans = make_plan(concepts, given.output, given.redo)
    except Problems as found:
        problems += found.problems
    if problems or any(plan.due for plan in plans):
        problems += model_problems(given.detector, given.segmenter)
    raise_if_any(problems)
    for note in notes:
        print(note)
    for plan in plans:
        _print_kept(plan)
    due = sum(len(plan.due) for plan in plans)
    models = _load(given) if due else None
    progress = _Progress(due)
    doubtful = 0
    for plan in plans:
        doubtful += _mask_concept(plan, models, given.output / f"{plan.name}.jpg", progress)
    print(progress.summary())
    if doubtful:
        print(f"{doubtful} to look at, named above. To mask an image by hand, save NAME.mask.png, white on the object.")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m trainer mask", description=__doc__, allow_abbrev=False)
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER", help="of images, instead of a dataset file")
    parser.add_argument("--dataset_config", type=Path, metavar="FILE", help="its folders, by their class_tokens")
    parser.add_argument("--class_word", metavar="WORD", help='what the images of FOLDER show, as in "plush toy"')
    parser.add_argument("--redo", action="store_true", help="create masks again that are unchanged since this command")
    parser.add_argument("--objects", choices=("best", "all"), default="best", help="what to mask if there are several")
    text = f"score from which an object counts, 0 to 1 ({THRESHOLD})"
    parser.add_argument("--box_threshold", type=float, default=THRESHOLD, metavar="SCORE", help=text)
    for model in MASK_MODELS:
        text = f"folder of {model.title} (%(default)s)"
        parser.add_argument(f"--{model.key}", type=Path, default=Path("models", model.folder), metavar="DIR", help=text)
    parser.add_argument(
        "--output", type=path_flag, default=Path("output/masks"), help="of contact sheets (%(default)s)"
    )
    return parser


def _argument_problems(given: argparse.Namespace) -> list[Problem]:
    problems = _named(given).problems("mask", "the dataset file's class_tokens name it")
    if given.folders and not (given.class_word or "").strip(" .,"):
        problems.append(Problem("--class_word", "is missing", "say what the images show, as in --class_word toy"))
    if not 0 < given.box_threshold < 1:
        problems.append(Problem("--box_threshold", f"{given.box_threshold:g} is not between 0 and 1"))
    return problems


def _concepts(given: argparse.Namespace, problems: list[Problem]) -> "tuple[list[Concept], list[str]]":
    """The folders and their class words, and notes on what is left out of a dataset file.

    Problems of the file's keys are added to `problems`. Raises `Problems` if the file cannot be read at all.
    """
    from trainer.data.dataset_config import SubsetConfig
    from trainer.masking.plan import Concept, concepts_of

    def of_folder(folder: Path) -> Concept:
        return Concept(SubsetConfig(image_dir=folder), given.class_word.strip(" .,"))

    return _named(given).concepts(problems, concepts_of, of_folder)


def _named(given: argparse.Namespace) -> "NamedImages":
    from trainer.data.concept_folders import NamedImages

    return NamedImages(given.folders, given.dataset_config, "--class_word", given.class_word)


def _load(given: argparse.Namespace) -> "Models":
    import torch

    from trainer.masking.create import Models
    from trainer.masking.load import GroundingDino, Sam2

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"loading {DETECTOR.title} and {SEGMENTER.title} ({device.type})", flush=True)
    detect, segment = GroundingDino(given.detector, device), Sam2(given.segmenter, device)
    return Models(detect, segment, given.box_threshold, all_objects=given.objects == "all")


def _print_kept(plan: "ConceptPlan") -> None:
    for each in plan.kept:
        where = f"{each.mask.name}, {each.source}" if each.mask else f"its {each.source}"
        print(f"{each.image}: left alone, it has a mask ({where})")
        if each.hint:
            print(f"    {each.hint}")
        for doubt in each.mark.doubts if each.mark else ():
            print(f"    look at it: {doubt}")


def _mask_concept(plan: "ConceptPlan", models: "Models | None", sheet: Path, progress: "_Progress") -> int:
    """Create the masks of one concept and write its sheet; returns how many images have to be looked at."""
    from trainer.masking.create import create_masks
    from trainer.masking.sheet import mask_sheets

    outcomes: dict[Path, Outcome] = {}
    if plan.due:
        assert models is not None
        print(f"{plan.name}: {counted(len(plan.due), 'mask')} of {plan.class_word!r}", flush=True)
        created = create_masks(models, plan.due, plan.class_word, progress.report)
        outcomes = {each.image: outcome for each, outcome in zip(plan.due, created, strict=True)}
    entries = [_entry(plan, image, outcomes.get(image)) for image in plan.images]
    for number, picture in enumerate(mask_sheets(entries, f"{plan.name}: {plan.class_word}"), 1):
        path = sheet if number == 1 else sheet.with_stem(f"{sheet.stem}_{number}")
        atomic_write(path, lambda target, picture=picture: picture.save(target, format="JPEG", quality=90))
        print(path)
    return sum(bool(entry.doubts) for entry in entries)


def _entry(plan: "ConceptPlan", image: Path, outcome: "Outcome | None") -> "Entry":
    """An image's place on the contact sheet: its mask as the file has it now."""
    from trainer.images.decode import NotReadable
    from trainer.masking.sheet import Entry, masked_thumbnail, read_masked

    if outcome:
        target = next(each.target for each in plan.due if each.image == image)
        source = target if target.is_file() else None
        note, doubts = "not created" if outcome.share is None else "created now", outcome.doubts
    else:
        kept = next(each for each in plan.kept if each.image == image)
        source, note, doubts = kept.mask or image, kept.source, kept.mark.doubts if kept.mark else ()
    try:
        picture = masked_thumbnail(*read_masked(image, source))
    except (NotReadable, OSError) as error:
        picture, doubts = None, (*doubts, f"{(source or image).name} {error}")
    return Entry(image.name, picture, note, doubts)


class _Progress:
    """Prints a line for each image: how much of it the mask covers, the time it took, the time that is left."""

    def __init__(self, total: int):
        self.pace = Pace(total)

    def report(self, due: "Due", outcome: "Outcome") -> None:
        """Count one image and print what became of it."""
        took, progress = self.pace.count(outcome.share is not None)
        what = "no mask" if outcome.share is None else f"{outcome.share:.0%} of the image"
        print(f"{due.image}: {what}, {took} s ({progress})", flush=True)
        for doubt in outcome.doubts:
            print(f"    look at it: {doubt}")

    def summary(self) -> str:
        """The number of masks and the mean time."""
        if not self.pace.total:
            return "Every image has a mask; --redo re-creates those that this command created."
        return f"{self.pace.written} of {self.pace.total} masks created, {self.pace.mean()} s per image"
