"""Measures on features whose answer is known, the rule, the prompts, and the table of `benchmarks.selection`."""

import math
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from benchmarks.selection import judged
from benchmarks.selection.archive import pack
from benchmarks.selection.judged import SCORING, JudgedImages, judge_in_parts
from benchmarks.selection.results import is_complete, read_results, spearman, tabulate, truth
from benchmarks.selection.runs import RUNS, write_dataset
from trainer.comparison.measures import Figure, Reference, image_distance, make_references, measure
from trainer.comparison.page import Line, plot, table
from trainer.comparison.prompts import ComparePrompt, Concept, compare_prompts
from trainer.comparison.recommend import Rule, Standing, recommend

SIZE = 12  # features: a patch is one of these directions
TOY, PLACE = range(2), range(2, SIZE)


def patches(*kinds: int) -> torch.Tensor:
    return torch.eye(SIZE)[list(kinds)]


def concept(images: int = 3) -> Concept:
    samples = tuple(
        SimpleNamespace(picture=SimpleNamespace(path=SimpleNamespace(name=f"{index}.png")), mask=None)
        for index in range(images)
    )
    return Concept("tj toy", "toy", samples)  # type: ignore[arg-type]


PROMPTS = (
    ComparePrompt("tj toy on a beach", "alone", ("tj toy",), 0),
    ComparePrompt("a toy on a desk", "class", (), 1),
    ComparePrompt("a red cube", "neutral", (), 2),
)
# four patches an image: the toy's two and two of a place of its own; the base model shows another toy
TRAINING = [patches(0, 1, 2 + index, 5 + index) for index in range(3)]
BASE = [patches(9, 9, 8, 8), patches(9, 9, 10, 10), patches(8, 8, 11, 11)]


@pytest.fixture
def references(monkeypatch) -> list[Reference]:
    monkeypatch.setattr("trainer.comparison.measures.training_image", lambda _: Image.new("RGB", (2, 2)))
    return make_references(lambda _: [each.view(2, 2, SIZE) for each in TRAINING], [concept()], PROMPTS, BASE)


def test_only_what_recurs_with_the_concept_is_the_concept(references):
    (reference,) = references
    for region in reference.regions:
        assert region.weights.tolist() == pytest.approx([0.5, 0.5, 0, 0], abs=1e-4)
        assert region.background.tolist() == [False, False, True, True]
    assert (reference.floor, reference.ceiling) == (pytest.approx(0, abs=1e-4), pytest.approx(1, abs=1e-4))


def test_what_is_shown_where_it_is_named_is_likeness_and_elsewhere_bleed(references):
    good = measure(references, PROMPTS, BASE, [patches(8, 0, 1, 8), *BASE[1:]])
    assert good.likeness.mean == pytest.approx(100, abs=0.1)
    assert (good.bleed.mean, good.drift.mean) == (pytest.approx(0, abs=0.1), pytest.approx(0, abs=0.1))
    everywhere = measure(references, PROMPTS, BASE, [patches(8, 0, 1, 8), patches(0, 1, 10, 10), BASE[2]])
    assert everywhere.likeness.mean == pytest.approx(100, abs=0.1)
    assert everywhere.class_bleed and everywhere.class_bleed.values == (pytest.approx(100, abs=0.1),)
    assert everywhere.bleed.values == (pytest.approx(0, abs=0.1),)  # its class word is not a place that it bleeds into
    elsewhere = measure(references, PROMPTS, BASE, [patches(8, 0, 1, 8), BASE[1], patches(0, 1, 10, 10)])
    assert elsewhere.bleed.values == (pytest.approx(100, abs=0.1),)
    assert everywhere.drift.values[0] > 20 and everywhere.drift.values[1] == pytest.approx(0, abs=0.1)
    assert everywhere.matrix["no concept, class"]["tj toy"] == pytest.approx(100, abs=0.1)
    half = measure(references, PROMPTS, BASE, [patches(8, 0, 8, 8), *BASE[1:]])
    assert half.likeness.mean == pytest.approx(50, abs=0.1)


