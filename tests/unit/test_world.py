"""The drawn world: what it leaves out, what its captions and labels say, and that it repeats."""

import json
import re
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from mini.world import captions, photos, scenes
from mini.world.arrange import fitted_camera
from mini.world.captions import MAX_WORDS, Item, scene_caption
from mini.world.concepts import (
    DESIGNS,
    EVERY_CONCEPT,
    HELD_OUT_FROM,
    SPARKGPU,
    TJTOY,
    random_gadget,
    random_toy,
)
from mini.world.gadgets import build_gadget
from mini.world.names import CHARACTERS, GADGET_CHARACTERS, TOY_CHARACTERS, meaningless_word, rare_word
from mini.world.parts import CENTRE, FIELDS, MAX_PARTS, part_table
from mini.world.scene import COLOURS, CONCEPTS, KINDS, PLACES, THINGS, TOYS, VIEW
from mini.world.shapes import bounds
from mini.world.things import build_thing
from mini.world.toys import NAMED, POSES, ToyDesign, build_toy
from trainer.common.rng import python_random

toy_resemblance, gadget_resemblance = TJTOY.resemblance, SPARKGPU.resemblance


def built(design) -> np.ndarray:
    return part_table(build_toy(design) if isinstance(design, ToyDesign) else build_gadget(design))


@pytest.fixture(scope="module")
def base() -> list[scenes.Scene]:
    return [scenes.random_scene(0, index, PLACES[index % len(PLACES)]) for index in range(800)]


@pytest.fixture(scope="module")
def judged() -> list[scenes.Scene]:
    return [scenes.judge_scene(0, index, PLACES[index % len(PLACES)]) for index in range(400)]


def test_no_random_toy_or_gadget_is_near_a_concept():
    rng = python_random(0, "test held out")
    toys = Counter(toy_resemblance(random_toy(rng)) for _ in range(20_000))
    gadgets = Counter(gadget_resemblance(random_gadget(rng)) for _ in range(10_000))
    assert max(toys) == max(gadgets) == HELD_OUT_FROM - 1  # it does come that near, and no nearer


def test_no_character_is_near_a_concept():
    assert len(TOY_CHARACTERS) == len(GADGET_CHARACTERS) == 48
    assert all(toy_resemblance(CHARACTERS[name]) < HELD_OUT_FROM for name in TOY_CHARACTERS)
    assert all(gadget_resemblance(CHARACTERS[name]) < HELD_OUT_FROM for name in GADGET_CHARACTERS)
    assert len(set(CHARACTERS.values())) > 90


def test_the_concepts_have_all_their_traits():
    assert toy_resemblance(TJTOY.design) == len(TJTOY.traits) == 6
    assert gadget_resemblance(SPARKGPU.design) == len(SPARKGPU.traits) == 5
    assert all(concept.resemblance(concept.design) == len(concept.traits) for concept in EVERY_CONCEPT.values())


def test_designs_that_are_too_near_are_drawn_again(monkeypatch):
    far = NAMED["bear"]
    drawn = iter([TJTOY.design, replace(TJTOY.design, eyes=2, hat="top"), far])
    monkeypatch.setattr("mini.world.concepts.toys.random_design", lambda _rng: next(drawn))
    assert random_toy(python_random(0)) is far


@pytest.mark.parametrize("pose", POSES)
@pytest.mark.parametrize("kind", TOYS)
def test_named_toys_stand_on_the_floor_and_are_of_one_size(kind, pose):
    low, high = bounds(build_toy(NAMED[kind], pose))
    assert -0.1 < low[1] < 0.05 and 1.35 < high[1] < 2.1
    assert low[0] < -0.4 and high[0] > 0.4


def test_named_toys_are_named_once_and_mixtures_are_not_them():
    assert tuple(NAMED) == TOYS
    rng = python_random(0, "test kinds")
    kinds = Counter(random_toy(rng).kind for _ in range(4000))
    assert set(kinds) == {"toy", *TOYS} and 0.4 < kinds["toy"] / 4000 < 0.5


