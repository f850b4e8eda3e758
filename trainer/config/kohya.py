"""kohya's flags that are not settings here: always on, refused with a replacement, or known by another name."""

DOCS = "docs/reference/kohya.md"  # where every flag and key is listed

# accepted with a notice: always on, or without meaning here
ALWAYS: dict[str, str] = {
    "network_train_unet_only": "always on unless text_encoder_lr is above 0",
    "cache_latents": "always on; latents are cached on disk by content",
    "cache_latents_to_disk": "always on; latents are cached on disk by content",
    "cache_text_encoder_outputs": "always on; text embeddings are cached on disk by content",
    "cache_text_encoder_outputs_to_disk": "always on; text embeddings are cached on disk by content",
    "cache_info": "no effect; every image is read and checked at each start, which takes seconds",
    "skip_cache_check": "no effect; the cache is keyed by content, so there is nothing to skip",
    "vae_batch_size": "no effect; images are encoded once, one at a time",
    "text_encoder_batch_size": "no effect; captions are encoded once",
    "no_half_vae": "always on; the autoencoder runs in float32",
    "sdpa": "always on",
    "xformers": "no effect; PyTorch's scaled dot-product attention (SDPA) is used",
    "mem_eff_attn": "no effect; PyTorch's scaled dot-product attention (SDPA) is used",
    "max_data_loader_n_workers": "no effect; cached images need no worker processes",
    "persistent_data_loader_workers": "no effect; cached images need no worker processes",
    "lowram": "always on; weights are loaded straight to the device, without a second copy in CPU memory",
    "highvram": "no effect; nothing is moved off the device between batches",
    "disable_mmap_load_safetensors": "always on; files are read without memory mapping",
    "tokenizer_cache_dir": "no effect; tokenizers are read from tokenizer_dir and never downloaded",
    "use_safetensors": "always on",
    "log_config": "always on; the resolved settings are written to the run's folder",
    "console_log_simple": "always on when the output is not a terminal",
}
ALWAYS_WITH_VALUE = frozenset(
    {"vae_batch_size", "text_encoder_batch_size", "max_data_loader_n_workers", "tokenizer_cache_dir"}
)

# values that kohya accepts and that are refused here, with what to use instead
REFUSED_VALUES: dict[tuple[str, str], str] = {
    ("mixed_precision", "fp16"): "use bf16; FLUX's activations overflow in fp16",
    ("model_type", "chroma"): "only FLUX.1 models are trained here",
    (
        "model_prediction_type",
        "sigma_scaled",
    ): "use raw: FLUX predicts the velocity, which is the target of the loss",
    (
        "model_prediction_type",
        "additive",
    ): "use raw: FLUX predicts the velocity, which is the target of the loss",
    (
        "huber_schedule",
        "snr",
    ): "use constant or exponential; flow matching has no SNR schedule, and kohya stops with an error too",
    ("lr_scheduler", "piecewise_constant"): "use constant_with_warmup or warmup_stable_decay",
    ("lr_scheduler", "adafactor"): "use constant with optimizer_type Adafactor",
    ("save_model_as", "ckpt"): "use safetensors; pickle files can run code when they are loaded",
    ("save_model_as", "pt"): "use safetensors; pickle files can run code when they are loaded",
    ("network_module", "networks.lora"): "use networks.lora_flux",
    ("network_module", "networks.oft_flux"): "only LoRA is trained; use networks.lora_flux",
    ("network_module", "lycoris.kohya"): "only LoRA is trained; use networks.lora_flux",
}

_IN_DATASET = "set it in the --dataset_config file, under [[datasets.subsets]]"
# names from other trainers and from the dataset file whose spelling is not close to ours
MEANT: dict[str, str] = {
    "lr": "use learning_rate",
    "rank": "use network_dim",
    "lora_rank": "use network_dim",
    "alpha": "use network_alpha",
    "lora_alpha": "use network_alpha",
    "steps": "use max_train_steps",
    "epochs": "use max_train_epochs",
    "num_train_epochs": "use max_train_epochs",
    "batch_size": "use train_batch_size, or batch_size in the --dataset_config file",
    "optimizer": "use optimizer_type",
    "ema": "use ema_decay",
    "checkpointing_steps": "use save_every_n_steps",
    "resume_from_checkpoint": "use resume, with a state folder",
    "image_dir": _IN_DATASET,
    "class_tokens": _IN_DATASET,
    "num_repeats": _IN_DATASET,
    "is_reg": _IN_DATASET,
    "instance_data_dir": "set the folder as image_dir in the --dataset_config file",
    "instance_prompt": "set it as class_tokens in the --dataset_config file",
    "class_data_dir": "add the folder as a subset with is_reg = true in the --dataset_config file",
    "class_prompt": "set it as class_tokens of the is_reg subset in the --dataset_config file",
}

# refused, each with what to do instead
_CACHED = "images are encoded once and cached; use flip_aug, or add varied crops to the folder"
_DATASET = "list the folders in a --dataset_config file, as one [[datasets.subsets]] each"
_DDP = "leave it out; accelerate's own settings are used"
_DEEPSPEED = "leave it out; only the LoRA is trained, so data parallelism (accelerate launch) is enough"
_HUB = "training uses no network; upload the finished file with `hf upload`"
_LOG = "leave it out; runs/NAME/log.jsonl has everything, and curves are named after output_name"
_MEMORY = "leave it out; --memory=auto chooses what fits, and --gradient_checkpointing saves the most memory"
_METADATA = "leave it out; use metadata_title, _author, _description, _license and _tags"
_NOISE = "leave it out; it does not apply to flow matching, and kohya ignores it for FLUX"
_RESUME = "use --resume STATE, which continues exactly where the run stopped"
_SD = "leave it out; it is for Stable Diffusion, not FLUX"
_SNR = "leave it out; kohya ignores it for FLUX. weighting_scheme weights the loss by timestep"

