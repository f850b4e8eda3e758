"""Prompts, scores from verdicts, pictures in batches, and `python -m trainer evaluate` on random files."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.random_flux import ModelFiles
from mini.world.scene import COLOURS, CONCEPTS, KINDS, PLACES
from tests.kept_logging import logging_kept  # noqa: F401 (a fixture)
from tests.recipe_files import ROOT
from trainer.cli import evaluate
from trainer.common.problems import Problems
from trainer.lora.adapter import adapter_alphas, adapter_parameters, add_lora, linear_modules
from trainer.lora.file import save_lora
from trainer.models.load import load_autoencoder, load_transformer
from trainer.models.transformer import Conditioning
from trainer.sampling import evaluation
from trainer.sampling.evaluation import (
    USUAL,
    BaseScore,
    count_prompts,
    draw_prompts,
    score_base,
    score_companions,
    score_concept,
    score_pictures,
    score_relations,
)
from trainer.sampling.judge import Classes, Judge, Shape, Verdicts, save_judge
from trainer.sampling.prompt_sets import PromptSets, ScenePrompt, evenly_spaced, load_prompts
from trainer.sampling.sampler import decode_picture, sample_latents

CLASSES = Classes(("toy", "gpu"), ("red", "green", "blue"), ("beach", "snow"), ("tjtoy", "sparkgpu"))
WORLD = Classes(KINDS, tuple(COLOURS), PLACES, CONCEPTS)
SMALL = Shape(widths=(8, 8, 8, 8), depths=(0, 0, 0, 0), hidden=8)
TINY = replace(USUAL, width=64, height=64, steps=2)
PROMPTS = {
    "base": [
        {"prompt": "red toy, beach", "objects": [["toy", "red"]], "place": "beach"},
        {"prompt": "blue toy with a red gpu", "objects": [["toy", "blue"], ["gpu", "red"]], "place": "snow"},
    ],
    "tjtoy": ["tjtoy toy", {"prompt": "tjtoy toy holding a red gpu", "objects": [["gpu", "red"]]}],
    "sparkgpu": ["sparkgpu gpu", "sparkgpu gpu on a beach"],
    "both": ["tjtoy toy holding sparkgpu gpu"],
}


def verdicts(kinds, colours, places, concepts) -> Verdicts:
    return Verdicts(*(torch.tensor(each, dtype=torch.float32) for each in (kinds, colours, places, concepts)))


SEEN = verdicts(
    kinds=[[0.9, 0.1], [0.8, 0.4]],
    colours=[[[0.2, 0.1, 0.1], [0.9, 0.0, 0.0]], [[0.8, 0.1, 0.6], [0.9, 0.0, 0.0]]],
    places=[[0.7, 0.3], [0.6, 0.4]],
    concepts=[[0.9, 0.6], [0.7, 0.2]],
)


@pytest.fixture
def sets(tmp_path: Path) -> PromptSets:
    (tmp_path / "prompts.json").write_text(json.dumps(PROMPTS))
    return load_prompts(tmp_path / "prompts.json", CLASSES)


def test_base_scores_count_objects_colours_and_places(sets):
    """Of three objects the second picture's gpu is missing; its colour, though likely, is then not right either.
    The first toy's red is weak but the likeliest, the second's blue is not the likeliest but likelier than not."""
    score = score_base(SEEN, sets.base, CLASSES)
    assert score == BaseScore(pytest.approx(200 / 3), pytest.approx(200 / 3), 50.0)


def test_a_wrong_colour_and_nothing_at_all(sets):
    green = SEEN._replace(colours=torch.tensor([0.1, 0.4, 0.2]).expand(2, 2, 3))
    assert score_base(green, sets.base, CLASSES).colours == 0
    assert score_base(SEEN._replace(kinds=torch.zeros(2, 2)), sets.base, CLASSES).objects == 0


def test_concepts_score_their_probability():
    assert score_concept(SEEN, "tjtoy", CLASSES) == pytest.approx(80)
    assert score_concept(SEEN, "sparkgpu", CLASSES) == pytest.approx(40)


def test_what_is_next_to_a_concept_needs_its_kind_and_its_colour():
    """The second picture's toy is red with 0.8 and blue with 0.6, both likely enough; its gpu is not there."""
    toys = [ScenePrompt("", (("toy", colour),)) for colour in ("red", "blue")]
    assert score_companions(SEEN, toys, CLASSES) == 100
    assert score_companions(SEEN, [toys[1], ScenePrompt("", (("toy", "green"),))], CLASSES) == 0
    two_things = ScenePrompt("", (("gpu", "red"), ("toy", "red")))
    assert score_companions(SEEN, [ScenePrompt("alone"), two_things], CLASSES) == 50
    assert score_companions(SEEN, [ScenePrompt("alone")] * 2, CLASSES) is None


