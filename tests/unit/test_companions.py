"""Companions: what is generated, how it is cut out and kept, and the composites of a concept with one."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from tests.unit.test_compositions import SIDE, composites, folder, load, problems, recipe
from trainer.common.problems import Problems
from trainer.data.companions import Companion
from trainer.data.dataset import TrainingData, load_dataset
from trainer.data.samples import Sample
from trainer.generation.cutout import cut_from_plain, load_mask_models
from trainer.generation.stage import cut_out
from trainer.masking.create import Detection, Models

__all__ = ["folder"]  # a fixture
YELLOW = (230, 210, 30)
THINGS = 'num_images = 4\ncompanions = { words = ["ball", "orange cube"], num_images = 24, candidates = 2, WITH }'
BALL = (70, 60, 180, 170)  # left, top, right, bottom


def scene(color: tuple[int, int, int] = YELLOW, box: tuple[int, ...] = BALL, side: int = 256) -> Image.Image:
    """A thing before a wall and on a floor that grow brighter to the right, with a shadow at its foot."""
    shade = np.linspace(0.85, 1.0, side)[None, :, None]
    rows = np.where(np.arange(side)[:, None, None] < 140, (150, 190, 200), (120, 150, 160))
    image = Image.fromarray((rows * shade).astype(np.uint8))
    pixels = np.asarray(image).copy()
    shadow = (slice(box[3] - 12, box[3] + 8), slice(box[0] + 10, min(side, box[2] + 30)))
    pixels[shadow] = pixels[shadow] * 0.5
    image = Image.fromarray(pixels)
    ImageDraw.Draw(image).ellipse(box, fill=color)
    return image


def with_companions(folder: Path, more: str = "", **flags) -> TrainingData:
    return load(folder, THINGS.replace("WITH", more or "seed = 3"), **flags)


def beside(data: TrainingData) -> list[Sample]:
    return [sample for sample in composites(data) if sample.companion is not None]


def generate(companion: Companion, kept: bool = True) -> None:
    """Write what the stage would."""
    companion.file.parent.mkdir(parents=True, exist_ok=True)
    image = scene(box=(35, 30, 90, 85), side=SIDE)
    image.save(companion.file)
    cut_out(image, torch.tensor([1.0 if kept else -1.0])).mask.save(companion.mask_file)


def companions(data: TrainingData) -> list[Companion]:
    return [image for image in data.generated_images() if isinstance(image, Companion)]


def test_each_thing_is_generated_alone_and_compared_with_others(folder):
    found = companions(with_companions(folder))
    assert Counter(image.prompt for image in found) == {
        "a ball on a plain background": 2,
        "an orange cube on a plain background": 2,
    }
    assert {image.seed for image in found} == {3, 4, 5, 6}
    assert found[0].rivals == ("an orange cube on a plain background",)
    one = companions(load(folder, 'num_images = 2\ncompanions = "ball"'))
    assert set(one[0].rivals) == {"a toy on a plain background", "a gpu on a plain background"}
    assert not companions(load(folder)) and not beside(load(folder))


def test_every_concept_stands_next_to_every_companion_in_relations_that_fit(folder):
    data = load(folder, THINGS.replace("WITH", "seed = 3") + '\nrelations = ["next to", "holding", "in front of"]')
    captions = [sample.lines[0] for sample in beside(data)]
    assert len(captions) == 24 and all(("tjtoy toy" in text) != ("sparkgpu gpu" in text) for text in captions)
    assert sum("a ball" in text for text in captions) == 12 and sum("tjtoy" in text for text in captions) == 12
    holds = [text for text in captions if "holding" in text]
    assert holds and all(text.startswith("tjtoy toy holding a") for text in holds)  # no ball holds anything
    assert any(text.startswith("a ball next to") for text in captions)
    drawn = Counter(d.sample.companion is not None for batch in data.batches(0) for d in batch)
    assert drawn[True] == 4  # half as many as photographs, 2 x 3 + 2


def test_composites_of_one_concept_are_possible_with_companions_only(folder):
    alone = THINGS.replace("WITH", "images_per_epoch = 6") + '\ntogether = 1\nconcepts = "sparkgpu gpu"'
    data = load(folder, alone + '\nrelations = ["next to", "on top of"]')
    captions = [sample.lines[0] for sample in composites(data)]
    assert len(captions) == 24 and len(beside(data)) == 24
    assert all("sparkgpu" in text and "tjtoy" not in text for text in captions)
    assert any(text.startswith("sparkgpu gpu on top of a ball") for text in captions)
    drawn = Counter(d.sample.composition for batch in data.batches(0) for d in batch)
    assert drawn[0] == 6
    for together in ("1", "[1, 2]"):
        more = 'companions = "ball"\n' if together != "1" else ""
        found = problems(folder, f"{more}together = {together}")
        assert len(found) == 1 and "1 stands alone" in found[0]


def test_companions_that_cannot_be_meant_are_named_once(folder):
    for value, words in (
        ('["ball", ""]', "list of texts"),
        ('["ball", "an  orange cube"]', 'write "orange cube"'),
        ('{ words = ["A ball"] }', 'write "ball"'),
        ('["ball", "Sparkgpu gpu"]', "is a concept of this dataset"),
    ):
        found = problems(folder, f"together = 1\ncompanions = {value}")
        assert len(found) == 1 and words in found[0], found


def test_a_composite_shows_concept_and_companion_where_its_mask_is(folder):
    data = with_companions(folder)
    sample = beside(data)[0]
    with pytest.raises(Problems, match="cannot be read"):
        sample.picture.recipe.image()  # type: ignore[union-attr]
    for companion in companions(data):
        generate(companion)
    for sample in beside(with_companions(folder))[:6]:
        made = sample.picture.recipe  # type: ignore[union-attr]
        image, mask = np.asarray(made.image()).astype(int), np.asarray(made.mask())
        yellow = (image[..., 0] > 200) & (image[..., 1] > 180) & (image[..., 2] < 80)
        concept = (image[..., 0] > 180) & (image[..., 1] < 60) | (image[..., 2] > 180) & (image[..., 0] < 60)
        assert yellow.sum() > 150 and concept.sum() > 200, sample.lines
        assert (mask[yellow | concept] > 100).all()
        assert np.array_equal(np.asarray(made.image()), image) and sample.masks_loss


def test_a_companion_that_cannot_be_cut_out_is_left_out_and_named(folder):
    for companion in companions(with_companions(folder)):
        generate(companion, kept=companion.thing == "ball")
    settings = folder / "data.toml"
    data, warnings = load_dataset(load_settings(settings))
    assert {sample.companion for sample in beside(data)} == {"ball"} and len(beside(data)) == 24
    assert "none of the 2 images of companion 'orange cube'" in "".join(map(str, warnings))
    for companion in companions(data):
        Image.new("L", companion.size, 0).save(companion.mask_file)
    assert "no image of any companion can be cut out" in problems(folder, THINGS.replace("WITH", "seed = 3"))[0]


def load_settings(path: Path):
    from trainer.config import TrainConfig

    return TrainConfig(dataset_config=path)


def test_the_digests_cover_all_that_the_pixels_depend_on(folder):
    def digests(more: str = "", models: str = "") -> set[str]:
        data = with_companions(folder, more, models=models) if models else with_companions(folder, more)
        return {sample.picture.sha256 for sample in beside(data)}

    usual = digests()
    assert len(usual) == 24 and usual == digests()
    for more in ("seed = 9", "seed = 3, steps = 4", 'seed = 3, prompt = "{thing}, white background"'):
        assert not usual & digests(more)
    assert "companions" not in load(folder).manifest()["dataset 0 composition 0"]
    assert "companions" in with_companions(folder).manifest()["dataset 0 composition 0"]
    pairs = [recipe(s).sha256 for s in composites(with_companions(folder)) if s.companion is None]
    assert pairs == [recipe(s).sha256 for s in composites(load(folder, "num_images = 4"))]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("[]", "list of texts"),
        ("{ num_images = 3 }", "a table without words"),
        ('{ words = ["ball"], candidates = 0 }', "candidates is 0"),
        ('{ words = ["ball"], prompt = "a ball" }', "must have {thing}"),
        ('{ words = ["ball"], prompts = ["a"] }', "use prompt"),
    ],
)
def test_mistakes_are_named_with_their_line(folder, value, words):
    found = problems(folder, f"companions = {value}")
    assert words in found[0] and "data.toml:" in found[0]


def test_dark_parts_of_a_thing_are_no_shadow():
    image, expected = scene(box=(70, 90, 180, 160)), Image.new("L", (256, 256), 0)
    wheels = [(80, 130, 115, 168), (140, 130, 175, 168)]
    for wheel in wheels:
        ImageDraw.Draw(image).ellipse(wheel, fill=(62, 58, 58))
    draw = ImageDraw.Draw(expected)
    for box in ((70, 90, 180, 160), *wheels):
        draw.ellipse(box, fill=255)
    cut = cut_from_plain(image)
    assert not cut.reason
    assert ((np.asarray(cut.mask) > 127) != (np.asarray(expected) > 127)).mean() < 0.01


def test_a_thing_is_cut_out_without_wall_floor_and_shadow():
    cut = cut_from_plain(scene())
    assert not cut.reason
    expected = Image.new("L", (256, 256), 0)
    ImageDraw.Draw(expected).ellipse(BALL, fill=255)
    wrong = (np.asarray(cut.mask) > 127) != (np.asarray(expected) > 127)
    assert wrong.mean() < 0.01
    large = cut_from_plain(scene().resize((640, 512)))
    assert large.mask.size == (640, 512) and not large.reason


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (scene(color=(150, 190, 200), box=(0, 0, 0, 0)), "nothing differs"),
        (scene(box=(100, 100, 125, 125)), "it covers 1%"),
        (scene(box=(70, 150, 180, 300)), "edge"),
        (scene(box=(10, 10, 245, 245)), "it covers"),
    ],
    ids=["nothing", "small", "cut off", "large"],
)
def test_a_cut_out_that_is_none_is_not_kept(image, reason):
    assert reason in cut_from_plain(image).reason


def test_two_things_are_not_one():
    image = scene(box=(20, 60, 110, 150))
    ImageDraw.Draw(image).ellipse((140, 60, 230, 150), fill=(200, 40, 40))
    assert cut_from_plain(image).reason == "it is not in one piece"


def test_an_image_that_another_prompt_explains_better_is_not_kept():
    assert np.asarray(cut_out(scene(), torch.tensor([0.1, 0.2])).mask).any()
    rejected = cut_out(scene(), torch.tensor([0.1, -0.01]))
    assert "another thing" in rejected.reason and not np.asarray(rejected.mask).any()
    assert "edge" in cut_out(scene(box=(70, 150, 180, 300)), torch.tensor([])).reason


def test_the_models_that_create_masks_are_asked_where_they_are_there(tmp_path):
    box, mask = (70.0, 60.0, 180.0, 170.0), Image.new("L", (256, 256), 0)
    mask.paste(255, tuple(map(int, box)))
    asked = []

    def detect(_, phrase):
        asked.append(phrase)
        return [Detection(box, 0.9), Detection((0, 0, 20, 20), 0.8)][: len(asked)]

    models = Models(detect, lambda _, boxes: mask if boxes == [box] else Image.new("L", (256, 256)), 0.3)
    kept = cut_out(scene(), torch.tensor([1.0]), "red ball", models)
    assert not kept.reason and kept.mask.tobytes() == mask.tobytes() and asked == ["red ball"]
    assert "finds 2" in cut_out(scene(), torch.tensor([1.0]), "red ball", models).reason
    assert load_mask_models(torch.device("cpu"), tmp_path) is None
