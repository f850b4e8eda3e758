"""Everything that can be checked before weights are read: all problems together, or the plan of the run."""

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from trainer.checkpoint.naming import run_dir
from trainer.common.disk import Share, shortage, write_problems
from trainer.common.problems import Problem, Problems, raise_if_any
from trainer.comparison.check import evaluation_problems
from trainer.comparison.prompts import evaluation_texts
from trainer.config import TrainConfig
from trainer.data.cache import CacheKeys, TensorCache
from trainer.data.class_words import in_class_words
from trainer.data.dataset import TrainingData, load_dataset
from trainer.data.generated import cache_folder, missing_images
from trainer.lora.adapter import file_module, linear_modules
from trainer.lora.file import LoraFile, load_lora_shapes, misfits, ranks_from
from trainer.lora.network_args import NetworkArgs, layer_ranks, parse_network_args
from trainer.memory.bytes import blocks_of
from trainer.memory.choose import MemoryPlan
from trainer.models.description import FLUX1
from trainer.models.identify import check_model_file
from trainer.models.load import base_model_of
from trainer.models.module_plan import plan_clip, plan_transformer
from trainer.models.quantized import precision_problems
from trainer.models.shapes import skeleton
from trainer.models.text import Tokenizers, find_tokenizer_dir, load_tokenizers
from trainer.models.weights import fingerprint, read_header
from trainer.optim.build import OptimizerSettings, optimizer_problems, rate_problems
from trainer.optim.schedule import ScheduleSettings, lr_scheduler_problems
from trainer.preflight.disk import Growth
from trainer.preflight.memory import plan_memory, with_measured
from trainer.preflight.outputs import earlier_files, name_problems, overwrite_problems
from trainer.preflight.plan import AdapterPlan, RunPlan
from trainer.preflight.resume import Saved, continues, read_saved, resume_problems
from trainer.preflight.warnings import plan_notices
from trainer.sampling.prompts import SamplePrompt, load_sample_prompts

T = TypeVar("T")
CPU = torch.device("cpu")


@dataclass
class Findings:
    """Problems collected from all parts of the check, so that those of one part do not hide those of another."""

    problems: list[Problem] = field(default_factory=list)

    def gather(self, part: Callable[..., T], *arguments: Any) -> T | None:
        """The result of `part(*arguments)`; None if it raises `Problems` or OSError, which go into `problems`."""
        try:
            return part(*arguments)
        except Problems as found:
            self.problems += found.problems
        except OSError as error:
            self.problems.append(Problem(str(error.filename or part.__name__), f"cannot be read: {error.strerror}"))
        return None


def make_plan(config: TrainConfig, num_processes: int = 1, device: torch.device = CPU) -> RunPlan:
    """Check a run before any weight is loaded, and plan it; nothing is written.

    Decodes every image, reads every header, adds up bytes and steps, and looks at the free memory of `device`, on which
    the run is to train. Raises `Problems` with everything that is wrong.
    """
    found = Findings(_model_problems(config))
    models_are_valid = not found.problems
    tokenizers = found.gather(_tokenizers, config)
    prompts = found.gather(_sample_prompts, config)
    start = found.gather(_start, config)
    saved = found.gather(read_saved, config)
    network = found.gather(parse_network_args, config.network_args)
    found.problems += [] if config.base_precision == "auto" else precision_problems(config.base_precision, device)
    found.problems += _optimizer_problems(config, network) + write_problems(_written_folders(config))
    replaces = [] if continues(saved, config) else earlier_files(config)
    found.problems += name_problems(config) or overwrite_problems(config, replaces)
    adapter, keys, models = None, None, None
    if models_are_valid and tokenizers:
        keys = CacheKeys.of(config, tokenizers, _t5_length(config))
        models = model_fingerprints(config, keys)
    drawn_with = _digest(models, keys) if models and keys else ""
    data, warnings = found.gather(load_dataset, config, num_processes, drawn_with) or (None, [])
    if data:
        found.problems += lr_scheduler_problems(config.select(ScheduleSettings), data.schedule.total_steps)
        found.problems += evaluation_problems(config, data) + stop_problems(config, data)
    if models_are_valid and network:
        adapter = found.gather(plan_adapter, config, network, start)
    if saved:
        found.problems += resume_problems(saved, config, data, models, num_processes)
    raise_if_any(found.problems)
    assert data and adapter and keys and models and tokenizers and prompts is not None
    memory = plan_memory(config if saved is None else saved.with_precision(config), data, adapter, keys, device)
    plan = _assemble(config, num_processes, data, adapter, keys, models, tokenizers, prompts, saved, memory)
    raise_if_any(_disk_problems(plan))
    plan = replace(
        plan,
        warnings=(*warnings, *plan_notices(plan), *_stop_notices(plan), *_start_notices(config, start)),
        replaces=tuple(replaces),
    )
    return with_measured(plan)


