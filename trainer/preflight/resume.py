"""Where a run stands, what a state remembers of it, and whether a state still fits."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from trainer.checkpoint.naming import latest_state
from trainer.checkpoint.state import State, load_state, read_progress
from trainer.common.clock import now
from trainer.common.problems import Problem, Problems, raise_if_any
from trainer.common.rng import derive_seed
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
    """What is known of a run beside its tensors; goes into states and metadata.

    step: optimizer steps done. started_at: Unix time of the first start. seconds: spent in steps.
    """

    step: int
    session_id: int
    started_at: float
    seconds: float = 0.0

    @classmethod
    def new(cls, config: TrainConfig) -> "Progress":
        started_at = now()
        return cls(0, derive_seed(config.seed, "session", config.output_name, started_at) >> 31, started_at)

    def record(self, config: TrainConfig, plan: RunPlan) -> dict[str, Any]:
        """All that a state remembers beside tensors, as plain JSON."""
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
    """A state as its manifest describes it; what it recorded is as `Progress.record` gave it."""

    folder: Path
    record: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.record["step"]

    def with_precision(self, config: TrainConfig) -> TrainConfig:
        """The settings with the base's precision that `auto` chose at the start, whatever the device has room for."""
        chosen = self.record.get("base_precision")
        return replace(config, base_precision=chosen) if config.base_precision == "auto" and chosen else config


def read_saved(config: TrainConfig) -> Saved | None:
    """What is known of the state that --resume names, or of the newest in the run's folder that it names.

    None without --resume. Raises `Problems` when it is not there or its manifest is damaged; tensors are not read.
    """
    if config.resume is None:
        return None
    folder = latest_state(config.resume)
    if folder is None:
        raise Problems([Problem(f"--resume={config.resume}", "there is no state", "give a folder runs/NAME/state-…")])
    record = read_progress(folder)
    if missing := RECORDED - record.keys():
        what = f"not a state of a training run: it does not say {', '.join(sorted(missing))}"
        raise Problems([Problem(str(folder), what, "choose another state with --resume, or start anew without it")])
    return Saved(folder, record)


def resume_problems(
    saved: Saved, config: TrainConfig, data: TrainingData | None, models: Mapping[str, str] | None, world_size: int
) -> list[Problem]:
    """Why the saved run cannot be gone on with. data and models: None where they could not be read."""
    problems = []
    if not config.resume_anyway:
        hint = "go back to what it was, or add --resume_anyway to go on with the new"
        found = _differences(saved.record, config, data, models, world_size)
        problems += [
            Problem(str(saved.folder), f"saved by a different run: {difference}", hint) for difference in found
        ]
    if data and saved.step >= data.schedule.total_steps:
        hint = "raise --max_train_epochs or --max_train_steps and add --resume_anyway"
        problems.append(Problem(str(saved.folder), f"this run is done: step {saved.step} was its last", hint))
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
            found.append(f"{name} is another one")
    if record["world_size"] != world_size:
        found.append(f"it ran in {record['world_size']} processes, now there are {world_size}")
    return found


def find_state(config: TrainConfig, plan: RunPlan) -> tuple[State, Progress]:
    """The state that --resume names, every byte checked. `Problems` as `read_saved` and `resume_problems` do."""
    saved = read_saved(config)
    assert saved
    raise_if_any(resume_problems(saved, config, plan.data, plan.models, plan.world_size))
    state = load_state(saved.folder)
    return state, Progress(**{field.name: state.progress[field.name] for field in fields(Progress)})
