"""What is behind the concepts of composites: plain colours, images of a folder, or places that the model generates."""

from collections.abc import Iterator
from pathlib import Path

from trainer.common.problems import Problem
from trainer.data.composition_file import PLAIN, BaseBackgrounds, CompositionConfig
from trainer.data.generated import Generated, Generator
from trainer.images.decode import Size
from trainer.images.folder import read_folder
from trainer.images.inspection import Picture, inspect_images

PLAIN_PLACE = "on a plain background"
NAME_FOLDER = f'name a folder of images, or "{PLAIN}"'
Backdrop = tuple[Picture | Generated | None, str]  # None: plain; the words for the place


def backdrops_of(
    composition: CompositionConfig, size: Size, generator: Generator
) -> tuple[list[Backdrop], list[Problem]]:
    """Every backdrop with the words for its place, and what is wrong with those that are missing.

    None stands for a plain one, drawn anew for each composite. size: of generated images.
    """
    found: list[Backdrop] = []
    problems: list[Problem] = []
    for each in composition.backgrounds:
        if isinstance(each, BaseBackgrounds):
            found += _generated(each, size, generator)
        elif each == PLAIN:
            found.append((None, PLAIN_PLACE))
        else:
            found += _of_folder(Path(each), composition.where, problems)
    return found, problems


def _generated(asked: BaseBackgrounds, size: Size, generator: Generator) -> Iterator[Backdrop]:
    for number in range(asked.num_images):
        place, prompt = asked.prompts[number % len(asked.prompts)]
        yield generator.image(f"background {number:03}", prompt, number, size, asked.sampler), place


def _of_folder(path: Path, where: str, problems: list[Problem]) -> Iterator[Backdrop]:
    try:
        folder = read_folder(path, where)
    except OSError as error:
        problems.append(Problem(where, f"backgrounds {path} cannot be read: {error.strerror}", NAME_FOLDER))
        return
    if not folder.images:
        problems.append(Problem(where, f"backgrounds {path} holds no images", NAME_FOLDER))
    for found in inspect_images(folder):
        if isinstance(found, Problem):
            problems.append(found)
            continue
        texts = folder.captions.get(found.picture.path, ())
        yield found.picture, texts[0].read_text(encoding="utf-8").strip() if texts else ""
