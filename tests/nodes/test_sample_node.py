"""FLUX sample (as trained): its numbers are the trainer's, its picture the nine-node graph's, bit for bit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from custom_nodes.flux_dreambooth import mini, sampling
from tests.nodes.model_files import write_lora
from tests.nodes.server import ComfyServer
from trainer.data.batches import unscale_latents
from trainer.flow import euler_sigmas, flux_mu
from trainer.models.load import load_clip, load_t5, load_transformer
from trainer.models.text import clip_ids, encode_t5, load_tokenizers
from trainer.models.transformer import Conditioning
from trainer.sampling.prompts import SamplePrompt
from trainer.sampling.sampler import sample_latents

PROMPT = "a red bear toy on a desk"
WIDTH, HEIGHT, SEED, STEPS, GUIDANCE = 96, 64, 7, 4, 3.5


def test_shift_and_sigmas_are_the_trainers():
    for width, height in ((256, 256), (1024, 1024), (832, 1216)):
        tokens = width * height // 256
        shift = sampling.flux_shift(width, height)
        assert shift == pytest.approx(flux_mu(tokens), rel=1e-12)
        ours = torch.tensor(sampling.trained_sigmas(20, shift))
        assert torch.allclose(ours, euler_sigmas(20, tokens), atol=1e-7, rtol=0)
    assert sampling.trained_sigmas(4, None) == [1, 0.75, 0.5, 0.25, 0]


def test_denoise_leaves_the_last_steps():
    assert sampling.trained_sigmas(2, None, 0.5) == [0.5, 0.25, 0]
    assert sampling.trained_sigmas(2, None, 0.0) == []


@pytest.mark.parametrize(
    ("stated", "own", "schnell", "length"),
    [
        ([77], None, False, 77),
        ([None], None, False, 512),
        ([], None, True, 256),
        ([None], 64, False, 64),
        ([96, None], 64, False, 96),
        ([96, 128], None, False, 128),
        (["7", -1, 10**9, True], None, False, 512),
    ],
)
def test_t5_length(stated: list[Any], own: int | None, schnell: bool, length: int):
    metadata = [{"flux_dreambooth": json.dumps({"config": {"t5xxl_max_token_length": each}})} for each in stated]
    broken = [{}, {"flux_dreambooth": "{"}, {"flux_dreambooth": "[]"}, {"flux_dreambooth": '{"config": 3}'}]
    loras = [(str(number), each) for number, each in enumerate([*metadata, *broken])]
    assert sampling.trained_t5_length(loras, own, schnell).tokens == length


def test_t5_length_says_where_it_is_from():
    stated = {"flux_dreambooth": json.dumps({"config": {"t5xxl_max_token_length": 32}})}
    assert str(sampling.trained_t5_length([], 64, False)) == "T5 64"
    assert str(sampling.trained_t5_length([("a", stated), ("b", {})], 64, False)) == "T5 32 (as a was trained)"
    assert "b does not state its own" in str(sampling.trained_t5_length([("b", {})], 64, False))
    assert "is not known" in str(sampling.trained_t5_length([("b", {})], 64, False, unknown=True))


def test_long_prompts_keep_their_end():
    assert sampling.cut_tokens([[1, 2, 3, 4, "end"], [1, "end"]], 3) == [[1, 2, "end"], [1, "end"]]


def as_trained(**changed: Any) -> dict[str, Any]:
    numbers = {"width": WIDTH, "height": HEIGHT, "seed": SEED, "steps": STEPS, "guidance": GUIDANCE}
    rest = {"sampler": "euler", "schedule": sampling.AS_TRAINED, "t5_length": 0, "batch_size": 1, "prompt": PROMPT}
    wires = {"model": ["1", 0], "clip": ["1", 1]}
    return {
        "1": {"class_type": "LoadMiniFlux", "inputs": {"folder": "mini"}},
        "2": {"class_type": "FluxSampleAsTrained", "inputs": numbers | rest | wires | changed},
        "3": {"class_type": "SaveLatent", "inputs": {"samples": ["2", 0], "filename_prefix": "latents/test"}},
        "4": {"class_type": "PreviewAny", "inputs": {"source": ["2", 1]}},
    }


def nine_nodes(sampler: str, schedule: str, t5_length: int | None = None) -> dict[str, Any]:
    clip, size = ["20", 0] if t5_length else ["1", 1], {"width": WIDTH, "height": HEIGHT}
    wires = {"noise": "9", "guider": "6", "sampler": "7", "sigmas": "8", "latent_image": "10"}
    wires = {name: [node, 0] for name, node in wires.items()}
    inputs = {
        "2": ("ModelSamplingFlux", size | {"model": ["1", 0], "max_shift": 1.15, "base_shift": 0.5}),
        "4": ("CLIPTextEncode", {"clip": clip, "text": PROMPT}),
        "5": ("FluxGuidance", {"conditioning": ["4", 0], "guidance": GUIDANCE}),
        "6": ("BasicGuider", {"model": ["2", 0], "conditioning": ["5", 0]}),
        "7": ("KSamplerSelect", {"sampler_name": sampler}),
        "8": ("BasicScheduler", {"model": ["2", 0], "scheduler": schedule, "steps": STEPS, "denoise": 1.0}),
        "9": ("RandomNoise", {"noise_seed": SEED}),
        "10": ("EmptySD3LatentImage", size | {"batch_size": 1}),
        "11": ("SamplerCustomAdvanced", wires),
        "3": ("SaveLatent", {"samples": ["11", 0], "filename_prefix": "latents/test"}),
    }
    if t5_length:
        inputs["20"] = ("T5TokenizerOptions", {"clip": ["1", 1], "min_padding": 0, "min_length": t5_length})
    graph = {key: {"class_type": kind, "inputs": values} for key, (kind, values) in inputs.items()}
    return {"1": {"class_type": "LoadMiniFlux", "inputs": {"folder": "mini"}}, **graph}


def latents(server: ComfyServer, prompt: dict[str, Any]) -> torch.Tensor:
    result = server.run(prompt)
    assert not result.error
    (file,) = result.outputs["3"]["latents"]
    return load_file(server.folder / "output" / file["subfolder"] / file["filename"])["latent_tensor"]


def settings(server: ComfyServer, prompt: dict[str, Any]) -> str:
    result = server.run(prompt)
    assert not result.error
    return result.outputs["4"]["text"][0]


@pytest.mark.comfyui
@pytest.mark.parametrize(
    ("sampler", "schedule", "t5_length"),
    [("dpmpp_2m", "sgm_uniform", None), ("euler", "simple", 96), ("euler_ancestral", "beta", 64)],
)
def test_told_the_same_it_is_the_nine_node_graph_bit_for_bit(comfyui: ComfyServer, sampler, schedule, t5_length):
    own = latents(comfyui, as_trained(sampler=sampler, schedule=schedule, t5_length=t5_length or 64))
    assert torch.equal(own, latents(comfyui, nine_nodes(sampler, schedule, t5_length)))
    assert own.shape == (1, 16, HEIGHT // 8, WIDTH // 8)


@pytest.mark.comfyui
def test_a_changed_number_changes_the_picture(comfyui: ComfyServer):
    first = latents(comfyui, as_trained())
    for changed in ({"guidance": 1.0}, {"t5_length": 80}, {"max_shift": 3.0}, {"seed": 8}, {"prompt": "a gpu"}):
        assert not torch.equal(first, latents(comfyui, as_trained(**changed))), changed


@torch.inference_mode()
def trainers_latents(models: Path) -> torch.Tensor:
    files, tokenizers = mini.find_files(models), load_tokenizers(models / "tokenizers")
    transformer = load_transformer(files.transformer, "cpu", torch.float32)
    clip = load_clip(files.clip, "cpu", torch.float32, tokenizers.clip.eos_token_id)
    pooled = clip(clip_ids(tokenizers.clip, [PROMPT])).pooler_output
    hidden, _ = encode_t5(load_t5(files.t5, "cpu", torch.float32), tokenizers.t5, [PROMPT], 64, False)
    prompt = SamplePrompt(PROMPT, width=WIDTH, height=HEIGHT, steps=STEPS, guidance=GUIDANCE)
    return unscale_latents(sample_latents(transformer, prompt, SEED, Conditioning(hidden, pooled), None))


@pytest.mark.comfyui
def test_by_default_it_is_the_trainers_sampler(comfyui: ComfyServer):
    """And nearer to it than the playbook's graph."""
    trainer = trainers_latents(comfyui.folder / "models/mini")

    def distance(drawn: torch.Tensor) -> float:
        return ((drawn - trainer).norm() / trainer.norm()).item()

    own, playbook = (
        distance(latents(comfyui, as_trained())),
        distance(latents(comfyui, nine_nodes("dpmpp_2m", "sgm_uniform"))),
    )
    print(f"distance to the trainer's latents: as trained {own:.2e}, playbook's graph {playbook:.2e}")
    assert own < 1e-3 and playbook > 20 * own


