"""Generates the images that a run needs from its base model, before the model is loaded for training.

The transformer goes first: it makes the latents of one image after the other, each kept in the cache. Then it is
released, and the autoencoder decodes them to PNG files. So an interrupted run continues with the next image, and the
two are never in memory together, nor with anything of training.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from accelerate import Accelerator
from diffusers import FluxTransformer2DModel
from PIL import Image

from trainer.common.devices import free_memory
from trainer.common.process import progress
from trainer.common.rng import torch_generator
from trainer.config import TrainConfig
from trainer.data.cache import CacheKeys, Encoded, TensorCache
from trainer.data.companions import SIGMAS, Companion
from trainer.data.encoding import fill_text
from trainer.data.generated import PIXELS_PER_TOKEN, Generated, missing_images
from trainer.flow import add_noise, velocity_target
from trainer.generation.cutout import Cut, cut_by_models, cut_from_plain, load_mask_models
from trainer.images.decode import Size
from trainer.lora.blocks import layers_on_one_input, use_training_blocks
from trainer.masking.create import Models
from trainer.memory.choose import MemoryPlan
from trainer.models.load import load_autoencoder, load_transformer
from trainer.models.offload import swap_blocks, swapped_names
from trainer.models.text import Tokenizers
from trainer.models.transformer import Conditioning, predict_velocity, rotary_table
from trainer.sampling.prompts import SamplePrompt
from trainer.sampling.sampler import decode_picture, denoise, save_picture, start_noise

log = logging.getLogger(__name__)

TOKENS_AT_ONCE = {"cpu": 256, "cuda": 4096}  # image tokens of the images that are generated together


@dataclass(frozen=True)
class Stage:
    """What images are generated with: the settings of the run, its memory plan, text encoders and cache."""

    config: TrainConfig
    memory: MemoryPlan
    tokenizers: Tokenizers
    keys: CacheKeys
    cache: TensorCache
    accelerator: Accelerator

    def generate(self, images: Sequence[Generated], captions: Sequence[str]) -> None:
        """Generate those of the images that have no file yet. Several processes share the work; all must call this.

        captions: further texts to encode while the text encoders are loaded. The transformer has the precision and the
        swapped blocks of the memory plan, and no adapter. Where GPUs generate several images together, the last bits of
        their latents depend on which ones. Raises `Problems` if a model file cannot be used.
        """
        missing = missing_images(images)
        if not missing:
            return
        rivals = (rival for image in missing if isinstance(image, Companion) for rival in image.rivals)
        texts = [*captions, *(image.prompt for image in missing), *rivals]
        encoded = fill_text(self.config, texts, self.tokenizers, self.keys, self.cache, self.accelerator)
        self.accelerator.wait_for_everyone()  # every process sees the same files before anyone writes
        own = missing[self.accelerator.process_index :: self.accelerator.num_processes]
        self._sample(own, encoded)
        self._decode(own)
        self.accelerator.wait_for_everyone()

    def _sample(self, images: Sequence[Generated], encoded: Encoded) -> None:
        due = [image for image in images if not self.cache.has(_latents_key(image))]
        if not due:
            return
        transformer = self._load_transformer()
        batches = list(_batches(due, self.accelerator.device.type))
        for batch in progress(batches, "generate", quiet=not self.accelerator.is_main_process):
            latents = self._latents(transformer, batch, encoded)
            things = [number for number, image in enumerate(batch) if isinstance(image, Companion)]
            companions = [image for image in batch if isinstance(image, Companion)]
            margins = iter(self._margins(transformer, companions, latents[things], encoded) if companions else ())
            for image, own in zip(batch, latents, strict=True):
                entry = {"latents": own[None]}
                if isinstance(image, Companion):
                    entry["margins"] = next(margins)
                self.cache.write(_latents_key(image), entry)
        del transformer
        free_memory(self.accelerator.device)

    def _latents(
        self, transformer: FluxTransformer2DModel, images: Sequence[Generated], encoded: Encoded
    ) -> torch.Tensor:
        first = images[0]
        settings = SamplePrompt("", width=first.width, height=first.height, steps=first.steps, guidance=first.guidance)
        text = self.conditioning([image.prompt for image in images], encoded).to(transformer.device, transformer.dtype)
        noise = start_noise(transformer, settings, [image.seed for image in images])
        return denoise(transformer, noise, settings, text, None)

    @torch.inference_mode()
    def _margins(
        self,
        transformer: FluxTransformer2DModel,
        images: Sequence[Companion],
        latents: torch.Tensor,
        encoded: Encoded,
    ) -> list[torch.Tensor]:
        """How much larger the loss on each companion's latents is with a rival's prompt than with its own: [rivals].

        The noise and the noise levels of an image are the same for all prompts. latents: [B, C, H, W] in the
        transformer's scale.
        """
        prompts = [(image.prompt, *image.rivals) for image in images]
        most = max(map(len, prompts))
        losses = torch.zeros(len(images), most)
        height, width = latents.shape[-2:]
        rotary = rotary_table(transformer, height, width, self.keys.t5_length, latents.device)
        for number, sigma in enumerate(SIGMAS):
            draws = [torch_generator(image.seed, "margin", number) for image in images]
            noise = torch.stack([torch.randn(latents.shape[1:], generator=draw) for draw in draws]).to(latents)
            sigmas = torch.full((len(images),), sigma, device=latents.device)
            noisy, target = add_noise(latents, noise, sigmas).to(transformer.dtype), velocity_target(latents, noise)
            for index in range(most):
                asked = [own[min(index, len(own) - 1)] for own in prompts]
                text = self.conditioning(asked, encoded).to(transformer.device, transformer.dtype)
                velocity = predict_velocity(transformer, noisy, sigmas, text, self.config.guidance_scale, rotary)
                losses[:, index] += (velocity.float() - target).square().mean((1, 2, 3)).cpu() / len(SIGMAS)
        margins = losses[:, 1:] - losses[:, :1]
        return [own[: len(image.rivals)] for own, image in zip(margins, images, strict=True)]

    def conditioning(self, prompts: Sequence[str], encoded: Encoded) -> Conditioning:
        """The prompts as the transformer takes them, on the host."""
        txt, masks, pooled = (torch.stack(column) for column in zip(*map(encoded.text, prompts), strict=True))
        return Conditioning(txt, pooled, masks if self.config.apply_t5_attn_mask else None)

    def _load_transformer(self) -> FluxTransformer2DModel:
        config, device, choice, work = self.config, self.accelerator.device, self.memory.choice, self.memory.work
        assert config.pretrained_model_name_or_path
        dtype = torch.bfloat16 if config.mixed_precision == "bf16" else torch.float32
        waiting = swapped_names(work.num_double, len(work.blocks) - work.num_double, choice.swapped)
        transformer = load_transformer(
            config.pretrained_model_name_or_path, device, dtype, choice.weight_format, waiting, layers_on_one_input
        )
        swap_blocks(transformer, choice.swapped, device)
        use_training_blocks(transformer)
        return transformer

    def _decode(self, images: Sequence[Generated]) -> None:
        if not images:
            return
        assert self.config.ae
        device = self.accelerator.device
        vae = load_autoencoder(self.config.ae, device, torch.float32)
        mask_models = load_mask_models(device) if any(isinstance(image, Companion) for image in images) else None
        for image in progress(images, "decode", quiet=not self.accelerator.is_main_process):
            key = _latents_key(image)
            entry = self.cache.read(key)
            assert entry, "its latents have just been written"
            facts = {"prompt": image.prompt, "seed": image.seed, "steps": image.steps, "guidance": image.guidance}
            picture = decode_picture(vae, entry["latents"])
            save_picture(image.file, picture, facts)
            if isinstance(image, Companion):
                cut = cut_out(picture, entry["margins"], image.thing, mask_models)
                save_picture(image.mask_file, cut.mask, {"cut out": cut.reason or "kept"})
            self.cache.path(key).unlink()  # the PNG takes its place
        del vae, mask_models
        free_memory(device)


def cut_out(picture: Image.Image, margins: torch.Tensor, thing: str = "", models: Models | None = None) -> Cut:
    """Cut a thing out of its image; the mask is black if the cut-out is not kept.

    margins: how much larger the model's loss is with the prompt of each rival than with the thing's own.
    thing: what it is, for the models, None without.
    """
    cut = cut_by_models(picture, thing, models) if models else cut_from_plain(picture)
    if not cut.reason and bool((margins <= 0).any()):
        cut = Cut(cut.mask, "another thing's prompt explains it better")
    return Cut(Image.new("L", picture.size, 0), cut.reason) if cut.reason else cut


def _latents_key(image: Generated) -> str:
    return image.sha256[::-1]  # a name of its own next to the entries of encoded images


def _batches(images: Sequence[Generated], device: str) -> Iterator[list[Generated]]:
    """The images in groups of one size and one sampler, as large as the device takes at once."""

    def alike(image: Generated) -> tuple[Size, int, float]:
        return image.size, image.steps, image.guidance

    for (size, _, _), group in groupby(sorted(images, key=alike), key=alike):
        own, most = list(group), max(1, TOKENS_AT_ONCE[device] * PIXELS_PER_TOKEN**2 // (size[0] * size[1]))
        yield from (own[start : start + most] for start in range(0, len(own), most))
