"""Scores from verdicts, the table, pictures in batches, the sheet, and `python -m trainer evaluate` on random files."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.random_flux import ModelFiles
from tests.kept_logging import logging_kept  # noqa: F401 (a fixture)
from trainer.cli import evaluate
from trainer.common.problems import Problems
from trainer.lora.adapter import adapter_alphas, adapter_parameters, add_lora, linear_modules
from trainer.lora.file import save_lora
from trainer.models.load import load_autoencoder, load_transformer
from trainer.models.transformer import Conditioning
from trainer.sampling import evaluation
from trainer.sampling.contact_sheet import Row, contact_sheet
from trainer.sampling.evaluation import (
    USUAL,
    BaseScore,
    Column,
    PromptSets,
    ScenePrompt,
    Table,
    count_prompts,
    draw_prompts,
    load_prompts,
    score_base,
    score_both,
    score_concept,
    score_pictures,
)
from trainer.sampling.judge import Classes, Judge, Shape, Verdicts, save_judge
from trainer.sampling.sampler import decode_picture, sample_latents

CLASSES = Classes(("toy", "gpu"), ("red", "green", "blue"), ("beach", "snow"), ("tjtoy", "sparkgpu"))
SMALL = Shape(widths=(8, 8, 8, 8), depths=(0, 0, 0, 0), hidden=8)
TINY = replace(USUAL, width=64, height=64, steps=2)
PROMPTS = {
    "base": [
        {"prompt": "red toy, beach", "objects": [["toy", "red"]], "place": "beach"},
        {"prompt": "blue toy with a red gpu", "objects": [["toy", "blue"], ["gpu", "red"]], "place": "snow"},
    ],
    "tjtoy": ["tjtoy toy", "tjtoy toy in the snow"],
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


def test_concepts_score_their_probability_and_both_their_share():
    assert score_concept(SEEN, "tjtoy", CLASSES) == pytest.approx(80)
    assert score_concept(SEEN, "sparkgpu", CLASSES) == pytest.approx(40)
    assert score_both(SEEN) == 50


def test_prompts_of_some_sets_and_the_first_of_each(sets):
    assert sets.base[1] == ScenePrompt("blue toy with a red gpu", (("toy", "blue"), ("gpu", "red")), "snow")
    assert list(sets.texts()) == ["base", "tjtoy", "sparkgpu", "both"]
    assert sets.some(1).texts()["tjtoy"] == ("tjtoy toy",)
    assert list(sets.some(base=False).texts()) == ["tjtoy", "sparkgpu", "both"]
    assert list(sets.some(concepts=False).texts()) == ["base"]
    assert count_prompts(sets) == {"objects": 2, "colours": 2, "places": 2, "tjtoy": 2, "sparkgpu": 2, "both": 1}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tjtoy": None}, "cannot be read as prompts"),
        ({"both": [1]}, "a concept's prompts are not texts"),
        ({"base": [{"prompt": "x", "objects": [], "place": "snow"}]}, "names no object"),
        ({"base": [{"prompt": "x", "objects": [["cat", "mauve"]], "place": "sea"}]}, "does not know: cat, mauve, sea"),
    ],
)
def test_prompts_that_cannot_be_used(tmp_path, change, words):
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps(PROMPTS | change))
    with pytest.raises(Problems, match=words):
        load_prompts(path, CLASSES)


def test_the_table_shows_changes_in_points():
    columns = Column("base", {"objects": 90.0, "tjtoy": 4.0}), Column("demo", {"objects": 87.5, "tjtoy": 81.26})
    table = Table(columns, {"objects": 200, "tjtoy": 32})
    lines = [line.split() for line in table.text().splitlines()]
    assert lines[0] == ["base", "demo"]
    assert lines[1] == ["right", "object", "(200", "prompts)", "90.0", "87.5", "(-2.5)"]
    assert lines[2][-4:] == ["prompts)", "4.0", "81.3", "(+77.3)"]
    assert len({len(line) for line in table.text().splitlines()[:3]}) == 1
    written = json.loads(json.dumps(table.as_json()))
    assert written["columns"][1]["changes"] == {"objects": -2.5, "tjtoy": pytest.approx(77.26)}


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
    assert scores.keys() == count_prompts(sets).keys()
    assert all(0 <= score <= 100 for score in scores.values())


# the sheet


def test_a_sheet_has_its_pictures_where_they_belong():
    colours = [["red", "lime"], ["blue", None]]
    rows = [
        Row(f"a prompt of many words, number {n}", [name and Image.new("RGB", (64, 64), name) for name in line])
        for n, line in enumerate(colours)
    ]
    sheet = contact_sheet(rows, ["base", "epoch 4"], "A title", "and a note", size=64)
    pixels = np.array(sheet)
    for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255)):
        assert (pixels == colour).all(-1).sum() == 64 * 64
    red, lime, blue = (
        np.argwhere((pixels == colour).all(-1)).min(0) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))
    )
    assert red[0] == lime[0] and red[1] == blue[1] and lime[1] - red[1] == blue[0] - red[0] > 64
    assert (pixels[:, : red[1]] < 128).any() and (pixels[: red[0]] < 128).any()  # labels and heads are there


def test_long_words_stay_in_their_column():
    row = Row("averyverylongwordthatfitsnowhere" * 2, [Image.new("RGB", (96, 96), "red")])
    pixels = np.array(contact_sheet([row], size=96))
    assert (pixels == (255, 0, 0)).all(-1).sum() == 96 * 96
    assert (pixels[:, -1] == 255).all()


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
    assert lines[0].split() == ["base", "demo", "demo:0"] and len(lines) == 9
    written = json.loads(table.read_text())
    base, drawn, zero = written["columns"]
    assert base["scores"].keys() == {"objects", "colours", "places", "tjtoy", "sparkgpu", "both"}
    assert drawn["changes"]["tjtoy"] != 0
    assert all(change == pytest.approx(0, abs=0.5) for change in zero["changes"].values())
    assert written["prompts"]["both"] == 1 and written["seed"] == 0
    with Image.open(sheet) as picture:
        assert picture.width > 3 * 256


@pytest.mark.usefixtures("quick", "logging_kept")
def test_only_some_lists_and_some_prompts(models, tmp_path):
    table = tmp_path / "table.json"
    argv = [f"--models={models}", "--only=concepts", "--prompts=1", f"--json={table}", "--seed=5"]
    assert evaluate.run(argv) == 0
    assert json.loads(table.read_text())["prompts"] == {"tjtoy": 1, "sparkgpu": 1, "both": 1}


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
