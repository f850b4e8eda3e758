"""What a job may set: an allow-list, since a job comes from a web page, or from a preset that somebody shared.

A job reads and writes only inside the repository's folders, loads no code that its settings name, and replaces nothing.
Paths are judged by their text: a symbolic link in one of these folders was put there by the user, and is followed.
"""

import re
from typing import Any

PATHS = {  # the folder in which each path must be
    **dict.fromkeys(("pretrained_model_name_or_path", "clip_l", "t5xxl", "ae", "tokenizer_dir"), "models"),
    "network_weights": "models",
    "dataset_config": "flux_data",
    "sample_prompts": "flux_data",
    "cache_dir": "flux_data",
    "output_dir": "models/loras",
    "resume": "runs",
}
VALUES = frozenset(
    """
    alpha_mask apply_t5_attn_mask base_precision blocks_to_swap bucket_no_upscale bucket_reso_steps
    caption_dropout_every_n_epochs caption_dropout_rate caption_extension caption_prefix caption_separator
    caption_suffix caption_tag_dropout_rate checkpoint_blocks class_preservation_weight compile_dynamic cuda_graphs
    deterministic diff_output_preservation dim_from_weights discrete_flow_shift dynamo_backend ema_decay enable_bucket
    enable_wildcard evaluate_every_n_epochs flip_aug full_bf16 gradient_accumulation_steps gradient_checkpointing
    guidance_scale huber_c huber_scale huber_schedule keep_tokens keep_tokens_separator learning_rate log_every log_with
    logit_mean logit_std loss_type lr_decay_steps lr_scheduler lr_scheduler_min_lr_ratio lr_scheduler_num_cycles
    lr_scheduler_power lr_scheduler_timescale lr_warmup_steps mask_background masked_loss max_bucket_reso max_grad_norm
    max_timestep max_train_epochs max_train_steps max_validation_steps memory metadata_author metadata_description
    metadata_license metadata_tags metadata_title min_bucket_reso min_free_memory min_timestep mixed_precision
    mode_scale model_prediction_type model_type network_alpha network_args network_dim network_dropout network_module
    no_metadata optimizer_args optimizer_type output_name prior_loss_weight resize_interpolation resolution
    resume_anyway run_dir sample_at_first sample_every_n_epochs sample_every_n_steps sample_sampler
    save_every_n_epochs save_every_n_steps save_last_n_epochs save_last_n_epochs_state save_last_n_steps
    save_last_n_steps_state save_model_as save_precision save_state save_state_on_train_end secondary_separator seed
    shuffle_caption sigmoid_scale stop_when t5xxl_max_token_length text_encoder_lr timestep_sampling token_warmup_min
    token_warmup_step torch_compile train_batch_size training_comment unet_lr validate_every_n_epochs
    validate_every_n_steps validation_seed validation_split weighting_scheme
    """.split()
)
REFUSED = {  # with the reason, where it may surprise
    "overwrite": "a job replaces nothing; choose another output_name",
    "logging_dir": "a job's curves are in runs/OUTPUT_NAME/tensorboard",
    "wandb_run_name": "a job sends nothing to other servers",
}
MAX_NAME = 100  # bytes of an output_name
QUEUE = "queue"  # the folder of jobs in runs/, so no run's name
_NAME = re.compile(r"(?![.\s-])[^/\\\x00-\x1f\x7f-\x9f\ud800-\udfff]+")


def refusal(name: str, value: Any) -> tuple[str, str] | None:
    """Why a job may not have this setting, as the rest of a sentence and a hint; None if it may.

    Whether the value is a valid one is left to the trainer.
    """
    if name in PATHS:
        if is_inside(value, PATHS[name]):
            return None
        return f"must be inside {PATHS[name]}/", f'write a path such as "{PATHS[name]}/NAME", without ".."'
    if name not in VALUES:
        return "is not a setting that a job may have", REFUSED.get(name, "leave it out, or train from a command line")
    if name == "output_name" and not is_output_name(value):
        hint = "letters, digits, spaces, - and _ are safe; queue is taken"
        return f"is not a plain file name of at most {MAX_NAME} bytes", hint
    if name == "optimizer_type" and "." in str(value):
        return "names a class, and a job loads no code", "use one of the built-in optimizers"
    if name == "log_with" and str(value).lower() not in ("tensorboard", "none"):
        return "sends the curves to another server", 'write "tensorboard" or "none"'
    if name == "run_dir" and value != "runs":
        return 'must be "runs", where the page looks for runs', "leave it out"
    return None


def is_output_name(value: Any) -> bool:
    """Whether a value can name a run and its files: one line, no folder, not hidden, not that of the queue."""
    return (
        isinstance(value, str)
        and bool(_NAME.fullmatch(value))
        and value == value.strip()
        and len(value.encode()) <= MAX_NAME
        and value.casefold() != QUEUE
    )


def is_inside(value: Any, folder: str) -> bool:
    """Whether a relative path, as it is written, is the folder or in it."""
    if not isinstance(value, str) or not value or re.search(r"[\\\x00-\x1f\x7f:~]", value) or value.startswith("/"):
        return False
    parts = [part for part in value.split("/") if part not in ("", ".")]
    root = folder.split("/")
    return ".." not in parts and parts[: len(root)] == root