def together(text: str, *names: str) -> ScenePrompt:
    return ScenePrompt(text, concepts=names or CLASSES.concepts)


@pytest.mark.parametrize(
    ("scene", "relation"),
    [
        (together("tjtoy toy holding sparkgpu gpu in front of server racks"), "holding"),
        (together("a photo of sparkgpu gpu next to tjtoy toy in front of server racks"), "next to"),
        (together("tjtoy toy in front of sparkgpu gpu on a desk next to a wall"), "in front of"),
        (together("tjtoy toy, sparkgpu gpu"), "another relation"),
        (together("the toy next to sparkgpu gpu"), "next to"),
        (together("a, b and c", "a", "b", "c"), "3 concepts"),
    ],
)
def test_the_relation_is_what_is_said_between_the_names(scene, relation):
    assert scene.relation == relation


def test_together_counts_pictures_with_every_concept_that_the_prompt_names():
    held, beside = together("tjtoy toy holding sparkgpu gpu"), together("tjtoy toy next to sparkgpu gpu")
    assert score_relations(SEEN, [held, beside], CLASSES) == {"holding": (1, 1), "next to": (0, 1)}
    assert score_relations(SEEN, [beside, beside], CLASSES) == {"next to": (1, 2)}
    assert score_relations(SEEN, [held, together("tjtoy toy", "tjtoy")], CLASSES)["1 concepts"] == (1, 1)


def test_prompts_of_some_sets_and_the_first_of_each(sets):
    assert sets.base[1] == ScenePrompt("blue toy with a red gpu", (("toy", "blue"), ("gpu", "red")), "snow")
    assert list(sets.texts()) == ["base", "tjtoy", "sparkgpu", "both"]
    assert sets.both[0].concepts == CLASSES.concepts and sets.concepts["tjtoy"][1].objects == (("gpu", "red"),)
    assert sets.some(1).texts()["tjtoy"] == ("tjtoy toy",)
    assert list(sets.some(base=False).texts()) == ["tjtoy", "sparkgpu", "both"]
    assert list(sets.some(concepts=False).texts()) == ["base"]
    numbers = {"objects": 2, "colours": 2, "places": 2, "tjtoy": 2, "companion of tjtoy": 1, "sparkgpu": 2, "both": 1}
    assert count_prompts(sets) == numbers


def test_some_prompts_are_a_fair_sample_of_all():
    """Of the demo's 16 prompts with "holding", 10 with "next to" and 6 with "in front of"."""
    both = load_prompts(ROOT / "models" / "mini" / "prompts.json", WORLD).both
    for limit, counts in ((None, (16, 10, 6)), (16, (8, 5, 3)), (8, (4, 3, 1))):
        relations = Counter(scene.relation for scene in evenly_spaced(both, limit))
        assert tuple(relations[name] for name in ("holding", "next to", "in front of")) == counts
    assert evenly_spaced(both, 40) == evenly_spaced(both, None) == both and evenly_spaced(both, 0) == ()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tjtoy": None}, "cannot be read as prompts"),
        ({"both": [1]}, "a concept's prompts are not texts"),
        ({"base": [{"prompt": "x", "objects": [], "place": "snow"}]}, "names no object"),
        ({"base": [{"prompt": "x", "objects": [["cat", "mauve"]], "place": "sea"}]}, "does not know: cat, mauve, sea"),
        ({"tjtoy": [{"prompt": "x", "objects": [["dog", "red"]]}]}, "does not know: dog"),
        ({"both": [{"prompt": "x", "concepts": ["tjtoy", "other"]}]}, "does not know: other"),
    ],
)
def test_prompts_that_cannot_be_used(tmp_path, change, words):
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps(PROMPTS | change))
    with pytest.raises(Problems, match=words):
        load_prompts(path, CLASSES)


