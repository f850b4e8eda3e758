"""The model to train: the base is loaded, adapted, started from a LoRA file if one is given, and compiled."""

from collections import Counter

import torch
from accelerate import Accelerator

from trainer.config import TrainConfig
from trainer.data.batches import sequence_tokens
from trainer.engine.compilation import compile_blocks, import_compiler, use_cache
from trainer.engine.step import AdaptedModel
from trainer.lora.adapter import Dropouts, add_lora
from trainer.lora.blocks import layers_on_one_input, place_adapters_together, use_training_blocks
from trainer.lora.file import copy_into, load_lora
from trainer.models.attention import choose_attention
from trainer.models.load import load_clip, load_transformer
from trainer.models.offload import swap_blocks, swapped_names
from trainer.models.text import Tokenizers
from trainer.preflight.plan import RunPlan


def load_adapted_model(
    config: TrainConfig, plan: RunPlan, tokenizers: Tokenizers, accelerator: Accelerator
) -> AdaptedModel:
    """Load the frozen base onto the accelerator's device, add the adapter, and compile the blocks.

    The adapter starts from `--network_weights` if given. `plan.memory` says which blocks are recomputed or swapped, and
    the precision of the base. Compiled code is cached in the plan's cache folder.
    """
    assert config.pretrained_model_name_or_path and config.clip_l
    device, network = accelerator.device, plan.adapter.network
    use_cache(plan.cache_dir / "compiled")  # Triton kernels too: the first are tried before anything is compiled
    dtype = torch.bfloat16 if config.mixed_precision == "bf16" else torch.float32
    compiler = import_compiler() if config.torch_compile else None
    start = load_lora(config.network_weights) if config.network_weights else None
    memory, work = plan.memory, plan.memory.work
    waiting = swapped_names(work.num_double, len(work.blocks) - work.num_double, memory.choice.swapped)
    transformer = load_transformer(
        config.pretrained_model_name_or_path, device, dtype, memory.choice.weight_format, waiting, layers_on_one_input
    )
    swap_blocks(transformer, memory.choice.swapped, device)
    use_training_blocks(transformer)
    batches = plan.data.batches(0)
    shapes = Counter((len(draws), sequence_tokens(draws[0].sample)) for draws in batches)
    shapes += Counter(_class_shapes(plan))
    masked, timed = config.apply_t5_attn_mask, not config.deterministic
    choose_attention(transformer, plan.keys.t5_length, shapes, masked, timed)
    adapt = {
        "alpha": plan.adapter.alpha,
        "seed": config.seed,
        "dtype": torch.bfloat16 if config.full_bf16 else torch.float32,
        "dropouts": Dropouts(config.network_dropout or 0.0, network.rank_dropout, network.module_dropout),
    }
    add_lora(transformer, plan.adapter.ranks, **adapt)
    place_adapters_together(transformer)
    text_encoder = None
    if config.text_encoder_lr > 0:
        text_encoder = load_clip(config.clip_l, device, torch.float32, tokenizers.clip.eos_token_id)
        add_lora(text_encoder, plan.adapter.clip_ranks, **adapt)
    model = AdaptedModel(memory.settings(config), transformer, text_encoder, accelerator.process_index)
    if start:
        copy_into(start, model.parameters, model.alphas, f"--network_weights={config.network_weights}")
    if compiler:
        compiler.join()
        compile_blocks(
            transformer, config.dynamo_backend, config.compile_dynamic, len(shapes), _shapes_without_adapter(plan)
        )
    return model


def _class_shapes(plan: RunPlan) -> list[tuple[int, int]]:
    """(images, image tokens) of the forward pass of each batch's captions with class words, in the first epoch."""
    if not (class_caption := plan.class_caption):
        return []
    return [
        (count, sequence_tokens(draws[0].sample))
        for draws in plan.data.batches(0)
        if (count := sum(class_caption(draw) is not None for draw in draws))
    ]


def _shapes_without_adapter(plan: RunPlan) -> int:
    """The number of shapes in which the base model predicts what images preserve: as many of a batch as do."""
    shapes = {
        (preserved, sequence_tokens(draws[0].sample))
        for draws in plan.data.batches(0)
        if (preserved := sum(draw.sample.preserves_some for draw in draws))
    }
    return len(shapes.union(_class_shapes(plan)))


def parameter_groups(config: TrainConfig, model: AdaptedModel, plan: RunPlan) -> list[dict]:
    """The optimizer's groups, {"params": ..., "lr": ...}, one for each learning rate.

    LoRA+ gives up projections (lora_B) a learning rate of their own.
    """
    rates = plan.adapter.network.learning_rates(config.transformer_lr, config.text_encoder_lr)
    groups: dict[float, list[torch.nn.Parameter]] = {}
    for name, parameter in model.parameters.items():
        rate = rates[name.split(".")[0], "lora_B" if ".lora_B." in name else "lora_A"]
        groups.setdefault(rate, []).append(parameter)
    return [{"params": parameters, "lr": rate} for rate, parameters in groups.items()]
