"""`python -m mini.concepts`: prompts and a judge of other concepts, with the shipped autoencoder, at a tiny size."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from mini import concepts
from mini.training.images.preserved import write_preserved
from mini.training.recipe import TINY
from mini.world.preserved import preserved_prompts
from tests.recipe_files import ROOT
from trainer.cli import evaluate
from trainer.sampling.judge import load_judge
from trainer.sampling.prompt_sets import load_prompts

pytestmark = pytest.mark.slow


@pytest.fixture
def few_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    few = replace(TINY, judge_pictures=4, judge_held_out_pictures=4, judge_steps=2, judge_validations=1)
    monkeypatch.setitem(concepts.RECIPES, "tiny", few)


@pytest.mark.usefixtures("few_pictures")
def test_the_judge_knows_the_concepts_that_the_prompts_name(tmp_path: Path, capsys):
    flags = ["--concepts", "fenrik", "kopmi", f"--folder={tmp_path}", f"--models={ROOT / 'models' / 'mini'}"]
    assert concepts.main(["prompts", *flags, "--size=tiny"]) == 0
    assert concepts.main(["judge", *flags, "--size=tiny"]) == 0
    judge = load_judge(tmp_path / "judge.safetensors")
    assert judge.classes.concepts == ("kopmi", "fenrik"), "the toy, which can hold the card, comes first"
    for name, count in (("prompts.json", 200), ("tuning_prompts.json", 100)):
        prompts = load_prompts(tmp_path / name, judge.classes)
        assert len(prompts.base) == count and {scene.concepts for scene in prompts.both} == {("kopmi", "fenrik")}
    assert "kopmi_accuracy" in json.loads((tmp_path / "judge.json").read_text())["renders"]
    others = ["--concepts", "lumjo", "vaxtu", *flags[3:]]
    assert concepts.main(["prompts", *others]) == 1
    assert "has the files of kopmi, fenrik" in capsys.readouterr().err


def test_one_concept_is_no_set(tmp_path: Path, capsys):
    assert concepts.main(["prompts", "--concepts", "kopmi", f"--folder={tmp_path}"]) == 1
    assert "fewer than two concepts" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_images_to_preserve_are_generated_and_captioned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(evaluate, "USUAL", replace(evaluate.USUAL, steps=1))
    files = write_preserved(tmp_path, ROOT / "models" / "mini", torch.device("cpu"), count=2)
    assert [file.name for file in files] == ["001_studio.jpg", "002_desk.jpg"]
    assert [file.with_suffix(".txt").read_text().strip() for file in files] == [
        text for _, text in preserved_prompts(2)
    ]
    with Image.open(files[0]) as image:
        assert image.size == (256, 256)