REFUSED: dict[str, str] = {
    # models and memory
    "vae": "use --ae",
    "v2": _SD,
    "v_parameterization": _SD,
    "clip_skip": _SD,
    "max_token_length": "CLIP-L always reads 77 tokens; for T5 use --t5xxl_max_token_length",
    "controlnet_model_name_or_path": "leave it out; it is for ControlNet training",
    "fp8_base": "use --base_precision fp8",
    "fp8_base_unet": "use --base_precision fp8",
    "full_fp16": "use --full_bf16; FLUX overflows in fp16",
    "split_mode": _MEMORY,
    "cpu_offload_checkpointing": "use --gradient_checkpointing",
    "base_weights": "start from a LoRA with --network_weights, or merge LoRAs afterwards: python -m trainer convert",
    "base_weights_multiplier": "leave it out, with base_weights",
    # data
    "train_data_dir": _DATASET,
    "reg_data_dir": f"{_DATASET}, with is_reg = true",
    "in_json": f"{_DATASET}, with caption files next to the images",
    "conditioning_data_dir": _IN_DATASET,
    "dataset_class": _DATASET,
    "dataset_repeats": "use num_repeats in the --dataset_config file",
    "caption_extention": "use --caption_extension",
    "color_aug": _CACHED,
    "random_crop": _CACHED,
    "face_crop_aug_range": _CACHED,
    "weighted_captions": "leave it out; captions are used as written, without (word:1.3) weights",
    "debug_dataset": "use `python -m trainer check`, which shows buckets, repeats and steps",
    # network and optimizer
    "network_train_text_encoder_only": "the transformer is always trained; --text_encoder_lr also trains CLIP-L",
    "scale_weight_norms": "lower --learning_rate or --network_dim, or use --network_dropout",
    "use_8bit_adam": "use --optimizer_type=AdamW8bit",
    "use_lion_optimizer": "use --optimizer_type=Lion",
    "fused_backward_pass": "leave it out; it only helps when the full model is trained",
    "lr_scheduler_type": "use --lr_scheduler with one of its values",
    "lr_scheduler_args": "use --lr_scheduler_num_cycles, _power, _min_lr_ratio or _timescale",
    # noise and loss
    "noise_offset": _NOISE,
    "noise_offset_random_strength": _NOISE,
    "multires_noise_iterations": _NOISE,
    "multires_noise_discount": _NOISE,
    "adaptive_noise_scale": _NOISE,
    "zero_terminal_snr": _NOISE,
    "ip_noise_gamma": "leave it out; it moves inputs off the straight noise path that FLUX was trained on",
    "ip_noise_gamma_random_strength": "leave it out, with ip_noise_gamma",
    "min_snr_gamma": _SNR,
    "debiased_estimation_loss": _SNR,
    "scale_v_pred_loss_like_noise_pred": _SD,
    "v_pred_like_loss": _SD,
    # start and state
    "initial_epoch": _RESUME,
    "initial_step": _RESUME,
    "skip_until_initial_step": _RESUME,
    "resume_from_huggingface": f"download the state, then {_RESUME}",
    "save_n_epoch_ratio": "use --save_every_n_epochs",
    "output_config": "leave it out; the resolved settings are always written to runs/NAME/config.toml",
    # hub, logs, metadata
    "huggingface_repo_id": _HUB,
    "huggingface_repo_type": _HUB,
    "huggingface_path_in_repo": _HUB,
    "huggingface_token": f"{_HUB}; never put a token on a command line",
    "huggingface_repo_visibility": _HUB,
    "save_state_to_huggingface": _HUB,
    "async_upload": _HUB,
    "wandb_api_key": "run `wandb login` once, or set WANDB_API_KEY; never put a key on a command line",
    "log_prefix": _LOG,
    "log_tracker_name": _LOG,
    "log_tracker_config": _LOG,
    "console_log_level": _LOG,
    "console_log_file": "redirect the output: 2>&1 | tee FILE",
    "metadata_usage_hint": _METADATA,
    "metadata_thumbnail": _METADATA,
    "metadata_merged_from": "leave it out; `python -m trainer convert` writes it when merging",
    "metadata_trigger_phrase": "leave it out; it is written from class_tokens in the --dataset_config file",
    "metadata_preprocessor": _METADATA,
    "metadata_is_negative_embedding": _METADATA,
    # several GPUs
    "ddp_timeout": _DDP,
    "ddp_gradient_as_bucket_view": _DDP,
    "ddp_static_graph": _DDP,
    "deepspeed": _DEEPSPEED,
    "zero_stage": _DEEPSPEED,
    "offload_optimizer_device": _DEEPSPEED,
    "offload_optimizer_nvme_path": _DEEPSPEED,
    "offload_param_device": _DEEPSPEED,
    "offload_param_nvme_path": _DEEPSPEED,
    "zero3_init_flag": _DEEPSPEED,
    "zero3_save_16bit_model": _DEEPSPEED,
    "fp16_master_weights_and_gradients": _DEEPSPEED,
}
