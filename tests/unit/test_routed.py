"""LoRAs that act in regions of their own: against the merged LoRA, against the base, and by token."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel

from tests.unit.test_lora import tiny_transformer
from trainer.common.problems import Problems
from trainer.lora.adapter import linear_modules
from trainer.lora.file import LoraFile
from trainer.lora.routed_files import RoutedLora, route_loras
from trainer.lora_file.apart import Part, apart_json, parts_of
from trainer.lora_file.metadata import APART
from trainer.lora_file.modules import LoraModule
from trainer.models.attention_maps import recording
from trainer.models.transformer import Conditioning, predict_velocity, rotary_table
from trainer.routing.adapters import TokenMasks, acting
from trainer.routing.attention import AttentionMaps
from trainer.routing.triggers import Trigger
from trainer.sampling.adapted import apply_lora
from trainer.sampling.prompts import SamplePrompt
from trainer.sampling.routed import Router
from trainer.sampling.sampler import denoise, start_noise

SETTINGS = SamplePrompt("", width=64, height=32, steps=3)
TOKENS, LENGTH = 8, 6


class Words:
    """A tokenizer with one token for each word and one for the end."""

    def __call__(self, text: str, verbose: bool) -> "Words":  # noqa: ARG002 (as of transformers)
        self.input_ids = [*text.split(), "end"]
        return self


def random_lora(model: Any, seed: int, metadata: dict[str, str] | None = None) -> LoraFile:
    generator = torch.Generator().manual_seed(seed)
    modules = {}
    for index, name in enumerate(linear_modules(model)):
        outputs, inputs = model.get_submodule(name).weight.shape
        rank = 2 + index % 2
        down, up = torch.randn(rank, inputs, generator=generator), torch.randn(outputs, rank, generator=generator) / 8
        modules[f"transformer.{name}"] = LoraModule(down, up, alpha=3.0)
    return LoraFile(modules, metadata or {})


def routed(model: FluxTransformer2DModel, *triggers: str) -> list[RoutedLora]:
    return [RoutedLora(each, (Trigger(each, "toy"),), random_lora(model, i).modules) for i, each in enumerate(triggers)]


def texts(model: FluxTransformer2DModel, count: int, seed: int = 1) -> Conditioning:
    generator = torch.Generator().manual_seed(seed)
    txt = torch.randn(count, LENGTH, model.context_embedder.in_features, generator=generator)
    return Conditioning(txt, torch.randn(count, model.config["pooled_projection_dim"], generator=generator))


@torch.inference_mode()
def velocity(model: FluxTransformer2DModel, masks: TokenMasks | None = None, router: Router | None = None):
    noise = start_noise(model, SETTINGS, [3, 4])
    arguments = (noise, torch.tensor([0.7, 0.7]), texts(model, 2), 3.5, rotary_table(model, 4, 8, LENGTH, model.device))
    if masks is None or router is None:
        return predict_velocity(model, *arguments)
    with router.acting(masks):
        return predict_velocity(model, *arguments)


def test_within_masks_that_cover_all_it_is_the_merged_lora():
    """Modulation layers too: theirs are two of the six kinds of layer."""
    model = tiny_transformer(2)
    base = velocity(model)
    merged = copy.deepcopy(model)
    apply_lora(random_lora(model, 0), merged, "transformer.")
    expected = velocity(merged)
    router = Router(model, routed(model, "tjtoy toy"), Words())
    everywhere = TokenMasks(torch.ones(2, 1, LENGTH), torch.ones(2, 1, TOKENS))
    torch.testing.assert_close(velocity(model, everywhere, router), expected, rtol=1e-4, atol=1e-5)
    assert (expected - base).norm() > 0.1 * base.norm()
    nowhere = TokenMasks(torch.zeros(2, 1, LENGTH), torch.zeros(2, 1, TOKENS))
    assert torch.equal(velocity(model, nowhere, router), base)
    assert torch.equal(velocity(model), base) and not any(module._forward_hooks for module in model.modules())


def test_a_half_mask_is_half_the_lora_and_each_image_has_its_own():
    model = tiny_transformer()
    merged = copy.deepcopy(model)
    half = random_lora(model, 0)
    half = LoraFile({name: replace(each, alpha=each.alpha / 2) for name, each in half.modules.items()}, {})
    apply_lora(half, merged, "transformer.")
    router = Router(model, routed(model, "tjtoy toy"), Words())
    of_first = torch.tensor([0.5, 0.0])[:, None, None]
    masks = TokenMasks(of_first.expand(2, 1, LENGTH), of_first.expand(2, 1, TOKENS))
    found = velocity(model, masks, router)
    torch.testing.assert_close(found[:1], velocity(merged)[:1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[1:], velocity(model)[1:], rtol=1e-4, atol=1e-5)


def test_only_the_tokens_of_the_mask_are_changed():
    model = tiny_transformer()
    (lora,) = routed(model, "tjtoy toy")
    router = Router(model, [lora], Words())
    masks = TokenMasks(torch.zeros(2, 1, LENGTH), torch.zeros(2, 1, TOKENS))
    masks.image[:, :, 3] = 1
    name, seen = "transformer_blocks.0.ff.net.2", {}
    model.get_submodule(name).register_forward_hook(lambda _m, _i, output: seen.update(after=output))
    x = torch.randn(2, TOKENS, model.get_submodule(name).in_features)  # type: ignore[arg-type]
    with torch.inference_mode(), router.acting(masks):
        changed = model.get_submodule(name)(x) - torch.nn.functional.linear(x, *model.get_submodule(name).parameters())
    moved = changed.norm(dim=-1) > 1e-6
    assert moved[:, 3].all() and not moved[:, [0, 1, 2, 4, 5, 6, 7]].any()


def test_prompts_without_a_trigger_stay_exactly_the_base_models():
    model = tiny_transformer()
    router = Router(model, routed(model, "tjtoy toy", "sparkgpu gpu"), Words())
    prompts = [router.route(text) for text in ("a bear", "tjtoy toy holding sparkgpu gpu")]
    assert prompts[1].class_text == "a toy holding a toy"
    noise, positive, of_classes = start_noise(model, SETTINGS, [0, 1]), texts(model, 2), texts(model, 2, seed=2)
    base = denoise(model, noise, SETTINGS, positive, None)
    found = router.sample(noise, SETTINGS, prompts, positive, of_classes)
    assert torch.equal(found.latents[0], base[0]) and not torch.equal(found.latents[1], base[1])
    assert not found.masks[0].any() and found.masks[1].any(1).all() and found.masks.shape == (2, 2, TOKENS)
    assert found.masks.sum(1).max() == 1
    alone = router.sample(noise[:1], SETTINGS, prompts[:1], positive.at(slice(0, 1)), of_classes.at(slice(0, 1)))
    assert torch.equal(alone.latents, denoise(model, noise[:1], SETTINGS, positive.at(slice(0, 1)), None))
    assert type(model.transformer_blocks[0]).__name__ == "FluxTransformerBlock"


def test_a_negative_prompts_text_stays_the_bases():
    """A LoRA on the text's layers alone changes nothing of the negative pass."""
    model = tiny_transformer()
    (lora,) = routed(model, "tjtoy toy")
    text_layers = {name: each for name, each in lora.modules.items() if "add_" in name}
    router = Router(model, [replace(lora, modules=text_layers)], Words())
    prompt, settings = router.route("tjtoy toy"), replace(SETTINGS, steps=1, cfg=1e6)
    noise, positive, negative = start_noise(model, settings, [0]), texts(model, 1), texts(model, 1, seed=5)
    found = router.sample(noise, settings, [prompt], positive, texts(model, 1, seed=2), negative).latents
    with torch.inference_mode():
        unguided = router.sample(noise, replace(settings, cfg=1.0), [prompt], positive, texts(model, 1, seed=2)).latents
        base = denoise(model, noise, replace(settings, cfg=1.0), negative, None)
    torch.testing.assert_close(found, base + 1e6 * (unguided - base), rtol=1e-3, atol=1.0)


