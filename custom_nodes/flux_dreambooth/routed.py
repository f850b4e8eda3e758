"""Routing in ComfyUI: where its Flux attends to words, and LoRAs that act on some of its tokens.

Both hook the model's layers while its own forward pass runs, by a wrapper of the MODEL, and leave it as it was. So
weights are not patched, and other clones of the MODEL see nothing of it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from . import sampling
from .concepts import escape_parentheses
from .lora_file.apart import Part, parts_of
from .lora_file.flux_names import bfl_module, diffusers_modules, fused_rows
from .lora_file.modules import LoraModule, canonical
from .lora_loading import LoadedLora
from .nodes_lora_write import plain_modules
from .routing.triggers import Mistake, Trigger, read_class_words, read_triggers, without_class_words
from .routing.words import CountTokens, RoutedPrompt, Span, token_spans

KEY = "flux_dreambooth_routing"  # of our wrappers in a MODEL


@dataclass(frozen=True)
class RoutedLora:
    """An adapter that acts where its triggers' words attend. modules: those that act on tokens, by canonical names."""

    name: str
    triggers: tuple[Trigger, ...]
    modules: Mapping[str, LoraModule]
    strength: float


def routed_loras(files: Sequence[tuple[LoadedLora, float]], class_words: str) -> tuple[list[RoutedLora], list[str]]:
    """The adapters of LoRA files with their strengths, and sentences on what of them is left out.

    class_words: lines like "tjtoy toy = a plush toy", where those of the files are not wanted. Raises ValueError that
    names everything that is wrong.
    """
    from .routing.adapters import stream_of

    told, mistakes = _class_words(class_words)
    parts = [(lora.path.name, part, strength) for lora, strength in files for part in _parts(lora)]
    triggers, wrong = read_triggers([(name, part.triggers) for name, part, _ in parts], told)
    mistakes += wrong or without_class_words([name for name, *_ in parts], triggers)
    if mistakes:
        raise ValueError("; ".join(f"{each.where}: {each.what} ({each.hint})" for each in mistakes))
    routed, notes = [], []
    for (name, part, strength), called_by in zip(parts, triggers, strict=True):
        acting = {layer: each for layer, each in part.modules.items() if stream_of(layer.removeprefix("transformer."))}
        if left_out := len(part.modules) - len(acting):
            notes.append(f"{name}: not used: {left_out} layers that act on no tokens, as those of CLIP")
        routed.append(RoutedLora(part.title, called_by, acting, strength))
    return routed, notes


def _class_words(text: str) -> tuple[dict[str, str], list[Mistake]]:
    lines = [line for line in text.splitlines() if line.strip()]
    pairs = {line: read_class_words(line) for line in lines}
    wrong = [Mistake(line, "is not TRIGGER = WORDS", 'as "tjtoy toy = a toy"') for line in lines if not pairs[line]]
    return dict(filter(None, pairs.values())), wrong


def _parts(lora: LoadedLora) -> list[Part]:
    try:
        return parts_of(lora.path.stem, canonical(lora.survey, plain_modules(lora)), lora.metadata)
    except ValueError as error:
        raise ValueError(f"{lora.path.name} cannot be used: {error}") from None


def token_counter(clip: Any) -> CountTokens:
    """Counts a text's T5 tokens without end and padding, as `sampling.encode` of the same CLIP makes them."""

    def ids(text: str) -> list[Any]:
        rows = clip.tokenize(text, tokenizer_options={"t5xxl_min_length": 1})["t5xxl"]
        return [entry[0] for row in rows for entry in row]

    end = ids("")[0]

    def count(text: str) -> int:
        return next(index for index, each in enumerate(ids(plain(text))) if isinstance(each, int) and each == end)

    return count


def plain(prompt: str) -> str:
    """The prompt with its parentheses as characters: weights of words would move them away from their places."""
    return escape_parentheses(prompt)


def spans_of(text: str, groups: Sequence[Sequence[Span]], count: CountTokens) -> list[tuple[Span, ...]]:
    """For each group of words, spans in characters as spans in tokens."""
    return [token_spans(text, spans, count) for spans in groups]


def masked_layers(model: Any, loras: Sequence[RoutedLora]) -> list[Any]:
    """The LoRAs' modules as `MaskedLayer`s of a MODEL's Flux, in which q, k and v are one matrix. Raises ValueError."""
    from .routing.adapters import MaskedLayer, stream_of

    flux, layers = model.model.diffusion_model, []
    for index, lora in enumerate(loras):
        for name, module in lora.modules.items():
            diffusers_name = name.removeprefix("transformer.")
            layer, part = bfl_module(diffusers_name)
            try:
                linear = flux.get_submodule(layer)
            except AttributeError:
                raise ValueError(f"{lora.name} does not fit the connected model: it has no {layer}") from None
            names = diffusers_modules(layer)
            rows = fused_rows(names, linear.out_features, flux.hidden_size)[names[part]]
            sizes, own = (module.down.shape[1], module.up.shape[0]), (linear.in_features, rows.stop - rows.start)
            if sizes != own:
                raise ValueError(f"{lora.name} does not fit the connected model: {name} is {sizes}, the model's {own}")
            stream, up = stream_of(diffusers_name), module.up.float() * (module.scale * lora.strength)
            assert stream
            layers.append(MaskedLayer(index, layer, stream, module.down, up, rows if len(names) > 1 else None))
    return layers


