"""What a LoRA file says of itself: kohya's `ss_*` keys, Stability's `modelspec.*`, and our settings.

LoRA managers and ComfyUI read the first two. Only keys whose kohya meaning is true here are written.
Folders and files appear by name, never with their path on the user's machine.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from trainer import __version__
from trainer.common.clock import now
from trainer.config import TrainConfig
from trainer.data.dataset import TrainingData
from trainer.data.dataset_config import DatasetSection, SubsetConfig
from trainer.data.samples import Sample
from trainer.lora_file.metadata import OURS
from trainer.models.description import DEV, BaseModel

OF_ONE_START = ("resume", "resume_anyway")  # a resumed run's file is bitwise that of one that never stopped
# fmt: off
SAME_NAME = (  # settings that kohya writes as ss_<name>
    "learning_rate", "unet_lr", "text_encoder_lr", "gradient_checkpointing", "gradient_accumulation_steps",
    "lr_warmup_steps", "lr_scheduler", "network_module", "network_dim", "network_dropout",
    "mixed_precision", "seed", "training_comment", "max_grad_norm", "caption_dropout_rate",
    "caption_dropout_every_n_epochs", "caption_tag_dropout_rate", "prior_loss_weight", "loss_type",
    "huber_schedule", "huber_scale", "huber_c", "validation_seed", "validation_split",
    "max_validation_steps", "validate_every_n_epochs", "validate_every_n_steps", "resize_interpolation",
    "apply_t5_attn_mask", "weighting_scheme", "logit_mean", "logit_std", "mode_scale", "guidance_scale",
    "timestep_sampling", "sigmoid_scale", "model_prediction_type", "discrete_flow_shift",
)
SUBSET_KEYS = (
    "num_repeats", "flip_aug", "shuffle_caption", "keep_tokens", "keep_tokens_separator",
    "secondary_separator", "enable_wildcard", "caption_prefix", "caption_suffix", "class_tokens", "is_reg",
    "resize_interpolation",
)
# fmt: on
WITHOUT_TRAINING = (
    "ss_v2",
    "ss_base_model_version",
    "ss_network_",
)  # what --no_metadata leaves, and modelspec


class Session(Protocol):
    """The part of a run's progress that the metadata names."""

    @property
    def session_id(self) -> int:
        """A number that identifies the run; a resumed run keeps it."""
        ...

    @property
    def started_at(self) -> float:
        """Unix time at which the run was first started."""
        ...


class Moment(Protocol):
    """How far a run is when a LoRA file is written."""

    @property
    def step(self) -> int:
        """The number of optimizer steps done."""
        ...

    @property
    def epoch(self) -> int:
        """The current epoch, counted from 1."""
        ...


def build_metadata(
    config: TrainConfig,
    data: TrainingData,
    progress: Session,
    position: Moment,
    title: str,
    base: BaseModel = DEV,
) -> dict[str, str]:
    """All metadata of one LoRA file, by key.

    config, data: the run's settings and data; progress: its session; position: the step and epoch of the file; title:
    the file's name without its extension, used unless the setting metadata_title is set; base: the model that it was
    trained on. With --no_metadata, only `modelspec.*` without the trigger phrase and what a loader must know about the
    network.
    """
    finished_at = now()
    metadata = _training_keys(config, data, progress, position, finished_at) | _dataset_keys(data)
    metadata |= _modelspec_keys(config, data, title, finished_at, base)
    metadata[OURS] = json.dumps(_our_settings(config, data, base), ensure_ascii=False)
    if config.no_metadata:
        hidden = ("modelspec.trigger_phrase", OURS)
        kept = (*WITHOUT_TRAINING, "modelspec.")
        metadata = {k: v for k, v in metadata.items() if k.startswith(kept) and k not in hidden}
    return metadata


def _training_keys(
    config: TrainConfig, data: TrainingData, progress: Session, position: Moment, finished_at: float
) -> dict[str, str]:
    same = {f"ss_{name}": getattr(config, name) for name in SAME_NAME}
    base = config.pretrained_model_name_or_path
    return _as_text(
        same
        | {
            "ss_session_id": progress.session_id,
            "ss_training_started_at": progress.started_at,
            "ss_training_finished_at": finished_at,
            "ss_output_name": config.output_name,
            "ss_num_train_images": _draws(data.samples, is_reg=False),
            "ss_num_reg_images": _draws(data.samples, is_reg=True),
            "ss_num_validation_images": len(data.validation),
            "ss_num_batches_per_epoch": data.num_batches,
            "ss_num_epochs": data.schedule.num_epochs,
            "ss_max_train_steps": data.schedule.total_steps,
            "ss_steps": position.step,
            "ss_epoch": position.epoch,
            "ss_network_alpha": config.network_dim,  # a file has alpha = rank; the setting is in OURS
            "ss_network_args": json.dumps(dict(arg.split("=", 1) for arg in config.network_args)),
            "ss_optimizer": _call(config.optimizer_type, config.optimizer_args),
            "ss_v2": False,
            "ss_base_model_version": "flux1",
            "ss_model_type": "flux",
            "ss_cache_latents": True,
            "ss_sd_model_name": base.name if base else None,
            "ss_vae_name": config.ae.name if config.ae else None,
        }
        | ({"ss_sd_model_hash": short_hash(base)} if base and base.is_file() else {})
    )


