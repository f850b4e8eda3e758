"""`python -m trainer sample --prompt "…" [--lora FILE[:WEIGHT]] …`: pictures outside training.

The flags that name model files are those of train.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from trainer.cache import free_memory
from trainer.check import check_models
from trainer.config import TrainConfig, parse_config
from trainer.faults import Fault, Faults
from trainer.lora.adapter import adapter_alphas, adapter_parameters, add_lora
from trainer.lora.convert import merge
from trainer.lora.file import LoraFile, copy_into, load_lora, ranks_from
from trainer.models.load import is_schnell, load_autoencoder, load_clip, load_t5, load_transformer
from trainer.models.text import Tokenizers, clip_ids, encode_t5, load_tokenizers
from trainer.models.transformer import Conditioning
from trainer.runtime import set_up_logging
from trainer.sample import SamplePrompt, decode_picture, load_sample_prompts, sample_latents, save_picture
from trainer.verbs.convert import parse_source

DEFAULTS = SamplePrompt("", width=1024, height=1024, steps=28)


@dataclass(frozen=True)
class Request:
    """Which pictures to draw, with which LoRA, and the folder that they go to."""

    prompts: tuple[SamplePrompt, ...]
    lora: LoraFile | None
    lora_names: str
    output: Path


def run(argv: Sequence[str]) -> int:
    """Draw each prompt and print its file. Raises `Faults`."""
    request, config = _parse(argv)
    tokenizers = load_tokenizers(check_models(config))
    set_up_logging()
    device = Accelerator(mixed_precision="no").device
    dtype = torch.float32 if device.type == "cpu" or config.mixed_precision == "no" else torch.bfloat16
    texts = _encode(config, request, tokenizers, device, dtype)
    latents = _draw(config, request, texts, device, dtype)
    assert config.ae
    vae = load_autoencoder(config.ae, device, dtype)
    for index, (prompt, drawn) in enumerate(zip(request.prompts, latents, strict=True)):
        path = request.output / f"{index:03d}-seed{prompt.seed}.png"
        facts = {name: getattr(prompt, name) for name in ("prompt", "negative", "seed", "steps", "guidance", "cfg")}
        save_picture(path, decode_picture(vae, drawn), facts | {"lora": request.lora_names})
        print(path)
    return 0


def _parse(argv: Sequence[str]) -> tuple[Request, TrainConfig]:
    parser = argparse.ArgumentParser("python -m trainer sample", description=__doc__)
    parser.add_argument("--prompt", action="append", default=[], help="may be given several times")
    parser.add_argument("--lora", action="append", default=[], metavar="FILE[:WEIGHT]", help="several add up")
    parser.add_argument("--output", type=Path, default=Path("output"), help="folder (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the first picture; the next has the next seed")
    for name in ("width", "height", "steps", "guidance", "cfg"):
        value = getattr(DEFAULTS, name)
        parser.add_argument(f"--{name}", type=type(value), default=value, help="%(default)s")
    parser.add_argument("--negative", default="", help="negative prompt; acts with --cfg above 1")
    given, rest = parser.parse_known_args(argv)
    config, _ = parse_config(rest)
    own = [
        SamplePrompt(text, given.negative, given.width, given.height, None, given.steps, given.guidance, given.cfg)
        for text in given.prompt
    ]
    listed = load_sample_prompts(config.sample_prompts) if config.sample_prompts else []
    if not own + listed:
        raise Faults([Fault("--prompt", "not given", 'say what to draw, --prompt "tjtoy toy on a desk"')])
    if given.width % 16 or given.height % 16:
        raise Faults([Fault("--width, --height", "not divisible by 16")])
    prompts = [p if p.seed is not None else replace(p, seed=given.seed + i) for i, p in enumerate(own + listed)]
    sources = [parse_source(text) for text in given.lora]
    loras = [(source.path.stem, load_lora(source.path), source.weight) for source in sources]
    return Request(tuple(prompts), merge(loras) if loras else None, " ".join(given.lora), given.output), config


def apply_lora(lora: LoraFile | None, model: nn.Module, prefix: str) -> None:
    """Add the part of a LoRA whose modules start with `prefix`; strict. Raises `Faults`."""
    part = {name: module for name, module in lora.modules.items() if name.startswith(prefix)} if lora else {}
    if not part:
        return
    found = LoraFile(part, {})
    add_lora(model, ranks_from(found, model), alpha=None, seed=0)
    copy_into(found, adapter_parameters(model), adapter_alphas(model), "--lora")


@torch.inference_mode()
def _encode(
    config: TrainConfig, request: Request, tokenizers: Tokenizers, device: torch.device, dtype: torch.dtype
) -> dict[str, Conditioning]:
    assert config.pretrained_model_name_or_path and config.clip_l and config.t5xxl
    texts = list(dict.fromkeys(text for prompt in request.prompts for text in prompt.texts()))
    clip = load_clip(config.clip_l, device, torch.float32, tokenizers.clip.eos_token_id)
    apply_lora(request.lora, clip, "text_encoder.")
    pooled = [clip(clip_ids(tokenizers.clip, [text]).to(device)).pooler_output for text in texts]
    t5 = load_t5(config.t5xxl, device, dtype)
    length = config.t5xxl_max_token_length or (256 if is_schnell(config.pretrained_model_name_or_path) else 512)
    masked = config.apply_t5_attn_mask
    encoded = [encode_t5(t5, tokenizers.t5, [text], length, masked) for text in texts]
    del clip, t5
    free_memory(device)
    return {
        text: Conditioning(txt, vector, mask if masked else None).to(device, dtype)
        for text, vector, (txt, mask) in zip(texts, pooled, encoded, strict=True)
    }


def _draw(
    config: TrainConfig,
    request: Request,
    texts: dict[str, Conditioning],
    device: torch.device,
    dtype: torch.dtype,
) -> list[torch.Tensor]:
    assert config.pretrained_model_name_or_path
    transformer = load_transformer(config.pretrained_model_name_or_path, device, dtype)
    apply_lora(request.lora, transformer, "transformer.")
    latents = []
    for prompt in request.prompts:
        positive, *negative = (texts[text] for text in prompt.texts())
        assert prompt.seed is not None
        latents.append(sample_latents(transformer, prompt, prompt.seed, positive, negative[0] if negative else None))
    del transformer
    free_memory(device)
    return latents
