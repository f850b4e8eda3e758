"""Features of image patches: from DINOv2, or from the base model's own transformer; text agreement from SigLIP 2."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
BATCH = 8  # images whose features are computed at once
SIGLIP_MOMENTS = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
SIGLIP_TOKENS = 64  # of every text, padded


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
        """The patches of an image, float32 [h, w, D] on the host, each of norm 1.

        The image is resized to about 448 x 448 pixels of the same proportions.
        """
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
        depths: Sequence[float] = (DEPTH,),
        sigma: float = SIGMA,
    ):
        """no_text: the encoded empty text, [1, L, D]; side: images are resized to about side x side pixels.

        depths: after which shares of the blocks the tokens are taken; sigma: how much noise is added.
        """
        self.transformer, self.vae, self.side, self.sigma = transformer, vae, side, sigma
        self.no_text = no_text.to(transformer.device, transformer.x_embedder.weight.dtype)
        blocks: list[nn.Module] = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
        self.blocks = [blocks[min(len(blocks) - 1, round(depth * len(blocks)))] for depth in depths]

    def __call__(self, images: Sequence[Image.Image]) -> list[list[torch.Tensor]]:
        """The patches of each image at each depth: float32 [h, w, D] on the host, each patch of norm 1.

        A patch is a token, 16 x 16 pixels of the image once it is resized, without changing its proportions.
        """
        grids = [_grid(image.size, self.side // TOKEN) for image in images]
        found: dict[int, list[torch.Tensor]] = {}
        for grid in dict.fromkeys(grids):
            alike = [index for index, each in enumerate(grids) if each == grid]
            for start in range(0, len(alike), BATCH):
                part = alike[start : start + BATCH]
                found |= zip(part, self._patches([images[index] for index in part], *grid), strict=True)
        return [found[index] for index in range(len(images))]

    @torch.no_grad()
    def _patches(self, images: Sequence[Image.Image], rows: int, columns: int) -> list[list[torch.Tensor]]:
        width, height = columns * TOKEN, rows * TOKEN
        resized = [image.resize((width, height), Image.Resampling.LANCZOS) for image in images]
        pixels = torch.stack([to_tensor(each, flip=False) for each in resized]).to(self.vae.device, self.vae.dtype)
        mean = self.vae.encode(pixels).latent_dist.mean  # type: ignore[union-attr]
        device, dtype = self.transformer.device, self.transformer.x_embedder.weight.dtype
        latents = scale_latents(mean.float()).to(device)
        noise = torch.randn(latents[:1].shape, generator=torch.Generator().manual_seed(0)).to(device)
        sigmas = torch.full((len(images),), self.sigma, device=device)
        text = self.no_text.at(torch.zeros(len(images), dtype=torch.long, device=device))
        rotary = rotary_table(self.transformer, height // 8, width // 8, text.txt.shape[1], device)
        with disabled_adapter(self.transformer), self._tokens() as found:
            noisy = add_noise(latents, noise.expand_as(latents), sigmas).to(dtype)
            predict_velocity(self.transformer, noisy, sigmas, text, 1.0, rotary)
        by_depth = []
        for block in self.blocks:
            tokens = found[block][:, -rows * columns :].float()
            tokens = tokens - tokens.mean(1, keepdim=True)  # what all patches share says nothing about any of them
            by_depth.append(nn.functional.normalize(tokens, dim=-1).cpu().view(len(images), rows, columns, -1))
        return [list(grids) for grids in zip(*by_depth, strict=True)]

    @contextmanager
    def _tokens(self) -> Iterator[dict[nn.Module, torch.Tensor]]:
        """In this context, a forward pass keeps what each of the blocks returns for image tokens (after text)."""
        found: dict[nn.Module, torch.Tensor] = {}

        def keep(block: nn.Module, _inputs: Any, outputs: Any) -> None:
            found[block] = outputs[-1] if isinstance(outputs, tuple) else outputs

        handles = [block.register_forward_hook(keep) for block in dict.fromkeys(self.blocks)]
        try:
            yield found
        finally:
            for handle in handles:
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
