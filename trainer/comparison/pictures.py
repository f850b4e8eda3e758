"""The images of checkpoints, one for each prompt, generated once and cached by everything that they depend on."""

import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from PIL import Image

from trainer.common.devices import free_memory
from trainer.common.files import sha256_file
from trainer.common.problems import Problem, Problems
from trainer.comparison.prompts import ComparePrompt
from trainer.config import TrainConfig
from trainer.data.cache import TensorCache
from trainer.lora.adapter import adapter_alphas, adapter_parameters, disabled_adapter
from trainer.lora.file import LoraFile, copy_into, load_lora, misfits
from trainer.models.load import load_autoencoder, load_transformer
from trainer.models.text import Tokenizers
from trainer.models.transformer import Conditioning
from trainer.sampling.adapted import apply_lora, encode_texts
from trainer.sampling.evaluation import draw_prompts
from trainer.sampling.prompts import SamplePrompt
from trainer.sampling.sampler import as_image

CLIP_LAYERS = "text_encoder."


@dataclass(frozen=True)
class Candidate:
    """A LoRA file to compare.

    name: as the report calls it; step: optimizer steps of training, None if unknown; note: what had to be assumed about
    its strength, None if the file states it.
    """

    name: str
    path: Path
    step: int | None = None
    note: str | None = None


class Source(Protocol):
    """Where images come from: LoRA files, or a training that is under way. None as the candidate is the base model.

    config: the run's settings; settings: size, steps and guidance of all images; vae: the autoencoder, in float32.
    """

    @property
    def config(self) -> TrainConfig: ...

    @property
    def settings(self) -> SamplePrompt: ...

    @property
    def vae(self) -> AutoencoderKL: ...

    def images(self, candidate: Candidate | None, prompts: Sequence[ComparePrompt], /) -> list[Image.Image]:
        """An RGB image for each prompt."""
        ...

    def texts(self, wanted: Sequence[str], candidate: Candidate | None = None, /) -> dict[str, Conditioning]:
        """The encoded texts, each [1, L, D]."""
        ...

    def applied(self, candidate: Candidate | None, /) -> AbstractContextManager[FluxTransformer2DModel]:
        """In this context the transformer has the candidate's LoRA, or none."""
        ...

    def release(self) -> None:
        """Free the memory of what was loaded to generate images, until it is needed again."""
        ...


@dataclass
class Generator:
    """Generates the images of the base model and of LoRA files; models are loaded when first needed, and kept.

    config: names the model files; settings: size, steps and guidance of all images; fingerprints: of the model files;
    batch: images generated at once.
    """

    config: TrainConfig
    tokenizers: Tokenizers
    device: torch.device
    dtype: torch.dtype
    settings: SamplePrompt
    cache: TensorCache
    fingerprints: Mapping[str, str]
    batch: int = 8
    _texts: dict[str, Conditioning] = field(default_factory=dict)
    _read: tuple[Path, LoraFile] | None = None
    _transformer: FluxTransformer2DModel | None = None
    _vae: AutoencoderKL | None = None

    def images(self, candidate: Candidate | None, prompts: Sequence[ComparePrompt]) -> list[Image.Image]:
        """An RGB image for each prompt, from the cache where it has them; candidate: None for the base model."""
        digest = _digest(candidate) if candidate else "base"
        keys = [self._key(digest, prompt) for prompt in prompts]
        found = {key: decode_png(entry["png"]) for key in keys if (entry := self.cache.read(key))}
        due = [(key, prompt) for key, prompt in zip(keys, prompts, strict=True) if key not in found]
        if due:
            made = self._generate(candidate, [prompt for _, prompt in due])
            for (key, _), image in zip(due, made, strict=True):
                self.cache.write(key, {"png": encode_png(image)})
                found[key] = image
        return [found[key] for key in keys]

    def _key(self, lora: str, prompt: ComparePrompt) -> str:
        facts = self.dtype, self.device.type, self.config.base_precision
        return image_key(self.config, self.settings, self.fingerprints, lora, facts, prompt)

    def _generate(self, candidate: Candidate | None, prompts: Sequence[ComparePrompt]) -> list[Image.Image]:
        texts = self.texts([prompt.text for prompt in prompts], candidate)
        name = candidate.name if candidate else "base model"
        images: list[Image.Image] = []
        with self.applied(candidate) as transformer:
            for part in _runs(prompts):
                encoded = [texts[prompt.text] for prompt in part]
                drawn = draw_prompts(transformer, self.vae, encoded, self.settings, part[0].seed, self.batch, name)
                images += [as_image(each) for each in drawn]
        return images

    def _lora(self, candidate: Candidate | None) -> LoraFile | None:
        """The candidate's LoRA; the last one is kept, since it is applied several times."""
        if candidate is None:
            return None
        if self._read is None or self._read[0] != candidate.path:
            self._read = candidate.path, load_lora(candidate.path)
        return self._read[1]

    def texts(self, wanted: Sequence[str], candidate: Candidate | None = None) -> dict[str, Conditioning]:
        """The encoded texts, each [1, L, D].

        Each text is encoded once, and anew for a LoRA that has layers of CLIP.
        """
        lora = self._lora(candidate)
        if lora and any(name.startswith(CLIP_LAYERS) for name in lora.modules):
            return encode_texts(self.config, lora, wanted, self.tokenizers, self.device, self.dtype)
        if missing := [text for text in dict.fromkeys(wanted) if text not in self._texts]:
            self._texts |= encode_texts(self.config, None, missing, self.tokenizers, self.device, self.dtype)
        return {text: self._texts[text] for text in wanted}

    @property
    def vae(self) -> AutoencoderKL:
        """The autoencoder, in float32."""
        assert self.config.ae
        self._vae = self._vae or load_autoencoder(self.config.ae, self.device, torch.float32)
        return self._vae

    def release(self) -> None:
        """Free the memory of the transformer and the autoencoder, until they are needed again."""
        self._transformer = self._vae = None
        free_memory(self.device)

    @contextmanager
    def applied(self, candidate: Candidate | None) -> Iterator[FluxTransformer2DModel]:
        """In this context the transformer has the candidate's LoRA, or none.

        The model is loaded again only if the LoRA has other layers or ranks than the one before. Raises `Problems` if
        it does not fit the model.
        """
        part, where = _transformer_part(self._lora(candidate)), str(candidate and candidate.path)
        if self._transformer is not None and part and not _fits(part, self._transformer):
            self._transformer = None
            free_memory(self.device)
        if self._transformer is None:
            assert self.config.pretrained_model_name_or_path
            precision = self.config.base_precision
            base = "bf16" if precision == "auto" else precision
            path = self.config.pretrained_model_name_or_path
            self._transformer = load_transformer(path, self.device, self.dtype, base)
            apply_lora(part, self._transformer, "transformer.", where)
        elif part and adapter_alphas(self._transformer):
            copy_into(part, adapter_parameters(self._transformer), adapter_alphas(self._transformer), where)
        elif part:
            apply_lora(part, self._transformer, "transformer.", where)
        with nullcontext() if part else disabled_adapter(self._transformer):
            yield self._transformer


