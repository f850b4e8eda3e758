"""Composites in places that the base model generates: what is generated, what captions say, what is shown before."""

import numpy as np
import pytest

from tests.dataset_files import draw
from tests.unit.test_compositions import composites, config, folder, load, problems, recipe
from trainer.common.problems import Problems
from trainer.data.compose import Photograph, Plain
from trainer.data.composition_file import EMPTY_PLACES
from trainer.data.generated import Generated
from trainer.preflight.composites import write_composite_sheet

__all__ = ["folder"]  # a fixture
TABLE = 'backgrounds = { prompts = { "in a cave" = "an empty cave" }, num_images = 3, seed = 4, steps = 5 }'


def test_the_word_base_generates_usual_places_and_captions_name_them(folder):
    data = load(folder, 'backgrounds = "base"')
    images = data.generated_images()
    assert 30 < len(images) <= 40 and len({image.sha256 for image in images}) == len(images)
    for sample in composites(data):
        backdrop = recipe(sample).backdrop
        assert isinstance(backdrop, Photograph)
        assert isinstance(backdrop.picture, Generated)
        place = next(place for place, prompt in EMPTY_PLACES.items() if prompt == backdrop.picture.prompt)
        assert sample.lines[0].endswith(f" {place}")
        assert sample.generated_images == (backdrop.picture,)


def test_own_places_are_generated_and_may_be_one_of_several_backgrounds(folder):
    images = load(folder, TABLE).generated_images()
    assert {(image.prompt, image.seed, image.steps, image.size) for image in images} == {
        ("an empty cave", seed, 5, (128, 128)) for seed in (4, 5, 6)
    }
    assert all(sample.lines[0].endswith(" in a cave") for sample in composites(load(folder, TABLE)))
    listed = load(folder, 'backgrounds = ["plain", { prompts = ["in a cave"], num_images = 1 }]')
    assert {image.prompt for image in listed.generated_images()} == {"in a cave"}
    kinds = {type(recipe(sample).backdrop) for sample in composites(listed)}
    assert kinds == {Plain, Photograph}


def test_a_generated_place_is_behind_the_concepts_once_it_is_there(folder):
    settings = config(folder, TABLE.replace("num_images = 3", "num_images = 1"), run_dir=folder / "runs")
    data = load(folder, TABLE.replace("num_images = 3", "num_images = 1"))
    assert write_composite_sheet(settings, data) is None
    with pytest.raises(Problems, match="generated image cannot be read"):
        recipe(composites(data)[0]).image()
    (image,) = data.generated_images()
    draw(image.file, (128, 128), shade=250)
    made = np.asarray(recipe(composites(data)[0]).image())
    assert abs(made[0, 0].astype(int) - np.asarray(image.read())[0, 0]).max() <= 3
    assert write_composite_sheet(settings, data)


def test_other_backgrounds_or_another_model_are_another_run(folder):
    usual = load(folder).manifest()
    assert load(folder, 'backgrounds = "base"').manifest() != usual
    assert not load(folder).generated_images()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("backgrounds = []", "is empty"),
        ("backgrounds = 3", 'must be "plain", "base"'),
        ("backgrounds = { prompts = {} }", "prompts is {}"),
        ('backgrounds = { prompts = { "in a cave" = "" } }', "prompts is"),
        ("backgrounds = { places = ['x'] }", "use prompts"),
        ("backgrounds = { steps = 0 }", "steps is 0; it must be at least 1"),
    ],
)
def test_mistakes_are_named_with_their_line(folder, more, words):
    found = problems(folder, more)
    assert words in found[0] and "data.toml:" in found[0]
