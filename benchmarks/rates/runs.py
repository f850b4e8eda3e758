"""The trainings on which the guard's verdicts and `find_rate` are tested: rates, optimizers, data, lengths."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.selection.runs import ALONE, BARE, PRESERVED, TOY, write_dataset

RATES = ("1e-5", "1e-4", "3e-4", "1e-3", "3e-3", "1e-2", "3e-2", "1e-1")
OPTIMIZERS = ("AdamW", "Lion", "Adafactor")
SHORT, LONG, VALIDATE_EVERY = 160, 640, 20
PRODIGY = {"optimizer_type": "Prodigy", "learning_rate": "1", "lr_scheduler": "cosine_with_restarts"}


@dataclass(frozen=True)
class RateRun:
    """One training. data: as in `SelectionRun`, or "" for the demo's own dataset file. settings: of train, by name;
    shipped: whether they are those of a file that is shipped, on which no alarm may come."""

    name: str
    data: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    shipped: bool = False

    @property
    def concepts(self) -> tuple[str, ...]:
        """The judge's names of the concepts that are taught."""
        return ("tjtoy",) if self.data == TOY else ("tjtoy", "sparkgpu")

    def flags(self, folder: Path, cache: Path) -> list[str]:
        """The flags of `python -m trainer train`. folder: for everything that the run writes."""
        settings = {
            "config_file": "flux_data/demo.toml",
            "output_name": "run",
            "output_dir": folder / "loras",
            "run_dir": folder / "runs",
            "cache_dir": cache,
            "save_every_n_epochs": 10**6,
            "overwrite": True,
            "cuda_graphs": "false",  # recording them takes longer than so few steps
            **self.settings,
        }
        if self.data:
            settings["dataset_config"] = write_dataset(folder / "data", self.data)
        return [f"--{name}={str(value).lower() if value is True else value}" for name, value in settings.items()]


def _short(optimizer: str, rate: str, data: str) -> RateRun:
    settings = {
        "optimizer_type": optimizer,
        "learning_rate": rate,
        "lr_scheduler": "constant",
        "max_train_steps": SHORT,
        "validation_split": 0.2,
        "validate_every_n_steps": VALIDATE_EVERY,
        "max_validation_steps": 12,
    }
    return RateRun(f"{data}-{optimizer}-{rate}".lower(), data, settings)


def _long(data: str, rate: str) -> RateRun:
    settings = {
        "learning_rate": rate,
        "lr_scheduler": "constant",
        "max_train_steps": LONG,
        "validation_split": 0.2,
        "validate_every_n_steps": VALIDATE_EVERY,
        "max_validation_steps": 12,
        "save_every_n_steps": LONG // 4,
    }
    return RateRun(f"long-{data}-{rate}", data, settings)


def _runs() -> list[RateRun]:
    """The longest first, so that none of them is alone at the end."""
    shipped = [RateRun(f"demo-{seed}", "", {"seed": seed}, shipped=True) for seed in (42, 43)]
    prodigy = [
        RateRun(f"prodigy-{data}", data, {**PRODIGY, "max_train_steps": 400}, shipped=True)
        for data in (PRESERVED, ALONE)
    ]
    long = [_long(data, rate) for data in (BARE, ALONE) for rate in ("1e-3", "3e-3")]
    grid = [_short(optimizer, rate, data) for data in (PRESERVED, ALONE) for optimizer in OPTIMIZERS for rate in RATES]
    return [*long, *shipped, *prodigy, *grid]


RUNS = {run.name: run for run in _runs()}
SWEEPS = {
    f"sweep-{data}-{optimizer}".lower(): (data, optimizer)
    for data in (PRESERVED, ALONE)
    for optimizer in (*OPTIMIZERS, "Prodigy")
}