def _digest(candidate: Candidate) -> str:
    try:
        return sha256_file(candidate.path)
    except OSError as error:
        hint = "compare again: images that are finished are kept"
        raise Problems([Problem(str(candidate.path), f"cannot be read any more: {error.strerror}", hint)]) from error


def image_key(
    config: TrainConfig,
    settings: SamplePrompt,
    fingerprints: Mapping[str, str],
    lora: str,
    facts: tuple[object, ...],
    prompt: ComparePrompt,
) -> str:
    """The cache key of an image: a digest of everything that it depends on.

    fingerprints: of the model files; lora: a digest of the LoRA file, or "base"; facts: dtype, kind of device, and
    precision of the base model.
    """
    parts = (
        *("image", lora, prompt.text, prompt.seed, settings.width, settings.height, settings.steps),
        *(settings.guidance, *facts, config.t5xxl_max_token_length, config.apply_t5_attn_mask),
        *sorted(fingerprints.items()),
    )
    return hashlib.sha256("\x1f".join(map(str, parts)).encode()).hexdigest()


def _transformer_part(lora: LoraFile | None) -> LoraFile | None:
    modules = {name: each for name, each in lora.modules.items() if not name.startswith(CLIP_LAYERS)} if lora else {}
    return LoraFile(modules, {}) if modules else None


def _fits(lora: LoraFile, transformer: FluxTransformer2DModel) -> bool:
    """Whether the LoRA has the layers and ranks of the adapter that the transformer has, or it has none yet."""
    shapes = {name: tuple(each.shape) for name, each in adapter_parameters(transformer).items()}
    return not shapes or not misfits(lora, shapes, "--lora")


def _runs(prompts: Sequence[ComparePrompt]) -> Iterator[list[ComparePrompt]]:
    """The prompts in parts whose seeds follow each other."""
    part: list[ComparePrompt] = []
    for prompt in prompts:
        if part and prompt.seed != part[-1].seed + 1:
            yield part
            part = []
        part.append(prompt)
    if part:
        yield part


def encode_png(image: Image.Image) -> torch.Tensor:
    """The image as a PNG file's bytes, uint8 [n]."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)


def decode_png(png: torch.Tensor) -> Image.Image:
    """The RGB image in a PNG file's bytes, uint8 [n]."""
    with Image.open(io.BytesIO(png.numpy().tobytes())) as image:
        return image.convert("RGB")
