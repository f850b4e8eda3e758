"""The stage that writes the files of models/mini in FLUX.1's layouts and names, then loads them back and compares."""

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from mini.training.autoencoder.model import load_autoencoder as load_trained_autoencoder
from mini.training.distributed import Budget, Distributed
from mini.training.recipe import Recipe
from mini.training.transformer import models as trained
from mini.training.transformer.models import Models, load_models
from mini.world.scenes import prompts_json, tuning_prompts_json
from trainer.common.files import atomic_write, write_json, write_safetensors
from trainer.common.problems import Problem, raise_if_any
from trainer.common.rng import torch_generator
from trainer.models.load import load_autoencoder, load_clip, load_t5, load_transformer
from trainer.models.module_plan import T5_EMBEDDING_AGAIN
from trainer.models.names import autoencoder_to_bfl, transformer_to_bfl
from trainer.models.text import load_tokenizers
from trainer.models.transformer import predict_velocity, rotary_table

log = logging.getLogger(__name__)
TRANSFORMER, AUTOENCODER = "flux1-mini.safetensors", "ae-mini.safetensors"
CLIP, T5 = "clip_l-mini.safetensors", "t5-mini.safetensors"
JUDGE, TOKENIZERS = "judge.safetensors", "tokenizers"
PROMPTS, TUNING_PROMPTS = "prompts.json", "tuning_prompts.json"
LICENSE = "Apache-2.0"
TITLES = {
    TRANSFORMER: "FLUX.1 mini",
    AUTOENCODER: "FLUX.1 mini, autoencoder",
    CLIP: "FLUX.1 mini, CLIP text encoder",
    T5: "FLUX.1 mini, T5 text encoder",
}
DESCRIPTION = "A tiny model of FLUX.1's architecture, trained from scratch on a rendered toy world of 256 pixels."
MAX_BYTES = 64_000_000  # of one file, so that a repository can hold it
CLIP_LEVEL = "text_model."
MAX_DIFFERENCE = 0.05  # of an output relative to its norm, due to bfloat16 weights
PROBES = ("a red bear toy on a beach", "a blue robot toy holding a green gpu in a datacenter")


def run_export(recipe: Recipe, folder: Path, _budget: Budget) -> None:
    """Write `folder`/export in the main process.

    Raises `Problems` if an earlier stage has not finished, or if an exported model does not match the trained one.
    """
    distributed = Distributed.from_environment()
    if distributed.is_main:
        export(recipe, folder, folder / "export")
        compare(recipe, folder, folder / "export", distributed.device)
    distributed.barrier()


def export(recipe: Recipe, folder: Path, target: Path) -> None:
    """Write all files from those of the stages, and log their sizes."""
    text, transformer, autoencoder, judge = _needed(
        folder, trained.TEXT, trained.GUIDED, "autoencoder.safetensors", JUDGE
    )
    levels = len(recipe.autoencoder_widths)
    _write(target / TRANSFORMER, transformer_to_bfl(load_file(transformer)), recipe)
    renamed = dict(autoencoder_to_bfl(name, tensor, levels) for name, tensor in load_file(autoencoder).items())
    _write(target / AUTOENCODER, renamed, recipe)
    encoders = load_file(text)
    heads = {"num_attention_heads": str(recipe.clip_heads)}
    _write(target / CLIP, {_clip_name(name): each for name, each in _under("clip.", encoders).items()}, recipe, heads)
    t5 = {name: tensor for name, tensor in _under("t5.", encoders).items() if name != T5_EMBEDDING_AGAIN}
    _write(target / T5, t5, recipe, {"max_token_length": str(recipe.text_length)})
    atomic_write(target / JUDGE, lambda temporary: shutil.copyfile(judge, temporary))
    write_json(target / PROMPTS, prompts_json())
    write_json(target / TUNING_PROMPTS, tuning_prompts_json())
    shutil.copytree(folder / trained.TOKENIZERS, target / TOKENIZERS, dirs_exist_ok=True)
    _log_sizes(target)


def recipe_hash(recipe: Recipe) -> str:
    """SHA-256 of all values of a recipe."""
    return hashlib.sha256(json.dumps(asdict(recipe), sort_keys=True).encode()).hexdigest()


def _needed(folder: Path, *names: str) -> list[Path]:
    files = [folder / name for name in names]
    raise_if_any(
        Problem(str(file), "there is no such file", "finish the stages before export first")
        for file in files
        if not file.is_file()
    )
    return files


