"""Whether a run can write its files under their names, and which files of an earlier run it would replace."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from trainer.checkpoint.naming import SAFETENSORS, checkpoint_name_pattern, run_dir, sample_path
from trainer.checkpoint.state_folder import MANIFEST
from trainer.common.files import nearest_existing, temporary_name_bytes
from trainer.common.problems import Problem, Problems
from trainer.config import TrainConfig

MAX_NAMES_SHOWN = 8
LAST_STEP = 99_999_999  # the largest number that the names of steps have room for
STATE = re.compile(r"state-step\d{8}")


def name_problems(config: TrainConfig) -> list[Problem]:
    """Problems with the names of the run's files: too long for the file system, or taken.

    A name is taken if it is that of a folder where the run writes a file, or of a file where it needs a folder.
    """
    return _unwritable_names(config) + _in_the_way(config)


def _unwritable_names(config: TrainConfig) -> list[Problem]:
    where = "--output_name"
    try:
        config.output_name.encode()
    except UnicodeEncodeError:
        return [Problem(where, f"{config.output_name!r} is not valid UTF-8", "choose another name")]
    longest_sample = sample_path(config, LAST_STEP, index=99)
    needed = [
        (config.output_dir, temporary_name_bytes(_longest_lora_name(config))),
        (run_dir(config).parent, len(os.fsencode(config.output_name))),
        (longest_sample.parent, temporary_name_bytes(longest_sample.name)),
    ]
    excess = max(size - _name_limit(folder) for folder, size in needed)
    if excess <= 0:
        return []
    own = len(os.fsencode(config.output_name))
    what = f"has {own} bytes, which is {excess} too many for the names of the run's files"
    return [Problem(where, what, f"shorten it to at most {own - excess} bytes (in UTF-8 a letter takes 1 to 4)")]


def _longest_lora_name(config: TrainConfig) -> str:
    """The name of a checkpoint that is saved when the run is stopped."""
    return f"{config.output_name}-step{LAST_STEP}{SAFETENSORS}"


def _name_limit(folder: Path) -> int:
    """Bytes that a file name in this folder, which need not exist yet, may have."""
    return os.pathconf(nearest_existing(folder), "PC_NAME_MAX")


def _in_the_way(config: TrainConfig) -> list[Problem]:
    own = run_dir(config)
    files = [path for path in _entries(config.output_dir) if _is_lora(config, path)]
    files += [own / name for name in ("config.toml", "log.jsonl")]
    folders = [path for path in _entries(own) if STATE.fullmatch(path.name)]
    folders += [own / name for name in ("samples", "tensorboard")]
    hint = "move it away, or choose another --output_name"
    return [
        *(Problem(str(path), "is a folder where the run writes a file", hint) for path in files if path.is_dir()),
        *(
            Problem(str(path), "is a file where the run needs a folder", hint)
            for path in folders
            if path.exists() and not path.is_dir()
        ),
    ]


def earlier_files(config: TrainConfig) -> list[Path]:
    """The LoRA files, states and samples that an earlier run with the same output_name has left, sorted."""
    own = run_dir(config)
    sample = re.compile(rf"{re.escape(config.output_name)}-step\d{{8}}-\d{{2,}}\.png")
    return sorted(
        [
            *(path for path in _entries(config.output_dir) if _is_lora(config, path)),
            *(path for path in _entries(own) if STATE.fullmatch(path.name) and (path / MANIFEST).is_file()),
            *(path for path in _entries(own / "samples") if sample.fullmatch(path.name)),
        ]
    )


def overwrite_problems(config: TrainConfig, earlier: Sequence[Path]) -> list[Problem]:
    """A problem if the run would replace files of an earlier run and --overwrite is not given.

    earlier: the paths of these files.
    """
    if not earlier or config.overwrite:
        return []
    resume = f"continue that run with --resume={run_dir(config)}, " if _has_state(earlier) else ""
    hint = f"{resume}choose another --output_name, or add --overwrite to replace them"
    what = f"an earlier run with this name has left {in_words(earlier)}"
    return [Problem(f"--output_name={config.output_name}", what, hint)]


def modified(path: Path) -> float:
    """When one of `earlier_files` was written, in seconds since 1970; a state when its manifest was."""
    return (path / MANIFEST if path.is_dir() else path).stat().st_mtime


def in_words(paths: Sequence[Path]) -> str:
    """File names as text for a message, by folder: "a.safetensors, b.safetensors in models/loras".

    At most MAX_NAMES_SHOWN files are named; the others are counted.
    """
    shown, folders = paths[:MAX_NAMES_SHOWN], dict.fromkeys(path.parent for path in paths[:MAX_NAMES_SHOWN])
    parts = [f"{', '.join(path.name for path in shown if path.parent == folder)} in {folder}" for folder in folders]
    rest = len(paths) - len(shown)
    return "; ".join(parts) + (f"; and {rest} more" if rest else "")


def require_names(config: TrainConfig) -> None:
    """Check that the output disk accepts the run's file names: create a file with the longest, then remove it.

    Only the file system knows which characters it refuses. Raises `Problems` if the name cannot be created.
    """
    longest = nearest_existing(config.output_dir) / f".{_longest_lora_name(config)}.{'0' * 8}.tmp"
    try:
        longest.touch()
        longest.unlink()
    except OSError as error:
        what = f"{longest.name} cannot be created in {longest.parent}: {error.strerror}"
        raise Problems([Problem("--output_name", what, "choose another name or --output_dir")]) from error


def _has_state(paths: Sequence[Path]) -> bool:
    return any(STATE.fullmatch(path.name) for path in paths)


def _is_lora(config: TrainConfig, path: Path) -> bool:
    return path.name.endswith(SAFETENSORS) and bool(
        checkpoint_name_pattern(config).fullmatch(path.name.removesuffix(SAFETENSORS))
    )


def _entries(folder: Path) -> list[Path]:
    """What is in a folder; nothing if it cannot be listed, which `write_problems` reports."""
    try:
        return list(folder.iterdir())
    except OSError:
        return []
