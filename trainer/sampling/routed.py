"""Sampling with several LoRAs, each of which acts only where its trigger's words attend.

First pass: the base model alone samples the class prompt ("a toy holding a gpu"), and its attention to the class words
becomes a mask for each LoRA. It ends when the layout is decided, after three fifths of the steps. Second pass, from the
same noise: each LoRA is added to the image tokens of its mask and to the text tokens of its trigger.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch
from diffusers import FluxTransformer2DModel
from torch import nn

from trainer.common.problems import Problem, raise_if_any
from trainer.lora.blocks import training_blocks
from trainer.lora.routed_files import RoutedLora
from trainer.lora_file.modules import LoraModule
from trainer.models.attention_maps import recording
from trainer.models.transformer import Conditioning, predict_velocity
from trainer.routing.adapters import MaskedLayer, TokenMasks, acting, on_device, stream_of
from trainer.routing.attention import AttentionMaps, recorded_steps, token_masks
from trainer.routing.masks import USUAL, MaskSettings, masks_from_maps
from trainer.routing.words import CountTokens, RoutedPrompt, Span, route_prompt, token_spans
from trainer.sampling.prompts import SamplePrompt
from trainer.sampling.sampler import denoise, denoising_steps

MODULATION = ("norm.linear", "norm1.linear", "norm1_context.linear")


@dataclass(frozen=True)
class RoutedImages:
    """Latents [B, C, H/8, W/8] in float32, and the masks of the LoRAs over the image tokens, [B, LoRAs, I]."""

    latents: torch.Tensor
    masks: torch.Tensor


class Router:
    """A transformer with LoRAs that act on their own regions; the transformer itself stays the base model."""

    def __init__(
        self,
        transformer: FluxTransformer2DModel,
        loras: Sequence[RoutedLora],
        t5_tokenizer: Callable[..., object],
        settings: MaskSettings = USUAL,
    ):
        """Raises `Problems`, naming layer and sizes, if a LoRA does not fit the transformer."""
        self.loras, self.settings = tuple(loras), settings
        self._transformer = transformer
        self._count = token_counter(t5_tokenizer)
        layers, problems = [], []
        for index, lora in enumerate(loras):
            names = [(name.removeprefix("transformer."), module) for name, module in lora.modules.items()]
            problems += _misfits(transformer, lora.name, names)[:1]
            layers += [_masked_layer(index, name, module) for name, module in names]
        raise_if_any(problems)
        self._layers = on_device(layers, transformer.device, transformer.x_embedder.weight.dtype)
        self._by_token = any(layer.layer.endswith(MODULATION) for layer in layers)

    @contextmanager
    def acting(self, masks: TokenMasks) -> Iterator[None]:
        """While the block runs, the LoRAs act on the transformer within these masks."""
        with ExitStack() as stack:
            if self._by_token:
                stack.enter_context(training_blocks(self._transformer))  # diffusers' blocks modulate all tokens alike
            stack.enter_context(acting(self._transformer, self._layers, masks))
            yield

    def route(self, text: str) -> RoutedPrompt:
        """The triggers in a prompt, and the class prompt, which has to be encoded, too."""
        return route_prompt(text, [lora.triggers for lora in self.loras])

    def sample(
        self,
        noise: torch.Tensor,
        settings: SamplePrompt,
        prompts: Sequence[RoutedPrompt],
        positive: Conditioning,
        of_classes: Conditioning,
        negative: Conditioning | None = None,
    ) -> RoutedImages:
        """Sample B images from noise [B, C, H/8, W/8].

        settings: steps, guidance and cfg of all images; prompts: of each image; positive, of_classes: their B texts and
        class texts, encoded; negative: B encoded texts, None to sample without cfg. An image whose prompt calls no LoRA
        is exactly the base model's.
        """
        tokens = noise.shape[-2] // 2 * (noise.shape[-1] // 2)
        if not any(prompt.called for prompt in prompts):
            masks = torch.zeros(len(prompts), len(self.loras), tokens)
            return RoutedImages(denoise(self._transformer, noise, settings, positive, negative), masks)
        masks = self._masks(noise, settings, prompts, of_classes)
        return RoutedImages(self._routed(noise, settings, prompts, positive, negative, masks), masks)

    def batch_sampler(
        self, texts: Sequence[str], encoded: Mapping[str, Conditioning], settings: SamplePrompt
    ) -> Callable[[torch.Tensor, Conditioning, slice], torch.Tensor]:
        """Returns what samples a part of `texts` from noise, as `draw_prompts` asks for it.

        encoded: by text, class texts too; settings: size, steps and guidance of all images.
        """

        def sample(noise: torch.Tensor, positive: Conditioning, rows: slice) -> torch.Tensor:
            prompts = [self.route(text) for text in texts[rows]]
            of_classes = Conditioning.joined([encoded[prompt.class_text] for prompt in prompts])
            of_classes = of_classes.to(positive.txt.device, positive.txt.dtype)
            return self.sample(noise, settings, prompts, positive, of_classes).latents

        return sample

    def _masks(
        self,
        noise: torch.Tensor,
        settings: SamplePrompt,
        prompts: Sequence[RoutedPrompt],
        of_classes: Conditioning,
    ) -> torch.Tensor:
        """The first pass: masks [B, LoRAs, I]."""
        txt_length, device = of_classes.txt.shape[1], self._transformer.device
        lengths = [min(self._count(prompt.class_text), txt_length) for prompt in prompts]
        most = max(len(prompt.groups) for prompt in prompts)
        words = [self._spans(each.class_text, each.groups) + [()] * (most - len(each.groups)) for each in prompts]
        maps = AttentionMaps(words, lengths, device)
        recorded = recorded_steps(settings.steps)
        steps = denoising_steps(self._transformer, noise, replace(settings, cfg=1.0), of_classes, None)
        for index in range(recorded.stop):
            with recording(self._transformer, maps, txt_length) if index in recorded else nullcontext():
                next(steps)
        rows, columns = noise.shape[-2] // 2, noise.shape[-1] // 2
        return masks_from_maps(maps.mean(), maps.log_mean(), rows, columns, prompts, self.settings)

    def _routed(
        self,
        noise: torch.Tensor,
        settings: SamplePrompt,
        prompts: Sequence[RoutedPrompt],
        positive: Conditioning,
        negative: Conditioning | None,
        masks: torch.Tensor,
    ) -> torch.Tensor:
        """The second pass: latents [B, C, H/8, W/8]. A negative prompt has no triggers: its text stays the base's."""
        spans = [self._spans(prompt.text, prompt.triggers) for prompt in prompts]
        words = TokenMasks(token_masks(spans, positive.txt.shape[1], masks.device), masks)
        no_words = TokenMasks(torch.zeros_like(words.text), masks)

        def predict(transformer: FluxTransformer2DModel, *arguments: object) -> torch.Tensor:
            of = no_words if negative is not None and arguments[2] is negative else words
            with self.acting(of):
                return predict_velocity(transformer, *arguments)  # type: ignore[arg-type]

        steps = denoising_steps(self._transformer, noise, settings, positive, negative, predict)
        return deque(steps, maxlen=1).pop()

    def _spans(self, text: str, groups: Sequence[Sequence[Span]]) -> list[tuple[Span, ...]]:
        return [token_spans(text, spans, self._count) for spans in groups]


