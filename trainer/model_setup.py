"""The transformer with its adapter, ready to train: loaded, adapted, started from a file, compiled."""

import torch
from accelerate import Accelerator

from trainer.batches import num_img_tokens
from trainer.config import TrainConfig
from trainer.lora.adapter import Dropouts, add_lora
from trainer.lora.file import copy_into, load_lora
from trainer.models.attention import ensure_right_attention, give_dense_gradients
from trainer.models.load import load_clip, load_transformer
from trainer.models.text import Tokenizers
from trainer.plan import Plan
from trainer.step import AdaptedModel


def load_adapted_model(
    config: TrainConfig, plan: Plan, tokenizers: Tokenizers, accelerator: Accelerator
) -> AdaptedModel:
    """Load the frozen base, add the adapter, fill it from `--network_weights`, compile the blocks."""
    assert config.pretrained_model_name_or_path and config.clip_l
    device, network = accelerator.device, plan.adapter.network
    dtype = torch.bfloat16 if config.mixed_precision == "bf16" else torch.float32
    start = load_lora(config.network_weights) if config.network_weights else None
    transformer = load_transformer(config.pretrained_model_name_or_path, device, dtype)
    give_dense_gradients(transformer)
    ensure_right_attention(transformer, plan.keys.t5_length, map(num_img_tokens, plan.data.samples))
    adapt = {
        "alpha": plan.adapter.alpha,
        "seed": config.seed,
        "dtype": torch.bfloat16 if config.full_bf16 else torch.float32,
        "dropouts": Dropouts(config.network_dropout or 0.0, network.rank_dropout, network.module_dropout),
    }
    add_lora(transformer, plan.adapter.ranks, **adapt)
    text_encoder = None
    if config.text_encoder_lr > 0:
        text_encoder = load_clip(config.clip_l, device, torch.float32, tokenizers.clip.eos_token_id)
        add_lora(text_encoder, plan.adapter.clip_ranks, **adapt)
    model = AdaptedModel(config, transformer, text_encoder, accelerator.process_index)
    if start:
        copy_into(start, model.parameters, model.alphas, f"--network_weights={config.network_weights}")
    if config.torch_compile:
        transformer.compile_repeated_blocks(fullgraph=True, backend=config.dynamo_backend)
    return model


def parameter_groups(config: TrainConfig, model: AdaptedModel, plan: Plan) -> list[dict]:
    """The optimizer's groups: by learning rate, up projections apart where LoRA+ multiplies theirs."""
    rates = plan.adapter.network.learning_rates(config.transformer_lr, config.text_encoder_lr)
    groups: dict[float, list[torch.nn.Parameter]] = {}
    for name, parameter in model.parameters.items():
        rate = rates[name.split(".")[0], "lora_B" if ".lora_B." in name else "lora_A"]
        groups.setdefault(rate, []).append(parameter)
    return [{"params": parameters, "lr": rate} for rate, parameters in groups.items()]