def test_a_background_that_is_repeated_in_its_place_is_a_copy(references):
    copied = measure(references, PROMPTS, BASE, [TRAINING[1], *BASE[1:]])
    assert copied.copies == {"tj toy on a beach": "1.png"} and copied.memorised.values[0] == pytest.approx(100)
    moved = measure(references, PROMPTS, BASE, [patches(3, 6, 0, 1), *BASE[1:]])
    assert not moved.copies


def test_a_mask_decides_what_may_be_the_concept(monkeypatch):
    monkeypatch.setattr("trainer.comparison.measures.training_image", lambda _: Image.new("RGB", (2, 2)))
    monkeypatch.setattr("trainer.comparison.measures._mask_shares", lambda *_: torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    masked = concept()
    for sample in masked.samples:
        sample.mask = "a mask"  # type: ignore[misc]
    (reference,) = make_references(lambda _: [each.view(2, 2, SIZE) for each in TRAINING], [masked], PROMPTS, BASE)
    assert reference.regions[0].weights.tolist() == pytest.approx([1, 0, 0, 0], abs=1e-4)
    assert reference.regions[0].background.tolist() == [False, True, True, True]


def test_distance_does_not_depend_on_where_things_are():
    assert image_distance(patches(0, 1, 2), patches(2, 0, 1)) == pytest.approx(0)
    assert image_distance(patches(0, 1), patches(3, 4)) == pytest.approx(1)


def test_prompts_name_what_they_should_show():
    two = [concept(), Concept("gp gpu", "gpu", ()), Concept("folder", "", (), captioned=True)]
    found = compare_prompts(two, 2, seed=7)
    kinds = [each.kind for each in found]
    assert [kinds.count(kind) for kind in ("alone", "beside", "together", "class", "neutral")] == [4, 4, 2, 4, 2]
    assert [each.seed for each in found] == list(range(7, 7 + len(found)))
    for prompt in found:
        assert all(name in prompt.text for name in prompt.shows)
        assert prompt.is_plain == (not any(name in prompt.text for name in ("tj toy", "gp gpu")))


def standing(name: str, likeness: float, bleed: float, drift: float, copied: float = 0.0, step: int = 0) -> Standing:
    near = [Figure((value - 1, value + 1)) for value in (likeness, bleed, drift)]
    return Standing(name, *near, copied=copied, step=step)


def test_the_rule_weighs_harms_and_its_flags_change_the_choice():
    early, late = standing("step 40", 60, 2, 5), standing("step 80", 80, 20, 15)
    assert early.score(Rule()) == pytest.approx(53) and late.score(Rule()) == pytest.approx(45)
    chosen = recommend([early, late], Rule())
    assert chosen.best == 0 and chosen.sentences[0].startswith("Keep step 40: likeness 60, bleed 2, drift 5, score 53")
    assert "The next best is step 80 with 45" in chosen.text and chosen.reason == "next"
    assert recommend([early, late], Rule(bleed=0, drift=0)).best == 1


def test_of_checkpoints_that_cannot_be_told_apart_the_latest_is_kept():
    """The error of a difference is over prompts: it is 0 where every prompt says the same, however far they spread."""
    some, none = Figure((40.0, 80.0)), Figure((0.0, 0.0))
    first = Standing("step 40", some, none, none, step=40)
    noisy = Standing("step 80", Figure((60.0, 58.0)), none, none, step=80)  # 1 lower, but by 20 and -22: no evidence
    worse = Standing("step 120", Figure((39.0, 79.0)), none, none, step=120)  # 1 lower on every prompt
    assert first.difference_error(worse, Rule()) == 0 and first.difference_error(noisy, Rule()) > 20
    found = recommend([first, noisy, worse], Rule())
    assert found.best == 1 and found.close == ("step 40",) and found.reason == "close"
    assert "cannot tell it apart from step 40; of such files, the latest is kept" in found.text
    unknown = [Standing(each.name, each.benefit, each.bleed, each.drift) for each in (first, noisy)]
    assert recommend(unknown, Rule()).best == 0


def test_a_recommendation_warns_of_copies_and_of_nothing_learned():
    copied, little, only = standing("a", 60, 2, 5, copied=0.5), standing("a", 5, 0, 0), standing("a", 60, 2, 5)
    found = [recommend([each], Rule()) for each in (copied, little, only)]
    assert [each.reason for each in found] == ["copies", "little", "only"]
    for each, words in zip(found, ("repeat the background", "hardly learned anything", "save more often"), strict=True):
        assert words in each.text
    losses = Standing("a", Figure((0.2, 0.4)), None, Figure((0.0, 0.1)))
    assert "loss on images -0.3 %" in recommend([losses], Rule()).text


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), float("-inf")])
def test_a_checkpoint_whose_figures_are_not_finite_is_never_kept_before_one_with_figures(broken):
    bad = Standing("broken", Figure((broken, 60.0)), None, Figure((1.0, 2.0)), step=9)
    good = Standing("good", Figure((50.0, 60.0)), None, Figure((1.0, 2.0)), step=1)
    for order in ([bad, good], [good, bad]):
        assert recommend(order, Rule()).text.startswith("Keep good:")
    assert recommend([bad], Rule()).best == 0