def short_hash(path: Path) -> str:
    """kohya's and AUTOMATIC1111's legacy model hash of a file.

    The first 8 hex digits of the SHA-256 of the 64 KiB that begin 1 MiB into the file.
    """
    with path.open("rb") as file:
        file.seek(0x100000)
        return hashlib.sha256(file.read(0x10000)).hexdigest()[:8]


def _draws(samples: Iterable[Sample], is_reg: bool) -> int:
    return sum(sample.num_repeats for sample in samples if sample.is_reg == is_reg)


def _call(name: str, arguments: Iterable[str]) -> str:
    text = ",".join(arguments)
    return f"{name}({text})" if text else name


def _as_text(values: dict[str, Any]) -> dict[str, str]:
    return {key: str(value) for key, value in values.items()}  # None is "None", as kohya writes it


def _dataset_keys(data: TrainingData) -> dict[str, str]:
    sections = [_section(data, index, section) for index, section in enumerate(data.config.sections)]
    folders = {
        subset.image_dir.name: {
            "n_repeats": subset.num_repeats,
            "img_count": sum(1 for sample in data.samples if sample.subset == subset),
        }
        for subset in data.config.subsets
        if not subset.is_reg
    }
    return {
        "ss_datasets": json.dumps(sections, ensure_ascii=False),
        "ss_tag_frequency": json.dumps(data.tag_frequency(), ensure_ascii=False),
        "ss_dataset_dirs": json.dumps(folders, ensure_ascii=False),
    }


def _section(data: TrainingData, index: int, section: DatasetSection) -> dict[str, Any]:
    samples = [sample for sample in data.samples if sample.dataset_index == index]
    buckets = [count for count in data.buckets() if count.dataset_index == index]
    return {
        "is_dreambooth": True,
        "batch_size_per_device": section.batch_size,
        "num_train_images": _draws(samples, is_reg=False),
        "num_reg_images": _draws(samples, is_reg=True),
        "resolution": section.resolution,
        "enable_bucket": section.enable_bucket,
        "min_bucket_reso": section.min_bucket_reso,
        "max_bucket_reso": section.max_bucket_reso,
        "bucket_info": {"buckets": {i: {"resolution": b.bucket, "count": b.draws} for i, b in enumerate(buckets)}},
        "subsets": [_subset(samples, subset) for subset in section.subsets],
    }


def _subset(samples: Iterable[Sample], subset: SubsetConfig) -> dict[str, Any]:
    return {
        "img_count": sum(1 for sample in samples if sample.subset == subset),
        "image_dir": subset.image_dir.name,
        **{name: getattr(subset, name) for name in SUBSET_KEYS},
    }


def _modelspec_keys(
    config: TrainConfig, data: TrainingData, title: str, finished_at: float, base: BaseModel
) -> dict[str, str]:
    width, height = max((section.resolution for section in data.config.sections), key=lambda r: r[0] * r[1])
    values = {
        "sai_model_spec": "1.0.1",
        "architecture": f"{base.architecture}/lora",
        "implementation": "https://github.com/black-forest-labs/flux",
        "implementation_version": f"flux-dreambooth-trainer {__version__}",
        "title": config.metadata_title or title + base.title_note,
        "resolution": f"{width}x{height}",
        "date": datetime.fromtimestamp(int(finished_at), UTC).isoformat(),
        "author": config.metadata_author,
        "description": config.metadata_description,
        "license": config.metadata_license,
        "tags": config.metadata_tags,
        "trigger_phrase": ", ".join(triggers(data)),
    }
    if (config.min_timestep, config.max_timestep) != (0, 1000):
        values["timestep_range"] = f"{config.min_timestep},{config.max_timestep}"
    return {f"modelspec.{key}": value for key, value in values.items() if value}


def triggers(data: TrainingData) -> list[str]:
    """The trigger phrases that are trained, each once, in the dataset file's order.

    They are the class_tokens of subsets in which at least one caption contains them. Regularisation images do not
    count, nor images whose target is the base model's own output.
    """
    found = [subset.class_tokens for subset in data.config.subsets if data.trains_trigger(subset)]
    return list(dict.fromkeys(tokens for tokens in found if tokens))


def _our_settings(config: TrainConfig, data: TrainingData, base: BaseModel) -> dict[str, Any]:
    concepts = [
        {
            "concept": subset.concept if _is_named(data, subset) else subset.image_dir.name,
            "trigger": subset.class_tokens if _is_named(data, subset) else None,
            "is_reg": subset.is_reg,
            "pictures": sum(1 for sample in data.samples if sample.subset == subset),
            "num_repeats": subset.num_repeats,
        }
        for subset in data.config.subsets
    ]
    names = (field.name for field in fields(config) if field.name not in OF_ONE_START)
    settings = {name: _public(getattr(config, name)) for name in names}
    return {"version": __version__, "base_model": base.name, "concepts": concepts, "config": settings}


def _is_named(data: TrainingData, subset: SubsetConfig) -> bool:
    """Whether the file may name a subset by its class_tokens: no trigger is promised that was not trained."""
    return subset.is_reg or data.trains_trigger(subset)


def _public(value: Any) -> Any:
    return value.name if isinstance(value, Path) else value
