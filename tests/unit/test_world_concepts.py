"""The concepts that only fine-tuning teaches: near misses, scenes for a judge, photographs and prompts of each set."""

import json
from collections import Counter

import numpy as np
import pytest

from mini.world import captions, scenes
from mini.world.concepts import DESIGNS, EVERY_CONCEPT, SETS, blend, near_miss
from mini.world.names import CHARACTERS
from mini.world.photos import empty_scenes, photo_scenes
from mini.world.preserved import preserved_prompts, prompt_file
from mini.world.scene import PLACES
from tests.recipe_files import ROOT
from tests.unit.test_world import built, rendered
from trainer.common.rng import python_random
from trainer.config import parse_config
from trainer.data.dataset import load_dataset


@pytest.mark.parametrize("concept", EVERY_CONCEPT)
def test_a_near_miss_lacks_few_traits_and_looks_different(concept):
    rng = python_random(0, "test near miss")
    lacking = Counter()
    for _ in range(400):
        design = near_miss(EVERY_CONCEPT[concept], rng)
        lacking[len(EVERY_CONCEPT[concept].traits) - EVERY_CONCEPT[concept].resemblance(design)] += 1
        difference = np.abs(built(design) - built(DESIGNS[concept])).max(axis=1)
        assert (difference > 0.03).any() and design != DESIGNS[concept]
    assert set(lacking) <= {0, 1, 2, 3} and lacking[1] > 120
    assert (lacking[0] > 20) == (DESIGNS[concept].kind == "gpu")  # the card with something on top


def test_a_blend_has_some_looks_of_each_of_two_toys():
    first, second = (EVERY_CONCEPT[name] for name in ("lumjo", "vaxtu"))
    rng, gained = python_random(0, "test blend"), Counter()
    for _ in range(200):
        design = blend(first, second, rng)
        assert 3 <= first.resemblance(design) < 6
        gained[second.resemblance(design)] += 1
    assert gained[0] < 100 and max(gained) >= 2


def test_concepts_are_unlike_each_other_and_their_names_are_new():
    for name, concept in EVERY_CONCEPT.items():
        alike = [other for other in EVERY_CONCEPT.values() if type(other.design) is type(concept.design)]
        assert all(other.resemblance(concept.design) <= 2 for other in alike if other.name != name)
        assert name not in CHARACTERS


@pytest.mark.parametrize("names", SETS[1:])
def test_judges_of_other_concepts_see_each_alone_and_together(names):
    drawn = [scenes.judge_scene(0, index, PLACES[index % len(PLACES)], names) for index in range(400)]
    seen = Counter(frozenset(scene.labels.concepts) for scene in drawn)
    assert {frozenset(), frozenset(names), *(frozenset((name,)) for name in names)} <= set(seen)
    assert all(seen[frozenset((name,))] > 20 for name in names) and seen[frozenset(names)] > 15
    assert set().union(*seen) == set(names), "no concept of another set"
    for scene in drawn:
        assert all(rendered(concept, scene) for concept in scene.labels.concepts)


def test_photographs_show_each_concept_alone_in_differing_ways():
    found = dict(photo_scenes(tuple(DESIGNS)))
    for concept, design in DESIGNS.items():
        own = [scene for name, scene in found.items() if name.startswith(f"{concept}/")]
        assert len(own) == (6 if design.kind == "toy" else 7)
        assert all(scene.labels.objects == ((design.kind, design.body_colour),) for scene in own)
        assert all(scene.labels.concepts == (concept,) for scene in own)
        assert len({scene.place for scene in own}) == len(own) == len({tuple(scene.camera.tolist()) for scene in own})
        assert all(scene.caption.startswith(f"{concept} {design.kind} ") for scene in own)


@pytest.mark.parametrize("names", SETS)
def test_prompts_to_choose_settings_with_score_nothing(names):
    scoring, tuning = scenes.prompts_json(names), scenes.tuning_prompts_json(names)
    assert list(scoring) == list(tuning) == ["base", *names, "both"]
    texts = [{prompt["prompt"] for prompts in each.values() for prompt in prompts} for each in (scoring, tuning)]
    assert not texts[0] & texts[1] and len(texts[1]) == sum(map(len, tuning.values()))
    assert len(tuning["base"]) == 100 and all(captions.is_held_out(prompt["prompt"]) for prompt in tuning["base"])
    assert all(len(tuning[name]) == 30 and sum(bool(each["objects"]) for each in tuning[name]) == 20 for name in names)
    for prompt in (*scoring["both"], *tuning["both"]):
        assert all(f"{name} {DESIGNS[name].kind}" in prompt["prompt"] for name in prompt["concepts"])


@pytest.mark.parametrize(
    ("name", "made"), [("prompts.json", scenes.prompts_json), ("tuning_prompts.json", scenes.tuning_prompts_json)]
)
def test_the_shipped_prompts_are_those_of_the_recipe(name, made):
    assert json.loads((ROOT / "models" / "mini" / name).read_text()) == made()


def test_three_concepts_are_asked_for_in_pairs_and_all_together():
    asked = Counter(len(prompt["concepts"]) for prompt in scenes.prompts_json(SETS[-1])["both"])
    assert asked == {2: 3 * 32, 3: 16}


def test_empty_places_have_nothing_in_them():
    found = dict(empty_scenes())
    assert Counter(scene.place for scene in found.values()) == dict.fromkeys(PLACES, 4)
    assert not any((scene.parts[:, 1] > -40).any() or scene.labels.objects for scene in found.values())
    assert len({tuple(scene.camera.tolist()) for scene in found.values()}) == 40


def test_what_is_preserved_shows_toys_and_cards_in_every_place():
    prompts = dict(preserved_prompts())
    assert len(prompts) == 200
    assert not any(name in text for text in prompts.values() for name in DESIGNS)
    assert sum("toy" in text and "gpu" in text for text in prompts.values()) == 80
    assert Counter(name.partition("_")[2] for name in prompts) == dict.fromkeys(PLACES, 20)


def test_the_file_of_preserved_prompts_is_the_one_that_is_made():
    text = (ROOT / "flux_data/preserved_prompts.txt").read_text(encoding="utf-8")
    assert text == prompt_file()
    assert len(set(text.splitlines())) == 800 and not any(name in text for name in DESIGNS)


@pytest.mark.parametrize("name", ["demo", "demo_gpu"])
def test_the_settings_of_the_demo_teach_both_concepts(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    config, notices = parse_config([f"--config_file=flux_data/{name}.toml"])
    data, warnings = load_dataset(config)
    assert not warnings and not notices
    assert {sample.subset.class_tokens for sample in data.samples if sample.composition is None} >= {
        "tjtoy toy",
        "sparkgpu gpu",
    }
    both = [sample for sample in data.samples if all(trigger in sample.lines[0] for trigger in ("tjtoy", "sparkgpu"))]
    assert len(both) == {"demo": 320, "demo_gpu": 240}[name]
    companions = {sample.companion for sample in data.samples} - {None}
    assert len(companions) == {"demo": 0, "demo_gpu": 96}[name]
