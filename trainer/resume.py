"""Where a run stands, what a state remembers of it, and whether a state still fits."""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from trainer.checkpoints import latest_state
from trainer.clock import now
from trainer.config import TrainConfig, config_differences, to_dict
from trainer.faults import Fault, Faults
from trainer.plan import Plan
from trainer.rng import derive_seed
from trainer.state.save import State, load_state


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

    def record(self, config: TrainConfig, plan: Plan) -> dict[str, Any]:
        """All that a state remembers beside tensors, as plain JSON."""
        return {**asdict(self), "config": to_dict(config), "data": plan.data.manifest(), "world_size": plan.world_size}


def find_state(config: TrainConfig, plan: Plan) -> tuple[State, Progress]:
    """The state that --resume names, or the newest one of the run's folder that it names.

    Raises `Faults` when it is not there, is damaged, or belongs to other settings or pictures and
    --resume_anyway is not given.
    """
    assert config.resume
    folder = latest_state(config.resume)
    if folder is None:
        raise Faults([Fault(f"--resume={config.resume}", "there is no state", "give a folder runs/NAME/state-…")])
    state = load_state(folder)
    if not config.resume_anyway:
        _refuse_differences(folder, state.progress, config, plan)
    progress = Progress(**{field.name: state.progress[field.name] for field in fields(Progress)})
    if progress.step >= plan.schedule.total_steps:
        hint = "raise --max_train_epochs or --max_train_steps and add --resume_anyway"
        raise Faults([Fault(str(folder), f"this run is done: step {progress.step} was its last", hint)])
    return state, progress


def _refuse_differences(folder: Path, saved: dict[str, Any], config: TrainConfig, plan: Plan) -> None:
    found = config_differences(saved["config"], to_dict(config))
    found += config_differences(saved["data"], plan.data.manifest())
    if saved["world_size"] != plan.world_size:
        found.append(f"it ran in {saved['world_size']} processes, now there are {plan.world_size}")
    if found:
        hint = "go back to what it was, or add --resume_anyway to go on with the new"
        raise Faults([Fault(str(folder), f"saved by a different run: {difference}", hint) for difference in found])
