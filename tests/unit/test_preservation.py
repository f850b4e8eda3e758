"""Images that the base model generates to be preserved: their prompts, their digests, how often they are trained."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from tests.dataset_files import draw_folder, write_toml
from trainer.common.problems import Problems
from trainer.data.class_words import in_class_words, with_article
from trainer.data.dataset import TrainingData, load_dataset
from trainer.data.generated import Generated
from trainer.data.preserved_words import OBJECTS, PLACES, SCENES, STYLES
from trainer.data.samples import Sample

DATA = """
[[datasets]]
resolution = 128
[[datasets.subsets]]
image_dir = "{folder}/toy"
class_tokens = "tjtoy toy"
num_repeats = 3
[[datasets.subsets]]
image_dir = "{folder}/gpu"
class_tokens = "sparkgpu gpu"
[[datasets.preservation]]
MORE
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    draw_folder(tmp_path / "toy", [(128, 128)] * 2)
    draw_folder(tmp_path / "gpu", [(128, 128)] * 3, shade=100)
    return tmp_path


def load(folder: Path, more: str = "", data: str = DATA, models: str = "m", **flags) -> TrainingData:
    return load_dataset(replace(write_toml(folder, data.replace("MORE", more)), **flags), 1, models)[0]


def preserved(data: TrainingData) -> list[Sample]:
    return [sample for sample in data.samples if sample.preservation is not None]


def prompts(folder: Path, more: str = "", **rest) -> list[str]:
    return [sample.lines[0] for sample in preserved(load(folder, more, **rest))]


def problems(folder: Path, more: str, data: str = DATA) -> list[str]:
    with pytest.raises(Problems) as found:
        load(folder, more, data)
    return [str(problem) for problem in found.value.problems]


def test_an_empty_table_preserves_class_words_alone_in_pairs_and_next_to_other_things(folder):
    found = prompts(folder)
    assert len(found) == 120 and not any("tjtoy" in text or "sparkgpu" in text for text in found)
    kinds = Counter((" toy" in text) + 2 * (" gpu" in text) for text in found)
    assert all(kinds[kind] >= 30 for kind in (1, 2, 3))  # the toy, the card, both
    assert any("gpu next to" in text and "toy" in text for text in found)  # side by side in both orders
    assert sum(any(f"{each} " in text for each in OBJECTS) for text in found if text not in SCENES) == 30
    assert not any("a orange" in text for text in found) and any("an orange" in text for text in found)
    assert found == prompts(folder, seed=7), "they do not depend on the run's seed"


def test_a_quarter_shows_scenes_without_class_words_and_some_name_a_style(folder):
    found = prompts(folder)
    assert len(set(found)) == 120
    scenes = [text for text in found if text in SCENES]
    assert len(set(scenes)) == 30  # none comes twice before all have come once
    named = Counter(place for text in found for place in PLACES if text.endswith(place))
    assert set(named) == set(PLACES)
    assert 20 <= sum(text.startswith(STYLES) for text in found if text not in SCENES) <= 60
    without = prompts(folder, "scenes = []\nstyles = []\nobjects = []\nnum_images = 6")
    assert not any(text.startswith(STYLES) or text in SCENES for text in without)
    own = prompts(folder, 'scenes = ["a cat", "a dog"]\nnum_images = 16')
    assert [set(own[3:8:4]), set(own[11::4])] == [{"a cat", "a dog"}] * 2  # in turn


def test_tables_that_ask_for_the_same_images_are_named(folder):
    def warnings(more: str) -> list[str]:
        return [str(each) for each in load_dataset(write_toml(folder, DATA.replace("MORE", more)), 1, "m")[1]]

    (warning,) = warnings("[[datasets.preservation]]\n[[datasets.preservation]]\nseed = 1000")
    assert "data.toml:12: 120 images are the same as in" in warning and "data.toml:11" in warning and "seed" in warning
    (warning,) = warnings('prompts = "a cat"\n[[datasets.preservation]]\nprompts = "a cat"\nseed = 119')
    assert "1 image is the same" in warning


def test_each_is_trained_towards_the_base_model_as_often_as_asked(folder):
    data = load(folder, prior_loss_weight=0.5)
    sample = preserved(data)[0]
    assert sample.is_reg and sample.preserves_output and sample.loss_weight == 0.5 and sample.bucket == (128, 128)
    drawn = [Counter(d.sample.key for batch in data.batches(epoch) for d in batch) for epoch in range(2)]
    both = [{key for key in counts if "preservation" in key} for counts in drawn]
    assert [len(keys) for keys in both] == [9, 9] and not both[0] & both[1]  # 2 x 3 + 3 photographs; taking turns
    fewer = load(folder, "images_per_epoch = 2")
    assert sum(d.sample.preservation == 0 for batch in fewer.batches(0) for d in batch) == 2
    assert not any(d.sample.is_reg for d in data.validation_draws())