@pytest.mark.parametrize("kind", THINGS)
def test_things_stand_on_the_floor_and_show_both_colours(kind):
    parts = build_thing(kind, "red", "blue")
    low, high = bounds(parts)
    assert -0.05 < low[1] < 0.05 and 0.8 < high[1] < 1.5
    assert {COLOURS["red"], COLOURS["blue"]} <= {part.colour for part in parts}


def test_scenes_fit_the_table(base, judged):
    both = [scenes.concept_scene(CONCEPTS, 0, index, "moon") for index in range(100)]
    for scene in (*base, *judged, *both):
        assert scene.parts.shape == (MAX_PARTS, FIELDS) and scene.parts.dtype == np.float32
        assert all(np.isfinite(rows).all() for rows in (scene.parts, scene.camera, scene.light, scene.phases))
        assert scene.parts[0, CENTRE][1] > -1


def test_every_toy_holds_every_gadget_within_the_table():
    toy = Item(
        "toy", "red", max((random_toy(python_random(1, n)) for n in range(800)), key=lambda d: len(build_toy(d)))
    )
    card = max((random_gadget(python_random(2, n)) for n in range(800)), key=lambda d: len(build_gadget(d)))
    assert len(build_toy(toy.design)) + len(build_gadget(card)) <= MAX_PARTS
    assert 2 * len(build_gadget(card)) <= MAX_PARTS and 2 * len(build_toy(toy.design)) <= MAX_PARTS


def test_a_scene_is_a_function_of_seed_index_and_place():
    for draw in (scenes.random_scene, scenes.judge_scene):
        first, again, other = draw(3, 8, "snow"), draw(3, 8, "snow"), draw(3, 9, "snow")
        assert first.caption == again.caption and first.labels == again.labels
        assert all(np.array_equal(getattr(first, name), getattr(again, name)) for name in ("parts", "camera", "light"))
        assert not np.array_equal(first.parts, other.parts)


def test_a_batch_is_its_scenes_in_one_place():
    batch = scenes.random_batch("base", 5, 13, 4)
    assert batch.place == PLACES[3] and batch.parts.shape == (4, MAX_PARTS, FIELDS)
    alone = [scenes.random_scene(5, 13 * 4 + offset, PLACES[3]) for offset in range(4)]
    assert batch.captions == tuple(scene.caption for scene in alone)
    assert np.array_equal(batch.parts[2], alone[2].parts)
    assert batch.camera.shape == (4, 6) and batch.light.shape == (4, 4) and batch.phases.shape == (4, 8)


def test_a_batch_is_quick():
    scenes.random_batch("base", 0, 0, 8)
    start = time.process_time()
    scenes.random_batch("base", 0, 1, 200)
    assert (time.process_time() - start) / 200 < 0.006  # 1 ms on an idle core


def test_labels_name_what_is_there(base):
    for scene in base:
        assert 1 <= len(scene.labels.objects) <= 2 and scene.labels.concepts == ()
        shown = {tuple(np.float32(row)) for row in scene.parts[:, 22:25]}
        for kind, colour in scene.labels.objects:
            assert kind in KINDS and tuple(np.float32(COLOURS[colour])) in shown
    kinds = Counter(kind for scene in base for kind, _ in scene.labels.objects)
    assert set(kinds) == set(KINDS)


def test_captions_agree_with_the_labels(base):
    """A kind or main colour that a caption says right before its noun is that of a label."""
    said = 0
    for scene in base:
        words = re.findall(r"[a-z0-9]+", scene.caption.lower())
        kinds, colours = zip(*scene.labels.objects, strict=True)
        for kind in (*TOYS, "computer", "ball", "mug", "car", "mushroom", "duck", "house"):
            if kind in words:
                assert kind in kinds, scene.caption
                said += 1
        found = re.match(r"^(?:an?) ([a-z]+) (?:gpu|bear|cat|robot|mug|duck|house)\b", scene.caption)
        if found and found[1] in COLOURS:
            assert found[1] in colours, scene.caption
            said += 1
    assert said > 450


