"""From draws to tensors: what one forward and backward pass needs, prepared ahead by a thread."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from itertools import islice

import torch

from trainer.common.rng import torch_generator
from trainer.data.cache import Encoded
from trainer.data.dataset import Draw, Sample
from trainer.flow import TimestepSettings, sigma_at_quantile
from trainer.models.description import FLUX1
from trainer.models.text import Tokenizers, clip_ids


@dataclass(frozen=True)
class Batch:
    """The tensors of one forward and backward pass: B images of one shape.

    latents, noise: [B, 16, H/8, W/8], in the transformer's scale. sigmas: [B], the noise levels. weights: [B], each
    image's weight in the loss. txt: [B, L, D], T5's hidden states. txt_mask: [B, L] bool, True for real tokens, only
    with --apply_t5_attn_mask. pooled: [B, P], CLIP's pooled output. clip_ids: [B, 77], only if CLIP is trained.

    Maps of [B, 1, H/8, W/8], only if an image of the batch has one: preserve, the share of the base model's own
    prediction in the target; loss_mask, the weight of each position in the loss. preserved_rows: [P] int64, the rows
    that have such a share, if there is `preserve`. draws: where each row is from, for messages.

    Only with --class_preservation_weight, if K > 0 captions have a trigger: class_rows, [K] int64, which they are;
    class_txt, class_mask, class_pooled, class_clip_ids, their captions with class words, as txt and so on.
    """

    latents: torch.Tensor
    noise: torch.Tensor
    sigmas: torch.Tensor
    weights: torch.Tensor
    txt: torch.Tensor
    pooled: torch.Tensor
    txt_mask: torch.Tensor | None
    clip_ids: torch.Tensor | None
    preserve: torch.Tensor | None
    preserved_rows: torch.Tensor | None
    loss_mask: torch.Tensor | None
    draws: tuple[Draw, ...]
    class_rows: torch.Tensor | None = None
    class_txt: torch.Tensor | None = None
    class_mask: torch.Tensor | None = None
    class_pooled: torch.Tensor | None = None
    class_clip_ids: torch.Tensor | None = None

    def pinned(self) -> "Batch":
        """A copy in pinned host memory, from which a GPU can copy without the host waiting."""
        return self._each(torch.Tensor.pin_memory)

    def to(self, device: torch.device) -> "Batch":
        """A copy on the device, possibly still being made on its current stream; the batch itself for the CPU."""
        return self if device.type == "cpu" else self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def copied(self) -> "Batch":
        """A copy that shares no memory with this batch, on the same device."""
        return self._each(torch.Tensor.clone)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors that this batch has, by the names of its fields."""
        return {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), torch.Tensor)}

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Batch":
        return replace(self, **{name: change(tensor) for name, tensor in self.tensors().items()})


@dataclass(frozen=True, kw_only=True)
class BatchSettings(TimestepSettings):
    """The settings that a batch's content depends on, under the names of their flags."""

    seed: int
    text_encoder_lr: float
    apply_t5_attn_mask: bool


