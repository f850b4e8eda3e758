"""Every setting of a training run: name, type, default, what it does, and how it differs from kohya's.

What a run reads and writes is in `input_settings` and `output_settings`; everything else is here.
Names are kohya's (flux_train_network.py) wherever kohya has the setting. `trainer.config.parse` fills `TrainConfig`
from defaults, a TOML file and flags; the rest of the program only reads it.
"""

# ruff: noqa: RUF009 (these make dataclasses' own field())
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from trainer.config.groups import OURS
from trainer.config.groups import loss as _loss
from trainer.config.groups import memory as _memory
from trainer.config.groups import network as _network
from trainer.config.groups import optimizer as _optimizer
from trainer.config.groups import training as _training
from trainer.config.groups import watching as _watching
from trainer.config.input_settings import InputSettings
from trainer.config.output_settings import OutputSettings

MAX_SEED = 2**63 - 1
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(OutputSettings, InputSettings):  # fields are in this order: InputSettings, OutputSettings, own
    """The resolved settings of one run. Paths are as given; relative ones start at the current working directory."""

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
        None,
        "recompute the activations of the first n blocks that backward reaches (gradient_checkpointing: of all)",
        OURS,
        ge=0,
    )
    blocks_to_swap: int | None = _memory(
        None,
        "keep the weights of n blocks in CPU memory and copy them to the GPU when needed",
        "single blocks first; at most 55, all but one block of each kind",
        ge=0,
    )
    min_free_memory: float | None = _memory(
        None,
        "stop with a saved state when fewer than n GiB of the system's memory are available; if not given, 6 on a GPU"
        " that shares it, otherwise 0, which watches nothing",
        OURS,
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
    evaluate_every_n_epochs: int | None = _watching(
        None, "measure likeness, bleed and drift every n epochs, as `trainer compare` does afterwards", OURS, ge=1
    )

    stop_when: Literal["never", "overfit"] = _watching(
        "never", "overfit: save and stop when the run overfits, by its held-out images or its evaluations", OURS
    )

    @property
    def transformer_lr(self) -> float:
        """The learning rate of the transformer's LoRA: unet_lr, or learning_rate if that is None."""
        return getattr(self, self.transformer_lr_setting)

    @property
    def transformer_lr_setting(self) -> str:
        """The name of the setting that `transformer_lr` comes from: "unet_lr" or "learning_rate"."""
        return "learning_rate" if self.unet_lr is None else "unet_lr"

    def select(self, settings: type[T]) -> T:
        """A new instance of a dataclass, each field filled from the setting of the same name."""
        return settings(**{each.name: getattr(self, each.name) for each in fields(cast(Any, settings))})
