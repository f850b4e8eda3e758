"""Rules between settings: contradictions are problems, and a setting without effect gives a notice."""

import re
from collections.abc import Callable, Collection, Mapping

from trainer.common.problems import Problem
from trainer.config.settings import TrainConfig

# the first setting has no effect without the second
NEEDS = (
    ("save_last_n_epochs", "save_every_n_epochs"),
    ("save_last_n_steps", "save_every_n_steps"),
    ("save_last_n_epochs_state", "save_every_n_epochs"),
    ("save_last_n_steps_state", "save_every_n_steps"),
    ("save_last_n_epochs_state", "save_state"),
    ("save_last_n_steps_state", "save_state"),
    ("sample_every_n_epochs", "sample_prompts"),
    ("sample_every_n_steps", "sample_prompts"),
    ("sample_at_first", "sample_prompts"),
    ("dim_from_weights", "network_weights"),
    ("resume_anyway", "resume"),
)

FILE_NAME = re.compile(r"(?![.\s])[^/\\\x00-\x1f\x7f-\x9f]+")  # no folder, not hidden, one line
_HUBER = ("huber", "smooth_l1")


def _samples(c: TrainConfig) -> bool:
    return bool(c.sample_every_n_epochs or c.sample_every_n_steps or c.sample_at_first)


def _validates(c: TrainConfig) -> bool:
    return bool(c.validate_every_n_epochs or c.validate_every_n_steps)


def _density(c: TrainConfig) -> str:
    """The weighting_scheme, where it is the density of timesteps."""
    return c.weighting_scheme if c.timestep_sampling == "sigma" else ""


_WITH_SIGMA = "with timestep_sampling sigma"
_WITH_VALIDATION = "needs validate_every_n_epochs or validate_every_n_steps"
# setting, when it has an effect, and the rest of the message where it has none
EFFECTIVE: tuple[tuple[str, Callable[[TrainConfig], bool], str], ...] = (
    ("huber_schedule", lambda c: c.loss_type in _HUBER, "applies to loss_type huber or smooth_l1"),
    ("huber_c", lambda c: c.loss_type in _HUBER, "applies to loss_type huber or smooth_l1"),
    ("huber_scale", lambda c: c.loss_type in _HUBER, "applies to loss_type huber or smooth_l1"),
    ("sigmoid_scale", lambda c: c.timestep_sampling in ("sigmoid", "shift", "flux_shift"),
     "applies to timestep_sampling sigmoid, shift or flux_shift"),
    ("discrete_flow_shift", lambda c: c.timestep_sampling in ("shift", "sigma"),
     "applies to timestep_sampling shift or sigma; flux_shift computes its shift from the image size"),
    ("logit_mean", lambda c: _density(c) == "logit_normal", f"applies to weighting_scheme logit_normal {_WITH_SIGMA}"),
    ("logit_std", lambda c: _density(c) == "logit_normal", f"applies to weighting_scheme logit_normal {_WITH_SIGMA}"),
    ("mode_scale", lambda c: _density(c) == "mode", f"applies to weighting_scheme mode {_WITH_SIGMA}"),
    ("checkpoint_blocks", lambda c: not c.gradient_checkpointing,
     "applies without gradient_checkpointing, which recomputes all blocks"),
    ("dynamo_backend", lambda c: c.torch_compile, "needs torch_compile"),
    ("compile_dynamic", lambda c: c.torch_compile, "needs torch_compile"),
    ("wandb_run_name", lambda c: c.log_with in ("wandb", "all"), "applies to log_with wandb or all"),
    ("logging_dir", lambda c: c.log_with in ("tensorboard", "all"), "applies to log_with tensorboard or all"),
    ("lr_scheduler_num_cycles",
     lambda c: c.lr_scheduler in ("cosine_with_restarts", "cosine_with_min_lr", "warmup_stable_decay"),
     "applies to lr_scheduler cosine_with_restarts, cosine_with_min_lr or warmup_stable_decay"),
    ("lr_scheduler_power", lambda c: c.lr_scheduler == "polynomial", "applies to lr_scheduler polynomial"),
    ("lr_scheduler_min_lr_ratio", lambda c: c.lr_scheduler in ("cosine_with_min_lr", "warmup_stable_decay"),
     "applies to lr_scheduler cosine_with_min_lr or warmup_stable_decay"),
    ("sample_prompts", _samples, "needs sample_every_n_epochs, sample_every_n_steps or sample_at_first"),
    ("validation_seed", _validates, _WITH_VALIDATION),
    ("max_validation_steps", _validates, _WITH_VALIDATION),
    ("network_dim", lambda c: not c.dim_from_weights, "applies without dim_from_weights, which uses the file's ranks"),
    ("network_alpha", lambda c: not c.dim_from_weights, "applies without dim_from_weights, which sets it to the rank"),
    ("training_comment", lambda c: not c.no_metadata, "applies without no_metadata"),
    ("save_state_on_train_end", lambda c: not c.save_state, "applies without save_state, which saves that state too"),
    ("learning_rate", lambda c: c.unet_lr is None, "is overridden by unet_lr"),
    ("lr_scheduler_timescale", lambda c: c.lr_scheduler == "inverse_sqrt",
     "applies to lr_scheduler inverse_sqrt"),
)  # fmt: skip


