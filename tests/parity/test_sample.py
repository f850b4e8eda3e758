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
from trainer.sampling.prompts import SamplePrompt, idle_negatives, load_sample_prompts, parse_line
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
    (given,), problems = parse_line(line)
    assert (given.name, given.value, problems) == ("prompt", line, [])


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
        "prompts.txt:2": "--w is 500; it must be a multiple of 16",
        "prompts.txt:3": '--s is "many", not a whole number',
        "prompts.txt:4": "--q is not an option of a prompt",
        "prompts.txt:5": "has no prompt",
    }


@pytest.mark.parametrize("option", ["--w 0", "--h -64", "--s 0", "--s -1", "--d -1", f"--d {2**63}", "--g nan"])
def test_numbers_that_make_no_picture_are_problems(tmp_path, option):
    assert list(problems_of(tmp_path, "prompts.txt", f"a toy {option}")) == ["prompts.txt:1"]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("empty.txt", "# nothing\n", "has no prompt"),
        ("bad.toml", "[prompt\n", "not valid TOML"),
        ("other.toml", "[general]\n", "has no [[prompt.subset]]"),
        ("one.toml", '[prompt]\nprompt = "a"\n', "has no [[prompt.subset]]"),
        ("bad.json", "[{", "not valid JSON"),
        ("object.json", '{"prompt": "a"}', "not a list of prompts"),
        ("numbers.json", "[1]", "not a list of prompts"),
        ("none.json", "[]", "has no prompt"),
        ("none.toml", "[[prompt.subset]]\nwidth = 64\n", "has no prompt"),
        ("list.yaml", "- a toy\n", ".yaml is not a prompt file"),
    ],
)
def test_files_that_hold_no_prompts(tmp_path, name, text, words):
    (what,) = problems_of(tmp_path, name, text).values()
    assert words in what


def test_a_file_that_is_not_there_or_not_text(tmp_path):
    with pytest.raises(Problems, match="no such file"):
        load_sample_prompts(tmp_path / "absent.txt")
    (tmp_path / "latin.txt").write_bytes(b"a toy\ncaf\xe9")
    with pytest.raises(Problems, match=r"latin.txt:2: cannot be read: it is not UTF-8"):
        load_sample_prompts(tmp_path / "latin.txt")


ROBOT = SamplePrompt("a tin robot", width=320, height=192, seed=4, steps=6)


@pytest.mark.parametrize(
    "line",
    [
        "a tin robot --w 320 --h 192 --d 4 --s 6",
        "a tin robot --w=320 --h = 192 --d=4 --s=6",
        "a tin robot --W 320 --H 192 --D 4 --S 6",
        "a tin robot --w320 --h192 --d4 --s6",
        "a tin robot --n --w 320 --h 192 --d 4 --s 6",
        "a tin robot --w 320 --h 192 --d 4 --s 6 --n",
        "a tin robot --n '' --w 320 --h 192 --d 4 --s 6",
        "a tin robot --width 320 --height 192 --seed 4 --steps 6",
        "a tin robot --w 320 --h 192 --n= --d 4 --s 6 --ss euler",
    ],
)
def test_ways_to_write_the_same_line(tmp_path, line):
    assert prompts(tmp_path, "prompts.txt", f"\ufeff# of a robot\r\n{line}\r\n  # more\r\n") == [ROBOT]
    assert prompts(tmp_path, "prompts.JSON", json.dumps([line])) == [ROBOT]


def test_json_and_toml_alike(tmp_path):
    values = {"Prompt": "a tin robot", "WIDTH": 320, "height": "192", "seed": 4.0, "sample_steps": 6}
    text = json.dumps([{**values, "negative_prompt": "", "controlnet_image": None}], indent=1)
    assert prompts(tmp_path, "prompts.json", f"\ufeff{text}") == [ROBOT]
    lines = "".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items())
    assert prompts(tmp_path, "prompts.toml", f"\ufeff[prompt]\nnegative_prompt = ''\n[[prompt.subset]]\n{lines}") == [
        ROBOT
    ]


@pytest.mark.parametrize(
    ("name", "text", "where", "words"),
    [
        ("p.txt", "a toy --w 64 --w 128", "p.txt:1", "--w is given twice"),
        ("p.txt", "\u2028a toy\n\na car —w 256", "p.txt:3", "write --w"),
        ("p.txt", "a toy -s 4", "p.txt:1", "write --s"),
        ("p.txt", "a toy -- g 4", "p.txt:1", "write --g"),
        ("p.toml", 'x = 1\n[[prompt]]\nprompt = "a"', "p.toml:2", "has no [[prompt.subset]]"),
        ("p.txt", "a toy –n dull", "p.txt:1", "write --n"),
        ("p.txt", "a toy --l 1,5", "p.txt:1", "decimal point"),
        ("p.txt", "a toy --ss ddim", "p.txt:1", "must be euler"),
        ("p.txt", "a toy --cn a.png", "p.txt:1", "ControlNet"),
        ("p.txt", "a toy --v6", "p.txt:1", "--v is not an option"),
        ("p.txt", "a toy --w", "p.txt:1", "has no value"),
        ("p.json", '[\n {"prompt": "a",\n  "width": 100}]', "p.json:3", "multiple of 16"),
        ("p.json", '[\n\n {"prompt": "a", "wdth": 64}]', "p.json:3", "did you mean width?"),
        ("p.json", '[{"prompt": "a", "seed": 1, "seed": 2}]', "p.json:1", "given twice"),
        ("p.json", '["a",\n "b --w 9"]', "p.json:2", "at least 16"),
        ("p.json", '[{"prompt": 7}]', "p.json:1", "not text"),
        ("p.json", '[{"prompt": "a", "steps": true}]', "p.json:1", "not a whole number"),
        ("p.json", '[{"prompt": "a",}]', "p.json:1:", "not valid JSON"),
        ("p.toml", '[prompt]\nwidth = 100\n[[prompt.subset]]\nprompt = "a"', "p.toml:2", "multiple of 16"),
        ("p.toml", '[[prompt.subset]]\nprompt = "a"\nstep = 4', "p.toml:3", "did you mean steps?"),
    ],
)
def test_every_message_has_file_and_line(tmp_path, name, text, where, words):
    with pytest.raises(Problems) as found:
        prompts(tmp_path, name, text)
    (problem,) = found.value.problems
    assert problem.where.startswith(str(tmp_path / where)) and words in str(problem)


def test_negative_prompts_without_cfg_are_reported_once(tmp_path):
    text = "a --n dull\nb --n grey --l 1\nc --n pale --l 3\nd\n"
    (notice,) = idle_negatives(prompts(tmp_path, "prompts.txt", text))
    assert notice.where == f"{tmp_path}/prompts.txt:1" and "and 1 more" in notice.what and "--l" in notice.hint
    assert not idle_negatives(prompts(tmp_path, "prompts.txt", "c --n pale --l 3\nd --n\n"))


def test_a_picture_says_how_it_was_made(tmp_path):
    path = tmp_path / "samples" / "a.png"
    save_picture(path, Image.new("RGB", (16, 8), "teal"), {"prompt": "ein „Spielzeug“, 玩具", "seed": 7, "step": 12})
    with Image.open(path) as picture:
        assert picture.size == (16, 8) and picture.getpixel((0, 0)) == (0, 128, 128)
        assert picture.info == {"prompt": "ein „Spielzeug“, 玩具", "seed": "7", "step": "12"}
    assert [file.name for file in path.parent.iterdir()] == ["a.png"]