def test_own_prompts_come_from_a_list_or_a_file_and_in_turn(folder):
    (folder / "mine.txt").write_text("# comment\na cat\n\na dog\n", encoding="utf-8")
    for more in ('prompts = ["a cat", "a dog"]', 'prompts = "mine.txt"'):
        data = load(folder, f"{more}\nnum_images = 3\nseed = 5\nresolution = [96, 64]")
        images = [sample.picture for sample in preserved(data)]
        assert [(image.prompt, image.seed, image.size) for image in images if isinstance(image, Generated)] == [
            ("a cat", 5, (96, 64)),
            ("a dog", 6, (96, 64)),
            ("a cat", 7, (96, 64)),
        ]


def test_the_digest_covers_all_that_the_pixels_depend_on(folder):
    def digest(more: str = "", models: str = "m") -> str:
        return preserved(load(folder, f'prompts = "a cat"\nnum_images = 1\n{more}', models=models))[0].picture.sha256

    changed = ("seed = 1", "steps = 9", "guidance = 2.0", "resolution = 64")
    assert len({digest(), digest(models="other"), *map(digest, changed)}) == 6
    assert digest() == digest("images_per_epoch = 7")


def test_the_manifest_tells_one_preservation_from_another(folder):
    usual = load(folder).manifest()
    assert "dataset 0 preservation 0" in usual and "picture 0.preservation 0/000" in usual
    assert load(folder, "images_per_epoch = 3").manifest() != usual
    assert load(folder, models="other").manifest() != usual
    without = load(folder, data=DATA.replace("[[datasets.preservation]]", "")).manifest()
    assert not any("preservation 0" in key or " preservation=" in text for key, text in without.items())


def test_mistakes_are_named_with_their_line(folder):
    (folder / "none.txt").write_text("# nothing\n", encoding="utf-8")
    for more, words in (
        ("num_images = 0", "at least 1"),
        ('prompts = ["a cat", ""]', "list of texts"),
        ('prompts = "gone.txt"', "data.toml:11: prompts gone.txt: there is no such file"),
        ('prompts = "none.txt"', "one prompt a line"),
        ('prompts = "flux_data/toys"', "a file of prompts ends in .txt"),  # trained as a prompt otherwise
        ("prompts = 'D:\\my.txt'", "a path of Windows"),
        ('prompts = "prompts.md"', "a file of prompts ends in .txt"),
        ('prompts = "a cat"\nplaces = ["on a desk"]', "no effect with prompts"),
        ('concepts = ["tjtoy"]', "known are 'tjtoy toy', 'sparkgpu gpu'"),
        ("steps = 0", "at least 1"),
        ("num_repeats = 2", "use images_per_epoch"),
        ('resolution = "128"', "a side or [width, height]"),
    ):
        found = problems(folder, more)
        assert words in "".join(found) and (".toml:" in found[0] or ".txt" in found[0]), (more, found)
    nameless = DATA.replace("tjtoy toy", "tjtoy").replace("sparkgpu gpu", "sparkgpu")
    assert "no concept has a class word" in problems(folder, "", nameless)[0]


def test_an_article_follows_the_first_letter():
    assert [with_article(words) for words in ("toy", "orange toy", "Apple")] == ["a toy", "an orange toy", "an Apple"]


def test_class_words_take_the_place_of_whole_triggers_alone():
    words = {"tjtoy toy": "toy", "sparkgpu gpu": "gpu", "tjtoy toy car": "car"}
    for caption, expected in (
        ("TJtoy  toy holding sparkgpu gpu on a desk", "toy holding gpu on a desk"),
        ("a tjtoy toy car", "a car"),
        ("tjtoy toys and a toy", "tjtoy toys and a toy"),
    ):
        assert in_class_words(caption, words) == expected
    assert in_class_words("tjtoy toy", {}) == "tjtoy toy"


def test_only_samples_that_teach_a_trigger_have_a_caption_with_class_words(folder):
    data = load(folder)
    assert data.class_words == {"tjtoy toy": "toy", "sparkgpu gpu": "gpu"}
    draws = [draw for batch in data.batches(0) for draw in batch]
    assert {data.class_caption(draw) for draw in draws if not draw.sample.is_reg} == {"toy", "gpu"}
    assert {data.class_caption(draw) for draw in draws if draw.sample.is_reg} == {None}