def _write(file: Path, tensors: Mapping[str, Tensor], recipe: Recipe, more: Mapping[str, str] | None = None) -> None:
    """Write tensors in bfloat16, with metadata. Raises `Problems` if a number is not finite."""
    broken = [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]
    raise_if_any(Problem(str(file), f"{name} holds numbers that are not finite") for name in broken[:1])
    metadata = {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": TITLES[file.name],
        "modelspec.architecture": "flux-1-dev" if file.name == TRANSFORMER else f"flux-1-dev/{file.name.split('-')[0]}",
        "modelspec.description": DESCRIPTION,
        "modelspec.license": LICENSE,
        "modelspec.resolution": f"{recipe.size}x{recipe.size}",
        "recipe": recipe.name,
        "recipe_sha256": recipe_hash(recipe),
    }
    write_safetensors(file, {name: tensor.bfloat16() for name, tensor in tensors.items()}, metadata | dict(more or {}))


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _clip_name(name: str) -> str:
    """As in the file of CLIP-L; transformers 5 calls its parts without the first word."""
    return CLIP_LEVEL + name.removeprefix(CLIP_LEVEL)


def _log_sizes(target: Path) -> None:
    total = 0
    for file in sorted(path for path in target.rglob("*") if path.is_file()):
        size = file.stat().st_size
        total += size
        log.info("%12s bytes  %s%s", f"{size:,}", file, "  TOO LARGE" if size > MAX_BYTES else "")
    log.info("%12s bytes in total", f"{total:,}")


@torch.no_grad()
def compare(recipe: Recipe, folder: Path, target: Path, device: torch.device) -> dict[str, float]:
    """Load the files as the trainer does, and compare all outputs with those of the trained modules.

    Returns the relative differences; raises `Problems` if one is larger than rounding to bfloat16 explains.
    """
    models = load_models(recipe, folder, device)
    found = _compare_transformer(recipe, models, target / TRANSFORMER, device)
    found |= _compare_text(models, target, device) | _compare_autoencoder(recipe, folder, target / AUTOENCODER, device)
    for name, difference in found.items():
        log.info("export: %s differs from the trained model's by %.4f of its norm", name, difference)
    wrong = [name for name, difference in found.items() if not difference < MAX_DIFFERENCE]
    raise_if_any(
        Problem(str(target), f"{name} differs from the trained model's by {found[name]:.3f} of its norm")
        for name in wrong
    )
    return found


def _compare_transformer(recipe: Recipe, models: Models, file: Path, device: torch.device) -> dict[str, float]:
    loaded = load_transformer(file, device, torch.float32)
    generator = torch_generator(recipe.seed, "export", "transformer")
    shape = (len(PROBES), recipe.latent_channels, recipe.latent_size, recipe.latent_size)
    noisy = torch.randn(shape, generator=generator).to(device)
    sigmas = torch.linspace(0.2, 0.9, len(PROBES), device=device)
    text = models.text.encode(PROBES)
    rotary = rotary_table(loaded, recipe.latent_size, recipe.latent_size, recipe.text_length, device)
    outputs = [predict_velocity(each, noisy, sigmas, text, 3.5, rotary) for each in (loaded, models.transformer)]
    return {"the velocity": _difference(*outputs)}


def _compare_text(models: Models, target: Path, device: torch.device) -> dict[str, float]:
    tokenizers = load_tokenizers(target / TOKENIZERS)
    clip = load_clip(target / CLIP, device, torch.float32, tokenizers.clip.eos_token_id)
    t5 = load_t5(target / T5, device, torch.float32)
    t5_ids, clip_ids = (ids.to(device) for ids in models.text.tokenize(PROBES))
    txt, pooled = models.text(t5_ids, clip_ids)
    return {
        "T5's text": _difference(t5(t5_ids)[0], txt),
        "CLIP's text": _difference(clip(clip_ids).pooler_output, pooled),
    }


def _compare_autoencoder(recipe: Recipe, folder: Path, file: Path, device: torch.device) -> dict[str, float]:
    loaded, own = load_autoencoder(file, device, torch.float32), load_trained_autoencoder(recipe, folder, device)
    generator = torch_generator(recipe.seed, "export", "autoencoder")
    latents = torch.randn(1, recipe.latent_channels, recipe.latent_size, recipe.latent_size, generator=generator)
    latents = 2 * latents.to(device)
    pictures = own.decode(latents).sample  # type: ignore[union-attr]
    return {
        "the decoder": _difference(loaded.decode(latents).sample, pictures),  # type: ignore[union-attr]
        "the encoder": _difference(loaded.encoder(pictures.clamp(-1, 1)), own.encoder(pictures.clamp(-1, 1))),
    }


def _difference(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm().clamp_min(1e-6)).item()
