"""LoRA files made from LoRA files: another layout, a smaller rank, several in one."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from trainer.common.files import FULL_DISK_ERRORS
from trainer.common.problems import Problem, Problems, raise_if_any
from trainer.lora.file import LoraFile, load_lora, write_tensors
from trainer.lora.routed_files import read_parts
from trainer.lora_file import algebra
from trainer.lora_file.apart import apart_json
from trainer.lora_file.metadata import APART, merged_metadata, with_new_ranks, without_outdated
from trainer.lora_file.modules import LoraModule
from trainer.lora_file.writing import LAYOUTS, all_finite, diffusers_tensors, kohya_tensors, lost_by_rounding


@dataclass(frozen=True)
class Source:
    """A LoRA file to convert, or one of several to merge. weight: the factor for its weight change in the result."""

    path: Path
    weight: float = 1.0


def convert(
    sources: Sequence[Source],
    output: Path,
    layout: str = "diffusers",
    rank: int | None = None,
    energy: float | None = None,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    class_words: Mapping[str, str] | None = None,
) -> list[str]:
    """Merge LoRA files if there are several, resize if a rank or an energy is given, and write the result to `output`.

    layout: "diffusers" or "kohya"; rank: the highest new rank; energy: the share of each module's squared norm to keep
    with as few ranks as possible, above 0 and at most 1; dtype: of the new file, the first source's when None (bfloat16
    for fp8); device: where SVDs are computed; class_words: if not None, the adapters of the sources are kept apart in
    the result, which needs the "diffusers" layout and no resizing, and the words for a trigger's kind of thing are
    stored with it. Returns lines for the user that say what was done, assumed and lost. Raises `Problems` for bad
    arguments, a source that cannot be read or merged, numbers that are not finite in dtype, or an output that cannot be
    written.
    """
    apart = class_words is not None
    raise_if_any(_argument_problems(sources, layout, rank, energy, apart) + _output_problems(output))
    loras = [load_lora(source.path, with_t5=True) for source in sources]
    new_type: torch.dtype = dtype or next(iter(loras[0].modules.values())).down.dtype
    lines = []
    for source, each in zip(sources, loras, strict=True):
        lines.append(f"{source.path}: {describe_ranks(each)}")
        lines += [f"{source.path}: {each.note}"] if each.note else []
        if APART in each.metadata and not apart:
            lines.append(f"{source.path}: its adapters become one; --keep_apart keeps them apart")
    lora = loras[0]
    named = [(str(source.path), each) for source, each in zip(sources, loras, strict=True)]
    parts = [] if class_words is None else read_parts(named, class_words)
    if len(sources) > 1 or sources[0].weight != 1:
        lora = merge([(s.path.stem, each, s.weight) for s, each in zip(sources, loras, strict=True)])
        lines.append(f"merged: {describe_ranks(lora)}")
    if rank or energy:
        lora, kept = resize(lora, rank, energy, device)
        lines.append(f"resized: {describe_ranks(lora)}, {kept:.2%} of the squared norm kept")
    try:
        tensors = all_finite(_as_tensors(lora, layout, new_type), new_type)
    except ValueError as error:
        raise Problems([Problem("--save_precision", str(error))]) from error
    metadata = without_outdated(lora.metadata) | ({APART: apart_json([part for _, part in parts])} if apart else {})
    try:
        left_out = write_tensors(output, tensors, metadata)
    except FULL_DISK_ERRORS as error:
        raise Problems([_unwritable(output, error)]) from error
    lines += [f"{output}: left out of the metadata, for its size: {key}" for key in left_out]
    lines += [f"kept apart: {part.title}, called by {' or '.join(map(repr, part.triggers))}" for _, part in parts]
    if lost := lost_by_rounding(lora.modules, new_type):
        lines.append(f"{output}: {lost} (--save_precision)")
    return [*lines, f"{output}: {layout} layout, {output.stat().st_size / 1e9:.3f} GB"]


def _argument_problems(
    sources: Sequence[Source], layout: str, rank: int | None, energy: float | None, apart: bool = False
) -> list[Problem]:
    problems = [] if sources else [Problem("convert", "no file given")]
    for flag, given in (("--format", layout == "kohya"), ("--rank", rank), ("--energy", energy)):
        if apart and given:
            problems.append(Problem(flag, "mixes adapters that --keep_apart keeps apart", "leave one of the two out"))
    if layout not in LAYOUTS:
        problems.append(Problem("--format", f"{layout!r} is not known", f"one of {', '.join(LAYOUTS)}"))
    if rank is not None and rank < 1:
        problems.append(Problem("--rank", f"{rank} is not a rank", "1 or more"))
    if energy is not None and not 0 < energy <= 1:
        problems.append(Problem("--energy", f"{energy} is not a share", "above 0, at most 1; 0.99 is usual"))
    return problems


def _output_problems(output: Path) -> list[Problem]:
    """What is known to be in the way before minutes of SVD."""
    try:
        folder = next(folder for folder in output.parents if folder.exists())
        if output.is_dir():
            return [_unwritable(output, "it is a folder")]
    except OSError as error:
        return [_unwritable(output, error)]
    if not folder.is_dir():
        return [_unwritable(output, f"{folder} is a file, not a folder")]
    return [] if os.access(folder, os.W_OK | os.X_OK) else [_unwritable(output, f"{folder} is closed to you")]


def _unwritable(output: Path, why: object) -> Problem:
    hint = "name a file, *.safetensors, in a folder that you may write to"
    return Problem(f"--output={output}", f"cannot be written: {why}", hint)


def describe_ranks(lora: LoraFile) -> str:
    """Like "494 modules, rank 16"; the lowest and the highest rank where they differ."""
    ranks = sorted({module.rank for module in lora.modules.values()})
    text = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]}-{ranks[-1]}"
    return f"{len(lora.modules)} modules, rank {text}"


def write_lora(path: Path, lora: LoraFile, layout: str, dtype: torch.dtype) -> tuple[str, ...]:
    """Write a LoRA to `path`, atomically, with its tensors in `dtype`.

    layout: "diffusers" or "kohya". Returns the metadata keys that were left out to keep the header under 1 MiB, each
    with its length.
    """
    return write_tensors(path, dict(_as_tensors(lora, layout, dtype)), without_outdated(lora.metadata))


def _as_tensors(lora: LoraFile, layout: str, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    return (diffusers_tensors if layout == "diffusers" else kohya_tensors)(lora.modules, dtype)


def resize(
    lora: LoraFile, rank: int | None = None, energy: float | None = None, device: str = "cpu"
) -> tuple[LoraFile, float]:
    """Approximate each module by the best one of lower rank (SVD), and update the ranks in the metadata.

    rank: the highest new rank, None for any; energy: the share of each module's squared norm to keep, with as few ranks
    as that takes, None for all; device: where it is computed. Returns a new LoRA in float32 and the share of the
    squared norm of all modules that was kept. Raises ValueError for numbers that are not finite.
    """
    modules, kept = algebra.resize(lora.modules, rank, energy, device)
    return replace(lora, modules=modules, metadata=with_new_ranks(lora.metadata, _ranks(modules))), kept


def merge(weighted: Sequence[tuple[str, LoraFile, float]]) -> LoraFile:
    """The weighted sum of several LoRAs, exact: factors are joined, so ranks add up.

    weighted: title (for metadata and messages), LoRA and weight of each. The metadata keeps the concepts of all LoRAs.
    Raises `Problems` if two have different shapes for a layer, as LoRAs of different base models do.
    """
    try:
        modules = algebra.merge((lora.modules, weight) for _, lora, weight in weighted)
    except ValueError as error:
        raise Problems([Problem(", ".join(title for title, _, _ in weighted), str(error))]) from error
    sources = [(title, lora.metadata, weight) for title, lora, weight in weighted]
    return LoraFile(modules, merged_metadata(sources, _ranks(modules)))


def _ranks(modules: dict[str, LoraModule]) -> list[int]:
    return [module.rank for module in modules.values()]