def test_recorded_attention_is_that_of_the_blocks():
    """Compared with queries and keys taken at the norms, in diffusers' own blocks."""
    model: Any = tiny_transformer()
    found, maps = {}, AttentionMaps([[[(0, 2)]]] * 2, [5, 5], "cpu")
    for kind, block in (("double", model.transformer_blocks[0]), ("single", model.single_transformer_blocks[0])):
        for norm in ("norm_q", "norm_k", "norm_added_k"):
            if layer := getattr(block.attn, norm, None):
                key = kind, norm
                layer.register_forward_hook(lambda _m, _i, output, key=key: found.update({key: output}))
    with recording(model, maps, LENGTH):
        velocity(model)
    expected = AttentionMaps([[[(0, 2)]]] * 2, [5, 5], "cpu")
    expected.add(found["double", "norm_q"], found["double", "norm_added_k"])
    expected.add(found["single", "norm_q"][:, LENGTH:], found["single", "norm_k"][:, :LENGTH])
    assert torch.equal(maps.mean(), expected.mean()) and maps.mean().std() > 0
    with acting(model, [], TokenMasks(torch.zeros(2, 1, LENGTH), torch.zeros(2, 1, TOKENS))):
        assert not any(layer._forward_hooks for layer in (model.x_embedder, model.transformer_blocks[0].attn.to_q))


