"""The settings of what a run writes: LoRA files, states and their metadata."""

# ruff: noqa: RUF009 (these make dataclasses' own field())
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trainer.config.groups import OURS
from trainer.config.groups import output as _output


@dataclass(frozen=True, kw_only=True)
class OutputSettings:
    """The fields of `TrainConfig` in the group Output."""

    output_dir: Path = _output(
        Path("models/loras"), "folder for LoRA files; nothing else is written there", "default models/loras"
    )
    output_name: str = _output("flux_dreambooth", "name of the LoRA file and of the run", "default flux_dreambooth")
    run_dir: Path = _output(Path("runs"), "the run's log, samples, states and settings go to RUN_DIR/OUTPUT_NAME", OURS)
    save_model_as: Literal["safetensors"] = _output("safetensors", "file format of the LoRA", "safetensors only")
    save_precision: Literal["float", "fp16", "bf16"] = _output("bf16", "precision of the saved LoRA", "default bf16")
    save_every_n_epochs: int | None = _output(None, "save a LoRA file every n epochs", ge=1)
    save_every_n_steps: int | None = _output(
        None,
        "save a LoRA file every n steps",
        "where an epoch's save falls on the same step, one file is written, named after the epoch",
        ge=1,
    )
    save_last_n_epochs: int | None = _output(None, "keep only the last n files of those saved by epoch", ge=1)
    save_last_n_steps: int | None = _output(
        None, "of the files saved by step, keep only those of the last n steps", ge=1
    )
    save_last_n_epochs_state: int | None = _output(None, "as save_last_n_epochs, for states", ge=1)
    save_last_n_steps_state: int | None = _output(None, "as save_last_n_steps, for states", ge=1)
    save_state: bool = _output(
        False,
        "with each LoRA file, save a state from which the run can be resumed",
        "safetensors and JSON in RUN_DIR/OUTPUT_NAME, no pickle; a resumed run is bitwise identical",
    )
    save_state_on_train_end: bool = _output(False, "save a state at the end of the run")
    resume: Path | None = _output(
        None, "state folder to resume from", "exact, mid-epoch too; step and epoch numbers continue"
    )
    resume_anyway: bool = _output(False, "resume even if settings or images have changed", OURS)
    overwrite: bool = _output(
        False,
        "replace LoRA files, states and samples that an earlier run with the same output_name has left",
        OURS,
    )
    no_metadata: bool = _output(False, "leave training metadata out of the LoRA file")
    training_comment: str | None = _output(None, "comment for the metadata")
    metadata_title: str | None = _output(None, "title in the metadata; if not given, output_name")
    metadata_author: str | None = _output(None, "author in the metadata")
    metadata_description: str | None = _output(None, "description in the metadata")
    metadata_license: str | None = _output(None, "license in the metadata")
    metadata_tags: str | None = _output(None, "comma-separated tags in the metadata")
