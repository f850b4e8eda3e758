"""Every setting of a training run: name, type, default, what it does, and how it differs from kohya's.

Names are those of kohya's flux_train_network.py where it has one. `trainer.config.parse` fills this from
defaults, a TOML file and flags; the rest of the program only reads it.
"""

# ruff: noqa: RUF009 (_setting makes dataclasses' own field())
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

SAME = "same"  # as in kohya's trainer, default included
OURS = "ours"  # kohya has no such flag


def _setting(
    default: Any,
    help: str,
    kohya: str = SAME,
    *,
    group: str,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
) -> Any:
    """A field with its help, bounds (least <= value <= most, above < value) and difference from kohya."""
    metadata = {"help": help, "kohya": kohya, "group": group, "least": least, "most": most, "above": above}
    return field(default=default, metadata=metadata)


_models = partial(_setting, group="Models")
_data = partial(_setting, group="Data")
_captions = partial(_setting, group="Captions")
_output = partial(_setting, group="Output")
_network = partial(_setting, group="Network")
_optimizer = partial(_setting, group="Optimizer")
_training = partial(_setting, group="Training")
_memory = partial(_setting, group="Memory")
_loss = partial(_setting, group="Timesteps and loss")
_watching = partial(_setting, group="Watching")

Interpolation = Literal["lanczos", "nearest", "bilinear", "linear", "bicubic", "cubic", "area"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The resolved settings of one run. Paths are as given; a relative one starts at the current folder."""

    pretrained_model_name_or_path: Path | None = _models(
        None,
        "the FLUX.1 transformer, one .safetensors file",
        "a single file in the original (BFL) or ComfyUI layout; a diffusers folder is refused",
    )
    clip_l: Path | None = _models(None, "the CLIP-L text encoder, .safetensors")
    t5xxl: Path | None = _models(None, "the T5-XXL text encoder, .safetensors")
    ae: Path | None = _models(None, "the FLUX autoencoder, .safetensors")
    tokenizer_dir: Path | None = _models(
        None, "folder that holds tokenizer/ and tokenizer_2/; else looked for beside clip_l", OURS
    )
    model_type: Literal["flux"] = _models(
        "flux", "family of the model", "flux only; dev or schnell is seen in the file"
    )
    t5xxl_max_token_length: int | None = _models(
        None, "T5 tokens per caption; 512 for dev and 256 for schnell if not given", least=1, most=512
    )
    apply_t5_attn_mask: bool = _models(False, "hide T5's padding from T5 and from the transformer")

    dataset_config: Path | None = _data(None, "TOML file that lists the folders of pictures")
    cache_dir: Path | None = _data(None, "where latents and text are cached; .cache beside dataset_config", OURS)
    prior_loss_weight: float = _data(1.0, "weight of the loss of regularisation pictures (is_reg)", least=0)
    diff_output_preservation: bool = _data(
        False,
        "for is_reg pictures, learn the base model's own prediction",
        "kohya knows it only as a subset's custom_attributes; here also for all is_reg subsets at once",
    )
    resolution: str = _data("1024", 'pixels, "side" or "width,height"', "default 1024")
    train_batch_size: int = _data(1, "pictures per batch where the dataset names no batch_size", least=1)
    enable_bucket: bool = _data(False, "sort pictures into buckets of like aspect ratio instead of cropping to one")
    min_bucket_reso: int = _data(256, "shortest side of a bucket in pixels", least=16)
    max_bucket_reso: int = _data(1024, "longest side of a bucket in pixels", least=16)
    bucket_reso_steps: int = _data(64, "sides of buckets are multiples of this", "any multiple of 16", least=16)
    bucket_no_upscale: bool = _data(False, "never enlarge a picture for its bucket")
    resize_interpolation: Interpolation | None = _data(
        None, "how pictures are resized; area when shrinking and lanczos when enlarging if not given"
    )
    flip_aug: bool = _data(False, "mirror a picture in half of its draws", "an even coin for every draw")
    validation_split: float = _data(0.0, "share of the pictures held out for validation", least=0, most=0.9)
    validation_seed: int | None = _data(
        None, "seed of the choice of held-out pictures; seed if not given", "no picture is ever on both sides"
    )

    caption_extension: str | None = _captions(
        None,
        "ending of caption files; .txt or .caption, whichever is there, if not given",
        "default .caption there",
    )
    caption_separator: str = _captions(",", "what separates the tags of a caption")
    shuffle_caption: bool = _captions(False, "shuffle the tags", "works with cached text; each variant is encoded once")
    keep_tokens: int = _captions(0, "leading tags that are never shuffled or dropped", least=0)
    keep_tokens_separator: str = _captions("", "what divides fixed from shuffled tags, instead of keep_tokens")
    secondary_separator: str | None = _captions(None, "joins tags that move together; becomes caption_separator")
    caption_prefix: str | None = _captions(None, "put before every caption")
    caption_suffix: str | None = _captions(None, "put after every caption")
    enable_wildcard: bool = _captions(
        False, "choose one of {a|b}, and one of a caption's lines", "works with cached text"
    )
    caption_dropout_rate: float = _captions(
        0.0, "share of draws with an empty caption", "works with cached text", least=0, most=1
    )
    caption_dropout_every_n_epochs: int = _captions(
        0, "empty captions in every n-th epoch", "works with cached text", least=0
    )
    caption_tag_dropout_rate: float = _captions(
        0.0, "share of tags dropped from each draw", "works with cached text", least=0, most=1
    )
    token_warmup_min: int = _captions(1, "tags kept at the start of token warm-up", least=1)
    token_warmup_step: float = _captions(
        0.0, "steps, or share of all steps, until all tags are kept", "works with cached text", least=0
    )

    output_dir: Path = _output(Path("models/loras"), "where LoRA files go, and nothing else", "default models/loras")
    output_name: str = _output("flux_dreambooth", "name of the LoRA file and of the run", "default flux_dreambooth")
    run_dir: Path = _output(
        Path("runs"), "log, samples, states and settings of the run go to RUN_DIR/OUTPUT_NAME", OURS
    )
    save_model_as: Literal["safetensors"] = _output("safetensors", "format of the LoRA file", "safetensors only")
    save_precision: Literal["float", "fp16", "bf16"] = _output("bf16", "precision of the LoRA file", "default bf16")
    save_every_n_epochs: int | None = _output(None, "save a LoRA file every n epochs", least=1)
    save_every_n_steps: int | None = _output(
        None,
        "save a LoRA file every n steps",
        "a step that ends an epoch which is saved too gives one file, with the name of the epoch",
        least=1,
    )
    save_last_n_epochs: int | None = _output(None, "of the files saved by epoch keep the last n", least=1)
    save_last_n_steps: int | None = _output(None, "of the files saved by step keep those of the last n steps", least=1)
    save_last_n_epochs_state: int | None = _output(None, "save_last_n_epochs for states", least=1)
    save_last_n_steps_state: int | None = _output(None, "save_last_n_steps for states", least=1)
    save_state: bool = _output(
        False,
        "with each LoRA file save all that a resume needs",
        "safetensors and JSON in RUN_DIR/OUTPUT_NAME; no pickle; the resumed run is bitwise the same",
    )
    save_state_on_train_end: bool = _output(False, "save a state at the end")
    resume: Path | None = _output(None, "state folder to go on from", "exact, in mid-epoch too; continues the numbers")
    resume_anyway: bool = _output(False, "resume although settings or pictures have changed", OURS)
    no_metadata: bool = _output(False, "write no training metadata into the LoRA file")
    training_comment: str | None = _output(None, "comment kept in the metadata")
    metadata_title: str | None = _output(None, "title in the metadata; output_name if not given")
    metadata_author: str | None = _output(None, "author in the metadata")
    metadata_description: str | None = _output(None, "description in the metadata")
    metadata_license: str | None = _output(None, "license in the metadata")
    metadata_tags: str | None = _output(None, "tags in the metadata, separated by commas")

    network_module: Literal["networks.lora_flux"] = _network(
        "networks.lora_flux", "kind of adapter: LoRA", "networks.lora_flux only, and it is the default"
    )
    network_dim: int = _network(16, "rank", "default 16", least=1)
    network_alpha: float | None = _network(
        None,
        "the LoRA is scaled by alpha / rank; the rank if not given",
        "default network_dim, not 1",
        least=0,
    )
    network_args: tuple[str, ...] = _network(
        (), "key=value …: which layers, with which rank", "see the table of network_args"
    )
    network_dropout: float | None = _network(
        None, "dropout of the LoRA's hidden values, between down and up", least=0, most=0.99
    )
    network_weights: Path | None = _network(None, "LoRA file to start from", "any common LoRA layout")
    dim_from_weights: bool = _network(False, "take the ranks from network_weights")

    learning_rate: float = _optimizer(1e-4, "learning rate", "default 1e-4", above=0)
    unet_lr: float | None = _optimizer(None, "learning rate of the transformer's LoRA, instead", above=0)
    text_encoder_lr: float = _optimizer(
        0.0,
        "learning rate of a LoRA of CLIP-L; 0 trains none",
        "default 0; there CLIP-L is trained unless --network_train_unet_only. T5 is never trained",
        least=0,
    )
    optimizer_type: str = _optimizer(
        "AdamW",
        "AdamW, Prodigy, Adafactor, Lion, AdamW8bit and bitsandbytes' others, or any module.Class",
        "Prodigy and Lion are built in; D-Adaptation and the rest by their module.Class",
    )
    optimizer_args: tuple[str, ...] = _optimizer((), "key=value … for the optimizer", "an unknown key is an error")
    max_grad_norm: float = _optimizer(1.0, "clip the gradient to this norm; 0 does not clip", least=0)
    lr_scheduler: Literal[
        "constant",
        "constant_with_warmup",
        "linear",
        "cosine",
        "cosine_with_restarts",
        "cosine_with_min_lr",
        "polynomial",
        "inverse_sqrt",
        "warmup_stable_decay",
    ] = _optimizer("constant", "how the learning rate moves", "piecewise_constant and adafactor are refused")
    lr_warmup_steps: int | float = _optimizer(
        0, "steps of warm-up, or a share of all steps below 1", "steps are optimizer steps", least=0
    )
    lr_decay_steps: int | float = _optimizer(
        0, "steps of decay at the end (warmup_stable_decay), or a share below 1", least=0
    )
    lr_scheduler_num_cycles: int = _optimizer(1, "cycles of cosine_with_restarts", least=1)
    lr_scheduler_power: float = _optimizer(1.0, "power of polynomial", above=0)
    lr_scheduler_min_lr_ratio: float | None = _optimizer(None, "lowest learning rate as a share", least=0, most=1)
    lr_scheduler_timescale: int | None = _optimizer(None, "time scale of inverse_sqrt in steps", least=1)
    max_train_steps: int = _optimizer(
        1600,
        "optimizer steps",
        "max_train_epochs wins as there; but as a flag it beats a max_train_epochs of the config_file",
        least=1,
    )
    max_train_epochs: int | None = _optimizer(None, "epochs; wins over max_train_steps", least=1)
    gradient_accumulation_steps: int = _optimizer(
        1, "batches per optimizer step", "a partial last group is divided by its true size", least=1
    )
    ema_decay: float | None = _optimizer(
        None, "keep a moving average of the LoRA, e.g. 0.999, and save that", OURS, above=0, most=0.99999
    )

    seed: int = _training(42, "seed of every random draw", "default 42, not random; recorded", least=0, most=2**63 - 1)
    mixed_precision: Literal["no", "bf16"] = _training(
        "bf16", "precision of the computation; no = float32", "default bf16; fp16 is refused"
    )
    base_precision: Literal["auto", "bf16", "fp8", "int8", "nf4"] = _training(
        "bf16",
        "how the frozen layers of the transformer's blocks are kept: bf16 = as mixed_precision computes; fp8, int8:"
        " half the memory, products in 8 bits; nf4: a quarter, needs bitsandbytes; auto: less than bf16 only where it"
        " would not fit",
        OURS,
    )
    full_bf16: bool = _training(False, "keep the LoRA itself in bf16 too")
    gradient_checkpointing: bool = _training(
        False, "recompute activations: about half the memory, half as much time again"
    )
    torch_compile: bool = _training(False, "compile the transformer's blocks", "per block; faster after the first step")
    dynamo_backend: Literal["inductor", "eager", "aot_eager", "cudagraphs"] = _training(
        "inductor", "backend of torch_compile", "inductor, eager, aot_eager, cudagraphs"
    )
    compile_dynamic: Literal["auto", "true", "false"] = _training(
        "auto",
        "compile one graph for all sizes (true), one for each (false), or by how many sizes there are (auto)",
        OURS,
    )
    cuda_graphs: bool = _training(
        True,
        "on a GPU, record what a batch launches and replay it: a slow host no longer keeps a fast GPU waiting",
        OURS,
    )
    deterministic: bool = _training(False, "deterministic algorithms: bitwise repeatable on a GPU, slower", OURS)

    memory: Literal["auto", "manual"] = _memory(
        "auto",
        "auto: on a GPU choose the fastest of what the flags below leave open that fits; manual: only what they say",
        OURS,
    )
    checkpoint_blocks: int | None = _memory(
        None, "recompute the activations of the first n blocks; gradient_checkpointing: of all", OURS, least=0
    )
    blocks_to_swap: int | None = _memory(
        None,
        "keep the weights of n blocks in host memory, copied to the GPU when they are needed",
        "single blocks first, at most all but one of each kind (55)",
        least=0,
    )

    guidance_scale: float = _loss(1.0, "guidance given to FLUX.1-dev in training", "default 1.0, not 3.5", least=0)
    timestep_sampling: Literal["flux_shift", "shift", "sigmoid", "uniform", "sigma"] = _loss(
        "flux_shift", "how timesteps are drawn", "default flux_shift, not sigma"
    )
    sigmoid_scale: float = _loss(1.0, "width of the sigmoid (sigmoid, shift, flux_shift)", above=0)
    discrete_flow_shift: float = _loss(3.0, "shift of the timesteps (shift, sigma)", above=0)
    model_prediction_type: Literal["raw"] = _loss("raw", "how the prediction is read", "raw only")
    weighting_scheme: Literal["none", "uniform", "sigma_sqrt", "logit_normal", "mode", "cosmap"] = _loss(
        "none",
        "weight of the loss by timestep (sigma_sqrt, cosmap) or density of timesteps (logit_normal, mode)",
        "sigma_sqrt and cosmap act with raw too; uniform = none",
    )
    logit_mean: float = _loss(0.0, "mean of logit_normal")
    logit_std: float = _loss(1.0, "width of logit_normal", above=0)
    mode_scale: float = _loss(1.29, "scale of mode", least=-1, most=1.75)
    loss_type: Literal["l2", "l1", "huber", "smooth_l1"] = _loss("l2", "loss")
    huber_schedule: Literal["constant", "exponential"] = _loss(
        "constant", "how huber_c moves with the timestep", "default constant; snr is refused"
    )
    huber_c: float = _loss(0.1, "where huber and smooth_l1 turn from square to line", above=0)
    huber_scale: float = _loss(1.0, "factor of huber_c", above=0)
    min_timestep: int = _loss(0, "lowest timestep, of 1000", "honoured", least=0, most=999)
    max_timestep: int = _loss(1000, "highest timestep, of 1000", "honoured", least=1, most=1000)

    logging_dir: Path | None = _watching(
        None, "TensorBoard's folder; RUN_DIR/OUTPUT_NAME/tensorboard if not given", "only moves the folder"
    )
    log_with: Literal["tensorboard", "wandb", "all", "none"] = _watching(
        "tensorboard", "where curves go, beside log.jsonl", "default tensorboard"
    )
    log_every: int = _watching(1, "write a line of the log every n steps", OURS, least=1)
    wandb_run_name: str | None = _watching(None, "name of the run in wandb; output_name if not given")
    sample_prompts: Path | None = _watching(None, "file of prompts for pictures during training")
    sample_every_n_epochs: int | None = _watching(None, "draw pictures every n epochs", least=1)
    sample_every_n_steps: int | None = _watching(None, "draw pictures every n steps", least=1)
    sample_at_first: bool = _watching(False, "draw pictures before the first step")
    sample_sampler: Literal["euler"] = _watching("euler", "sampler of the pictures", "euler only, and the default")
    validate_every_n_steps: int | None = _watching(None, "validation loss every n steps", least=1)
    validate_every_n_epochs: int | None = _watching(
        None, "validation loss every n epochs", "fixed timestep quantiles and fixed noise", least=1
    )
    max_validation_steps: int | None = _watching(None, "most batches in one validation", least=1)

    @property
    def transformer_lr(self) -> float:
        """The learning rate of the transformer's LoRA."""
        return self.learning_rate if self.unet_lr is None else self.unet_lr