@pytest.fixture(scope="module")
def drawer(tiny_flux):
    """Draws five random texts with a random model, in batches of a given size."""
    transformer = load_transformer(tiny_flux.transformer, "cpu", torch.float32)
    vae = load_autoencoder(tiny_flux.ae, "cpu", torch.float32)
    generator = torch.Generator().manual_seed(0)
    texts = [
        Conditioning(torch.randn(1, 6, 64, generator=generator), torch.randn(1, 64, generator=generator))
        for _ in range(5)
    ]
    return transformer, vae, texts


def test_pictures_do_not_depend_on_the_batch_and_are_those_of_sample(drawer):
    transformer, vae, texts = drawer
    together = draw_prompts(transformer, vae, texts, TINY, first_seed=3, batch=4)
    assert together.shape == (5, 3, 64, 64) and together.dtype == torch.uint8 and together.float().std() > 5
    alone = decode_picture(vae, sample_latents(transformer, TINY, 3 + 4, texts[4], None))
    for other in (draw_prompts(transformer, vae, texts, TINY, 3, batch=2)[4], _pixels(alone)):
        assert (together[4].int() - other.int()).abs().max() <= 1
    assert (together.float() - draw_prompts(transformer, vae, texts, TINY, 9).float()).abs().mean() > 1


def _pixels(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def test_masked_texts_stay_masked(drawer):
    transformer, vae, texts = drawer
    mask = torch.tensor([[True, True, False, False, False, False]])
    masked = [replace(text, txt_mask=mask) for text in texts]
    difference = draw_prompts(transformer, vae, masked, TINY).float() - draw_prompts(transformer, vae, texts, TINY)
    assert difference.abs().mean() > 0.5


def test_every_set_is_scored(sets):
    torch.manual_seed(0)
    pictures = {
        name: torch.randint(256, (len(texts), 3, 32, 32), dtype=torch.uint8) for name, texts in sets.texts().items()
    }
    scores = score_pictures(Judge(CLASSES, SMALL), sets, pictures)
    assert scores.percentages.keys() == count_prompts(sets).keys()
    assert all(0 <= score <= 100 for score in scores.percentages.values())
    assert scores.relations.keys() == {"holding"}


# the verb


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tiny_flux: ModelFiles) -> Path:
    """A folder as models/mini, of random files."""
    folder = tmp_path_factory.mktemp("mini")
    sources = (tiny_flux.transformer, tiny_flux.ae, tiny_flux.clip_l, tiny_flux.t5xxl)
    for source, name in zip(sources, evaluate.FILES.values(), strict=True):
        shutil.copy(source, folder / name)
    shutil.copytree(tiny_flux.tokenizer_dir, folder / "tokenizers")
    torch.manual_seed(0)
    save_judge(folder / evaluate.JUDGE, Judge(CLASSES, SMALL))
    (folder / evaluate.PROMPTS).write_text(json.dumps(PROMPTS))
    return folder


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory, tiny_flux: ModelFiles) -> Path:
    transformer = load_transformer(tiny_flux.transformer, "cpu", torch.float32)
    add_lora(transformer, dict.fromkeys(linear_modules(transformer), 4), None, seed=0)
    parameters = adapter_parameters(transformer)
    for parameter in parameters.values():
        torch.nn.init.normal_(parameter, 0, 0.1)
    path = tmp_path_factory.mktemp("lora") / "demo.safetensors"
    save_lora(path, parameters, adapter_alphas(transformer), {}, torch.float32)
    return path


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "USUAL", TINY)
    assert evaluation.USUAL.width == 256


