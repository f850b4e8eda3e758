"""The progress of a run, what a state records of it, and whether a run can be resumed from a state."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from trainer.checkpoint.state import State, load_state, read_progress
from trainer.checkpoint.state_folder import CHOOSE_ANOTHER, latest_state
from trainer.common.clock import now
from trainer.common.problems import Problem, Problems, raise_if_any
from trainer.common.rng import derive_seed
from trainer.common.text import counted
from trainer.config import TrainConfig, config_differences, to_dict
from trainer.data.dataset import TrainingData
from trainer.preflight.plan import RunPlan

MODEL_NAMES = {
    "pretrained_model_name_or_path": "the transformer file",
    "ae": "the autoencoder file",
    "clip_l": "the CLIP-L file or its tokenizer",
    "t5xxl": "the T5 file or its tokenizer",
}


@dataclass
class Progress:
    """How far a run is; goes into states and metadata.

    step: optimizer steps done. session_id: a number that identifies the run, as kohya's ss_session_id. started_at: Unix
    time of the first start. seconds: time spent in steps.
    """

    step: int
    session_id: int
    started_at: float
    seconds: float = 0.0

    @classmethod
    def new(cls, config: TrainConfig) -> "Progress":
        """The progress of a run that starts now, with a new session_id."""
        started_at = now()
        return cls(0, derive_seed(config.seed, "session", config.output_name, started_at) >> 31, started_at)

    def record(self, config: TrainConfig, plan: RunPlan) -> dict[str, Any]:
        """What a state saves in addition to tensors, as plain JSON: progress, settings, data, models, processes."""
        return {
            **asdict(self),
            "config": to_dict(config),
            "data": plan.data.manifest(),
            "models": plan.models,
            "world_size": plan.world_size,
            "base_precision": plan.memory.choice.precision,
        }


RECORDED = {*(field.name for field in fields(Progress)), "config", "data", "models", "world_size"}


@dataclass(frozen=True)
class Saved:
    """A saved state as its state.json describes it, without tensors.

    record: what `Progress.record` returned when it was saved.
    """

    folder: Path
    record: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimizer steps done when the state was saved."""
        return self.record["step"]

    def with_precision(self, config: TrainConfig) -> TrainConfig:
        """`config`, with the base_precision "auto" replaced by the precision that the saved run chose."""
        chosen = self.record.get("base_precision")
        return replace(config, base_precision=chosen) if config.base_precision == "auto" and chosen else config


def read_saved(config: TrainConfig) -> Saved | None:
    """The state that --resume names, or the newest one if it names a run's folder; None without --resume.

    Tensors are not read. Raises `Problems` if there is no state or its manifest is corrupt.
    """
    if config.resume is None:
        return None
    folder = latest_state(config.resume)
    if folder is None:
        raise Problems([Problem(f"--resume={config.resume}", "no state there", "give a folder runs/NAME/state-…")])
    record = read_progress(folder)
    if missing := RECORDED - record.keys():
        what = f"not the state of a training run: it lacks {', '.join(sorted(missing))}"
        raise Problems([Problem(str(folder), what, CHOOSE_ANOTHER)])
    return Saved(folder, record)


def continues(saved: Saved | None, config: TrainConfig) -> bool:
    """Whether the run continues a saved one under the same output_name, so that earlier files are its own.

    saved: the state that --resume names. None if there is no --resume (the answer is False) or if the state could not
    be read (True, since that is reported anyway).
    """
    if saved is None:
        return config.resume is not None  # the state could not be read, which is reported
    return saved.record["config"].get("output_name") == config.output_name


def resume_problems(
    saved: Saved, config: TrainConfig, data: TrainingData | None, models: Mapping[str, str] | None, world_size: int
) -> list[Problem]:
    """The reasons why this run cannot continue the saved one: it differs, or the saved one is finished.

    Compared are settings, data, models (fingerprints by option name) and the number of processes (world_size), unless
    --resume_anyway is given. data, models: None if they could not be read; they are then not compared.
    """
    problems = []
    if not config.resume_anyway:
        hint = "restore what it was, or add --resume_anyway to continue with the change"
        found = _differences(saved.record, config, data, models, world_size)
        problems += [
            Problem(str(saved.folder), f"saved by a different run: {difference}", hint) for difference in found
        ]
    if data and saved.step >= data.schedule.total_steps:
        hint = "raise --max_train_epochs or --max_train_steps and add --resume_anyway"
        problems.append(Problem(str(saved.folder), f"this run is finished: step {saved.step} was its last", hint))
    return problems


def _differences(
    record: dict[str, Any],
    config: TrainConfig,
    data: TrainingData | None,
    models: Mapping[str, str] | None,
    world_size: int,
) -> list[str]:
    found = config_differences(record["config"], to_dict(config))
    if data:
        found += config_differences(record["data"], data.manifest())
    for flag, name in MODEL_NAMES.items():
        if models and models[flag] != record["models"].get(flag):
            found.append(f"{name} is a different one")
    if record["world_size"] != world_size:
        found.append(f"it ran with {counted(record['world_size'], 'process', 'processes')}, now there are {world_size}")
    return found


def find_state(config: TrainConfig, plan: RunPlan) -> tuple[State, Progress]:
    """The state that --resume names, with the checksums of its files verified, and its progress.

    config.resume must be set. Raises `Problems` if there is no such state, if one of its files is missing or corrupt,
    or if this run cannot continue the saved one.
    """
    saved = read_saved(config)
    assert saved
    raise_if_any(resume_problems(saved, config, plan.data, plan.models, plan.world_size))
    state = load_state(saved.folder)
    return state, Progress(**{field.name: state.progress[field.name] for field in fields(Progress)})
