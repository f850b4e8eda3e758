"""The numbers and images of all runs in a few files of limited size."""

import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

PART_BYTES = 14 * 2**20
IMAGE_PARTS = 4  # further images are left out


def pack(folder: Path, output: Path) -> list[Path]:
    """Write numbers.tar.xz (all JSON files and logs) and images-N.tar (the sheets); returns their paths.

    Where the images do not fit into four files of 14 MiB, every second one is left out until they do.
    """
    output.mkdir(parents=True, exist_ok=True)
    numbers = output / "numbers.tar.xz"
    with tarfile.open(numbers, "w:xz") as archive:
        for file in [*sorted(folder.glob("*/*.json")), *sorted(folder.glob("*.log"))]:
            archive.add(file, file.relative_to(folder))
    written = [numbers]
    for index, part in enumerate(_parts(_that_fit(sorted(folder.glob("*/*.webp"))))):
        written.append(output / f"images-{index}.tar")
        with tarfile.open(written[-1], "w") as archive:
            for file in part:
                archive.add(file, file.relative_to(folder))
    return written


def _that_fit(sheets: Sequence[Path]) -> Sequence[Path]:
    while len(list(_parts(sheets))) > IMAGE_PARTS:
        sheets = sheets[::2]
    return sheets


def _parts(files: Sequence[Path]) -> Iterator[list[Path]]:
    part, size = [], 0
    for file in files:
        bytes_of_file = file.stat().st_size + 2048  # with its header and padding in the archive
        if part and size + bytes_of_file > PART_BYTES:
            yield part
            part, size = [], 0
        part.append(file)
        size += bytes_of_file
    if part:
        yield part
