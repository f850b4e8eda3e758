"""Which checkpoints, strengths and prompts a grid has. Pure functions: names and numbers in, cells out."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from .findings import Measured
from .lora_files import label_of, run_of

ALL, FINAL = "all", "final"
MOST = 400  # images in one grid


@dataclass(frozen=True)
class Checkpoint:
    """A LoRA file by its name in ComfyUI's list."""

    file: str

    @property
    def label(self) -> str:
        """The heading of its column: `epoch 25`, `step 500` or `final`."""
        return label_of(self.file)

    @property
    def order(self) -> tuple[bool, str, int]:
        kind, _, number = self.label.partition(" ")
        return kind == FINAL, kind, int(number or 0)


@dataclass(frozen=True)
class Cell:
    """One image; without a checkpoint, the base model alone."""

    prompt: str
    checkpoint: Checkpoint | None
    strength: float


def runs(files: Iterable[str]) -> dict[str, list[Checkpoint]]:
    """The checkpoints of each run, in the order of training."""
    found: dict[str, list[Checkpoint]] = {}
    for file in files:
        found.setdefault(run_of(file), []).append(Checkpoint(file))
    return {run: sorted(found[run], key=lambda each: each.order) for run in sorted(found)}


def choose(checkpoints: Sequence[Checkpoint], wanted: str) -> list[Checkpoint]:
    """The checkpoints that a text names: `all`, or epochs, `step500` and `final`, separated by commas.

    Raises ValueError that says what there is.
    """
    words = [word.lower() for word in re.split(r"[,\s]+", wanted) if word]
    if not words or words == [ALL]:
        return list(checkpoints)
    known = {each.label.replace("epoch ", "").replace(" ", ""): each for each in checkpoints}
    unknown = [word for word in words if word.lstrip("0") not in known]
    if unknown:
        raise ValueError(f"there is no checkpoint {', '.join(unknown)}; there are {', '.join(known)} (or {ALL})")
    return [known[word] for word in dict.fromkeys(word.lstrip("0") for word in words)]


def read_strengths(text: str) -> list[float]:
    """Numbers separated by commas or spaces, each once. Raises ValueError."""
    words = [word for word in re.split(r"[,;\s]+", text) if word]
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        raise ValueError(f"strengths are numbers such as 0, 0.5, 1, not {text!r}") from None
    if not numbers or not all(abs(number) <= 100 for number in numbers):
        raise ValueError(f"strengths are numbers from -100 to 100, not {text!r}")
    return list(dict.fromkeys(numbers))


def read_prompts(text: str) -> list[str]:
    """The prompts, one on each line. Raises ValueError if there is none."""
    prompts = list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if not prompts:
        raise ValueError("there is no prompt: write one a line")
    return prompts


def plan(prompts: Sequence[str], checkpoints: Sequence[Checkpoint], strengths: Sequence[float]) -> list[list[Cell]]:
    """Rows of cells: a row for each prompt and strength, a column for each checkpoint.

    Strength 0 is the base model: one column in front, not a row. Raises ValueError for too many pictures.
    """
    acting = [strength for strength in strengths if strength]
    base: list[Checkpoint | None] = [None] if 0 in strengths else []
    columns = [*base, *checkpoints] if acting else base
    if len(pictures := set(product(prompts, columns, acting or [0.0]))) > MOST:
        raise ValueError(f"{len(pictures)} images are too many for one sheet ({MOST}): name fewer checkpoints")
    return [
        [Cell(prompt, column, strength if column else 0.0) for column in columns]
        for prompt in prompts
        for strength in acting or [0.0]
    ]


def column_label(cell: Cell) -> str:
    """The heading of a cell's column."""
    return cell.checkpoint.label if cell.checkpoint else "base model"


def column_of(cells: Sequence[Cell], file: str | None) -> int | None:
    """Which of a row's columns is a checkpoint's, by its file; None if none is."""
    files = [cell.checkpoint and cell.checkpoint.file for cell in cells]
    return files.index(file) if file is not None and file in files else None


def column_foot(cell: Cell, measured: Mapping[str, Measured]) -> str:
    """What was measured of the checkpoint, a line for each figure; empty if it is unknown. measured: by file."""
    found = measured.get(cell.checkpoint.file) if cell.checkpoint else None
    return "\n".join(_figure(name, value) for name, value in found.figures.items()) if found else ""


def _figure(name: str, value: float) -> str:
    if name == "loss_on_images":  # how much it fell
        return f"loss on images {-value:+.1f} %"
    return f"loss without triggers {value:+.1f} %" if name == "loss_drift" else f"{name} {value:.0f}"


def row_label(row: Sequence[Cell], num_strengths: int) -> str:
    """The label of a row: the prompt, and the strength if there are several."""
    strength = next((cell.strength for cell in row if cell.checkpoint), 0.0)
    return f"{row[0].prompt}\nstrength {strength:g}" if num_strengths > 1 and strength else row[0].prompt
