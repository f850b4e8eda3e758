"""What programs leave in a run's folder for people to look at: sheets of composites, and measured checkpoints."""

from pathlib import Path

from .exchange.allowed import is_output_name
from .exchange.files import read_file

SHEETS = ("composites", "generated")  # of `trainer check` and of a training, as JPEG
MAX_SHEET = 64 * 2**20  # bytes
JPEG = b"\xff\xd8\xff"


def run_folder(runs: Path, name: str) -> Path:
    """A folder directly in runs/ that is no link. Raises LookupError."""
    folder = runs / name if is_output_name(name) else None
    if folder is None or folder.is_symlink() or not folder.is_dir():
        raise LookupError(f"There is no run {name!r}.")
    return folder


def sheets_of(runs: Path, name: str) -> list[str]:
    """The names of the sheets that a run has."""
    try:
        folder = run_folder(runs, name)
    except (LookupError, OSError):
        return []
    return [sheet for sheet in SHEETS if (folder / f"{sheet}.jpg").is_file()]


def sheet(runs: Path, name: str, which: str) -> bytes:
    """One sheet, a JPEG. Raises LookupError if there is none."""
    folder = run_folder(runs, name)
    if which in SHEETS:
        try:
            data = read_file(folder / f"{which}.jpg", MAX_SHEET + 1)
        except OSError:
            data = b""
        if data.startswith(JPEG) and len(data) <= MAX_SHEET:
            return data
    raise LookupError(f"There is no sheet {which!r} of {name}.")
