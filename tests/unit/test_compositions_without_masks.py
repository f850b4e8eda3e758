"""A dataset file that asks for composites serves folders without masks too: it says that there are none."""

from tests.unit.test_compositions import composites, config, folder, problems  # noqa: F401 (a fixture)
from trainer.data.dataset import load_dataset


def test_without_any_mask_there_are_no_composites_and_a_warning_says_so(folder):  # noqa: F811
    for path in folder.glob("*/*.mask.png"):
        path.unlink()
    data, warnings = load_dataset(config(folder))
    assert not composites(data) and len(data.samples) == 4
    assert any(
        "no composites: no concept has masks" in str(warning) and "trainer mask" in str(warning) for warning in warnings
    )


def test_a_background_that_is_missing_is_named_before_there_are_masks(folder):  # noqa: F811
    for path in folder.glob("*/*.mask.png"):
        path.unlink()
    warnings = load_dataset(config(folder, 'backgrounds = "nowhere"'))[1]
    assert any("nowhere cannot be read" in str(warning) for warning in warnings)


def test_everything_that_is_wrong_with_a_composition_is_reported_at_once(folder):  # noqa: F811
    (folder / "gpu/00.mask.png").unlink()
    (folder / "gpu/01.mask.png").unlink()
    concepts = '["tjtoy toy", "tjtoy", "x", "sparkgpu gpu"]'
    found = problems(folder, f'concepts = {concepts}\nbackgrounds = "nowhere"\ncompanions = "red tjtoy toy"')
    for words in ("= 'tjtoy'", "= 'x'", "no image of 'sparkgpu gpu'", "nowhere cannot be read", "is a concept of"):
        assert sum(words in each for each in found) == 1, (words, found)
    assert len(found) == 5