@pytest.mark.comfyui
def test_the_lora_says_how_long_its_prompts_were(comfyui: ComfyServer):
    ours = {"flux_dreambooth": json.dumps({"config": {"t5xxl_max_token_length": 96}})}
    write_lora(comfyui.loras / "sample-t5.safetensors", comfyui.folder / "models/mini", ours)
    prompt = as_trained()
    assert "T5 64" in settings(comfyui, prompt)
    strengths = {"strength_model": 1.0, "strength_clip": 1.0}
    wires = {"model": ["1", 0], "clip": ["1", 1], "lora_name": "sample-t5.safetensors"}
    prompt["5"] = {"class_type": "LoraLoader", "inputs": strengths | wires}
    prompt["2"]["inputs"] |= {"model": ["5", 0], "clip": ["5", 1]}
    assert "T5 96 (as sample-t5.safetensors was trained)" in settings(comfyui, prompt)
    prompt["2"]["inputs"]["t5_length"] = 72
    assert "T5 72" in settings(comfyui, prompt)
    prompt["2"]["inputs"]["t5_length"] = 0
    prompt["5"]["class_type"] = "LoadFluxDreamBoothLoRA"
    prompt["5"]["inputs"]["checkpoint"] = "this file"
    assert "T5 96 (as sample-t5.safetensors was trained)" in settings(comfyui, prompt)
    prompt["5"]["class_type"] = "LoraLoader"
    if "LoraLoaderBypass" in comfyui.object_info():  # injected, not patched; since ComfyUI 0.12
        prompt["5"]["class_type"] = "LoraLoaderBypass"
        assert "T5 96 (as sample-t5.safetensors was trained)" in settings(comfyui, prompt)
        prompt["5"]["class_type"] = "LoraLoader"
    prompt["5"]["inputs"] |= {"strength_model": 0.0, "strength_clip": 0.0}
    assert "T5 64" in settings(comfyui, prompt)
    hooks = {"lora_name": "sample-t5.safetensors", "strength_model": 1.0, "strength_clip": 1.0}
    prompt["6"] = {"class_type": "CreateHookLora", "inputs": hooks}
    hooked = {"clip": ["1", 1], "hooks": ["6", 0], "apply_to_conds": True, "schedule_clip": False}
    prompt["7"] = {"class_type": "SetClipHooks", "inputs": hooked}
    prompt["2"]["inputs"]["clip"] = ["7", 0]
    assert "T5 96 (as sample-t5.safetensors was trained)" in settings(comfyui, prompt)


