"""What to compare: a run's settings, dataset and LoRA files, found before anything large is read."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from trainer.checkpoint.naming import checkpoint_name_pattern
from trainer.common.problems import Problem, Problems, raise_if_any
from trainer.comparison.pictures import Candidate
from trainer.config import TrainConfig, parse_config
from trainer.lora.file import load_lora

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


def run_files(config: TrainConfig) -> list[Path]:
    """The LoRA files of a run in its output folder, by name."""
    pattern = checkpoint_name_pattern(config)
    return sorted(path for path in config.output_dir.glob("*.safetensors") if pattern.fullmatch(path.stem))


def candidate_of(path: Path) -> Candidate:
    """A LoRA file, named after the step in its metadata, or else after the file.

    It is read to see whether it can be. Raises `Problems` if not, as for numbers that are not finite.
    """
    if path.is_dir():
        raise Problems([Problem(str(path), "is a folder", "name the LoRA file in it")])
    lora = load_lora(path)
    step = lora.metadata.get("ss_steps", "")
    name, number = (f"step {step}", int(step)) if step.isdecimal() else (path.stem, None)
    return Candidate(name, path, number, lora.note)


def _candidates(paths: Sequence[Path]) -> tuple[list[Candidate], list[Problem]]:
    """A candidate for each file that can be compared, and what is wrong with the others."""
    found, problems = [], []
    for path in paths:
        try:
            found.append(candidate_of(path))
        except Problems as wrong:
            problems += wrong.problems
    return found, problems


def distinct(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates, each file once, and each with a name of its own: its file's, where two have the same."""
    once = list({candidate.path.resolve(): candidate for candidate in candidates}.values())
    names = [candidate.name for candidate in once]
    return [replace(each, name=each.path.stem) if names.count(each.name) > 1 else each for each in once]


def candidates_of(config: TrainConfig, loras: Sequence[Path]) -> tuple[list[Candidate], list[Problem]]:
    """The run's LoRA files in training order and `loras`, and what is wrong with files of the run, which are left out.

    Raises `Problems` if nothing is left, or if one of `loras` cannot be compared.
    """
    own, left_out = _candidates(run_files(config))
    others, problems = _candidates([path for path in loras if path.exists()])
    raise_if_any([*(Problem(f"--lora={path}", "no such file") for path in loras if not path.exists()), *problems])
    own.sort(key=lambda each: (each.step or 0, each.path.name))
    candidates = distinct([*own, *others])
    if not candidates:
        hint = "the run has not saved any yet; give files with --lora"
        none = Problem(str(config.output_dir), f"has no LoRA file of {config.output_name}", hint)
        raise Problems(left_out or [none])
    return candidates, left_out