def test_a_single_prompt_gives_no_error():
    """It must not count as an error of 0, by which everything would be told apart."""
    one = Figure((40.0,))
    assert (
        str(one) == "40.0"
        and str(Figure((-0.01,))) == "0.0"
        and math.isnan(one.error)
        and str(Figure((40.0, 44.0))) == "42.0 ± 2.8"
    )
    first, second = (Standing(f"step {n}", Figure((v, v)), one, one, step=n) for n, v in ((1, 90.0), (2, 89.0)))
    found = recommend([first, second], Rule())
    assert found.best == 0 and found.close == () and found.reason == "next"
    assert "±" not in found.text and "nan" not in found.text and "--prompts" in found.text


def test_broken_weights_are_called_that():
    bad = Standing("bad", Figure((float("nan"), 1.0)), None, Figure((1.0, 2.0)), step=9)
    good = Standing("good", Figure((50.0, 60.0)), None, Figure((1.0, 2.0)), step=1)
    assert "The figures of bad are not finite" in recommend([good, bad], Rule()).text
    assert recommend([bad], Rule()).text.startswith("No file is worth keeping")
    svg = plot("p", [Line("a", [(0, 1.0), (1, float("nan")), (2, 2.0)], [0.5, 0.5, float("nan")])])
    assert "nan" not in svg and svg.count("<circle") == 2


def test_plots_and_tables_escape_what_they_show():
    svg = plot("<b>", [Line("a & b", [(0, 1.0), (10, 2.0)], [0.5, 0.5])], mark=10)
    assert "&lt;b&gt;" in svg and "a &amp; b" in svg and "recommended: step 10" in svg
    assert plot("empty", [Line("a", [])]) == ""
    assert "polyline" in plot("one point", [Line("a", [(3, 1.0)])])
    assert "&lt;i&gt;" in table(["<i>"], [["x"]], best=0) and "class=best" in table(["h"], [["x"]], best=0)


def test_selection_tabulates_what_was_lost():
    assert spearman([1, 2, 3], [10, 20, 30]) == pytest.approx(1) and spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert spearman([1, 1, 2], [5, 5, 5]) == 0 and spearman([1, 2, 2, 3], [1, 2, 2, 3]) == pytest.approx(1)

    def checkpoint(name: str, score: float, judge: float) -> dict:
        means = {each: {"mean": score} for each in ("likeness", "bleed", "drift", "loss_on_images", "loss_drift")}
        known = dict.fromkeys(("likeness", "bleed", "drift", "changed", "score"), judge)
        return {"name": name, "file": name, "score": score, "truth": known, "halves": [judge, -judge], **means}

    checkpoints = [checkpoint("a", 1, 50), checkpoint("b", 2, 46)]
    result = {"run": "one", "tuning": False, "recommended": "b", "checkpoints": checkpoints}
    text = tabulate([result, {**result, "run": "two", "recommended": "a"}])
    assert "2 runs to score" in text and "to choose" not in text
    assert "within 3 points of the best: 1 of 2 (50 %), 2.0 lost on average: the recommended checkpoint" in text
    assert "0 of 2 (0 %), 4.0 lost on average: always the last one" in text
    assert "0 of 4 (0 %), 4.0 lost on average: the judge's own choice" in text
    assert "likeness: Spearman -1.00" in text


