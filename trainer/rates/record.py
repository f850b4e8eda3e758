"""The results of a sweep on disk, one rate after the other, so that one that was stopped continues."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from trainer.common.files import write_json
from trainer.common.problems import Problem, Problems
from trainer.config import TrainConfig, config_differences, to_dict
from trainer.rates.advice import RateLosses

FILE = "rates.json"


@dataclass
class Record:
    """What a sweep has found so far. base: the loss of each step without training, empty until known."""

    path: Path
    settings: dict[str, Any]
    steps: int
    base: tuple[float, ...] = ()
    rates: dict[float, RateLosses] = field(default_factory=dict)

    def save(self) -> None:
        """Write everything to the file."""
        rates = [asdict(each) for each in self.rates.values()]
        write_json(self.path, {"settings": self.settings, "steps": self.steps, "base": self.base, "rates": rates})


def open_record(path: Path, config: TrainConfig, steps: int, models: dict[str, str]) -> tuple[Record, list[str]]:
    """The record of an earlier sweep with the same settings, steps and model files, or a new one.

    The second is why an earlier record is not continued, one line for each difference; [] if it is or if there is none.
    Raises `Problems` if the file holds something else, unless --overwrite allows to replace it.
    """
    fresh = Record(path, {**to_dict(config), "models": models}, steps)
    if not path.is_file():
        return fresh, []
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        rates = [RateLosses(each["rate"], tuple(each["losses"]), each["diverged"]) for each in found["rates"]]
        earlier = Record(path, found["settings"], found["steps"], tuple(found["base"]), {r.rate: r for r in rates})
        differences = config_differences(earlier.settings, fresh.settings)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if not config.overwrite:
            hint = "move it away, choose another --output_name, or add --overwrite to replace it"
            raise Problems([Problem(str(path), "is not a record of find_rate", hint)]) from error
        return fresh, [f"it is not valid: {error!r}"]
    if earlier.steps != steps:
        differences.append(f"steps: {earlier.steps} before, {steps} now")
    return (fresh, differences) if differences else (earlier, [])
