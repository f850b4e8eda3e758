"""Writes one caption after the other, each at once, and says which ones to look at."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from PIL import Image

from trainer.captioning.plan import ConceptPlan, Due
from trainer.captioning.words import caption_for
from trainer.common.problems import Problems
from trainer.common.utf8 import read_utf8
from trainer.exchange.caption_record import digest, read_record, record_folder, write_record
from trainer.exchange.files import create_file, locked, replace_file
from trainer.images.decode import NotReadable, read_picture


class Captioner(Protocol):
    """Says in a sentence or two what an RGB image shows."""

    def __call__(self, image: Image.Image, /) -> str: ...


@dataclass(frozen=True)
class Outcome:
    """The caption of one image, None if none was written; and why it should be looked at, or why there is none."""

    text: str | None
    doubt: str = ""


def create_captions(captioner: Captioner, plan: ConceptPlan, report: Callable[[Due, Outcome], object]) -> list[Outcome]:
    """Write the captions that a plan lacks, in its order. Raises OSError if one cannot be written.

    report: called after each image.
    """
    outcomes = []
    for due in plan.due:
        outcomes.append(_create(captioner, plan, due))
        report(due, outcomes[-1])
    return outcomes


def _create(captioner: Captioner, plan: ConceptPlan, due: Due) -> Outcome:
    try:
        image = read_picture(due.image)
    except (NotReadable, OSError) as error:
        return Outcome(None, f"the image {error}")
    written = caption_for(captioner(image), plan.concept.class_tokens)
    if not _write(plan, due, written.text):
        return Outcome(None, f"{due.target.name} was created or changed meanwhile, and is left as it is")
    return Outcome(written.text, written.doubt)


def _write(plan: ConceptPlan, due: Due, text: str) -> bool:
    """Write a caption and note that a model wrote it; False if somebody else has written one meanwhile."""
    folder = plan.concept.folder
    with locked(record_folder(folder)):
        # the record first: a caption without it would count as a person's for ever
        write_record(folder, read_record(folder) | {due.target.name: digest(text)})
        data = f"{text}\n".encode()
        if due.former is None:
            return create_file(due.target, data)
        try:
            if read_utf8(due.target).strip() != due.former:
                return False
        except Problems:
            return False
        replace_file(due.target, data)
        return True