def check_models(config: TrainConfig) -> Tokenizers:
    """Check the four model files without reading their weights, and load the tokenizers. Raises `Problems`."""
    raise_if_any(_model_problems(config))
    return _tokenizers(config)


def _model_problems(config: TrainConfig) -> list[Problem]:
    checked = (check_model_file(getattr(config, file.setting), file, f"--{file.setting}") for file in FLUX1.files)
    return [problem for found in checked for problem in found]


def stop_problems(config: TrainConfig, data: TrainingData) -> list[Problem]:
    """Why --stop_when=overfit, if it is set, could never stop the run: nothing that it measures shows overfitting."""
    if config.stop_when != "overfit" or config.evaluate_every_n_epochs:
        return []
    validates = config.validate_every_n_epochs or config.validate_every_n_steps
    if validates and data.validation:
        return []
    lacks = "no images are held out" if validates else "the run is neither validated nor evaluated"
    hint = "set --validation_split and --validate_every_n_epochs, or --evaluate_every_n_epochs"
    return [Problem("--stop_when=overfit", f"would never stop: {lacks}", hint)]


def _tokenizers(config: TrainConfig) -> Tokenizers:
    folder = find_tokenizer_dir(config)
    if folder is None:
        hint = "sh download.sh, or give a folder with tokenizer/ and tokenizer_2/ as in the FLUX.1-dev repository"
        raise Problems([Problem("--tokenizer_dir", "not given, and there are no tokenizers next to --clip_l", hint)])
    return load_tokenizers(folder)


def _sample_prompts(config: TrainConfig) -> tuple[SamplePrompt, ...]:
    return tuple(load_sample_prompts(config.sample_prompts)) if config.sample_prompts else ()


def _start(config: TrainConfig) -> LoraFile | None:
    return load_lora_shapes(config.network_weights) if config.network_weights else None


def _optimizer_problems(config: TrainConfig, network: NetworkArgs | None) -> list[Problem]:
    rates = (network or NetworkArgs()).learning_rates(config.transformer_lr, config.text_encoder_lr)
    settings = config.select(OptimizerSettings)
    return optimizer_problems(settings) + rate_problems(settings, rates.values())


def _written_folders(config: TrainConfig) -> list[tuple[str, Path]]:
    folders = [("--output_dir", config.output_dir), ("--run_dir", run_dir(config))]
    if cache_dir := cache_folder(config):
        folders.append(("--cache_dir", cache_dir))
    return folders


def plan_adapter(config: TrainConfig, network: NetworkArgs, start: LoraFile | None = None) -> AdapterPlan:
    """Which layers are adapted with which rank, and how many parameters are trained; only headers are read.

    start: the LoRA file of --network_weights, if given; with --dim_from_weights it sets layers and ranks. Raises
    `Problems` if the file or --network_args do not fit the model.
    """
    assert config.pretrained_model_name_or_path and config.clip_l
    transformer = skeleton(plan_transformer(read_header(config.pretrained_model_name_or_path)).tensors)
    trains_clip = config.text_encoder_lr > 0
    clip = skeleton(plan_clip(read_header(config.clip_l), eos_token_id=0).tensors) if trains_clip else None
    from_file = start if config.dim_from_weights else None
    if from_file:
        raise_if_any(_overridden_layers(network))
        ranks, clip_ranks = _ranks_of(from_file, transformer), _ranks_of(from_file, clip) if clip else {}
    else:
        ranks = layer_ranks(linear_modules(transformer), config.network_dim, network)
        clip_ranks = dict.fromkeys(linear_modules(clip), config.network_dim) if clip else {}
    shapes = _adapter_shapes(transformer, ranks) | (_adapter_shapes(clip, clip_ranks) if clip else {})
    if start:
        where = f"--network_weights={config.network_weights}"
        raise_if_any(_nothing_to_train(config, ranks, clip_ranks, where) or misfits(start, shapes, where))
    blocks, outside = blocks_of(transformer, ranks)
    return AdapterPlan(
        network=network,
        ranks=ranks,
        clip_ranks=clip_ranks,
        alpha=None if from_file else config.network_alpha,
        num_parameters=sum(map(math.prod, shapes.values())),
        base=base_model_of(config.pretrained_model_name_or_path),
        blocks=blocks,
        outside=outside,
    )


def _overridden_layers(network: NetworkArgs) -> list[Problem]:
    if not (names := network.chosen_ranks):
        return []
    what = f"{', '.join(names)}: --dim_from_weights takes layers and ranks from the file"
    return [Problem("--network_args", what, "remove one of the two")]


def _ranks_of(lora: LoraFile, model: Any) -> dict[str, int]:
    return {name: rank for name, rank in ranks_from(lora, model).items() if rank}


def _nothing_to_train(config: TrainConfig, ranks: dict, clip_ranks: dict, where: str) -> list[Problem]:
    problems = []
    if not ranks:
        problems.append(Problem(where, "has no layer of the transformer's blocks", "remove --dim_from_weights"))
    if config.text_encoder_lr > 0 and not clip_ranks:
        hint = "set --text_encoder_lr 0, which does not train CLIP-L"
        problems.append(Problem(where, "has no layer of CLIP-L from which --dim_from_weights could take a rank", hint))
    return problems