LOADERS = """
import comfy.sd, comfy.utils, folder_paths

class ByNumber:
    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL", "CLIP"), "load", "test"

    @classmethod
    def INPUT_TYPES(cls):
        numbers = {name: ("INT", {"default": 0}) for name in ("number", "doubled")}
        return {"required": {"model": ("MODEL",), "clip": ("CLIP",), **numbers}}

    def load(self, model, clip, number, doubled):
        lora = comfy.utils.load_torch_file(folder_paths.get_full_path("loras", f"by-number-{number}.safetensors"))
        lora = {key: 2 * value for key, value in lora.items()} if doubled else lora
        return comfy.sd.load_lora_for_models(model, clip, lora, 1.0, 1.0)

NODE_CLASS_MAPPINGS = {"ByNumber": ByNumber}
"""


@pytest.mark.comfyui
def test_the_length_of_a_lora_that_no_input_names(start_comfyui: Callable[..., ComfyServer], tmp_path: Path):
    """A pack's loader takes a number: the file is recognized by its numbers, and one that was changed is not."""
    pack = tmp_path / "by_number"
    pack.mkdir()
    (pack / "__init__.py").write_text(LOADERS)
    server = start_comfyui(packs=(pack,))
    for number, length in ((1, 32), (2, 48)):
        ours = {"flux_dreambooth": json.dumps({"config": {"t5xxl_max_token_length": length}})}
        write_lora(server.loras / f"by-number-{number}.safetensors", server.folder / "models/mini", ours, seed=number)
    prompt = as_trained(model=["5", 0], clip=["5", 1])
    inputs = {"model": ["1", 0], "clip": ["1", 1], "number": 1, "doubled": 0}
    prompt["5"] = {"class_type": "ByNumber", "inputs": inputs}
    assert "T5 32 (as by-number-1.safetensors was trained)" in settings(server, prompt)
    prompt["6"] = {"class_type": "ByNumber", "inputs": inputs | {"model": ["5", 0], "clip": ["5", 1], "number": 2}}
    prompt["2"]["inputs"] |= {"model": ["6", 0], "clip": ["6", 1]}
    assert "T5 48 (as by-number-2.safetensors was trained)" in settings(server, prompt)
    prompt["2"]["inputs"] |= {"model": ["5", 0], "clip": ["5", 1]}
    prompt["5"]["inputs"]["doubled"] = 1
    assert "T5 64 (the base model's; the length that the applied LoRA was trained with is not known)" in settings(
        server, prompt
    )


@pytest.mark.comfyui
def test_a_given_latent_brings_its_own_size(comfyui: ComfyServer):
    prompt = as_trained(latent=["6", 0], denoise=0.5)
    prompt["6"] = {"class_type": "EmptySD3LatentImage", "inputs": {"width": 32, "height": 48, "batch_size": 2}}
    assert f"shift {sampling.flux_shift(32, 48):.4f}" in settings(comfyui, prompt)
    prompt["2"]["inputs"]["seed"] += 1
    assert latents(comfyui, prompt).shape == (2, 16, 6, 4)


@pytest.mark.comfyui
def test_progress_is_told_and_an_interrupt_ends_it(comfyui: ComfyServer):
    _, heard = comfyui.run_listening(as_trained(seed=11))
    steps = [each["data"]["value"] for each in heard if isinstance(each, dict) and each["type"] == "progress"]
    assert steps == sorted(steps) and steps[-1] == STEPS
    with comfyui.listen("interrupting") as messages:
        prompt_id = comfyui.queue(as_trained(seed=12, steps=500), "interrupting")
        while True:
            message = messages.receive()
            if isinstance(message, dict) and message["type"] == "progress":
                break
        comfyui.interrupt()
        result = comfyui.wait(prompt_id)
    assert result.interrupted
    assert latents(comfyui, as_trained(seed=13)).isfinite().all()