@pytest.mark.usefixtures("quick", "logging_kept")
def test_evaluate_compares_a_lora_with_the_base_model(models, lora, tmp_path, capsys):
    table, sheet = tmp_path / "new" / "table.json", tmp_path / "sheet.png"
    argv = [f"--models={models}", f"--lora={lora}", f"--lora={lora}:0", f"--json={table}", f"--sheet={sheet}"]
    assert evaluate.run(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["base", "demo", "demo:0"] and len(lines) == 11
    written = json.loads(table.read_text())
    base, drawn, zero = written["columns"]
    assert base["scores"].keys() == {"objects", "colours", "places", "tjtoy", "companion of tjtoy", "sparkgpu", "both"}
    assert base["relations"]["holding"]["prompts"] == 1
    assert drawn["changes"]["tjtoy"] != 0
    assert all(change == pytest.approx(0, abs=0.5) for change in zero["changes"].values())
    assert written["prompts"]["both"] == 1 and written["seed"] == 0
    with Image.open(sheet) as picture:
        assert picture.width > 3 * 256
    before, refused = table.read_bytes(), problems_of(*argv)
    assert f"--json={table}: there is a file" in refused and f"--sheet={sheet}: there is a file" in refused
    assert table.read_bytes() == before
    assert evaluate.run([f"--models={models}", "--prompts=1", f"--json={table}", "--overwrite"]) == 0
    assert len(json.loads(table.read_text())["columns"]) == 1


@pytest.mark.usefixtures("quick", "logging_kept")
def test_only_some_lists_and_some_prompts(models, tmp_path):
    table = tmp_path / "table.json"
    argv = [f"--models={models}", "--only=concepts", "--prompts=1", f"--json={table}", "--seed=5"]
    assert evaluate.run(argv) == 0
    assert json.loads(table.read_text())["prompts"] == {"tjtoy": 1, "sparkgpu": 1, "both": 1}


@pytest.mark.usefixtures("quick", "logging_kept")
def test_other_concepts_with_their_own_prompts_and_judge(models, tmp_path):
    """The base model's folder stays as it is; a judge of other concepts and their prompts come from elsewhere."""
    prompts, judge, table = tmp_path / "pair.json", tmp_path / "pair.safetensors", tmp_path / "table.json"
    save_judge(judge, Judge(replace(CLASSES, concepts=("mopbot", "rexcar")), SMALL))
    pair = {"mopbot": ["mopbot toy"], "rexcar": ["rexcar toy"], "both": ["mopbot toy next to rexcar toy"]}
    prompts.write_text(json.dumps({"base": PROMPTS["base"], **pair}))
    argv = [f"--models={models}", "--only=concepts", f"--prompt_file={prompts}", f"--judge={judge}", f"--json={table}"]
    assert evaluate.run(argv) == 0
    assert json.loads(table.read_text())["prompts"] == {"mopbot": 1, "rexcar": 1, "both": 1}
    assert "pair.json: cannot be read" in problems_of(f"--models={models}", f"--prompt_file={prompts}")
    assert "none.json" in problems_of(f"--models={models}", f"--prompt_file={tmp_path / 'none.json'}")


def problems_of(*argv: str) -> str:
    with pytest.raises(Problems) as found:
        evaluate.run(argv)
    return str(found.value)


def test_without_judge_or_prompts_it_says_whose_world_the_judge_knows(models, tmp_path):
    folder = tmp_path / "mini"
    shutil.copytree(models, folder)
    (folder / evaluate.JUDGE).unlink()
    (folder / evaluate.PROMPTS).unlink()
    told = problems_of(f"--models={folder}")
    assert "has no judge.safetensors, no prompts.json" in told and "only with the tiny FLUX" in told


def test_problems_of_arguments_come_all_at_once(models, tmp_path):
    told = problems_of("--prompts=0", "--seed=-1", "--lora=a", "--lora=a:1", f"--json={tmp_path}")
    for words in ("0 prompts give no table", "-1 is not from 0", "--lora=a: is given more than once", "is a folder"):
        assert words in told
    assert "missing.safetensors" in problems_of(f"--models={models}", f"--lora={tmp_path / 'missing.safetensors'}")
