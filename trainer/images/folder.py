"""A concept's folder: its images, their captions and masks, and why every other file is left out."""

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.common.files import out_of_reach
from trainer.common.problems import Problem, printable
from trainer.common.text import counted
from trainer.images.formats import CONVERT, DECODERS, ENDINGS_OF, IMAGE_ENDINGS, kind_of_file

CAPTION_EXTENSIONS = (".txt", ".caption")  # looked for where the user names none
SYSTEM_FILES = frozenset(("thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "__macosx", "@eadir"))
CAPTION_LISTS = frozenset(  # of Hugging Face's image folders, of kohya's tools, and of captioning programs
    f"{name}.{ending}"
    for name in ("metadata", "meta_cap", "captions")
    for ending in ("jsonl", "json", "csv", "parquet")
)
MASK = re.compile(r"(.+)[-_.](?:mask|masklabel|condlabel)", re.IGNORECASE)
OWN_MASK = ".mask.png"  # so named, a file is a mask even where no image has its name
NAMES_SHOWN = 20


@dataclass(frozen=True)
class Folder:
    """The content of one folder.

    images: sorted by name. kinds: the format of each image and mask, judged by content; "" if unknown. captions,
    masks: for each image that has any, its caption files and its mask files. warnings: files that the user may have
    meant to train and that are not used. notes: other files that are left out, and files with odd names, one line for
    each kind.
    """

    images: tuple[Path, ...]
    kinds: dict[Path, str]
    captions: dict[Path, tuple[Path, ...]]
    masks: dict[Path, tuple[Path, ...]]
    warnings: tuple[Problem, ...]
    notes: tuple[str, ...]


def read_folder(folder: Path, where: str = "", caption_extension: str | None = None) -> Folder:
    """Sort the entries of a folder into images, captions, masks and files left out; images are not decoded.

    Subfolders are only searched for files named like images, for a warning. where: the folder's place in the dataset
    file, for messages. caption_extension: None for .txt and .caption. Raises OSError if the folder cannot be listed.
    """
    sorter = _Sorter(folder, where, caption_extension)
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        sorter.sort(path)
    return sorter.result()


class _Sorter:
    """Sorts the entries of one folder into images, captions, masks and others."""

    def __init__(self, folder: Path, where: str, caption_extension: str | None):
        self.folder, self.where, self.caption_extension = folder, where, caption_extension
        self.endings = (caption_extension.lower(),) if caption_extension else CAPTION_EXTENSIONS
        self.kinds: dict[Path, str] = {}
        self.texts: list[Path] = []
        self.subfolders: list[Path] = []
        self.unread: dict[str, list[Path]] = defaultdict(list)
        self.dangling: list[Path] = []
        self.hidden: list[Path] = []
        self.other: list[Path] = []

    def sort(self, path: Path) -> None:
        ending = path.suffix.lower()
        if path.name.startswith(".") or path.name.lower() in SYSTEM_FILES:
            self.hidden.append(path)
        elif path.is_dir():
            self.subfolders.append(path)
        elif path.is_symlink() and not out_of_reach(path) and not path.exists():
            self.dangling.append(path)
        elif not (path.is_file() or out_of_reach(path)):  # where we may not look, reading it says so
            self.other.append(path)
        elif ending in (*CAPTION_EXTENSIONS, *self.endings):
            self.texts.append(path)
        elif (kind := kind_of_file(path)) in CONVERT:
            self.unread[kind].append(path)
        elif kind in DECODERS or ending in IMAGE_ENDINGS:
            self.kinds[path] = kind
        else:
            self.other.append(path)

    def result(self) -> Folder:
        named = self._masks()
        images = tuple(path for path in self.kinds if path not in named)
        masks: dict[Path, tuple[Path, ...]] = {}
        for image in images:
            if own := tuple(path for path, name in named.items() if name == same_name(image.stem)):
                masks[image] = own
        lost = [path for path, name in named.items() if not any(same_name(image.stem) == name for image in images)]
        captions, claimed = self._match(images)
        unused = [text for text in self.texts if text not in claimed]
        warnings = (
            *self._left_out(lost),
            *self._unused_captions(images, unused),
            *self._unread_texts([image for image in images if image not in captions]),
            *self._below(images),
        )
        return Folder(images, self.kinds, captions, masks, warnings, tuple(self._notes(images, captions)))

    def _masks(self) -> dict[Path, str]:
        """The files that are named as masks, each with the name of its image."""
        stems = {same_name(path.stem) for path in self.kinds}
        found = ((path, MASK.fullmatch(path.stem)) for path in self.kinds)
        names = {path: same_name(match[1]) for path, match in found if match}
        return {path: name for path, name in names.items() if name in stems or same_name(path.name).endswith(OWN_MASK)}

    def _match(self, images: Sequence[Path]) -> tuple[dict[Path, tuple[Path, ...]], set[Path]]:
        """The caption files of each image: those of exactly its name, else those that differ in case or the like.

        PHOTO.TXT belongs to photo.jpg, and so does photo.jpg.txt.
        """
        texts = [text for text in self.texts if text.suffix.lower() in self.endings]
        exact = {text.with_suffix("") for text in texts}
        loose: dict[str, list[Path]] = defaultdict(list)
        owned = {image.with_suffix("") for image in images} & exact
        for text in texts:
            if text.with_suffix("") not in owned:
                loose[same_name(text.stem)].append(text)
        captions: dict[Path, tuple[Path, ...]] = {}
        for image in images:
            if image.with_suffix("") in owned:
                found = [text for text in texts if text.with_suffix("") == image.with_suffix("")]
            else:
                found = [*loose.get(same_name(image.stem), []), *loose.get(same_name(image.name), [])]
            if found:
                captions[image] = tuple(sorted(dict.fromkeys(found), key=self._rank))
        return captions, {text for found in captions.values() for text in found}

    def _rank(self, text: Path) -> tuple[int, str]:
        return self.endings.index(text.suffix.lower()), text.name

    def _left_out(self, lost_masks: Sequence[Path]) -> Iterator[Problem]:
        for kind, paths in sorted(self.unread.items()):
            what = f"{_count(paths, f'{kind} file')} not trained: {some(paths)}"
            yield Problem(self.where, what, CONVERT[kind])
        if self.dangling:
            what = (
                f"{_count(self.dangling, 'link')} not trained, since nothing is where they lead: {some(self.dangling)}"
            )
            yield Problem(self.where, what, "put back what they point to, or delete them")
        if lost_masks:
            yield Problem(self.where, f"masks without an image: {some(lost_masks)}", "they are not used")

    def _unused_captions(self, images: Sequence[Path], unused: Sequence[Path]) -> Iterator[Problem]:
        stems = {same_name(name) for image in images for name in (image.stem, image.name)}
        alone = [text for text in unused if same_name(text.stem) not in stems]
        if alone:
            yield Problem(self.where, f"captions without an image: {some(alone)}", "they are not used")
        other = [text for text in unused if text not in alone]
        if wrong := [text for text in other if text.suffix.lower() not in self.endings]:
            what = f"captions that do not end in {self.caption_extension}: {some(wrong)}"
            yield Problem(self.where, what, "they are not used; caption_extension says which are")
        if doubled := [text for text in other if text not in wrong]:
            what = f"second captions of images that have one of exactly their name: {some(doubled)}"
            yield Problem(self.where, what, "they are not used; delete them or put their text into the other file")

    def _unread_texts(self, images: Sequence[Path]) -> Iterator[Problem]:
        """Files that may be captions of the images, which have none."""
        names = {same_name(name) for image in images for name in (image.stem, image.name)}
        likely = [
            path for path in self.other if same_name(path.stem) in names and kind_of_file(path) in ("text", "JSON")
        ]
        if likely:
            what = f"{_count(likely, 'file')} named like an image and not read as its caption: {some(likely)}"
            ending = likely[0].suffix
            text = kind_of_file(likely[0]) == "text" and ending
            hint = f'or set caption_extension = "{ending}"' if text else "one text for each image"
            yield Problem(self.where, what, f"write captions to NAME.txt, {hint}")
        listed = [path for path in self.other if path.name.lower() in CAPTION_LISTS]
        if listed and images:
            what = f"captions in {some(listed)} are not read"
            yield Problem(self.where, what, "write each caption to NAME.txt next to its image")

    def _below(self, images: Sequence[Path]) -> Iterator[Problem]:
        counts = {path: count for path in self.subfolders if (count := count_images(path))}
        if counts and images:
            names = some(list(counts))
            below = counted(sum(counts.values()), "image in folders below is", "images in folders below are")
            what = f"{below} not trained: {names}"
            yield Problem(self.where, what, "add [[datasets.subsets]] for each folder, or move its images up")

    def _notes(self, images: Sequence[Path], captions: dict[Path, tuple[Path, ...]]) -> Iterator[str]:
        if self.hidden:
            yield f"{_count(self.hidden, 'hidden file')} skipped: {some(self.hidden)}"
        if self.other:
            yield f"{_count(self.other, 'file')} neither image nor caption: {some(self.other)}"
        misnamed = [path for path in images if path.suffix.lower() not in ENDINGS_OF.get(self.kinds[path], "").split()]
        if misnamed := [path for path in misnamed if self.kinds[path] in DECODERS]:
            names = ", ".join(f"{printable(path.name)} ({self.kinds[path]})" for path in misnamed[:NAMES_SHOWN])
            yield f"{_count(misnamed, 'image')} read by content, which is not what the ending says: {names}"
        long = [
            text for image, texts in captions.items() for text in texts if same_name(text.stem) == same_name(image.name)
        ]
        if long:
            yield f"{_count(long, 'caption')} read from a file with two endings: {some(long)}"


def count_images(folder: Path) -> int:
    """How many files in a folder and its subfolders are named like images; hidden files and folders are skipped."""
    total = 0
    for _, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name.lower() not in SYSTEM_FILES]
        total += sum(Path(name).suffix.lower() in IMAGE_ENDINGS and not name.startswith(".") for name in files)
    return total


def some(paths: Sequence[Path], shown: int = NAMES_SHOWN) -> str:
    """File names for a message: the first `shown` of them, and how many more there are."""
    names = ", ".join(printable(path.name) for path in paths[:shown])
    return f"{names} and {len(paths) - shown} more" if len(paths) > shown else names


def same_name(name: str) -> str:
    """A name as file systems that ignore case and ways of writing accents compare it."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _count(paths: Sequence[Path], what: str) -> str:
    return counted(len(paths), f"{what} is", f"{what}s are")
