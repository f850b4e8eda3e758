"""Latents and text, encoded once and found again by content.

A key says everything that the cached tensors depend on: the picture's bytes and how it was fitted,
or the caption and its length, and the encoder that read it. An edited caption, a replaced picture
or another encoder therefore has another key, and equal captions share one entry.
"""

import hashlib
import logging
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from safetensors import SafetensorError, safe_open
from transformers import CLIPTextModel, T5EncoderModel

from trainer.common.devices import free_memory
from trainer.common.files import write_safetensors
from trainer.common.problems import Problem, Problems
from trainer.common.process import progress
from trainer.config import TrainConfig
from trainer.data.dataset import Sample, TrainingData
from trainer.data.images import fit, read_picture, to_tensor
from trainer.data.masks import latent_mask
from trainer.models.load import load_autoencoder, load_clip, load_t5
from trainer.models.text import Tokenizers, encode_clip, encode_t5
from trainer.models.weights import fingerprint

log = logging.getLogger(__name__)

PREPROCESSING = {False: "1", True: "2"}  # by Picture.converted: raise one when its images' pixels would change
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class TensorCache:
    """A folder of small safetensors files, one per key, written atomically."""

    folder: Path

    def path(self, key: str) -> Path:
        """Where an entry is, or would be."""
        return self.folder / key[:2] / f"{key}.safetensors"

    def has(self, key: str) -> bool:
        """Whether there is an entry; only `read` finds out whether it is whole."""
        return self.path(key).exists()

    def read(self, key: str) -> Tensors | None:
        """The entry, or None if there is none; a damaged entry is reported and treated as none."""
        path = self.path(key)
        if not path.exists():
            return None
        try:
            with safe_open(path, "pt") as file:
                entry, noted = {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
            damage = "" if noted.get("crc32") == _checksum(entry) else "its checksum is another"
        except (SafetensorError, OSError) as error:
            entry, damage = None, str(error)
        if damage:
            log.warning("cache entry %s is damaged (%s); it is made again", path, damage)
            return None
        return entry

    def write(self, key: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Put an entry in place, whole or not at all."""
        write_safetensors(self.path(key), tensors, {"crc32": _checksum(tensors)})


def _checksum(tensors: Mapping[str, torch.Tensor]) -> str:
    sum_so_far = 0
    for name, tensor in sorted(tensors.items()):
        numbers = tensor.detach().contiguous().cpu().view(torch.uint8).numpy().data
        sum_so_far = zlib.crc32(numbers, zlib.crc32(name.encode(), sum_so_far))
    return f"{sum_so_far:08x}"


@dataclass(frozen=True)
class CacheKeys:
    """The keys of one run: the fingerprints of its encoders, read once."""

    autoencoder: str
    clip: str
    t5: str
    t5_length: int
    masked: bool
    t5_dtype: torch.dtype = torch.float32

    @classmethod
    def of(cls, config: TrainConfig, tokenizers: Tokenizers, t5_length: int) -> "CacheKeys":
        assert config.ae and config.clip_l and config.t5xxl
        return cls(
            autoencoder=fingerprint(config.ae),
            clip=fingerprint(config.clip_l) + tokenizers.fingerprint,
            t5=fingerprint(config.t5xxl) + tokenizers.fingerprint,
            t5_length=t5_length,
            masked=config.apply_t5_attn_mask,
            t5_dtype=torch.bfloat16 if torch.cuda.is_available() else torch.float32,
        )

    def latents(self, sample: Sample, flip: bool) -> str:
        picture = sample.picture
        names = ("latents", PREPROCESSING[picture.converted], self.autoencoder, picture.sha256)
        unflattened = ("unflattened",) if sample.subset.alpha_mask else ()
        return _digest(*names, _fitting(sample, flip), *unflattened)

    def mask(self, sample: Sample, flip: bool) -> str:
        assert sample.mask
        mask = (sample.mask.sha256, sample.mask.from_alpha, sample.subset.mask_dilation)
        return _digest("mask", PREPROCESSING[False], *mask, _fitting(sample, flip))

    def clip_text(self, caption: str) -> str:
        return _digest("clip", self.clip, caption)

    def t5_text(self, caption: str) -> str:
        return _digest("t5", self.t5, self.t5_dtype, self.t5_length, self.masked, caption)


def _fitting(sample: Sample, flip: bool) -> tuple[object, ...]:
    return (sample.bucket, sample.resized, sample.crop, sample.interpolation, flip)


def _digest(*parts: object) -> str:
    return hashlib.sha256("\x1f".join(map(str, parts)).encode()).hexdigest()


@dataclass
class Encoded:
    """Reads a run's latents and text back, holding what was read within a budget of host memory."""

    cache: TensorCache
    keys: CacheKeys
    budget_bytes: int = 4 << 30
    _held: dict[str, Tensors] = field(default_factory=dict)
    _held_bytes: int = 0

    def latents(self, sample: Sample, flip: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of the posterior, each [16, H/8, W/8] in float32."""
        entry = self._read(self.keys.latents(sample, flip))
        return entry["mean"], entry["std"]

    def mask(self, sample: Sample, flip: bool) -> torch.Tensor:
        """The share of each latent that is inside the sample's mask, [H/8, W/8] in float32."""
        return self._read(self.keys.mask(sample, flip))["mask"]

    def text(self, caption: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """T5's hidden states [L, D], the mask of real tokens [L], CLIP's pooled output [P]."""
        t5 = self._read(self.keys.t5_text(caption))
        return t5["txt"], t5["mask"], self._read(self.keys.clip_text(caption))["pooled"]

    def _read(self, key: str) -> Tensors:
        if key in self._held:
            return self._held[key]
        entry = self.cache.read(key)
        if entry is None:
            where = str(self.cache.path(key))
            raise Problems([Problem(where, "this cache entry vanished or was damaged", "start again: it is made anew")])
        size = sum(tensor.nbytes for tensor in entry.values())
        if self._held_bytes + size <= self.budget_bytes:
            self._held[key] = entry
            self._held_bytes += size
        return entry


def fill_cache(
    config: TrainConfig,
    data: TrainingData,
    captions: Iterable[str],
    tokenizers: Tokenizers,
    keys: CacheKeys,
    cache: TensorCache,
    accelerator: Accelerator,
) -> None:
    """Encode what the cache lacks; a model that has nothing to encode is never loaded.

    Several processes share the work. Each model is freed before the next one is loaded. Raises
    `Problems` naming a picture whose latents are not finite.
    """
    assert config.ae and config.clip_l and config.t5xxl
    device = accelerator.device
    captions = list(dict.fromkeys(captions))
    views = {keys.latents(sample, flip): (sample, flip) for sample, flip in data.views()}

    def encode_view(vae: AutoencoderKL, view: tuple[Sample, bool]) -> Tensors:
        return encode_picture(vae, *view)

    def encode_pooled(clip: CLIPTextModel, caption: str) -> Tensors:
        return {"pooled": encode_clip(clip, tokenizers.clip, [caption])[0]}

    def encode_long(t5: T5EncoderModel, caption: str) -> Tensors:
        txt, mask = encode_t5(t5, tokenizers.t5, [caption], keys.t5_length, keys.masked)
        return {"txt": txt[0], "mask": mask[0]}

    fill = partial(_fill, cache, accelerator)
    fill("latents", views, partial(load_autoencoder, config.ae, device, torch.float32), encode_view)
    masks = {keys.mask(sample, flip): (sample, flip) for sample, flip in data.views() if sample.masks_loss}
    fill("masks", masks, lambda: None, lambda _, view: encode_mask(*view))
    fill(
        "CLIP text",
        {keys.clip_text(caption): caption for caption in captions},
        partial(load_clip, config.clip_l, device, torch.float32, tokenizers.clip.eos_token_id),
        encode_pooled,
    )
    fill(
        "T5 text",
        {keys.t5_text(caption): caption for caption in captions},
        partial(load_t5, config.t5xxl, device, keys.t5_dtype),
        encode_long,
    )


def missing_entries(cache: TensorCache, wanted: Iterable[str]) -> list[str]:
    """The keys that have no readable entry."""
    return [key for key in wanted if cache.read(key) is None]


@torch.inference_mode()
def encode_picture(vae: AutoencoderKL, sample: Sample, flip: bool) -> Tensors:
    """The posterior of one fitted picture: mean and std, each [16, H/8, W/8], float32, unscaled."""
    picture = read_picture(sample.picture.path, flatten=not sample.subset.alpha_mask)
    picture = fit(picture, sample.resized, sample.crop, sample.bucket, sample.interpolation)
    pixels = to_tensor(picture, flip).to(vae.device, vae.dtype)
    posterior = vae.encode(pixels[None]).latent_dist  # type: ignore[union-attr]
    entry = {"mean": posterior.mean[0].float(), "std": posterior.std[0].float()}
    if not all(bool(tensor.isfinite().all()) for tensor in entry.values()):
        raise Problems(
            [Problem(str(sample.picture.path), "its latents are not finite", "is the autoencoder file whole?")]
        )
    return entry


def encode_mask(sample: Sample, flip: bool) -> Tensors:
    """The mask of one fitted sample on the latents' grid. Raises `Problems` where its file has changed."""
    assert sample.mask
    try:
        mask = sample.mask.read()
    except (ValueError, OSError) as error:
        raise Problems([Problem(str(sample.mask.path), str(error), "start again")]) from None
    mask = fit(mask, sample.resized, sample.crop, sample.bucket, sample.interpolation)
    return {"mask": latent_mask(mask, flip, sample.subset.mask_dilation)}


def _fill(
    cache: TensorCache,
    accelerator: Accelerator,
    what: str,
    wanted: Mapping[str, Any],
    load: Callable[[], Any],
    encode: Callable[[Any, Any], Tensors],
) -> None:
    missing = missing_entries(cache, wanted)
    accelerator.wait_for_everyone()  # every process sees the same cache before anyone writes
    share = missing[accelerator.process_index :: accelerator.num_processes]
    if share:
        model = load()
        with torch.inference_mode():
            for key in progress(share, f"encode {what}", quiet=not accelerator.is_main_process):
                cache.write(key, encode(model, wanted[key]))
        del model
        free_memory(accelerator.device)
    accelerator.wait_for_everyone()
