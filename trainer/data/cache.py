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
    """A folder of small safetensors files, one for each key: a hex digest of all that the content depends on."""

    folder: Path

    def path(self, key: str) -> Path:
        """The file of a key's entry, whether or not it exists."""
        return self.folder / key[:2] / f"{key}.safetensors"

    def has(self, key: str) -> bool:
        """Whether the key has an entry. The file is not opened, so the entry may be corrupt."""
        return self.path(key).exists()

    def missing(self, wanted: Iterable[str]) -> list[str]:
        """Those of the wanted keys that have no entry, in the same order. No file is opened."""
        return [key for key in wanted if not self.has(key)]

    def read(self, key: str) -> Tensors | None:
        """The tensors of an entry by name, verified by checksum; None if it is missing or corrupt.

        A corrupt entry is logged as a warning.
        """
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
        """Write an entry atomically, with a checksum, replacing any earlier one."""
        write_safetensors(self.path(key), tensors, {"crc32": _checksum(tensors)})


def _checksum(tensors: Mapping[str, torch.Tensor]) -> str:
    sum_so_far = 0
    for name, tensor in sorted(tensors.items()):
        numbers = tensor.detach().contiguous().cpu().view(torch.uint8).numpy().data
        sum_so_far = zlib.crc32(numbers, zlib.crc32(name.encode(), sum_so_far))
    return f"{sum_so_far:08x}"


@dataclass(frozen=True)
class CacheKeys:
    """Computes the cache keys of one run.

    autoencoder, clip, t5: the encoders' fingerprints, those of clip and t5 including the tokenizers'. t5_length: the
    number of T5 tokens. masked: whether T5 ignores padding (--apply_t5_attn_mask). t5_dtype: the dtype that T5 runs in.
    """

    autoencoder: str
    clip: str
    t5: str
    t5_length: int
    masked: bool
    t5_dtype: torch.dtype = torch.float32

    @classmethod
    def of(cls, config: TrainConfig, tokenizers: Tokenizers, t5_length: int) -> "CacheKeys":
        """The keys of a run with these settings. Reads parts of the encoders' files for their fingerprints.

        t5_length: the number of T5 tokens of each caption.
        """
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
        """The key of the latents of a sample's image, resized and cropped as the sample says. flip: mirrored."""
        picture = sample.picture
        names = ("latents", PREPROCESSING[picture.converted], self.autoencoder, picture.sha256)
        unflattened = ("unflattened",) if sample.subset.alpha_mask else ()
        return _digest(*names, _fitting(sample, flip), *unflattened)

    def mask(self, sample: Sample, flip: bool) -> str:
        """The key of a sample's mask at the resolution of the latents; the sample must have one. flip: mirrored."""
        assert sample.mask
        mask = (sample.mask.sha256, sample.mask.from_alpha, sample.subset.mask_dilation)
        return _digest("mask", PREPROCESSING[False], *mask, _fitting(sample, flip))

    def clip_text(self, caption: str) -> str:
        """The key of CLIP's pooled output for a caption."""
        return _digest("clip", self.clip, caption)

    def t5_text(self, caption: str) -> str:
        """The key of T5's hidden states and token mask for a caption."""
        return _digest("t5", self.t5, self.t5_dtype, self.t5_length, self.masked, caption)


def _fitting(sample: Sample, flip: bool) -> tuple[object, ...]:
    return (sample.bucket, sample.resized, sample.crop, sample.interpolation, flip)


def _digest(*parts: object) -> str:
    return hashlib.sha256("\x1f".join(map(str, parts)).encode()).hexdigest()


@dataclass
class Encoded:
    """Reads a run's latents, masks and text from the cache, and keeps what it has read in host memory.

    budget_bytes: how much it keeps at most; what exceeds it is read from disk each time. encode: called with the key of
    an entry that is corrupt or gone, to encode and write it again. Without it, reading such an entry raises `Problems`.
    """

    cache: TensorCache
    keys: CacheKeys
    budget_bytes: int = 4 << 30
    encode: Callable[[str], None] | None = None
    _held: dict[str, Tensors] = field(default_factory=dict)
    _held_bytes: int = 0

    def latents(self, sample: Sample, flip: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """The autoencoder's posterior: mean and standard deviation, each [16, H/8, W/8] float32, in its own scale.

        flip: of the mirrored image.
        """
        entry = self._read(self.keys.latents(sample, flip))
        return entry["mean"], entry["std"]

    def mask(self, sample: Sample, flip: bool) -> torch.Tensor:
        """The share of each latent that is inside the sample's mask: [H/8, W/8] float32 in [0, 1].

        flip: of the mirrored image.
        """
        return self._read(self.keys.mask(sample, flip))["mask"]

    def text(self, caption: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(T5's hidden states [L, D], its token mask [L] bool, True for real tokens, CLIP's pooled output [P])."""
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
