"""Every setting of a training run: name, type, default, what it does, and how it differs from kohya's.

Names are kohya's (flux_train_network.py) wherever kohya has the setting. `trainer.config.parse` fills `TrainConfig`
from defaults, a TOML file and flags; the rest of the program only reads it.
"""

# ruff: noqa: RUF009 (these make dataclasses' own field())
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from trainer.config.groups import OURS
from trainer.config.groups import captions as _captions
from trainer.config.groups import data as _data
from trainer.config.groups import loss as _loss
from trainer.config.groups import memory as _memory
from trainer.config.groups import models as _models
from trainer.config.groups import network as _network
from trainer.config.groups import optimizer as _optimizer
from trainer.config.groups import output as _output
from trainer.config.groups import training as _training
from trainer.config.groups import watching as _watching

MAX_SEED = 2**63 - 1
T = TypeVar("T")
Interpolation = Literal["lanczos", "lanczos4", "nearest", "bilinear", "linear", "bicubic", "cubic", "area", "box"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The resolved settings of one run. Paths are as given; relative ones start at the current folder."""

    pretrained_model_name_or_path: Path | None = _models(
        None,
        "the FLUX.1 transformer: one .safetensors file",
        "a single file in the original (BFL) or ComfyUI layout; a diffusers folder is refused",
    )
    clip_l: Path | None = _models(None, "the CLIP-L text encoder (.safetensors)")
    t5xxl: Path | None = _models(None, "the T5-XXL text encoder (.safetensors)")
    ae: Path | None = _models(None, "the FLUX autoencoder (.safetensors)")
    tokenizer_dir: Path | None = _models(
        None, "folder with tokenizer/ and tokenizer_2/; if not given, the trainer looks next to clip_l", OURS
    )
    model_type: Literal["flux"] = _models("flux", "model family", "flux only; dev or schnell is detected from the file")
    t5xxl_max_token_length: int | None = _models(
        None, "T5 tokens per caption; if not given, 512 for dev and 256 for schnell", ge=1, le=512
    )
    apply_t5_attn_mask: bool = _models(False, "mask T5's padding tokens, in T5 and in the transformer")

    dataset_config: Path | None = _data(None, "TOML file that lists the image folders")
    cache_dir: Path | None = _data(
        None, "folder of the latent and text cache; if not given, .cache next to dataset_config", OURS
    )
    prior_loss_weight: float = _data(1.0, "loss weight of regularization images (is_reg)", ge=0)
    diff_output_preservation: bool = _data(
        False,
        "prior preservation: is_reg images are trained towards the base model's own prediction",
        "a subset's custom_attributes in kohya; this flag sets it for all is_reg subsets",
    )
    masked_loss: bool = _data(False, "train only what the images' masks show", "a mask can be NAME.mask.png too")
    alpha_mask: bool = _data(False, "use the images' alpha channels as masks", "the mask file of an image wins")
    mask_background: str = _data("ignore", 'outside the masks: "ignore", a weight from 0 to 1, or "preserve"', OURS)
    resolution: str = _data("1024", 'training resolution in pixels, "side" or "width,height"', "default 1024")
    train_batch_size: int = _data(1, "images per batch, unless the dataset sets batch_size", ge=1)
    enable_bucket: bool = _data(False, "sort images into buckets by aspect ratio instead of cropping all to one shape")
    min_bucket_reso: int = _data(256, "shortest bucket side in pixels", ge=16)
    max_bucket_reso: int = _data(1024, "longest bucket side in pixels", ge=16)
    bucket_reso_steps: int = _data(64, "bucket sides are multiples of this many pixels", "any multiple of 16", ge=16)
    bucket_no_upscale: bool = _data(False, "never upscale an image to fit its bucket")
    resize_interpolation: Interpolation | None = _data(
        None, "resize filter; if not given, area to shrink and lanczos to enlarge"
    )
    flip_aug: bool = _data(
        False, "flip each sample horizontally with p = 0.5", "each sample is flipped independently with p = 0.5"
    )
    validation_split: float = _data(0.0, "fraction of the images held out for validation", ge=0, le=0.9)
    validation_seed: int | None = _data(
        None, "seed that selects the held-out images; if not given, seed", "no image is ever in both sets"
    )

    caption_extension: str | None = _captions(
        None,
        "extension of caption files; if not given, .txt or .caption, whichever exists",
        "kohya's default is .caption",
    )
    caption_separator: str = _captions(",", "separator between the tags of a caption", may_be_empty=False)
    shuffle_caption: bool = _captions(
        False, "shuffle the tags of a caption for every sample", "works with cached text; each variant is encoded once"
    )
    keep_tokens: int = _captions(0, "number of leading tags that are never shuffled or dropped", ge=0)
    keep_tokens_separator: str = _captions("", "marker between fixed and shuffled tags, used instead of keep_tokens")
    secondary_separator: str | None = _captions(
        None, "separator inside a group of tags that stay together; replaced by caption_separator"
    )
    caption_prefix: str | None = _captions(None, "text added before every caption")
    caption_suffix: str | None = _captions(None, "text added after every caption")
    enable_wildcard: bool = _captions(
        False, "choose one option of {a|b}, and one line of a caption with several lines", "works with cached text"
    )
    caption_dropout_rate: float = _captions(
        0.0, "probability that a sample's caption is dropped (empty text)", "works with cached text", ge=0, le=1
    )
    caption_dropout_every_n_epochs: int = _captions(
        0, "drop all captions in every n-th epoch", "works with cached text", ge=0
    )
    caption_tag_dropout_rate: float = _captions(
        0.0, "probability that a tag is dropped", "works with cached text", ge=0, le=1
    )
    token_warmup_min: int = _captions(1, "number of tags used at the start of token warm-up", ge=1)
    token_warmup_step: float = _captions(
        0.0,
        "length of token warm-up: steps, or below 1 a fraction of the run, until all tags are used",
        "works with cached text",
        ge=0,
    )

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

    network_module: Literal["networks.lora_flux"] = _network(
        "networks.lora_flux", "adapter type: LoRA", "networks.lora_flux only, which is the default"
    )
    network_dim: int = _network(16, "rank of the LoRA", "default 16", ge=1)
    network_alpha: float | None = _network(
        None, "the LoRA is scaled by alpha / rank; if not given, alpha = rank", "default network_dim, not 1", ge=0
    )
    network_args: tuple[str, ...] = _network(
        (), "key=value ...: which layers are adapted, and with which rank", "see the table of network_args"
    )
    network_dropout: float | None = _network(
        None, "dropout on the LoRA's hidden activations, between down and up projection", ge=0, le=0.99
    )
    network_weights: Path | None = _network(None, "LoRA file to start from", "any common LoRA layout")
    dim_from_weights: bool = _network(False, "use the ranks of network_weights")

    learning_rate: float = _optimizer(1e-4, "learning rate", "default 1e-4", gt=0)
    unet_lr: float | None = _optimizer(None, "learning rate of the transformer's LoRA; overrides learning_rate", gt=0)
    text_encoder_lr: float = _optimizer(
        0.0,
        "learning rate of CLIP-L's LoRA; 0 does not train CLIP-L",
        "default 0; kohya trains CLIP-L unless --network_train_unet_only is given. T5 is never trained",
        ge=0,
    )
    optimizer_type: str = _optimizer(
        "AdamW",
        "AdamW, Prodigy, Adafactor, Lion, AdamW8bit and other bitsandbytes optimizers, or any module.Class",
        "Prodigy and Lion are built in; others, such as D-Adaptation, by module.Class",
    )
    optimizer_args: tuple[str, ...] = _optimizer((), "key=value ... for the optimizer", "an unknown key is an error")
    max_grad_norm: float = _optimizer(1.0, "clip the gradient to this norm; 0 disables clipping", ge=0)
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
    ] = _optimizer("constant", "learning-rate schedule", "piecewise_constant and adafactor are refused")
    lr_warmup_steps: int | float = _optimizer(
        0, "warm-up steps, or below 1 a fraction of all steps", "counted in optimizer steps", ge=0
    )
    lr_decay_steps: int | float = _optimizer(
        0, "decay steps at the end (warmup_stable_decay), or below 1 a fraction of all steps", ge=0
    )
    lr_scheduler_num_cycles: int = _optimizer(
        1, "number of cosine cycles (cosine_with_restarts, cosine_with_min_lr, warmup_stable_decay)", ge=1
    )
    lr_scheduler_power: float = _optimizer(1.0, "exponent of the polynomial schedule", gt=0)
    lr_scheduler_min_lr_ratio: float | None = _optimizer(
        None,
        "minimum learning rate as a fraction of the initial one (cosine_with_min_lr, warmup_stable_decay)",
        ge=0,
        le=1,
    )
    lr_scheduler_timescale: int | None = _optimizer(None, "time scale of inverse_sqrt, in steps", ge=1)
    max_train_steps: int = _optimizer(
        1600,
        "number of optimizer steps",
        "max_train_epochs wins, as in kohya, except that this flag overrides a max_train_epochs in the config_file",
        ge=1,
    )
    max_train_epochs: int | None = _optimizer(None, "number of epochs; wins over max_train_steps", ge=1)
    gradient_accumulation_steps: int = _optimizer(
        1, "batches per optimizer step", "a partial last group is averaged over its actual size", ge=1
    )
    ema_decay: float | None = _optimizer(
        None,
        "decay of an exponential moving average of the LoRA (e.g. 0.999); the average is what is saved",
        OURS,
        gt=0,
        le=0.99999,
    )

    seed: int = _training(
        42, "seed of all randomness", "default 42, not random; recorded in the metadata", ge=0, le=MAX_SEED
    )
    mixed_precision: Literal["no", "bf16"] = _training(
        "bf16", "compute precision; no = float32", "default bf16; fp16 is refused"
    )
    base_precision: Literal["auto", "bf16", "fp8", "int8", "nf4"] = _training(
        "bf16",
        "storage format of the frozen transformer blocks: bf16 = as mixed_precision; fp8, int8: half the memory,"
        " 8-bit matrix products; nf4: a quarter, needs bitsandbytes; auto: below bf16 only if bf16 does not fit",
        OURS,
    )
    full_bf16: bool = _training(False, "keep the LoRA weights in bf16 too")
    gradient_checkpointing: bool = _training(
        False, "recompute activations in backward: about half the memory, about 50 % more time"
    )
    torch_compile: bool = _training(False, "compile the transformer blocks", "per block; faster after the first step")
    dynamo_backend: Literal["inductor", "eager", "aot_eager", "cudagraphs"] = _training(
        "inductor", "backend of torch_compile", "inductor, eager, aot_eager, cudagraphs"
    )
    compile_dynamic: Literal["auto", "true", "false"] = _training(
        "auto",
        "one compiled graph for all image sizes (true), one for each size (false), or depending on their number (auto)",
        OURS,
    )
    cuda_graphs: bool = _training(
        True, "capture batches as CUDA graphs and replay them, so that a slow CPU does not stall a fast GPU", OURS
    )
    deterministic: bool = _training(
        False, "use deterministic algorithms: bitwise reproducible on a GPU, but slower", OURS
    )

    memory: Literal["auto", "manual"] = _memory(
        "auto",
        "auto: on a GPU, choose the fastest plan that fits, within what the flags below fix; manual: only those flags",
        OURS,
    )
    checkpoint_blocks: int | None = _memory(
        None, "recompute the activations of the first n blocks only (gradient_checkpointing: of all blocks)", OURS, ge=0
    )
    blocks_to_swap: int | None = _memory(
        None,
        "keep the weights of n blocks in CPU memory and copy them to the GPU when needed",
        "single blocks first; at most 55, all but one block of each kind",
        ge=0,
    )

    guidance_scale: float = _loss(
        1.0, "guidance embedding given to FLUX.1-dev during training", "default 1.0, not 3.5", ge=0
    )
    timestep_sampling: Literal["flux_shift", "shift", "sigmoid", "uniform", "sigma"] = _loss(
        "flux_shift", "how timesteps are sampled", "default flux_shift, not sigma"
    )
    sigmoid_scale: float = _loss(
        1.0, "scale of the normal variable inside the sigmoid (sigmoid, shift, flux_shift)", gt=0
    )
    discrete_flow_shift: float = _loss(3.0, "timestep shift (shift, sigma)", gt=0)
    model_prediction_type: Literal["raw"] = _loss("raw", "how the model's prediction is used", "raw only")
    weighting_scheme: Literal["none", "uniform", "sigma_sqrt", "logit_normal", "mode", "cosmap"] = _loss(
        "none",
        "loss weight per timestep (sigma_sqrt, cosmap), or timestep density (logit_normal, mode)",
        "sigma_sqrt and cosmap also apply with raw; uniform = none",
    )
    logit_mean: float = _loss(0.0, "mean of logit_normal")
    logit_std: float = _loss(1.0, "standard deviation of logit_normal", gt=0)
    mode_scale: float = _loss(1.29, "scale of mode", ge=-1, le=1.75)
    loss_type: Literal["l2", "l1", "huber", "smooth_l1"] = _loss("l2", "loss function")
    huber_schedule: Literal["constant", "exponential"] = _loss(
        "constant", "how huber_c depends on the timestep", "default constant; snr is refused"
    )
    huber_c: float = _loss(0.1, "threshold between the quadratic and the linear part of huber and smooth_l1", gt=0)
    huber_scale: float = _loss(1.0, "multiplier of huber_c", gt=0)
    min_timestep: int = _loss(0, "lowest timestep, of 1000", "the distribution is cut, not clamped", ge=0, le=999)
    max_timestep: int = _loss(1000, "highest timestep, of 1000", "the distribution is cut, not clamped", ge=1, le=1000)

    logging_dir: Path | None = _watching(
        None, "TensorBoard folder; if not given, RUN_DIR/OUTPUT_NAME/tensorboard", "only moves the folder"
    )
    log_with: Literal["tensorboard", "wandb", "all", "none"] = _watching(
        "tensorboard", "where curves are logged, in addition to log.jsonl", "default tensorboard"
    )
    log_every: int = _watching(1, "log every n steps", OURS, ge=1)
    wandb_run_name: str | None = _watching(None, "name of the run in wandb; if not given, output_name")
    sample_prompts: Path | None = _watching(None, "prompt file for sample images during training")
    sample_every_n_epochs: int | None = _watching(None, "generate sample images every n epochs", ge=1)
    sample_every_n_steps: int | None = _watching(None, "generate sample images every n steps", ge=1)
    sample_at_first: bool = _watching(False, "generate sample images before the first step")
    sample_sampler: Literal["euler"] = _watching(
        "euler", "sampler of the sample images", "euler only, which is the default"
    )
    validate_every_n_steps: int | None = _watching(
        None, "compute the validation loss every n steps, over training images if none are held out", ge=1
    )
    validate_every_n_epochs: int | None = _watching(
        None,
        "compute the validation loss every n epochs, likewise",
        "at fixed timestep quantiles, with fixed noise",
        ge=1,
    )
    max_validation_steps: int | None = _watching(None, "maximum number of validation batches", ge=1)

    @property
    def transformer_lr(self) -> float:
        """The learning rate of the transformer's LoRA."""
        return getattr(self, self.transformer_lr_setting)

    @property
    def transformer_lr_setting(self) -> str:
        """The setting that this learning rate comes from, for messages."""
        return "learning_rate" if self.unet_lr is None else "unet_lr"

    def select(self, settings: type[T]) -> T:
        """A dataclass of the settings that one part of the program uses, filled by name."""
        return settings(**{each.name: getattr(self, each.name) for each in fields(cast(Any, settings))})
