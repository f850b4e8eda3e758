"""What is in a folder of images, sorted as the trainer sorts it: images, their captions and their masks."""

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .exchange.files import read_file
from .image_check import MASK_NAME

IMAGE_ENDINGS = frozenset(
    ".png .apng .jpg .jpeg .jpe .jfif .mpo .webp .gif .bmp .dib .tif .tiff .jp2 .avif .heic .heif .hif .ppm .qoi .tga"
    " .dds .ico .pcx .sgi".split()
)
CAPTION_ENDINGS = (".txt", ".caption")
MAX_CAPTION = 4096  # characters
MAX_CAPTION_BYTES = 4 * MAX_CAPTION


@dataclass(frozen=True)
class Entries:
    """The files of a folder of images, by name. captions, masks: those of each image that has one."""

    images: tuple[str, ...]
    captions: Mapping[str, str]
    masks: Mapping[str, str]
    left_out: tuple[dict[str, str], ...]


def same(name: str) -> str:
    """A name as file systems that ignore case and ways of writing accents compare it."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def entries(folder: Path) -> Entries:
    """The files of a folder, sorted into images, captions and masks, as the trainer does it. Raises OSError."""
    texts: dict[str, str] = {}
    pictures: dict[str, str] = {}
    left_out = []
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        stem, ending = path.stem, path.suffix
        if path.name.startswith("."):
            continue
        if path.is_symlink() or not path.is_file():
            why = "a link, which is not followed here" if path.is_symlink() else "not a file"
            left_out.append({"name": path.name, "why": why})
        elif ending.lower() in CAPTION_ENDINGS:
            texts[path.name] = same(stem)
        elif ending.lower() in IMAGE_ENDINGS:
            pictures[path.name] = same(stem)
        else:
            left_out.append({"name": path.name, "why": "neither an image nor a caption"})
    masks, images = _masks(pictures)
    captions = {file: text for file in images if (text := _caption_of(file, texts))}
    return Entries(tuple(images), captions, masks, tuple(left_out))


def _masks(pictures: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """The mask of each image that has one, and the images."""
    stems = {*pictures.values()}
    of = {file: match[1] for file, stem in pictures.items() if (match := MASK_NAME.fullmatch(stem))}
    of = {file: stem for file, stem in of.items() if stem in stems or same(file).endswith(".mask.png")}
    images = [file for file in pictures if file not in of]
    by_stem = {stem: file for file, stem in of.items()}
    return {file: by_stem[pictures[file]] for file in images if pictures[file] in by_stem}, images


def _caption_of(file: str, texts: Mapping[str, str]) -> str | None:
    """The caption file of an image: of exactly its name, else one that differs in case, or that has both endings."""
    stem = Path(file).stem
    exact = [f"{stem}{ending}" for ending in CAPTION_ENDINGS if f"{stem}{ending}" in texts]
    if exact:
        return exact[0]
    wanted = (same(stem), same(file))
    return next((text for text, own in texts.items() if own in wanted), None)


def read_caption(path: Path) -> str:
    """A caption without white space at its end. Raises ValueError if it cannot be read, or is too long."""
    try:
        data = read_file(path, MAX_CAPTION_BYTES + 1)
        if len(data) > MAX_CAPTION_BYTES:  # a part of it must not come back as the whole
            raise ValueError(
                f"Its caption {path.name} has more than {MAX_CAPTION_BYTES:,} bytes, too many to show here."
            )
        return data.decode("utf-8-sig").rstrip()
    except UnicodeDecodeError:
        raise ValueError(f"Its caption {path.name} is not UTF-8.") from None
    except OSError as error:
        raise ValueError(f"Its caption {path.name} cannot be read: {error.strerror}") from None
