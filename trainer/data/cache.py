"""Latents and text on disk, found again by content.

A key is a digest of everything that the cached tensors depend on: the image's bytes and how it was fitted, or the
caption and its length, and the encoder that read it. An edited caption, a replaced image or another encoder therefore
has another key, and equal captions share one entry. `trainer.data.encoding` fills the cache.
"""

import hashlib
import logging
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from trainer.common.files import write_safetensors
from trainer.common.problems import Problem, Problems
from trainer.config import TrainConfig
from trainer.data.dataset import Sample
from trainer.models.text import Tokenizers
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
        """Whether there is an entry; only `read` verifies it."""
        return self.path(key).exists()

    def missing(self, wanted: Iterable[str]) -> list[str]:
        """The keys that have no entry, in their order. No file is opened."""
        return [key for key in wanted if not self.has(key)]

    def read(self, key: str) -> Tensors | None:
        """The entry, verified by its checksum; None if there is none, or a corrupt one, which is reported."""
        path = self.path(key)
        if not path.exists():
            return None
        try:
            with safe_open(path, "pt") as file:
                # copied, so that what is used is what was verified, whatever becomes of the mapped file
                entry = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
                noted = file.metadata() or {}
            damage = "" if noted.get("crc32") == _checksum(entry) else "its checksum does not match"
        except (SafetensorError, OSError) as error:
            entry, damage = None, str(error)
        if damage:
            log.warning("cache entry %s is damaged: %s", path, damage)
            return None
        return entry

    def write(self, key: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Put an entry in place, completely or not at all."""
        write_safetensors(self.path(key), tensors, {"crc32": _checksum(tensors)})


def _checksum(tensors: Mapping[str, torch.Tensor]) -> str:
    sum_so_far = 0
    for name, tensor in sorted(tensors.items()):
        numbers = tensor.detach().contiguous().cpu().view(torch.uint8).numpy().data
        sum_so_far = zlib.crc32(numbers, zlib.crc32(name.encode(), sum_so_far))
    return f"{sum_so_far:08x}"


@dataclass(frozen=True)
class CacheKeys:
    """The keys of one run: made from the fingerprints of its encoders, which are read once."""

    autoencoder: str
    clip: str
    t5: str
    t5_length: int
    masked: bool
    t5_dtype: torch.dtype = torch.float32

    @classmethod
    def of(cls, config: TrainConfig, tokenizers: Tokenizers, t5_length: int) -> "CacheKeys":
        """The keys of a run with these settings. Reads the headers of the encoders' files."""
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
        """The key of an image's latents as this sample fits it, mirrored or not."""
        picture = sample.picture
        names = ("latents", PREPROCESSING[picture.converted], self.autoencoder, picture.sha256)
        unflattened = ("unflattened",) if sample.subset.alpha_mask else ()
        return _digest(*names, _fitting(sample, flip), *unflattened)

    def mask(self, sample: Sample, flip: bool) -> str:
        """The key of a sample's mask on the latents' grid, mirrored or not."""
        assert sample.mask
        mask = (sample.mask.sha256, sample.mask.from_alpha, sample.subset.mask_dilation)
        return _digest("mask", PREPROCESSING[False], *mask, _fitting(sample, flip))

    def clip_text(self, caption: str) -> str:
        """The key of CLIP's pooled output."""
        return _digest("clip", self.clip, caption)

    def t5_text(self, caption: str) -> str:
        """The key of T5's hidden states and mask."""
        return _digest("t5", self.t5, self.t5_dtype, self.t5_length, self.masked, caption)


def _fitting(sample: Sample, flip: bool) -> tuple[object, ...]:
    return (sample.bucket, sample.resized, sample.crop, sample.interpolation, flip)


def _digest(*parts: object) -> str:
    return hashlib.sha256("\x1f".join(map(str, parts)).encode()).hexdigest()


@dataclass
class Encoded:
    """Reads a run's latents and text back, holding what was read within a budget of host memory.

    encode: encodes the entry of a key anew and writes it, for one that is corrupt or vanished. Without it, such an
    entry raises `Problems`.
    """

    cache: TensorCache
    keys: CacheKeys
    budget_bytes: int = 4 << 30
    encode: Callable[[str], None] | None = None
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
        if entry is None and self.encode:
            log.warning("cache entry %s is encoded again, on the CPU", self.cache.path(key))
            self.encode(key)
            entry = self.cache.read(key)
        if entry is None:
            where = str(self.cache.path(key))
            raise Problems([Problem(where, "this cache entry is damaged or gone", "delete it and start again")])
        size = sum(tensor.nbytes for tensor in entry.values())
        if self._held_bytes + size <= self.budget_bytes:
            self._held[key] = entry
            self._held_bytes += size
        return entry
