"""Images that the base model generates before training: made once, continued after an interruption, then trained."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.recipe_files import Workshop
from tests.unit.test_compositions import draw_subject
from trainer.__main__ import main
from trainer.common.problems import Problems
from trainer.generation import stage
from trainer.generation.cutout import Cut
from trainer.models.load import load_autoencoder, load_transformer
from trainer.preflight.check import check_models, make_plan
from trainer.sampling.adapted import encode_texts
from trainer.sampling.prompts import SamplePrompt
from trainer.sampling.sampler import decode_picture, sample_latents

CPU = torch.device("cpu")

PRESERVED = """
[[datasets]]
resolution = 64
[[datasets.subsets]]
image_dir = "{folder}/toy"
class_tokens = "tjtoy toy"
[[datasets.preservation]]
num_images = 4
steps = 2
"""


def files(workshop: Workshop, cache: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (workshop.folder / cache).rglob("*.png")}


def test_a_run_generates_its_images_once_and_goes_on_after_the_last_one(workshop, monkeypatch):
    data = workshop.dataset(PRESERVED, "preserved.toml")
    cache = workshop.folder / "generated-cache"
    settings = {"dataset_config": data, "cache_dir": cache, "max_train_steps": 2, "save_precision": "float"}
    config = workshop.config("generated", **settings)
    plan = make_plan(config)
    assert len(plan.images_to_generate) == 4 and "4 images to generate" in plan.summary()

    save, saved = stage.save_picture, []

    def interrupted(*arguments):
        if len(saved) == 1:
            raise KeyboardInterrupt
        saved.append(arguments[0])
        save(*arguments)

    monkeypatch.setattr(stage, "save_picture", interrupted)
    with pytest.raises(KeyboardInterrupt):
        workshop.train("generated", **settings)
    first = files(workshop, cache.name)
    assert len(first) == 1 and len(make_plan(config).images_to_generate) == 3
    monkeypatch.setattr(stage, "save_picture", save)

    def unneeded(*_):
        raise AssertionError("all latents are in the cache: the transformer is not needed")

    monkeypatch.setattr(stage.Stage, "_load_transformer", unneeded)
    run = workshop.train("generated", **settings)
    monkeypatch.undo()
    every = files(workshop, cache.name)
    assert len(every) == 4 and first.items() <= every.items()
    assert (run.folder / "generated.jpg").is_file() and not make_plan(
        replace(config, overwrite=True)
    ).images_to_generate
    assert all(torch.isfinite(tensor).all() for tensor in run.tensors().values())

    swapped = {**settings, "cache_dir": workshop.folder / "other-cache", "blocks_to_swap": 1}
    again = workshop.train("again", **swapped)
    assert files(workshop, "other-cache") == every  # a pure function of the prompt, the seed and the model
    assert all(torch.equal(again.tensors()[name], tensor) for name, tensor in run.tensors().items())


def test_an_image_is_what_the_sampler_makes_of_its_prompt_and_seed(workshop):
    data = workshop.dataset(PRESERVED, "preserved.toml")
    cache = workshop.folder / "generated-cache"
    config = workshop.config("sampled", dataset_config=data, cache_dir=cache, max_train_steps=1)
    image = make_plan(config).data.generated_images()[-1]
    if not image.file.exists():
        workshop.train("sampled", dataset_config=data, cache_dir=cache, max_train_steps=1)

    texts = encode_texts(config, None, [image.prompt], check_models(config), CPU, torch.float32)
    transformer = load_transformer(config.pretrained_model_name_or_path, CPU, torch.float32)
    prompt = SamplePrompt(image.prompt, width=64, height=64, steps=2, guidance=3.5)
    latents = sample_latents(transformer, prompt, image.seed, texts[image.prompt], None)
    expected = decode_picture(load_autoencoder(config.ae, CPU, torch.float32), latents)
    difference = np.asarray(image.read()).astype(int) - np.asarray(expected).astype(int)
    assert abs(difference).max() <= 1  # the blocks of training round differently


COMPANIONS = """
[[datasets]]
resolution = 128
[[datasets.subsets]]
image_dir = "{folder}/cut/toy"
class_tokens = "tjtoy toy"
[[datasets.subsets]]
image_dir = "{folder}/cut/gpu"
class_tokens = "sparkgpu gpu"
[[datasets.compositions]]
num_images = 2
companions = { words = ["ball", "mug"], num_images = 4, candidates = 1, steps = 1 }
"""


def test_companions_are_cut_out_before_training_and_those_that_are_not_kept_stop_nothing_else(workshop, monkeypatch):
    for name in ("toy", "gpu"):
        draw_subject(workshop.folder / "cut" / name, name, (220, 20, 20), (40, 20, 110, 140))
    data = workshop.dataset(COMPANIONS, "companions.toml")
    settings = {"dataset_config": data, "cache_dir": workshop.folder / "companions-cache", "max_train_steps": 1}
    kept = []

    def cut_out(picture, margins, thing, models):
        assert margins.shape == (1,) and margins.isfinite().all() and models is None
        mask = Image.new("L", picture.size, 0)
        if thing == "ball":
            mask.paste(255, (30, 30, 90, 90))
            kept.append(thing)
        return Cut(mask, "" if thing == "ball" else "for the test")

    monkeypatch.setattr(stage, "cut_out", cut_out)
    run = workshop.train("companions", **settings)
    assert kept == ["ball"] and all(torch.isfinite(tensor).all() for tensor in run.tensors().values())
    plan = make_plan(replace(run.config, overwrite=True))
    assert not plan.images_to_generate and "companion 'mug'" in plan.summary()
    assert {sample.companion for sample in plan.data.samples} == {None, "ball"}
    assert (run.folder / "generated.jpg").is_file()


def test_a_run_without_any_companion_that_can_be_cut_out_says_so_before_it_trains(workshop):
    """Random weights generate nothing that could be cut out."""
    for name in ("toy", "gpu"):
        draw_subject(workshop.folder / "cut" / name, name, (220, 20, 20), (40, 20, 110, 140))
    data = workshop.dataset(COMPANIONS, "companions.toml")
    with pytest.raises(Problems, match="no image of any companion can be cut out"):
        workshop.train("none kept", dataset_config=data, cache_dir=workshop.folder / "none", max_train_steps=1)
    assert (workshop.folder / "none kept/runs/tj/generated.jpg").is_file()


def test_the_images_can_be_generated_without_training(workshop, capsys):
    data = workshop.dataset(PRESERVED, "preserved.toml")
    argv = workshop.argv("looked at", dataset_config=data, cache_dir=workshop.folder / "looked-at-cache")
    assert main(["generate", *argv]) == 0
    assert "4 images generated, 4 in all" in capsys.readouterr().out
    assert len(files(workshop, "looked-at-cache")) == 4
    assert (workshop.folder / "looked at/runs/tj/generated.jpg").is_file()
    assert main(["generate", *argv]) == 0 and "0 images generated, 4 in all" in capsys.readouterr().out
    assert main(["check", *argv]) == 0 and "generated.jpg" in capsys.readouterr().out