def test_details_in_captions_are_those_of_the_design():
    toy = replace(NAMED["bear"], eyes=1, body_colour="red", head_colour="blue", limb_colour="red", belly_colour="pink")
    item = Item("bear", "red", toy)
    said = " / ".join(scene_caption([item], "", "stand", "snow", python_random(0, n)) for n in range(300))
    assert "one eye" in said and "a pink belly" in said and "a blue head" in said and "red bear" in said
    assert "hat" not in said and "collar" not in said and "arms" not in said
    card = Item("gpu", "white", replace(SPARKGPU.design, topper="bolt"))
    said = " / ".join(scene_caption([card], "", "stand", "snow", python_random(0, n)) for n in range(300))
    assert "a purple fan and an orange fan" in said and "lightning bolt on top" in said and "yellow trim" in said


def test_captions_are_short_and_varied(base):
    texts = [scene.caption for scene in base]
    assert max(len(text.split()) for text in texts) <= MAX_WORDS
    assert len(set(texts)) > 0.93 * len(texts)
    assert sum(text[0].islower() for text in texts) > 0.9 * len(texts)
    phrases = {place: (*spoken, place) for place, spoken in captions.PLACE_PHRASES.items()}
    placeless = sum(not any(phrase in scene.caption.lower() for phrase in phrases[scene.place]) for scene in base)
    assert 0.03 < placeless / len(base) < 0.09
    for relation in ("holding", "carrying", "next to", "beside", "in front of", "behind", "on top of", " and "):
        assert sum(relation in text for text in texts) > 8, relation
    assert not any(re.search(r"\ba [aeiou]|\ban [^aeiou]|  | ,", text.lower()) for text in texts)


def test_characters_are_common_and_called_like_concepts(base):
    texts = [scene.caption for scene in base]
    by_name = sum(any(word in CHARACTERS for word in text.lower().rstrip(".").split()) for text in texts)
    assert 0.2 < by_name / len(texts) < 0.5
    assert any(re.match(r"^\w+ toy holding \w+ gpu in a datacenter$", text) for text in _pair_captions())


def _pair_captions() -> list[str]:
    toy, gpu = (Item(CHARACTERS[name].kind, "red", CHARACTERS[name], name=name) for name in ("roxot", "lzcmt"))
    return [scene_caption([toy, gpu], "holding", "stand", "datacenter", python_random(0, n)) for n in range(60)]


def test_concept_words_are_never_in_base_captions(base):
    texts = [scene.caption.lower() for scene in base] + [prompt["prompt"] for prompt in scenes.held_out_prompts()]
    rng = python_random(0, "test words")
    texts += [rare_word(rng) for _ in range(50_000)] + list(CHARACTERS)
    assert not any(concept in text for text in texts for concept in CONCEPTS)


def test_rare_words_are_new_words():
    rng = python_random(0, "test words")
    words = [meaningless_word(rng) for _ in range(3000)]
    assert all(re.fullmatch(r"[a-z][a-z0-9]{2,8}", word) for word in words)
    assert not set(words) & {*KINDS, *PLACES, *COLOURS, *CHARACTERS}
    assert len(set(words)) > 1800 and any(word[-1].isdigit() for word in words)


def test_judge_scenes_say_exactly_which_concepts_are_there(judged):
    concepts = Counter(scene.labels.concepts for scene in judged)
    assert set(concepts) == {(), ("tjtoy",), ("sparkgpu",), CONCEPTS}
    assert 0.12 < concepts[CONCEPTS] / len(judged) < 0.24
    for scene in judged:
        for concept in CONCEPTS:
            assert (concept in scene.caption) == (concept in scene.labels.concepts)
            assert concept not in scene.labels.concepts or rendered(concept, scene)