@dataclass(frozen=True)
class BatchMaker:
    """Makes batches, each a pure function of the settings and the draws it is given.

    encoded: reads latents and text from the cache. class_caption: returns the caption of a draw with class words, None
    if it has no trigger; without it, batches have no such captions. pin: whether to return batches in pinned memory,
    for a GPU.
    """

    settings: BatchSettings
    encoded: Encoded
    tokenizers: Tokenizers
    pin: bool = False
    class_caption: Callable[[Draw], str | None] | None = None

    def __call__(self, draws: tuple[Draw, ...]) -> Batch:
        """The batch of these draws, one row each, in host memory."""
        rows = [self._row(draw) for draw in draws]
        latents, noise, sigmas = (torch.stack(column) for column in zip(*rows, strict=True))
        batch = replace(self._batch(draws, latents, noise, sigmas), **self._class_text(draws))
        return batch.pinned() if self.pin else batch

    def at_quantiles(self, draw: Draw, quantiles: torch.Tensor) -> Batch:
        """A validation batch: one image, repeated at fixed quantiles of the run's timestep distribution.

        quantiles: [B], in (0, 1). Latents are the mean of the posterior. The noise depends on the seed and the image
        only, so that losses are comparable over a run.
        """
        generator = torch_generator(self.settings.seed, "validation", draw.sample.key)
        mean, _ = self.encoded.latents(draw.sample, draw.flip)
        count = len(quantiles)
        latents = scale_latents(mean).expand(count, -1, -1, -1)
        noise = torch.randn(latents.shape, generator=generator)
        sigmas = sigma_at_quantile(quantiles, self.settings, shift_tokens(draw.sample))
        return self._batch((draw,) * count, latents, noise, sigmas)

    def _row(self, draw: Draw) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        generator = torch_generator(self.settings.seed, "noise", draw.epoch, draw.repeat, draw.sample.key)
        mean, std = self.encoded.latents(draw.sample, draw.flip)
        latents = scale_latents(mean + std * torch.randn(mean.shape, generator=generator))
        noise = torch.randn(mean.shape, generator=generator)
        quantile = torch.rand((), generator=generator, dtype=torch.float64)
        return latents, noise, sigma_at_quantile(quantile, self.settings, shift_tokens(draw.sample))

    def _batch(
        self, draws: tuple[Draw, ...], latents: torch.Tensor, noise: torch.Tensor, sigmas: torch.Tensor
    ) -> Batch:
        txt, mask, pooled = (torch.stack(t) for t in zip(*(self.encoded.text(d.caption) for d in draws), strict=True))
        trains_clip = self.settings.text_encoder_lr > 0
        maps = [self._maps(draw, latents.shape[-2:]) for draw in draws]
        preserved = [row for row, (preserve, _) in enumerate(maps) if preserve is not None]
        return Batch(
            latents=latents,
            noise=noise,
            sigmas=sigmas,
            weights=torch.tensor([draw.sample.loss_weight for draw in draws]),
            txt=txt,
            pooled=pooled,
            txt_mask=mask if self.settings.apply_t5_attn_mask else None,
            clip_ids=clip_ids(self.tokenizers.clip, [d.caption for d in draws]) if trains_clip else None,
            preserve=_stacked([preserve for preserve, _ in maps], neutral=0.0),
            preserved_rows=torch.tensor(preserved) if preserved else None,
            loss_mask=_stacked([weight for _, weight in maps], neutral=1.0),
            draws=draws,
        )

    def _class_text(self, draws: tuple[Draw, ...]) -> dict[str, torch.Tensor]:
        """The tensors of a batch whose names begin with "class_"."""
        found = [self.class_caption(draw) for draw in draws] if self.class_caption else []
        captions = {row: caption for row, caption in enumerate(found) if caption is not None}
        if not captions:
            return {}
        txt, mask, pooled = (torch.stack(t) for t in zip(*map(self.encoded.text, captions.values()), strict=True))
        text = {"class_rows": torch.tensor(list(captions)), "class_txt": txt, "class_pooled": pooled}
        if self.settings.apply_t5_attn_mask:
            text["class_mask"] = mask
        if self.settings.text_encoder_lr > 0:
            text["class_clip_ids"] = clip_ids(self.tokenizers.clip, list(captions.values()))
        return text

    def _maps(self, draw: Draw, shape: torch.Size) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """(preserve, loss_mask) of one draw, each [1, H/8, W/8] or None, as `Batch` describes them."""
        sample = draw.sample
        preserve = torch.ones(1, *shape) if sample.preserves_output else None
        if not sample.masks_loss:
            return preserve, None
        inside = self.encoded.mask(sample, draw.flip)[None]
        if sample.subset.preserves_background:
            return (1 - inside if preserve is None else preserve), None
        return preserve, inside + sample.subset.background_weight * (1 - inside)


def _stacked(maps: Sequence[torch.Tensor | None], neutral: float) -> torch.Tensor | None:
    """One map a sample as [B, 1, H, W]; `neutral` for a sample without; None where no sample has any."""
    first = next((each for each in maps if each is not None), None)
    if first is None:
        return None
    return torch.stack([torch.full_like(first, neutral) if each is None else each for each in maps])


def scale_latents(latents: torch.Tensor) -> torch.Tensor:
    """Shift and scale latents from the autoencoder's range to the transformer's."""
    return (latents - FLUX1.latents.shift) * FLUX1.latents.scale


def unscale_latents(latents: torch.Tensor) -> torch.Tensor:
    """Scale and shift latents from the transformer's range back to the autoencoder's."""
    return latents / FLUX1.latents.scale + FLUX1.latents.shift


def shift_tokens(sample: Sample) -> int:
    """The number of tokens of the image that is denoised, on which the timestep setting flux_shift depends."""
    side = FLUX1.latents.token_side
    width, height = sample.bucket
    return (width // side) * (height // side)


def sequence_tokens(sample: Sample) -> int:
    """The number of image tokens in the transformer's sequence, on which memory and attention depend.

    The denoised image is the only one in it; a reference image would add its own tokens here, and none to
    `shift_tokens`.
    """
    return shift_tokens(sample)


def prefetch(make: BatchMaker, draws: Iterable[tuple[Draw, ...]], ahead: int = 2) -> Iterator[Batch]:
    """Yield the batches of `draws` in order, made on a background thread while earlier ones train.

    ahead: how many batches are prepared in advance. An error in making a batch is raised when its turn comes.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches") as pool:
        source = iter(draws)
        waiting = [pool.submit(make, item) for item in islice(source, ahead)]
        while waiting:
            batch = waiting.pop(0).result()
            waiting += [pool.submit(make, item) for item in islice(source, 1)]
            yield batch
