"""Pictures against diffusers' own pipeline, and the prompt files that ask for them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline
from PIL import Image

from benchmarks.random_flux import write_model_files
from trainer.common.problems import Problems
from trainer.models.load import load_autoencoder, load_transformer
from trainer.models.transformer import Conditioning
from trainer.sampling.prompts import SamplePrompt, load_sample_prompts, parse_line
from trainer.sampling.sampler import decode_picture, sample_latents, save_picture

PROMPT = SamplePrompt("a toy", width=96, height=64, seed=7, steps=4, guidance=2.5)


@pytest.fixture(scope="module", params=[True, False], ids=["dev", "schnell"])
def pipeline(request, tmp_path_factory) -> FluxPipeline:
    """diffusers' pipeline with the scheduler settings that each model is published with."""
    files = write_model_files(tmp_path_factory.mktemp("models"), size="tiny", guidance=request.param)
    settings = {"shift": 3.0, "use_dynamic_shifting": True} if request.param else {"shift": 1.0}
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**settings),
        vae=load_autoencoder(files.ae, "cpu", torch.float32),
        transformer=load_transformer(files.transformer, "cpu", torch.float32),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
    )


@pytest.fixture(scope="module")
def texts() -> tuple[Conditioning, Conditioning]:
    generator = torch.Generator().manual_seed(1)
    positive, negative = (
        Conditioning(torch.randn(1, 6, 64, generator=generator), torch.randn(1, 64, generator=generator))
        for _ in range(2)
    )
    return positive, negative


def theirs(pipeline: FluxPipeline, prompt: SamplePrompt, texts, kind: str):
    positive, negative = texts
    noise = torch.randn(1, 16, prompt.height // 8, prompt.width // 8, generator=torch.Generator().manual_seed(7))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        prompt_embeds=positive.txt,
        pooled_prompt_embeds=positive.pooled,
        negative_prompt_embeds=negative.txt if prompt.cfg > 1 else None,
        negative_pooled_prompt_embeds=negative.pooled if prompt.cfg > 1 else None,
        true_cfg_scale=prompt.cfg,
        latents=FluxPipeline._pack_latents(noise, *noise.shape),
        height=prompt.height,
        width=prompt.width,
        num_inference_steps=prompt.steps,
        guidance_scale=prompt.guidance,
        output_type=kind,
    ).images


@pytest.mark.parametrize("cfg", [1.0, 2.0])
def test_latents_are_the_pipelines(pipeline, texts, cfg):
    prompt = replace(PROMPT, cfg=cfg)
    ours = sample_latents(pipeline.transformer, prompt, 7, texts[0], texts[1] if cfg > 1 else None)
    packed = theirs(pipeline, prompt, texts, "latent")
    expected = FluxPipeline._unpack_latents(packed, prompt.height, prompt.width, vae_scale_factor=8)
    assert (ours - expected).norm() < 1e-3 * expected.norm()
    assert expected.std() > 0.1


def test_guidance_steps_and_seed_all_matter(pipeline, texts):
    base = sample_latents(pipeline.transformer, PROMPT, 7, texts[0], None)
    others = [(replace(PROMPT, steps=3), 7), (PROMPT, 8)]
    if pipeline.transformer.config.guidance_embeds:
        others.append((replace(PROMPT, guidance=1.0), 7))
    for prompt, seed in others:
        assert (sample_latents(pipeline.transformer, prompt, seed, texts[0], None) - base).norm() > 0.01 * base.norm()


def test_picture_is_the_pipelines(pipeline, texts):
    latents = sample_latents(pipeline.transformer, PROMPT, 7, texts[0], None)
    ours = np.asarray(decode_picture(pipeline.vae, latents), dtype=int)
    expected = np.asarray(theirs(pipeline, PROMPT, texts, "pil")[0], dtype=int)
    assert ours.shape == (PROMPT.height, PROMPT.width, 3) and expected.std() > 5
    assert np.abs(ours - expected).max() <= 1


def prompts(folder: Path, name: str, text: str) -> list[SamplePrompt]:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return load_sample_prompts(path)