def rendered(concept: str, scene: scenes.Scene) -> bool:
    """Whether the concept's colours are among the scene's parts, in their order."""
    wanted = built(DESIGNS[concept])[:, 22:25]
    wanted = wanted[: np.flatnonzero(wanted.any(axis=1))[-1] + 1]
    starts = range(MAX_PARTS - len(wanted) + 1)
    return any(np.array_equal(scene.parts[start : start + len(wanted), 22:25], wanted) for start in starts)


def test_objects_fill_the_picture(base):
    sizes = []
    for scene in base[:400]:
        parts = scene.parts[scene.parts[:, 1] > -40]
        span = max(np.ptp(parts[:, 0]), np.ptp(parts[:, 1]))
        sizes.append(span / (2 * VIEW * scene.camera[2]))
        assert 1.5 < scene.camera[2] < 9 and abs(scene.camera[0]) <= 0.5 and 0.05 <= scene.camera[1] <= 0.3
    assert np.mean(sizes) > 0.35  # from middle to middle of the outermost parts


def test_the_camera_holds_the_parts():
    parts = build_toy(TJTOY.design)
    camera = fitted_camera(parts, 0.2, 0.2, 0.7, (0, 0))
    toward = np.array([np.cos(0.2) * np.sin(0.2), np.sin(0.2), np.cos(0.2) * np.cos(0.2)])
    eye = np.array([camera[3], camera[4], 0]) + camera[2] * toward
    right = np.array([np.cos(0.2), 0, -np.sin(0.2)])
    up = np.cross(toward, right)
    seen = [((part.centre - eye) @ up) / -((part.centre - eye) @ toward) / VIEW for part in parts]
    assert -0.75 < min(seen) < -0.4 and 0.4 < max(seen) < 0.75


def test_held_out_prompts_say_kind_colour_and_place():
    prompts = scenes.held_out_prompts()
    assert len(prompts) == 200 == len({prompt["prompt"] for prompt in prompts})
    assert Counter(prompt["place"] for prompt in prompts) == dict.fromkeys(PLACES, 20)
    for prompt in prompts:
        assert any(prompt["prompt"].endswith(phrase) for phrase in captions.PLACE_PHRASES[prompt["place"]])
        assert not any(name in prompt["prompt"].split() for name in CHARACTERS)
        for kind, colour in prompt["objects"]:
            noun = r"(?:gpu|graphics card)" if kind == "gpu" else kind
            assert re.search(rf"\b{colour} (?:\w+ )?{noun}\b", prompt["prompt"]), prompt
    assert scenes.held_out_prompts(20) == prompts[:20]


def test_held_out_prompts_are_not_training_captions(base):
    assert all(captions.is_held_out(prompt["prompt"]) for prompt in scenes.held_out_prompts())
    assert not any(captions.is_held_out(scene.caption) for scene in base)


def test_concept_prompts_are_unseen_and_well_formed():
    trained = {scene.caption for _, scene in photos.photo_scenes()}
    prompts = scenes.prompts_json()
    assert json.loads(json.dumps(prompts)) == prompts and list(prompts) == ["base", *CONCEPTS, "both"]
    for key, concepts in (("tjtoy", ["tjtoy"]), ("sparkgpu", ["sparkgpu"]), ("both", list(CONCEPTS))):
        texts = [prompt["prompt"] for prompt in prompts[key]]
        assert len(texts) == 32 == len(set(texts)) and not set(texts) & trained
        for prompt in prompts[key]:
            assert prompt["concepts"] == concepts and prompt["place"] in PLACES
            assert all(f"{name} {DESIGNS[name].kind}" in prompt["prompt"] for name in concepts)
            assert all(f"{colour} {kind}" in prompt["prompt"] for kind, colour in prompt["objects"])
    assert "tjtoy toy holding sparkgpu gpu in a datacenter" in {prompt["prompt"] for prompt in prompts["both"]}
