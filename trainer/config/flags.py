"""Words that are no setting: kohya's flags that are always on here, and what is meant by others' names."""

# accepted and said once: always on here, or without meaning here
ALWAYS: dict[str, str] = {
    "network_train_unet_only": "always so unless text_encoder_lr is above 0",
    "cache_latents": "always on; latents are cached on disk by content",
    "cache_latents_to_disk": "always on; latents are cached on disk by content",
    "cache_text_encoder_outputs": "always on; text is cached on disk by content",
    "cache_text_encoder_outputs_to_disk": "always on; text is cached on disk by content",
    "cache_info": "no effect; every picture is read and checked, which takes seconds",
    "skip_cache_check": "no effect; the cache goes by content, so there is nothing to skip",
    "vae_batch_size": "no effect; pictures are encoded once, one at a time",
    "text_encoder_batch_size": "no effect; captions are encoded once",
    "no_half_vae": "always on; the autoencoder computes in float32",
    "sdpa": "always on",
    "xformers": "no effect; torch's own attention (SDPA) is used",
    "mem_eff_attn": "no effect; torch's own attention (SDPA) is used",
    "max_data_loader_n_workers": "no effect; cached pictures need no worker processes",
    "persistent_data_loader_workers": "no effect; cached pictures need no worker processes",
    "lowram": "always on; weights go straight to the device, with no second copy in host memory",
    "highvram": "no effect; nothing is emptied from the device between batches",
    "disable_mmap_load_safetensors": "always on; files are read without memory mapping",
    "tokenizer_cache_dir": "no effect; tokenizers are read from tokenizer_dir and never downloaded",
    "use_safetensors": "always on",
    "log_config": "always on; the resolved settings are written into the run's folder",
    "console_log_simple": "always so where the output is not a terminal",
}
ALWAYS_WITH_VALUE = frozenset(
    {"vae_batch_size", "text_encoder_batch_size", "max_data_loader_n_workers", "tokenizer_cache_dir"}
)

# single values that kohya knows and we refuse, with what to use
REFUSED_VALUES: dict[tuple[str, str], str] = {
    ("mixed_precision", "fp16"): "use bf16; FLUX's activations overflow in fp16",
    ("model_type", "chroma"): "only FLUX.1-dev and FLUX.1-schnell are trained here",
    (
        "model_prediction_type",
        "sigma_scaled",
    ): "use raw: FLUX predicts the velocity, which is the loss's target as is",
    (
        "model_prediction_type",
        "additive",
    ): "use raw: FLUX predicts the velocity, which is the loss's target as is",
    (
        "huber_schedule",
        "snr",
    ): "use constant or exponential; flow matching has no SNR schedule, and kohya stops there",
    ("lr_scheduler", "piecewise_constant"): "use constant_with_warmup or warmup_stable_decay",
    ("lr_scheduler", "adafactor"): "use constant with optimizer_type Adafactor",
    ("save_model_as", "ckpt"): "use safetensors; pickled files can run code when they are opened",
    ("save_model_as", "pt"): "use safetensors; pickled files can run code when they are opened",
    ("network_module", "networks.lora"): "use networks.lora_flux",
    ("network_module", "networks.oft_flux"): "only LoRA is trained; use networks.lora_flux",
    ("network_module", "lycoris.kohya"): "only LoRA is trained; use networks.lora_flux",
}

_IN_DATASET = "write it into the --dataset_config file, under [[datasets.subsets]]"
# names of other trainers, and of the dataset file, that are not near ours by spelling
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
    "resume_from_checkpoint": "use resume with a state folder",
    "image_dir": _IN_DATASET,
    "class_tokens": _IN_DATASET,
    "num_repeats": _IN_DATASET,
    "is_reg": _IN_DATASET,
    "instance_data_dir": "list the folder as image_dir in the --dataset_config file",
    "instance_prompt": "write it as class_tokens into the --dataset_config file",
    "class_data_dir": "list the folder with is_reg = true in the --dataset_config file",
    "class_prompt": "write it as class_tokens of the is_reg subset in the --dataset_config file",
}