def test_lines_with_kohyas_options(tmp_path):
    text = (
        "# pictures\n\n a tjtoy toy, on a desk --w 768 --h 512 --d 5 --s 28 --g 2.5 --l 1.5 --n blurry, grey \nplain\n"
    )
    first, second = prompts(tmp_path, "prompts.txt", text)
    assert first == SamplePrompt("a tjtoy toy, on a desk", "blurry, grey", 768, 512, 5, 28, 2.5, 1.5)
    assert second == SamplePrompt("plain")
    assert first.texts() == ("a tjtoy toy, on a desk", "blurry, grey") and second.texts() == ("plain",)


@pytest.mark.parametrize("line", ["well--known toy", "a -- dash", "ends with --"])
def test_dashes_within_a_prompt_are_kept(line):
    assert parse_line(line) == {"prompt": line}


def test_toml_with_shared_settings(tmp_path):
    text = '[prompt]\nwidth = 256\nscale = 2\nnegative_prompt = "grey"\n'
    text += '[[prompt.subset]]\nprompt = "a"\n[[prompt.subset]]\nprompt = "b"\nwidth = 512\nsample_steps = 4\n'
    assert prompts(tmp_path, "prompts.toml", text) == [
        SamplePrompt("a", "grey", width=256, cfg=2.0),
        SamplePrompt("b", "grey", width=512, cfg=2.0, steps=4),
    ]


def test_json_of_objects_and_lines(tmp_path):
    items = [{"prompt": "a", "guidance_scale": 1, "seed": 3}, "b --s 2"]
    assert prompts(tmp_path, "prompts.json", json.dumps(items)) == [
        SamplePrompt("a", guidance=1.0, seed=3),
        SamplePrompt("b", steps=2),
    ]


def problems_of(folder: Path, name: str, text: str) -> dict[str, str]:
    with pytest.raises(Problems) as found:
        prompts(folder, name, text)
    return {problem.where.removeprefix(f"{folder}/"): problem.what for problem in found.value.problems}


def test_every_bad_line_is_told_at_once(tmp_path):
    text = "good --w 512\nbad side --w 500\nbad number --s many\nunknown --q 3\n--w 64\n"
    found = problems_of(tmp_path, "prompts.txt", text)
    assert found == {
        "prompts.txt: line 2": "width 500 is not divisible by 16",
        "prompts.txt: line 3": "steps is not a number: 'many'",
        "prompts.txt: line 4": "unknown option --q",
        "prompts.txt: line 5": "holds no prompt",
    }


@pytest.mark.parametrize("option", ["--w 0", "--h -64", "--s 0", "--s -1", "--d -1", f"--d {2**63}", "--g nan"])
def test_numbers_that_make_no_picture_are_problems(tmp_path, option):
    assert list(problems_of(tmp_path, "prompts.txt", f"a toy {option}")) == ["prompts.txt: line 1"]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("empty.txt", "# nothing\n", "holds no prompt"),
        ("bad.toml", "[prompt\n", "cannot be read"),
        ("other.toml", "[general]\n", "cannot be read"),
        ("bad.json", "[{", "cannot be read"),
        ("object.json", '{"prompt": "a"}', "cannot be read"),
        ("numbers.json", "[1]", "cannot be read"),
        ("none.toml", "[[prompt.subset]]\nwidth = 64\n", "holds no prompt"),
    ],
)
def test_files_that_hold_no_prompts(tmp_path, name, text, words):
    (what,) = problems_of(tmp_path, name, text).values()
    assert words in what


def test_a_file_that_is_not_there_or_not_text(tmp_path):
    with pytest.raises(Problems, match="no such file"):
        load_sample_prompts(tmp_path / "absent.txt")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(Problems, match="cannot be read"):
        load_sample_prompts(tmp_path / "latin.txt")


def test_a_picture_says_how_it_was_made(tmp_path):
    path = tmp_path / "samples" / "a.png"
    save_picture(path, Image.new("RGB", (16, 8), "teal"), {"prompt": "ein „Spielzeug“, 玩具", "seed": 7, "step": 12})
    with Image.open(path) as picture:
        assert picture.size == (16, 8) and picture.getpixel((0, 0)) == (0, 128, 128)
        assert picture.info == {"prompt": "ein „Spielzeug“, 玩具", "seed": "7", "step": "12"}
    assert [file.name for file in path.parent.iterdir()] == ["a.png"]
