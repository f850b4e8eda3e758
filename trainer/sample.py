"""Pictures from the model in hand: kohya's prompt files, an Euler sampler, PNG files that say how they were made."""

import json
import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from trainer.batches import unscale_latents
from trainer.faults import Fault, Faults, raise_if_any
from trainer.files import atomic_write, out_of_reach
from trainer.flow import euler_sigmas
from trainer.models.transformer import Conditioning, predict_velocity, rotary_table, takes_guidance

LINE_OPTIONS = {"w": "width", "h": "height", "d": "seed", "s": "steps", "g": "guidance", "l": "cfg", "n": "negative"}
KOHYA_KEYS = {
    "sample_steps": "steps",
    "guidance_scale": "guidance",
    "scale": "cfg",
    "negative_prompt": "negative",
}
LEAST = {"width": 16, "height": 16, "steps": 1, "seed": 0}
MOST = {"seed": 2**63 - 1}


@dataclass(frozen=True)
class SamplePrompt:
    """One picture to make. guidance is FLUX's embedded guidance; cfg > 1 adds true classifier-free guidance."""

    prompt: str
    negative: str = ""
    width: int = 512
    height: int = 512
    seed: int | None = None
    steps: int = 20
    guidance: float = 3.5
    cfg: float = 1.0

    def texts(self) -> tuple[str, ...]:
        """The captions whose encodings this picture needs."""
        return (self.prompt, self.negative) if self.cfg > 1 else (self.prompt,)