def _adapter_shapes(model: Any, ranks: dict[str, int]) -> dict[str, tuple[int, int]]:
    shapes = {}
    for name, rank in ranks.items():
        layer, full_name = model.get_submodule(name), file_module(model, name)
        shapes[f"{full_name}.lora_A.weight"] = rank, layer.in_features
        shapes[f"{full_name}.lora_B.weight"] = layer.out_features, rank
    return shapes


def _t5_length(config: TrainConfig) -> int:
    assert config.pretrained_model_name_or_path
    return config.t5xxl_max_token_length or base_model_of(config.pretrained_model_name_or_path).t5_tokens


def _digest(models: Mapping[str, str], keys: CacheKeys) -> str:
    """What images generated by these models depend on: the files' fingerprints, and how much text is read."""
    return hashlib.sha256(repr((sorted(models.items()), keys.t5_length, keys.masked)).encode()).hexdigest()


def model_fingerprints(config: TrainConfig, keys: CacheKeys) -> dict[str, str]:
    """The fingerprint of each model file, by the name of its command-line option (without dashes).

    keys: the run's cache keys; the fingerprints of autoencoder, CLIP and T5 are taken from them, not computed again.
    """
    assert config.pretrained_model_name_or_path
    transformer = fingerprint(config.pretrained_model_name_or_path)
    return {
        "pretrained_model_name_or_path": transformer,
        "ae": keys.autoencoder,
        "clip_l": keys.clip,
        "t5xxl": keys.t5,
    }


def _assemble(
    config: TrainConfig,
    num_processes: int,
    data: TrainingData,
    adapter: AdapterPlan,
    keys: CacheKeys,
    models: dict[str, str],
    tokenizers: Tokenizers,
    prompts: tuple[SamplePrompt, ...],
    saved: Saved | None,
    memory: MemoryPlan,
) -> RunPlan:
    captions = dict.fromkeys(data.captions_used(data.schedule.num_epochs))
    if config.class_preservation_weight:
        captions |= dict.fromkeys([in_class_words(caption, data.class_words) for caption in captions])
    captions |= dict.fromkeys(text for prompt in prompts for text in prompt.texts())
    captions |= dict.fromkeys(evaluation_texts(config, data))
    cache_dir = cache_folder(config)
    assert cache_dir
    cache = TensorCache(cache_dir)
    wanted_latents = [keys.latents(sample, flip) for sample, flip in data.views()]
    wanted_text = [keys.t5_text(caption) for caption in captions]
    if config.dim_from_weights:
        config = replace(config, network_dim=adapter.usual_rank, network_alpha=None)
    return RunPlan(
        config=config,
        data=data,
        schedule=data.schedule,
        world_size=num_processes,
        warnings=(),
        adapter=adapter,
        tokenizers=tokenizers,
        cache_dir=cache_dir,
        keys=keys,
        models=models,
        start_step=saved.step if saved else 0,
        t5_width=_t5_width(config),
        captions=tuple(captions),
        images_to_generate=tuple(missing_images(data.generated_images())),
        sample_prompts=prompts,
        missing_latents=sum(not cache.has(key) for key in wanted_latents),
        missing_texts=sum(not cache.has(key) for key in wanted_text),
        memory=memory,
    )


def _t5_width(config: TrainConfig) -> int:
    assert config.t5xxl
    return read_header(config.t5xxl).shape("shared.weight")[1]


def _disk_problems(plan: RunPlan) -> list[Problem]:
    """Disks that have too little free space for the cache, LoRA files and states together."""
    hint = "free some space, move --output_dir or --run_dir, or keep fewer files with --save_last_n_epochs"
    return [Problem("disk", line, hint) for line in shortage(_shares(plan, at_save) for at_save in plan.growth)]


def _stop_notices(plan: RunPlan) -> list[Problem]:
    """Warnings for disks without room for the extra LoRA file and state that a stopped run writes."""
    last = max(plan.growth, key=sum)
    more = Growth(last.loras + plan.lora_bytes, last.states + plan.state_bytes)
    hint = "free some space, or a run that is stopped near its end cannot be resumed from there"
    return [Problem("disk", f"if the run is stopped, {line}", hint) for line in shortage([_shares(plan, more)])]


def _start_notices(config: TrainConfig, start: LoraFile | None) -> list[Problem]:
    """What has to be assumed about the strength of the file of --network_weights."""
    where = f"--network_weights={config.network_weights}"
    return [Problem(where, start.note)] if start and start.note else []


def _shares(plan: RunPlan, at_save: Growth) -> list[Share]:
    return [
        Share(plan.cache_dir, "cache", plan.missing_cache_bytes),
        Share(plan.config.output_dir, "LoRA files", at_save.loras),
        Share(run_dir(plan.config), "states", at_save.states),
    ]