def token_counter(t5_tokenizer: Callable[..., object]) -> CountTokens:
    """Counts a text's tokens without the end token."""
    return lambda text: len(t5_tokenizer(text, verbose=False).input_ids) - 1  # type: ignore[attr-defined]


def _misfits(
    transformer: FluxTransformer2DModel, lora: str, modules: Sequence[tuple[str, LoraModule]]
) -> list[Problem]:
    """A problem for each module whose layer the transformer does not have or has in another size."""
    layers = {name: module for name, module in transformer.named_modules() if isinstance(module, nn.Linear)}
    problems, hint = [], "it belongs to another base model"
    for name, module in modules:
        sizes = module.down.shape[1], module.up.shape[0]
        if name not in layers:
            problems.append(Problem(lora, f"{name} is no layer of the model", hint))
        elif sizes != (own := (layers[name].in_features, layers[name].out_features)):
            what = f"{name} goes from {sizes[0]} to {sizes[1]}, the model's layer from {own[0]} to {own[1]}"
            problems.append(Problem(lora, what, hint))
    return problems


def _masked_layer(index: int, name: str, module: LoraModule) -> MaskedLayer:
    stream = stream_of(name)
    assert stream, name
    return MaskedLayer(index, name, stream, module.down, module.up.float() * module.scale)
