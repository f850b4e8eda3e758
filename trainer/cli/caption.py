"""`python -m trainer caption`: writes captions for a concept's images with Florence-2, next to the images.

`sh download.sh --captions` fetches the model. A caption names the trigger and says what else the image shows; what the
concept itself looks like is left out, so that the trigger learns it. Images that have a caption are left alone, so
the command can be interrupted and repeated. Read the captions afterwards, and correct what is wrong.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.captioning.description import CAPTIONER
from trainer.common.pace import Pace
from trainer.common.problems import Problem, raise_if_any
from trainer.common.process import ended_by_sigterm, set_up_logging

if TYPE_CHECKING:  # imported late, so that a mistake in a flag is reported at once
    from trainer.captioning.create import Captioner, Outcome
    from trainer.captioning.plan import Concept, Due
    from trainer.data.concept_folders import NamedImages

STOPPED = "Stopped. Captions that were written are complete; run it again for the others."


def run(argv: Sequence[str]) -> int:
    """Write the captions that are missing.

    argv: the arguments after `caption`. Returns the exit status, 0. Raises `Problems`.
    """
    given = _parser().parse_args(argv)
    raise_if_any(_argument_problems(given))
    set_up_logging()
    with ended_by_sigterm(STOPPED):
        return _caption(given)


def _caption(given: argparse.Namespace) -> int:
    from trainer.captioning.create import create_captions
    from trainer.captioning.load import model_problems
    from trainer.captioning.plan import make_plan

    problems: list[Problem] = []
    concepts, notes = _concepts(given, problems)
    plans = []
    try:
        plans = make_plan(concepts, given.redo)
    except ValueError as found:
        problems += getattr(found, "problems", ())
    due = sum(len(plan.due) for plan in plans)
    if due or problems:
        problems += model_problems(given.captioner)
    raise_if_any(problems)
    for note in notes:
        print(note)
    for plan in plans:
        for image, who in plan.kept.items():
            print(f"{image}: left alone, it has a caption {who}")
    if not due:
        print("Every image has a caption; --redo rewrites those that this command wrote.")
        return 0
    captioner, progress = _load(given.captioner), _Progress(due)
    for plan in plans:
        create_captions(captioner, plan, progress.report)
    print(progress.summary())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m trainer caption", description=__doc__, allow_abbrev=False)
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER", help="of images, instead of a dataset file")
    parser.add_argument("--dataset_config", type=Path, metavar="FILE", help="its folders, with their class_tokens")
    text = 'trigger and class word of the images of FOLDER, as in "tjtoy toy"'
    parser.add_argument("--class_tokens", metavar="WORDS", help=text)
    parser.add_argument(
        "--redo", action="store_true", help="write captions again that are unchanged since this command"
    )
    text = f"folder of {CAPTIONER.title} (%(default)s)"
    default = Path("models", CAPTIONER.folder)
    parser.add_argument(f"--{CAPTIONER.key}", type=Path, default=default, metavar="DIR", help=text)
    return parser


def _argument_problems(given: argparse.Namespace) -> list[Problem]:
    problems = _named(given).problems("caption", "the dataset file names them")
    if given.folders and not (given.class_tokens or "").strip():
        problems.append(Problem("--class_tokens", "is missing", 'say what to write, as in --class_tokens "tjtoy toy"'))
    return problems


def _concepts(given: argparse.Namespace, problems: list[Problem]) -> "tuple[list[Concept], list[str]]":
    """The folders and their class_tokens, and notes on what is left out of a dataset file.

    Problems of the file's keys are added to `problems`. Raises `Problems` if the file cannot be read at all.
    """
    from trainer.captioning.plan import Concept, concepts_of

    def of_folder(folder: Path) -> Concept:
        return Concept(folder, given.class_tokens.strip(), str(folder))

    return _named(given).concepts(problems, concepts_of, of_folder)


def _named(given: argparse.Namespace) -> "NamedImages":
    from trainer.data.concept_folders import NamedImages

    return NamedImages(given.folders, given.dataset_config, "--class_tokens", given.class_tokens)


def _load(folder: Path) -> "Captioner":
    import torch

    from trainer.captioning.load import Florence2

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"loading {CAPTIONER.title} ({device.type})", flush=True)
    return Florence2(folder, device)


class _Progress:
    """Prints a line for each image: its caption, the time it took, the time that is left."""

    def __init__(self, total: int):
        self.pace, self.doubtful = Pace(total), 0

    def report(self, due: "Due", outcome: "Outcome") -> None:
        """Count one image and print what became of it."""
        took, progress = self.pace.count(outcome.text is not None)
        what = "no caption" if outcome.text is None else outcome.text
        print(f"{due.image}: {what}  ({took} s, {progress})", flush=True)
        if outcome.doubt:
            self.doubtful += 1
            print(f"    look at it: {outcome.doubt}")

    def summary(self) -> str:
        """The number of captions and the mean time."""
        doubt = f"; {self.doubtful} to look at, named above" if self.doubtful else ""
        return f"{self.pace.written} of {self.pace.total} captions written, {self.pace.mean()} s per image{doubt}"