def test_a_lora_of_another_model_is_refused():
    model = tiny_transformer()
    (lora,) = routed(tiny_transformer(2), "tjtoy toy")
    wide = {name: replace(each, up=torch.ones(3, each.rank)) for name, each in lora.modules.items()}
    for modules, words in (
        (lora.modules, "1.norm1.linear is no layer"),
        (wide, "goes from 32 to 3, the model's layer"),
    ):
        with pytest.raises(Problems, match=words):
            Router(model, [replace(lora, modules=modules)], Words())


# files


def metadata(*triggers: str) -> dict[str, str]:
    return {"modelspec.trigger_phrase": ", ".join(triggers)}


def test_files_say_what_calls_them_and_layers_without_tokens_are_reported():
    lora = random_lora(tiny_transformer(), 0, metadata("tjtoy toy"))
    clip = {"text_encoder.text_model.encoder.layers.0.mlp.fc1": LoraModule(torch.ones(1, 4), torch.ones(4, 1), 1.0)}
    (found,), (note,) = route_loras([("a", LoraFile(lora.modules | clip, lora.metadata), 0.5)], {})
    assert found.triggers == (Trigger("tjtoy toy", "toy"),) and found.modules.keys() == lora.modules.keys()
    assert "1 layer that acts on no tokens" in note and "CLIP" in note
    assert all(each.alpha == lora.modules[name].alpha / 2 for name, each in found.modules.items())
    (told,), notes = route_loras([("a", lora, 1.0)], {"tjtoy toy": "a plush toy"})
    assert told.triggers[0].class_words == "a plush toy" and not notes


@pytest.mark.parametrize(
    ("triggers", "class_words", "words"),
    [
        ([(), ("x y",)], {}, "a: names no trigger"),
        ([("x y",), ("x y",)], {}, "b: has the trigger 'x y' of another LoRA"),
        ([("ohwx",), ("x y",)], {}, "what the base model calls 'ohwx' is not known"),
        ([("x y",), ("a b",)], {"c": "toy"}, "class words of 'c': it is no trigger"),
    ],
)
def test_what_cannot_be_routed_is_named(triggers, class_words, words):
    model = tiny_transformer()
    files = [
        (name, random_lora(model, 0, metadata(*each) if each else {}), 1.0)
        for name, each in zip("ab", triggers, strict=True)
    ]
    with pytest.raises(Problems, match=words):
        route_loras(files, class_words)


def test_adapters_of_one_file_stay_apart():
    model = tiny_transformer()
    first, second = random_lora(model, 0).modules, random_lora(model, 1).modules
    second = dict(list(second.items())[2:])
    from trainer.lora_file import algebra

    given = [Part("one", {"tjtoy toy": "a toy"}, first), Part("two", {"sparkgpu gpu": ""}, second)]
    joined = algebra.merge([(first, 1.0), (second, 1.0)])
    one, two = parts_of("file", joined, {APART: apart_json(given)})
    assert (one.title, one.triggers, two.triggers) == ("one", {"tjtoy toy": "a toy"}, {"sparkgpu gpu": ""})
    for part, modules in ((one, first), (two, second)):
        assert part.modules.keys() == modules.keys()
        for name, module in modules.items():
            ours = part.modules[name]
            torch.testing.assert_close(ours.scale * ours.up @ ours.down, module.scale * module.up @ module.down)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("[", "other ranks"),
        ("[3]", "cannot be read"),
        ('[{"title": "a", "concepts": [], "rank": 1, "ranks": {}}]', "other ranks"),
        ('[{"title": "a", "concepts": [], "rank": 1, "ranks": {"x": 2}}]', "cannot be read"),
        ('[{"title": "a", "concepts": [], "rank": -1, "ranks": {}}]', "cannot be read"),
    ],
)
def test_a_description_that_is_not_the_files_is_refused(value: str, words: str):
    with pytest.raises(ValueError, match=words):
        parts_of("file", random_lora(tiny_transformer(), 0).modules, {APART: value})
