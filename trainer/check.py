"""Everything that can be known before a weight is read: all faults at once, or the plan of the run."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from trainer.cache import CacheKeys, TensorCache, missing_entries
from trainer.checkpoints import is_due, position_after, run_dir
from trainer.config import TrainConfig
from trainer.data.dataset import Schedule, load_dataset
from trainer.faults import Fault, Faults, raise_if_any
from trainer.files import free_bytes
from trainer.lora.adapter import linear_modules
from trainer.lora.network_args import layer_ranks, parse_network_args
from trainer.models.files import check_model_file
from trainer.models.load import plan_clip, plan_transformer
from trainer.models.text import find_tokenizer_dir, load_tokenizers
from trainer.models.weights import read_header
from trainer.optim.build import lr_scheduler_faults, optimizer_faults, optimizer_notices
from trainer.plan import AdapterPlan, Plan
from trainer.sample import SamplePrompt, load_sample_prompts

T = TypeVar("T")
MODEL_FILES = (
    ("pretrained_model_name_or_path", "flux"),
    ("ae", "autoencoder"),
    ("clip_l", "clip_l"),
    ("t5xxl", "t5"),
)


def make_plan(config: TrainConfig, num_processes: int = 1) -> Plan:
    """Decode every picture, read every header, add everything up.

    Raises `Faults` with all that is wrong, so that one look at it mends it all.
    """
    faults: list[Fault] = []

    def gather(part: Callable[..., T], *arguments: Any) -> T | None:
        try:
            return part(*arguments)
        except Faults as found:
            faults.extend(found.faults)
            return None

    faults += _model_faults(config)
    models_are_whole = not faults
    tokenizer_dir = gather(_tokenizer_dir, config)
    prompts = gather(_sample_prompts, config)
    faults += optimizer_faults(config)
    found = gather(load_dataset, config, num_processes)
    if found:
        faults += lr_scheduler_faults(config, found[0].schedule.total_steps)
    adapter = gather(plan_adapter, config) if models_are_whole else None
    if faults:
        raise Faults(faults)
    assert found and adapter and tokenizer_dir and prompts is not None
    plan = _assemble(config, num_processes, *found, adapter, tokenizer_dir, prompts)
    if shortage := _disk_faults(plan):
        raise Faults(shortage)
    return plan


def check_models(config: TrainConfig) -> Path:
    """Check the four model files and the tokenizers alone; returns the tokenizers' folder. Raises `Faults`."""
    raise_if_any(
        fault for flag, role in MODEL_FILES for fault in check_model_file(getattr(config, flag), role, f"--{flag}")
    )
    return _tokenizer_dir(config)


def _tokenizer_dir(config: TrainConfig) -> Path:
    folder = find_tokenizer_dir(config)
    if folder is None:
        hint = "give a folder with tokenizer/ and tokenizer_2/ as in the FLUX.1-dev repository"
        raise Faults([Fault("--tokenizer_dir", "not given, and no tokenizers beside --clip_l", hint)])
    load_tokenizers(folder)
    return folder


def _sample_prompts(config: TrainConfig) -> tuple[SamplePrompt, ...]:
    return tuple(load_sample_prompts(config.sample_prompts)) if config.sample_prompts else ()


def plan_adapter(config: TrainConfig) -> AdapterPlan:
    """Which layers get which rank, and how many numbers are trained. Raises `Faults`."""
    assert config.pretrained_model_name_or_path and config.clip_l
    network = parse_network_args(config.network_args)
    planned = plan_transformer(read_header(config.pretrained_model_name_or_path))
    modules = linear_modules(planned.module)
    ranks = layer_ranks(modules, config.network_dim, network)
    clip_ranks: dict[str, int] = {}
    num_parameters = _count(planned.module, ranks)
    if config.text_encoder_lr > 0:
        clip = plan_clip(read_header(config.clip_l), eos_token_id=0).module
        clip_ranks = dict.fromkeys(linear_modules(clip), config.network_dim)
        num_parameters += _count(clip, clip_ranks)
    guidance = planned.module.config.guidance_embeds
    return AdapterPlan(network, ranks, clip_ranks, num_parameters, is_schnell=not guidance)


def _count(module: Any, ranks: dict[str, int]) -> int:
    layers = ((module.get_submodule(name), rank) for name, rank in ranks.items())
    return sum(rank * (layer.in_features + layer.out_features) for layer, rank in layers)


def _assemble(
    config: TrainConfig,
    num_processes: int,
    data: Any,
    warnings: Sequence[Fault],
    adapter: AdapterPlan,
    tokenizer_dir: Path,
    prompts: tuple[SamplePrompt, ...],
) -> Plan:
    assert config.dataset_config
    t5_length = config.t5xxl_max_token_length or (256 if adapter.is_schnell else 512)
    captions = dict.fromkeys(data.captions_used(data.schedule.num_epochs))
    captions |= dict.fromkeys(text for prompt in prompts for text in prompt.texts())
    cache_dir = config.cache_dir or config.dataset_config.parent / ".cache"
    keys, cache = CacheKeys.of(config, load_tokenizers(tokenizer_dir), t5_length), TensorCache(cache_dir)
    wanted_latents = [keys.latents(sample, flip) for sample, flip in data.views()]
    wanted_text = [keys.t5_text(caption) for caption in captions]
    return Plan(
        config=config,
        data=data,
        schedule=data.schedule,
        world_size=num_processes,
        warnings=(*warnings, *(Fault("settings", notice) for notice in optimizer_notices(config))),
        adapter=adapter,
        tokenizer_dir=tokenizer_dir,
        cache_dir=cache_dir,
        keys=keys,
        t5_width=_t5_width(config),
        captions=tuple(captions),
        sample_prompts=prompts,
        missing_latents=len(missing_entries(cache, wanted_latents)),
        missing_texts=len(missing_entries(cache, wanted_text)),
        checkpoints=_checkpoints(config, data.schedule),
    )


def _t5_width(config: TrainConfig) -> int:
    assert config.t5xxl
    return read_header(config.t5xxl).shape("shared.weight")[1]


def _checkpoints(config: TrainConfig, schedule: Schedule) -> int:
    every = config.save_every_n_epochs, config.save_every_n_steps
    due = (position_after(schedule, step) for step in range(1, schedule.total_steps))
    return 1 + sum(is_due(position, *every) for position in due)


def _disk_faults(plan: Plan) -> list[Fault]:
    """Caches, LoRA files and states against the free space of the disks that they go to, together."""
    needed: dict[int, tuple[int, int, list[str]]] = {}
    for folder, size, what in (
        (plan.cache_dir, plan.missing_cache_bytes, "cache"),
        (plan.config.output_dir, plan.lora_bytes_kept, "LoRA files"),
        (run_dir(plan.config), plan.state_bytes_kept, "states"),
    ):
        disk = _existing(folder).stat().st_dev
        free, total, parts = needed.get(disk, (free_bytes(folder), 0, []))
        needed[disk] = (free, total + size, [*parts, f"{what} in {folder}: {size / 1e9:.2f} GB"])
    hint = "free some, move --output_dir or --run_dir, or keep fewer with --save_last_n_epochs"
    return [
        Fault("disk", f"{total / 1e9:.2f} GB are needed and {free / 1e9:.2f} GB are free ({'; '.join(parts)})", hint)
        for free, total, parts in needed.values()
        if total > free
    ]


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path