def load_sample_prompts(path: Path) -> list[SamplePrompt]:
    """Read kohya's prompt file: .txt (one line each, `--w --h --d --s --g --l --n`), .toml or .json.

    Raises `Faults` naming each line that cannot be used.
    """
    if why := out_of_reach(path):
        raise Faults([Fault(f"--sample_prompts={path}", f"cannot be looked at: {why}")])
    if not path.is_file():
        raise Faults([Fault(f"--sample_prompts={path}", "no such file")])
    try:
        entries = _entries(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Faults([Fault(str(path), f"cannot be read: {error}")]) from None
    faults: list[Fault] = []
    prompts = [prompt for where, values in entries if (prompt := read_prompt(where, values, faults))]
    if not entries:
        faults.append(Fault(str(path), "holds no prompt"))
    raise_if_any(faults)
    return prompts


def _entries(path: Path) -> list[tuple[str, dict[str, Any]]]:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".toml":
        table = tomllib.loads(text)["prompt"]
        shared = {key: value for key, value in table.items() if key != "subset"}
        return [(f"{path}: subset {i}", {**shared, **subset}) for i, subset in enumerate(table["subset"], 1)]
    if path.suffix == ".json":
        items = json.loads(text)
        if not isinstance(items, list) or not all(isinstance(item, str | dict) for item in items):
            raise ValueError("it is not a list of prompts, each a line or an object")
        return [(f"{path}: entry {i}", parse_line(e) if isinstance(e, str) else e) for i, e in enumerate(items, 1)]
    lines = [(i, line.strip()) for i, line in enumerate(text.splitlines(), 1)]
    return [(f"{path}: line {i}", parse_line(line)) for i, line in lines if line and not line.startswith("#")]


def parse_line(line: str) -> dict[str, Any]:
    """kohya's prompt line to the fields of `SamplePrompt`; an unknown option keeps its letters as its name."""
    prompt, *options = re.split(r"(?:^|\s)--(?=[A-Za-z]+\s)", line)
    values: dict[str, Any] = {"prompt": prompt.strip()}
    for option in options:
        letters, value = option.split(maxsplit=1)
        values[LINE_OPTIONS.get(letters.lower(), f"--{letters}")] = value.strip()
    return values


def read_prompt(where: str, values: Mapping[str, Any], faults: list[Fault]) -> SamplePrompt | None:
    """One prompt from texts or numbers by name, ours or kohya's; else None, with the reasons added to `faults`."""
    types = {field.name: field.type for field in fields(SamplePrompt)}
    values = {KOHYA_KEYS.get(key, key): value for key, value in values.items()}
    if not values.get("prompt"):
        faults.append(Fault(where, "holds no prompt"))
        return None
    found = [Fault(where, f"unknown option {key}") for key in values if key not in types]
    converted: dict[str, Any] = {}
    for key in values.keys() & types.keys():
        convert = str if types[key] is str else float if types[key] is float else int
        try:
            converted[key] = convert(values[key])
            if convert is float and not math.isfinite(converted[key]):
                raise ValueError
        except (TypeError, ValueError, OverflowError):
            found.append(Fault(where, f"{key} is not a number: {values.get(key)!r}"))
    for key, least in LEAST.items():
        if converted.get(key, least) < least:
            found.append(Fault(where, f"{key} {converted[key]} is below {least}"))
    for key, most in MOST.items():
        if converted.get(key, most) > most:
            found.append(Fault(where, f"{key} {converted[key]} is above {most}"))
    for side in ("width", "height"):
        if converted.get(side, 16) % 16:
            found.append(Fault(where, f"{side} {converted[side]} is not divisible by 16"))
    faults += found
    return None if found else SamplePrompt(**converted)


def sample_latents(
    transformer: FluxTransformer2DModel,
    prompt: SamplePrompt,
    seed: int,
    positive: Conditioning,
    negative: Conditioning | None,
) -> torch.Tensor:
    """Euler steps from noise to a picture's latents, [1, C, H/8, W/8], float32."""
    return denoise(transformer, start_noise(transformer, prompt, [seed]), prompt, positive, negative)


def start_noise(transformer: FluxTransformer2DModel, prompt: SamplePrompt, seeds: Sequence[int]) -> torch.Tensor:
    """One picture's noise for each seed, [B, C, H/8, W/8], drawn as ComfyUI draws it: the same there."""
    shape = (1, transformer.x_embedder.in_features // 4, prompt.height // 8, prompt.width // 8)
    return torch.cat([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


@torch.inference_mode()
def denoise(
    transformer: FluxTransformer2DModel,
    noise: torch.Tensor,
    prompt: SamplePrompt,
    positive: Conditioning,
    negative: Conditioning | None,
) -> torch.Tensor:
    """Euler steps from noise [B, C, H/8, W/8] to the latents of B pictures, float32.

    prompt: says steps, guidance and cfg for all of them; conditionings are of B captions. schnell is
    sampled without the shift it was not trained with.
    """
    device, dtype = transformer.device, transformer.x_embedder.weight.dtype
    height, width = noise.shape[-2:]
    latents = noise.to(device)
    rotary = rotary_table(transformer, height, width, positive.txt.shape[1], device)
    sigmas = euler_sigmas(prompt.steps, height * width // 4, shifted=takes_guidance(transformer)).to(device)

    def velocity(conditioning: Conditioning, sigma: torch.Tensor) -> torch.Tensor:
        sigma_of_each = sigma.expand(len(latents))
        noisy = latents.to(dtype)
        return predict_velocity(transformer, noisy, sigma_of_each, conditioning, prompt.guidance, rotary).float()

    for sigma, following in pairwise(sigmas):
        v = velocity(positive, sigma)
        if negative is not None:
            v = (base := velocity(negative, sigma)) + prompt.cfg * (v - base)
        latents = latents + (following - sigma) * v
    return latents


@torch.inference_mode()
def decode_pixels(vae: AutoencoderKL, latents: torch.Tensor) -> torch.Tensor:
    """Latents [B, C, H/8, W/8] of the transformer to pictures uint8 [B, 3, H, W] on the autoencoder's device."""
    pixels = vae.decode(unscale_latents(latents).to(vae.device, vae.dtype)).sample  # type: ignore[union-attr]
    return ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def decode_picture(vae: AutoencoderKL, latents: torch.Tensor) -> Image.Image:
    """Latents [1, C, H/8, W/8] of the transformer to an RGB picture."""
    return as_image(decode_pixels(vae, latents)[0])


def as_image(picture: torch.Tensor) -> Image.Image:
    """A picture uint8 [3, H, W] on any device as an RGB image."""
    return Image.fromarray(picture.permute(1, 2, 0).cpu().numpy())


def save_picture(path: Path, picture: Image.Image, facts: dict[str, Any]) -> None:
    """Write a PNG whose text chunks say how it was made (prompt, seed, step …)."""
    info = PngInfo()
    for key, value in facts.items():
        info.add_text(key, str(value))
    atomic_write(path, lambda target: picture.save(target, format="PNG", pnginfo=info))
