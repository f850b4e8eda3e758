"""FLUX Sample (routed LoRAs): its masks and latents are the trainer's, and without a trigger the base model's."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from custom_nodes.flux_dreambooth import mini
from custom_nodes.flux_dreambooth.nodes_routed import FluxSampleRouted
from tests.nodes.model_files import write_lora
from tests.nodes.server import ComfyServer
from tests.nodes.test_sample_node import GUIDANCE, HEIGHT, SEED, STEPS, WIDTH, as_trained, latents
from trainer.data.batches import unscale_latents
from trainer.lora.convert import Source, convert
from trainer.lora.file import load_lora
from trainer.lora.routed_files import route_loras
from trainer.models.load import load_clip, load_t5, load_transformer
from trainer.models.text import clip_ids, encode_t5, load_tokenizers
from trainer.models.transformer import Conditioning
from trainer.routing.masks import mask_pixels
from trainer.sampling.prompts import SamplePrompt
from trainer.sampling.routed import RoutedImages, Router
from trainer.sampling.sampler import start_noise

PROMPT = "tjtoy toy holding sparkgpu gpu on a desk"
FILES = {"route-toy.safetensors": "tjtoy toy", "route-gpu.safetensors": "sparkgpu gpu"}


@pytest.fixture(scope="module")
def loras(comfyui: ComfyServer) -> list[Path]:
    """Random LoRAs in kohya's layout, with layers of CLIP, which routing leaves out."""
    folder = comfyui.folder / "models/mini"
    return [
        write_lora(comfyui.loras / name, folder, {"modelspec.trigger_phrase": trigger}, seed, size=0.2)
        for seed, (name, trigger) in enumerate(FILES.items())
    ]


def routed(**changed: Any) -> dict[str, Any]:
    prompt = as_trained(prompt=PROMPT)
    first, second = FILES
    prompt["2"]["class_type"] = "FluxSampleRouted"
    prompt["2"]["inputs"] |= {"lora_1": first, "strength_1": 1.0, "lora_2": second, "strength_2": 0.5} | changed
    prompt["4"]["inputs"]["source"] = ["2", 3]
    return prompt


def told(server: ComfyServer, prompt: dict[str, Any]) -> str:
    result = server.run(prompt)
    assert not result.error, result.error
    return result.outputs["4"]["text"][0]


@torch.inference_mode()
def trainers(models: Path, loras: list[Path]) -> RoutedImages:
    files, tokenizers = mini.find_files(models), load_tokenizers(models / "tokenizers")
    transformer = load_transformer(files.transformer, "cpu", torch.float32)
    clip = load_clip(files.clip, "cpu", torch.float32, tokenizers.clip.eos_token_id)
    t5 = load_t5(files.t5, "cpu", torch.float32)

    def encode(text: str) -> Conditioning:
        hidden, _ = encode_t5(t5, tokenizers.t5, [text], 64, False)
        return Conditioning(hidden, clip(clip_ids(tokenizers.clip, [text])).pooler_output)

    weighted = [(str(path), load_lora(path), weight) for path, weight in zip(loras, (1.0, 0.5), strict=True)]
    router = Router(transformer, route_loras(weighted, {})[0], tokenizers.t5)
    route = router.route(PROMPT)
    settings = SamplePrompt(PROMPT, width=WIDTH, height=HEIGHT, steps=STEPS, guidance=GUIDANCE)
    noise = start_noise(transformer, settings, [SEED])
    return router.sample(noise, settings, [route], encode(PROMPT), encode(route.class_text))


@pytest.mark.comfyui
def test_masks_and_latents_are_the_trainers(comfyui: ComfyServer, loras: list[Path]):
    expected = trainers(comfyui.folder / "models/mini", loras)
    found = latents(comfyui, routed())
    wanted = unscale_latents(expected.latents)
    distance = ((found - wanted).norm() / wanted.norm()).item()
    base = ((latents(comfyui, as_trained(prompt=PROMPT)) - wanted).norm() / wanted.norm()).item()
    print(f"distance to the trainer's latents: {distance:.2e}, of the base model's {base:.2e}")
    assert distance < 1e-4 and base > 0.03
    (preview,) = comfyui.run(routed(seed=SEED + 1)).pictures(comfyui, "2")
    assert preview.size == (WIDTH, HEIGHT)
    (preview,) = comfyui.run(routed(threshold=0.45)).pictures(comfyui, "2")
    pixels = mask_pixels(expected.masks[0], HEIGHT // 16, WIDTH // 16, HEIGHT, WIDTH)
    assert torch.equal(torch.from_numpy(np.array(preview.convert("RGB"))), pixels)


@pytest.mark.comfyui
@pytest.mark.usefixtures("loras")
def test_a_prompt_without_a_trigger_is_exactly_the_base_models(comfyui: ComfyServer):
    plain = "a red bear toy (with ears)"
    text = told(comfyui, routed(prompt=plain))
    assert "calls no LoRA" in text
    base = latents(comfyui, as_trained(prompt=plain.replace("(", r"\(").replace(")", r"\)")))
    assert torch.equal(latents(comfyui, routed(prompt=plain)), base)


@pytest.mark.comfyui
def test_it_says_what_was_called_and_what_is_left_out(comfyui: ComfyServer, loras: list[Path]):
    text = told(comfyui, routed(prompt="a photo of tjtoy toy", class_words="tjtoy toy = a plush bear"))
    assert "class prompt: a photo of a plush bear" in text
    assert 'route-toy: called by "tjtoy toy"' in text and 'route-gpu: not called by "sparkgpu gpu"' in text
    assert "layers that act on no tokens, as those of CLIP" in text
    both = comfyui.loras / "route-both.safetensors"
    convert([Source(loras[0]), Source(loras[1], 0.5)], both, dtype=torch.float32, class_words={})
    apart = latents(comfyui, routed(lora_1="route-both.safetensors", lora_2="none"))
    alone = latents(comfyui, routed())
    assert ((apart - alone).norm() / alone.norm()).item() < 1e-4
    batch = latents(comfyui, routed(batch_size=2))
    torch.testing.assert_close(batch[:1], alone, rtol=1e-3, atol=1e-3)


@pytest.mark.comfyui
@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"lora_2": "route-toy.safetensors"}, "has the trigger 'tjtoy toy' of another LoRA"),
        ({"class_words": "tjtoy\nx = y"}, "tjtoy: is not TRIGGER = WORDS"),
        ({"class_words": "x = y"}, "class words of 'x': it is no trigger"),
    ],
)
@pytest.mark.usefixtures("loras")
def test_what_cannot_be_routed_is_said(comfyui: ComfyServer, changed: dict[str, Any], words: str):
    assert words in comfyui.run(routed(**changed)).error


def test_unused_inputs_are_no_loras():
    chosen = FluxSampleRouted.IS_CHANGED(lora_1="none", lora_2=None, prompt="x")
    assert chosen == ""