def row(name: str, index: int, shown: float, **more) -> dict:
    return {"set": name, "index": index, "shown": {"tjtoy": shown}, **more}


def test_the_truth_counts_prompts_that_the_base_model_was_judged_on_too():
    base = [row("base", 0, 0.01, prior=90.0, seen=["red toy"]), row("base", 1, 0.0, prior=100.0, seen=["moon"])]
    base += [row("tjtoy", 0, 0.0), row("both", 0, 0.0), row("sparkgpu", 0, 0.0)]
    found = [row("base", 0, 0.05, prior=84.0, seen=["blue toy"]), row("base", 1, 0.0, prior=100.0, seen=["moon"])]
    found += [row("tjtoy", 0, 0.9), row("both", 0, 0.5), row("sparkgpu", 0, 0.08), row("tjtoy", 1, 0.0)]
    assert truth(base, found, ["tjtoy"]) == {
        "likeness": pytest.approx(70), "bleed": pytest.approx(4), "drift": pytest.approx(3),
        "changed": 50, "score": pytest.approx(63), "prompts": 5,
    }  # fmt: skip


def test_the_judge_sees_images_part_by_part(monkeypatch, tmp_path):
    noise = torch.randint(0, 255, (9, 3, 256, 256), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(JudgedImages, "_images", lambda _self, _candidate, prompts, _part: noise[: len(prompts)])
    images = JudgedImages(SCORING, tmp_path / "cache", parts=2, limit=3)
    place = tmp_path / SCORING
    judge_in_parts(images, [None], place, until=1.0)
    assert not is_complete(place)
    (rows,) = judged.json.loads((place / "judged.json").read_text())["rows"].values()
    assert [each["index"] for each in rows if each["set"] == "base"] == [0, 2]
    assert all(0 <= each["shown"]["tjtoy"] <= 1 for each in rows) and 0 <= rows[0]["prior"] <= 100 and rows[0]["seen"]
    judge_in_parts(images, [None], place)
    (rows,) = judged.json.loads((place / "judged.json").read_text())["rows"].values()
    assert is_complete(place) and len(rows) == 12 == len({(each["set"], each["index"]) for each in rows})
    assert read_results(tmp_path) == []
    (tmp_path / SCORING / "step1.webp").write_bytes(b"image")
    assert [each.name for each in pack(tmp_path, tmp_path / "out")] == ["numbers.tar.xz", "images-0.tar"]


def test_selection_runs_differ_and_their_datasets_can_be_read(tmp_path):
    from trainer.config import TrainConfig, parse_config
    from trainer.data.dataset_file import read_dataset_config

    assert len(RUNS) >= 24 and len({run.name for run in RUNS.values()}) == len(RUNS)
    assert sum(run.tuning for run in RUNS.values()) == len(RUNS) / 2
    preserved = ("demo", "preserved", "toy")
    for data in dict.fromkeys(run.data for run in RUNS.values()):
        file = write_dataset(tmp_path / data, data)
        config, problems = read_dataset_config(file, TrainConfig())
        assert not problems
        assert sum(subset.diff_output_preservation for subset in config.subsets) == (data in preserved)
    settings, _ = parse_config(next(iter(RUNS.values())).flags(tmp_path))
    assert settings.max_train_steps == 200 and settings.max_train_epochs is None and settings.save_every_n_steps == 40
    assert len(list((tmp_path / "mixed" / "tjtoy").glob("other_*.txt"))) == 7
