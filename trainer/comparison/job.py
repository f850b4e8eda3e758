"""What to compare: a run's settings, dataset and LoRA files, found before anything large is read."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from trainer.checkpoint.naming import checkpoint_name_pattern
from trainer.common.problems import Problem, Problems, raise_if_any
from trainer.comparison.pictures import Candidate
from trainer.config import TrainConfig, parse_config
from trainer.models.weights import read_header

CONFIG = "config.toml"


def run_config(run: Path) -> TrainConfig:
    """The settings of a run. run: its folder such as runs/NAME, NAME alone, or a configuration file of `train`.

    Raises `Problems` if there is no such run or its settings cannot be read.
    """
    places = [run, run / CONFIG, Path("runs") / run / CONFIG]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        hint = "name a folder in runs/, or the configuration file of a training"
        raise Problems([Problem(str(run), f"is not a run: it has no {CONFIG}", hint)])
    config, _ = parse_config([f"--config_file={found}"])
    return config if places.index(found) == 0 or len(run.parts) == 1 else replace(config, run_dir=run.parent)


def run_candidates(config: TrainConfig) -> list[Candidate]:
    """The LoRA files of a run in its output folder, in training order, named after their steps."""
    pattern = checkpoint_name_pattern(config)
    files = [path for path in config.output_dir.glob("*.safetensors") if pattern.fullmatch(path.stem)]
    found = [candidate_of(path) for path in files]
    return sorted(found, key=lambda each: (each.step or 0, each.path.name))


def candidate_of(path: Path) -> Candidate:
    """A LoRA file, named after the step in its metadata, or else after the file. Raises `Problems` if unreadable."""
    try:
        metadata = read_header(path).metadata
    except (OSError, ValueError) as error:
        raise Problems([Problem(str(path), f"cannot be read: {error}")]) from error
    step = metadata.get("ss_steps", "")
    return Candidate(f"step {step}", path, int(step)) if step.isdecimal() else Candidate(path.stem, path)


def distinct(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates, each file once, and each with a name of its own: its file's, where two have the same."""
    once = list({candidate.path.resolve(): candidate for candidate in candidates}.values())
    names = [candidate.name for candidate in once]
    return [replace(each, name=each.path.stem) if names.count(each.name) > 1 else each for each in once]


def candidates_of(config: TrainConfig, loras: Sequence[Path]) -> list[Candidate]:
    """The run's LoRA files and others. loras: the others. Raises `Problems` if there are none or one is missing."""
    raise_if_any(Problem(f"--lora={path}", "no such file") for path in loras if not path.exists())
    candidates = distinct([*run_candidates(config), *map(candidate_of, loras)])
    if not candidates:
        hint = "the run has not saved any yet; give files with --lora"
        raise Problems([Problem(str(config.output_dir), f"has no LoRA file of {config.output_name}", hint)])
    return candidates