def with_wrapper(model: Any, around: Callable[..., Any]) -> Any:
    """A clone of a MODEL, around whose Flux's forward pass `around(flux, x, sigma, context)` is a context manager."""
    from comfy.patcher_extension import WrappersMP

    def wrapper(executor: Any, x: Any, timestep: Any, context: Any, *rest: Any, **named: Any) -> Any:
        with around(executor.class_obj, x, float(timestep.flatten()[0]), context):
            return executor(x, timestep, context, *rest, **named)

    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, wrapper)
    return clone


def recording(model: Any, maps: Any, first_sigma: float) -> Any:
    """A clone of a MODEL that adds the attention of all of its blocks to `maps`, from a sigma downwards."""

    @contextmanager
    def around(flux: Any, x: Any, sigma: float, context: Any) -> Iterator[None]:
        with ExitStack() as stack:
            if sigma <= first_sigma * (1 + 1e-6):
                _record(stack, flux, maps, context.shape[1], image_tokens(x.shape))
            yield

    return with_wrapper(model, around)


def image_tokens(shape: Sequence[int]) -> int:
    """The image tokens of latents [B, C, H, W]; a patch at the edge may be cut off."""
    return -(-shape[-2] // 2) * -(-shape[-1] // 2)


def _record(stack: ExitStack, flux: Any, maps: Any, txt_length: int, img_length: int) -> None:
    for block in flux.double_blocks:
        found: dict[str, Any] = {}

        def keep_text(_norm: Any, _inputs: Any, output: Any, found: dict[str, Any] = found) -> None:
            maps.add(found.pop("query")[:, :img_length], output[1].transpose(1, 2))

        def keep_image(_norm: Any, _inputs: Any, output: Any, found: dict[str, Any] = found) -> None:
            found["query"] = output[0].transpose(1, 2)

        stack.callback(block.img_attn.norm.register_forward_hook(keep_image).remove)  # runs first
        stack.callback(block.txt_attn.norm.register_forward_hook(keep_text).remove)
    for block in flux.single_blocks:

        def keep(_norm: Any, _inputs: Any, output: Any) -> None:
            query, key = (each.transpose(1, 2) for each in output)
            maps.add(query[:, txt_length : txt_length + img_length], key[:, :txt_length])

        stack.callback(block.norm.register_forward_hook(keep).remove)


def routed_model(model: Any, layers: Sequence[Any], masks: Any) -> Any:
    """A clone of a MODEL in which the LoRAs act within their masks. masks: `TokenMasks` of the batch's images."""
    from .routing.adapters import acting, on_device

    ready: dict[Any, list[Any]] = {}

    @contextmanager
    def around(flux: Any, x: Any, _sigma: float, _context: Any) -> Iterator[None]:
        kind = x.device, x.dtype
        if kind not in ready:
            ready[kind] = on_device(layers, *kind)
        with acting(flux, ready[kind], masks):
            yield

    return with_wrapper(model, around)


@dataclass(frozen=True)
class Passes:
    """What both passes of one sampling share.

    prompt: with its class prompt; count: T5's tokens of a text; length: T5's tokens with padding.
    """

    model: Any
    clip: Any
    prompt: RoutedPrompt
    count: CountTokens
    length: int
    latent: Mapping[str, Any]
    settings: sampling.Settings

    def masks(self, settings: Any) -> Any:
        """The first pass, with the base model: the LoRAs' masks [B, LoRAs, I]. settings: `MaskSettings`."""
        from .routing.attention import AttentionMaps, recorded_steps
        from .routing.masks import masks_from_maps

        shape = self.latent["samples"].shape
        text, steps = self.prompt.class_text, recorded_steps(self.settings.steps)
        spans, device = spans_of(text, self.prompt.groups, self.count), self.model.load_device
        maps = AttentionMaps([spans] * shape[0], [min(self.count(text), self.length)] * shape[0], device)
        sigmas = self.sigmas()
        conditioning = sampling.encode(self.clip, plain(text), self.length, self.settings.guidance)
        model = recording(self.model, maps, float(sigmas[steps.start]))
        sampling.sample(model, conditioning, self.latent, self.settings, sigmas=sigmas[: steps.stop + 1])
        rows, columns = -(-shape[-2] // 2), -(-shape[-1] // 2)
        return masks_from_maps(maps.mean(), maps.log_mean(), rows, columns, [self.prompt] * shape[0], settings)

    def sigmas(self) -> Any:
        """The SIGMAS of a complete pass."""
        shift = sampling.shift_for(self.model, self.latent, self.settings)
        return sampling.sigmas_for(sampling.with_shift(self.model, shift), shift, self.settings)

    def sample(self, loras: Sequence[RoutedLora], masks: Any) -> dict[str, Any]:
        """The second pass: a LATENT, with the LoRAs within their masks; `masks` None for the base model's."""
        from .routing.adapters import TokenMasks
        from .routing.attention import token_masks

        conditioning = sampling.encode(self.clip, plain(self.prompt.text), self.length, self.settings.guidance)
        model = self.model
        if masks is not None:
            spans = [spans_of(self.prompt.text, self.prompt.triggers, self.count)] * len(masks)
            words = TokenMasks(token_masks(spans, self.length, masks.device), masks)
            model = routed_model(model, masked_layers(model, loras), words)
        return sampling.sample(model, conditioning, self.latent, self.settings)
