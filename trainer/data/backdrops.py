"""What is behind the concepts of composites: plain colours, images of a folder, or places that the model generates."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from trainer.common.problems import Problem
from trainer.data.captions import read_caption
from trainer.data.composition_file import PLAIN, BaseBackgrounds, CompositionConfig
from trainer.data.generated import Generated, Generator
from trainer.images.decode import Size
from trainer.images.folder import read_folder, some
from trainer.images.inspection import Picture, inspect_images

PLAIN_PLACE = "on a plain background"
NAME_FOLDER = f'name a folder of images, or "{PLAIN}"'
MOST_ENLARGED = 2.0  # times that a background may be enlarged before it is blurred to the eye
Backdrop = tuple[Picture | Generated | None, str]  # None: plain; the words for the place


@dataclass
class Backdrops:
    """The backdrops of a composition, each with the words for its place. problems stop the run; warnings do not."""

    found: list[Backdrop] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)


def backdrops_of(composition: CompositionConfig, size: Size, generator: Generator) -> Backdrops:
    """Every backdrop that a composition asks for. size: of the composites."""
    backdrops = Backdrops()
    for each in composition.backgrounds:
        if isinstance(each, BaseBackgrounds):
            backdrops.found += _generated(each, size, generator)
        elif each == PLAIN:
            backdrops.found.append((None, PLAIN_PLACE))
        else:
            _add_folder(backdrops, Path(each), composition.where, size)
    return backdrops


def _generated(asked: BaseBackgrounds, size: Size, generator: Generator) -> Iterator[Backdrop]:
    for number in range(asked.num_images):
        place, prompt = asked.prompts[number % len(asked.prompts)]
        yield generator.image(f"background {number:03}", prompt, number, size, asked.sampler), place


def _add_folder(backdrops: Backdrops, path: Path, where: str, size: Size) -> None:
    try:
        folder = read_folder(path, where)
    except OSError as error:
        backdrops.problems.append(Problem(where, f"backgrounds {path} cannot be read: {error.strerror}", NAME_FOLDER))
        return
    backdrops.warnings += folder.warnings
    if not folder.images:
        backdrops.problems.append(Problem(where, f"backgrounds {path} holds no images", NAME_FOLDER))
    small = []
    for found in inspect_images(folder):
        if isinstance(found, Problem):
            backdrops.problems.append(found)
            continue
        picture = found.picture
        place = _place(folder.captions.get(picture.path, ()))
        if isinstance(place, Problem):
            backdrops.problems.append(place)
            continue
        backdrops.found.append((picture, place))
        if max(size[0] / picture.width, size[1] / picture.height) > MOST_ENLARGED:
            small.append(picture.path)
    if small:
        what = f"backgrounds that are enlarged more than {MOST_ENLARGED:g} times: {some(small)}"
        backdrops.warnings.append(Problem(where, what, "use larger images: the LoRA learns their blur, too"))


def _place(texts: Sequence[Path]) -> str | Problem:
    """What a background's caption files call its place; "" without any, or if they are empty."""
    written = [text for text in texts if text.stat().st_size]
    lines = read_caption(written, wildcard=False) if written else ("",)
    return lines if isinstance(lines, Problem) else lines[0]
