"""Images and captions to cache entries, each encoder loaded only when something is missing."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from PIL import Image
from transformers import CLIPTextModel, T5EncoderModel

from trainer.common.devices import free_memory
from trainer.common.problems import Problem, Problems
from trainer.common.process import progress
from trainer.config import TrainConfig
from trainer.data.cache import CacheKeys, Encoded, TensorCache, Tensors
from trainer.data.compose import Composite
from trainer.data.dataset import Sample, TrainingData
from trainer.data.generated import Generated
from trainer.data.masks import latent_mask
from trainer.images.inspection import Picture
from trainer.images.resize import fit, to_tensor
from trainer.models.load import load_autoencoder, load_clip, load_t5
from trainer.models.text import Tokenizers, encode_clip, encode_t5

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Job:
    """All that one encoder encodes for a run.

    what: a name for the progress bar. wanted: the items to encode, such as captions, by cache key. load: called with a
    device, returns the encoder. encode: called with the encoder and an item, returns the tensors of its cache entry.
    """

    what: str
    wanted: Mapping[str, Any]
    load: Callable[[torch.device], Any]
    encode: Callable[[Any, Any], Tensors]


def fill_cache(
    config: TrainConfig,
    data: TrainingData,
    captions: Iterable[str],
    tokenizers: Tokenizers,
    keys: CacheKeys,
    cache: TensorCache,
    accelerator: Accelerator,
) -> Encoded:
    """Encode and write every entry that a run needs and the cache lacks; returns the reader of the run's entries.

    captions: all that the run uses. Existing entries are not opened. An encoder that has nothing to encode is never
    loaded, and each is freed before the next one is loaded. Several processes share the work; all must call this. An
    entry that turns out to be corrupt when it is read is encoded again then, on the CPU, since the device may be full.
    Raises `Problems` naming an image or mask that has changed since it was checked, or whose latents are not finite.
    """
    return _filled(encoding_jobs(config, data, captions, tokenizers, keys), keys, cache, accelerator)


def fill_text(
    config: TrainConfig,
    captions: Iterable[str],
    tokenizers: Tokenizers,
    keys: CacheKeys,
    cache: TensorCache,
    accelerator: Accelerator,
) -> Encoded:
    """Encode and write the texts that the cache lacks, as `fill_cache` does; returns a reader of text alone."""
    return _filled(text_jobs(config, captions, tokenizers, keys), keys, cache, accelerator)


def _filled(jobs: list[Job], keys: CacheKeys, cache: TensorCache, accelerator: Accelerator) -> Encoded:
    for job in jobs:
        _fill(cache, accelerator, job)

    def encode_again(key: str) -> None:
        for job in jobs:
            if key in job.wanted:
                _encode(cache, job, [key], CPU)

    return Encoded(cache, keys, encode=encode_again)


def encoding_jobs(
    config: TrainConfig, data: TrainingData, captions: Iterable[str], tokenizers: Tokenizers, keys: CacheKeys
) -> list[Job]:
    """Everything that a run reads from the cache, as one job for each encoder. No encoder is loaded yet.

    captions: all that the run uses.
    """
    assert config.ae
    ae = config.ae
    views = sorted(data.views(), key=lambda view: view[0].key)  # both views of an image in a row: it is read once

    def encode_view(vae: AutoencoderKL, view: tuple[Sample, bool]) -> Tensors:
        return encode_picture(vae, *view)

    return [
        Job(
            "latents",
            {keys.latents(sample, flip): (sample, flip) for sample, flip in views},
            lambda device: load_autoencoder(ae, device, torch.float32),
            encode_view,
        ),
        Job(
            "masks",
            {keys.mask(sample, flip): (sample, flip) for sample, flip in views if sample.masks_loss},
            lambda _: None,
            lambda _, view: encode_mask(*view),
        ),
        *text_jobs(config, captions, tokenizers, keys),
    ]


def text_jobs(config: TrainConfig, captions: Iterable[str], tokenizers: Tokenizers, keys: CacheKeys) -> list[Job]:
    """The jobs of the two text encoders. captions: all texts that are needed."""
    assert config.clip_l and config.t5xxl
    clip_l, t5xxl = config.clip_l, config.t5xxl
    captions = list(dict.fromkeys(captions))

    def encode_pooled(clip: CLIPTextModel, caption: str) -> Tensors:
        return {"pooled": encode_clip(clip, tokenizers.clip, [caption])[0]}

    def encode_long(t5: T5EncoderModel, caption: str) -> Tensors:
        txt, mask = encode_t5(t5, tokenizers.t5, [caption], keys.t5_length, keys.masked)
        return {"txt": txt[0], "mask": mask[0]}

    return [
        Job(
            "CLIP text",
            {keys.clip_text(caption): caption for caption in captions},
            lambda device: load_clip(clip_l, device, torch.float32, tokenizers.clip.eos_token_id),
            encode_pooled,
        ),
        Job(
            "T5 text",
            {keys.t5_text(caption): caption for caption in captions},
            lambda device: load_t5(t5xxl, device, keys.t5_dtype),
            encode_long,
        ),
    ]


@torch.inference_mode()
def encode_picture(vae: AutoencoderKL, sample: Sample, flip: bool) -> Tensors:
    """The autoencoder's posterior of a sample's image: "mean" and "std", each [16, H/8, W/8] float32, unscaled.

    The image is resized and cropped as the sample says, and mirrored if `flip`. Raises `Problems` if its file has
    changed since it was checked, or its latents are not finite.
    """
    pixels = to_tensor(_fitted(sample), flip).to(vae.device, vae.dtype)
    posterior = vae.encode(pixels[None]).latent_dist  # type: ignore[union-attr]
    entry = {"mean": posterior.mean[0].float(), "std": posterior.std[0].float()}
    if not all(bool(tensor.isfinite().all()) for tensor in entry.values()):
        hint = "check the autoencoder file, for example by downloading it again"
        raise Problems([Problem(str(sample.picture.path), "its latents are not finite", hint)])
    return entry


def encode_mask(sample: Sample, flip: bool) -> Tensors:
    """A sample's mask at the resolution of its latents: "mask", [H/8, W/8] float32 in [0, 1].

    It is resized, cropped and, if `flip`, mirrored like the image. Raises `Problems` if its file has changed since it
    was checked.
    """
    assert sample.mask
    mask = fit(sample.mask.read(), sample.resized, sample.crop, sample.bucket, sample.interpolation)
    return {"mask": latent_mask(mask, flip, sample.subset.mask_dilation)}


def _fitted(sample: Sample) -> Image.Image:
    fitting = (sample.resized, sample.crop, sample.bucket, sample.interpolation)
    return _fitted_once(sample.picture, not sample.subset.alpha_mask, *fitting)


@lru_cache(maxsize=1)
def _fitted_once(picture: Picture | Composite | Generated, flatten: bool, *fitting: Any) -> Image.Image:
    pixels = picture.recipe.image() if isinstance(picture, Composite) else picture.read(flatten)
    return fit(pixels, *fitting)


def _fill(cache: TensorCache, accelerator: Accelerator, job: Job) -> None:
    missing = cache.missing(job.wanted)
    accelerator.wait_for_everyone()  # every process sees the same cache before anyone writes
    share = missing[accelerator.process_index :: accelerator.num_processes]
    if share:
        _encode(cache, job, share, accelerator.device, quiet=not accelerator.is_main_process)
    accelerator.wait_for_everyone()


def _encode(cache: TensorCache, job: Job, keys: list[str], device: torch.device, quiet: bool = False) -> None:
    model = job.load(device)
    with torch.inference_mode():
        for key in progress(keys, f"encode {job.what}", quiet=quiet):
            cache.write(key, job.encode(model, job.wanted[key]))
    del model
    free_memory(device)