def contradictions(config: TrainConfig, where: Mapping[str, str], failed: Collection[str] = ()) -> list[Problem]:
    """A problem for each setting that contradicts or lacks another one, and for an output_name that is no file name.

    where: setting -> the flag, or file and line, that it comes from; failed: settings whose values could not be read,
    so that they do not count as missing.
    """
    problems = [
        Problem(where.get(name, name), f"has no effect without {needed}", f"set {needed} or leave {name} out")
        for name, needed in NEEDS
        if getattr(config, name) and not getattr(config, needed) and needed not in failed
    ]
    return problems + [
        Problem(where.get(name, name), what, hint) for name, wrong, what, hint in _pairs(config) if wrong
    ]


def without_effect(config: TrainConfig) -> list[str]:
    """One line for each setting that differs from its default but has no effect in this run, with the reason."""
    default = TrainConfig()
    return [
        f"{name}: no effect in this run; it {condition}"
        for name, acts, condition in EFFECTIVE
        if getattr(config, name) != getattr(default, name) and not acts(config)
    ] + [*_density_notice(config), *_held_out_notice(config)]


def _held_out_notice(config: TrainConfig) -> list[str]:
    if config.validation_split and not _validates(config):
        what = "validation_split: holds images out of training, but no validation uses them"
        return [f"{what}; it {_WITH_VALIDATION}"]
    return []


def _density_notice(config: TrainConfig) -> list[str]:
    if config.weighting_scheme in ("logit_normal", "mode") and config.timestep_sampling != "sigma":
        scheme = config.weighting_scheme
        return [f"weighting_scheme: no effect in this run; {scheme} applies to timestep_sampling sigma"]
    return []


def _pairs(config: TrainConfig) -> list[tuple[str, bool, str, str]]:
    """(setting, whether it is wrong, what is wrong, the fix)."""
    low, high = config.min_timestep, config.max_timestep
    return [
        (
            "min_timestep",
            low >= high,
            f"{low} is not below max_timestep {high}",
            "lower one or raise the other",
        ),
        (
            "min_bucket_reso",
            config.min_bucket_reso > config.max_bucket_reso,
            f"{config.min_bucket_reso} is above max_bucket_reso {config.max_bucket_reso}",
            "lower one or raise the other",
        ),
        (
            "output_name",
            not FILE_NAME.fullmatch(config.output_name),
            f"{config.output_name!r} is not a file name",
            "use a plain name without folders (output_dir is the folder), leading dot or control characters",
        ),
    ]
