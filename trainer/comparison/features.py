"""Features of image patches: from DINOv2, or from the base model's own transformer; text agreement from SigLIP 2."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from PIL import Image
from torch import nn

from trainer.comparison.description import DINOV2, SIGLIP2
from trainer.data.batches import scale_latents
from trainer.flow import add_noise
from trainer.images.resize import to_tensor
from trainer.lora.adapter import disabled_adapter
from trainer.models.published import (
    config_values,
    load_model,
    load_tokenizer,
    normalized,
)
from trainer.models.transformer import Conditioning, predict_velocity, rotary_table

DINO_SIDE = 448  # pixels of a square image's side as DINOv2 sees it: 32 x 32 patches
TOKEN = 16  # pixels of the side of a token of the transformer
SIGMA = 0.25  # the noise at which the base model's features are read
DEPTH = 0.55  # after this share of the transformer's blocks
SIGLIP_MOMENTS = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
SIGLIP_TOKENS = 64  # of every text, padded


class Features(Protocol):
    """Describes an RGB image by a grid of patches: float32 [h, w, D] on the host, each patch of norm 1."""

    def __call__(self, image: Image.Image, /) -> torch.Tensor: ...


class Dinov2:
    """DINOv2's patch features (Oquab et al. 2023, arXiv:2304.07193)."""

    def __init__(self, folder: Path, device: torch.device):
        """Raises `Problems` if the folder does not hold a complete model."""
        from transformers import Dinov2Config, Dinov2Model

        config: Any = Dinov2Config.from_dict(config_values(DINOV2, folder))
        self.model = load_model(DINOV2, folder, Dinov2Model, config, device)
        self.patch, self.device = int(config.patch_size), device

    @torch.no_grad()
    def __call__(self, image: Image.Image) -> torch.Tensor:
        """The patches of an image, which is resized to about 448 x 448 pixels of the same proportions."""
        rows, columns = _grid(image.size, DINO_SIDE // self.patch)
        resized = image.resize((columns * self.patch, rows * self.patch), Image.Resampling.BICUBIC)
        hidden = self.model(pixel_values=normalized(resized, self.device)).last_hidden_state
        patches = hidden[0, 1:].float().cpu()  # the first token stands for the complete image
        return nn.functional.normalize(patches, dim=-1).view(rows, columns, -1)


def _grid(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Rows and columns of a grid of about side x side cells with the proportions of an image of this size."""
    width, height = size
    ratio = math.sqrt(width / height)
    return max(1, round(side / ratio)), max(1, round(side * ratio))


class FluxFeatures:
    """What the base model's own transformer computes of an image's tokens at little noise, without a text.

    Such features find the same part of a thing in other images of it (Tang et al. 2023, arXiv:2306.03881). The LoRA
    does not take part: adapters are switched off.
    """

    def __init__(
        self,
        transformer: FluxTransformer2DModel,
        vae: AutoencoderKL,
        no_text: Conditioning,
        side: int,
        depth: float = DEPTH,
        sigma: float = SIGMA,
    ):
        """no_text: the encoded empty text, [1, L, D]; side: images are resized to about side x side pixels.

        depth: after which share of the blocks the tokens are taken; sigma: how much noise is added.
        """
        self.transformer, self.vae, self.side, self.sigma = transformer, vae, side, sigma
        self.no_text = no_text.to(transformer.device, transformer.x_embedder.weight.dtype)
        blocks: list[nn.Module] = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
        self.block = blocks[min(len(blocks) - 1, round(depth * len(blocks)))]

    @torch.no_grad()
    def __call__(self, image: Image.Image) -> torch.Tensor:
        """The tokens of an image, one for every 16 x 16 pixels once it is resized, without changing its proportions."""
        rows, columns = _grid(image.size, self.side // TOKEN)
        width, height = columns * TOKEN, rows * TOKEN
        resized = image.resize((width, height), Image.Resampling.LANCZOS)
        pixels = to_tensor(resized, flip=False)[None].to(self.vae.device, self.vae.dtype)
        mean = self.vae.encode(pixels).latent_dist.mean  # type: ignore[union-attr]
        device, dtype = self.transformer.device, self.transformer.x_embedder.weight.dtype
        latents = scale_latents(mean.float()).to(device)
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0)).to(device)
        sigmas = torch.tensor([self.sigma], device=device)
        rotary = rotary_table(self.transformer, height // 8, width // 8, self.no_text.txt.shape[1], device)
        with disabled_adapter(self.transformer), self._tokens() as found:
            noisy = add_noise(latents, noise, sigmas).to(dtype)
            predict_velocity(self.transformer, noisy, sigmas, self.no_text, 1.0, rotary)
        tokens = found[0][0, -rows * columns :].float().cpu()
        tokens = tokens - tokens.mean(0)  # what all patches share says nothing about any of them
        return nn.functional.normalize(tokens, dim=-1).view(rows, columns, -1)

    @contextmanager
    def _tokens(self) -> Iterator[list[torch.Tensor]]:
        """In this context, a forward pass appends what the block returns for image tokens (after text) to the list."""
        found: list[torch.Tensor] = []

        def keep(_module: nn.Module, _inputs: Any, outputs: Any) -> None:
            found.append(outputs[-1] if isinstance(outputs, tuple) else outputs)

        handle = self.block.register_forward_hook(keep)
        try:
            yield found
        finally:
            handle.remove()


class Siglip2:
    """SigLIP 2: how well an image agrees with a text (Tschannen et al. 2025, arXiv:2502.14786)."""

    def __init__(self, folder: Path, device: torch.device):
        """Raises `Problems` if the folder does not hold a complete model."""
        from transformers import SiglipConfig, SiglipModel

        config: Any = SiglipConfig.from_dict(config_values(SIGLIP2, folder))
        self.model = load_model(SIGLIP2, folder, SiglipModel, config, device)
        self.tokenizer = load_tokenizer(SIGLIP2, folder)
        self.side, self.device = int(config.vision_config.image_size), device

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image], texts: Sequence[str]) -> list[float]:
        """The cosine of each image's embedding with that of the text at the same position, from -1 to 1."""
        found = []
        for image, text in zip(images, texts, strict=True):
            resized = image.resize((self.side, self.side), Image.Resampling.BILINEAR)
            output = self.model(
                pixel_values=normalized(resized, self.device, SIGLIP_MOMENTS),
                input_ids=torch.tensor([self.token_ids(text)], device=self.device),
            )
            found.append(float(nn.functional.cosine_similarity(output.image_embeds, output.text_embeds)[0]))
        return found

    def token_ids(self, text: str) -> list[int]:
        """The text in lower case as 64 tokens: cut, ended by <eos>, and padded, as SigLIP 2 was trained."""
        end, pad = self.tokenizer.token_to_id("<eos>"), self.tokenizer.token_to_id("<pad>")
        assert end is not None and pad is not None, "not a tokenizer of SigLIP 2"
        ids = [each for each in self.tokenizer.encode(text.lower()).ids if each != end][: SIGLIP_TOKENS - 1]
        return [*ids, end, *[pad] * (SIGLIP_TOKENS - 1 - len(ids))]
