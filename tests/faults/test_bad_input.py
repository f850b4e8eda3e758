"""Each way in which a folder of pictures or its TOML file can be wrong is told, all of them at once."""

from pathlib import Path

import pytest
from PIL import Image

from tests.dataset_files import draw, draw_folder, write_toml
from trainer.common.problems import Problem, Problems
from trainer.config import TrainConfig
from trainer.data.dataset import load_dataset

DATASET = "[[datasets]]\nresolution = 64\n"


def subset(name: str, keys: str = "") -> str:
    return f'[[datasets.subsets]]\nimage_dir = "{{folder}}/{name}"\nclass_tokens = "{name}"\n{keys}\n'


def problems_of(config: TrainConfig) -> tuple[Problem, ...]:
    with pytest.raises(Problems) as caught:
        load_dataset(config)
    return caught.value.problems


def only_problem(config: TrainConfig) -> Problem:
    (problem,) = problems_of(config)
    return problem


@pytest.fixture
def good(tmp_path: Path) -> Path:
    draw_folder(tmp_path / "cat", [(64, 64)] * 3)
    return tmp_path


def test_everything_at_once(good: Path) -> None:
    draw_folder(good / "dog", [(64, 64)] * 2, shade=50)
    (good / "cat" / "01.png").write_bytes(b"")
    whole = (good / "dog" / "00.png").read_bytes()
    (good / "dog" / "00.png").write_bytes(whole[: len(whole) // 2])
    (good / "dog" / "01.txt").write_bytes(b"\xff\xfe")
    (good / "empty").mkdir()
    text = DATASET + subset("cat", "num_repeat = 2") + subset("dog", "num_repeats = 0") + subset("empty")
    found = "\n".join(map(str, problems_of(write_toml(good, text + subset("absent")))))
    for words in (
        "did you mean num_repeats",
        "num_repeats is 0",
        "cat/01.png: is empty",
        "dog/00.png: cannot be decoded",
        "dog/01.txt: the caption is not UTF-8",
        "empty holds no images",
        "absent does not exist",
    ):
        assert words in found


def test_no_dataset_file_named_or_there(tmp_path: Path) -> None:
    assert only_problem(TrainConfig()).where == "--dataset_config"
    assert "no such file" in only_problem(TrainConfig(dataset_config=tmp_path / "absent.toml")).what


def test_bad_toml_names_line_and_column(good: Path) -> None:
    problem = only_problem(write_toml(good, DATASET + '[[datasets.subsets]]\nimage_dir = "cat\n'))
    assert problem.where == f"{good / 'data.toml'}:4:17"


def test_missing_folder_names_the_line(good: Path) -> None:
    problem = only_problem(write_toml(good, DATASET + subset("cat") + subset("absent")))
    assert problem.where == f"{good / 'data.toml'}:7" and "absent does not exist" in problem.what


def test_the_current_folder_is_a_folder_too(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(good / "cat")
    text = DATASET + '[[datasets.subsets]]\nimage_dir = "."\nclass_tokens = "cat"\n'
    assert len(load_dataset(write_toml(good, text))[0].samples) == 3
    assert "image_dir is empty" in only_problem(write_toml(good, text.replace('"."', '""'))).what


def test_a_file_in_place_of_a_folder(good: Path) -> None:
    assert "not a folder" in only_problem(write_toml(good, DATASET + subset("cat/00.png"))).what


def test_empty_concept_says_where_pictures_lie(good: Path) -> None:
    draw_folder(good / "outer" / "inner", [(64, 64)] * 2, shade=60)
    problem = only_problem(write_toml(good, DATASET + subset("cat") + subset("outer")))
    assert "holds no images" in problem.what and problem.hint.startswith("2 images are in folders below")


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "bmp"])
def test_truncated_picture(good: Path, ending: str) -> None:
    path = draw(good / "cat" / f"half.{ending}", (200, 200), shade=90)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert only_problem(write_toml(good, DATASET + subset("cat"))).where == str(path)


def test_a_page_saved_as_a_picture(good: Path) -> None:
    (good / "cat" / "page.JPG").write_text("<html>not found</html>")
    assert "an HTML page, not an image" in only_problem(write_toml(good, DATASET + subset("cat"))).what


@pytest.mark.parametrize(
    ("content", "words"), [(b"\xff\xfe\x00", "not UTF-8"), (b"", "is empty"), (b" \n\n", "is empty")]
)
def test_bad_caption(good: Path, content: bytes, words: str) -> None:
    (good / "cat" / "01.txt").write_bytes(content)
    problem = only_problem(write_toml(good, DATASET + subset("cat")))
    assert problem.where == str(good / "cat" / "01.txt") and words in problem.what


def test_two_captions_that_disagree(good: Path) -> None:
    (good / "cat" / "01.txt").write_text("one")
    (good / "cat" / "01.caption").write_text("two")
    assert "says something else" in only_problem(write_toml(good, DATASET + subset("cat"))).what
    load_dataset(write_toml(good, DATASET + subset("cat", 'caption_extension = "txt"')))


def test_no_caption_and_no_class_tokens(good: Path) -> None:
    (good / "cat" / "01.txt").write_text("one")
    text = DATASET + '[[datasets.subsets]]\nimage_dir = "{folder}/cat"\n'
    problem = only_problem(write_toml(good, text))
    assert "no class_tokens for 00.png, 02.png" in problem.what


def test_the_same_picture_in_two_concepts(good: Path) -> None:
    draw_folder(good / "dog", [(64, 64)] * 2, shade=50)
    (good / "dog" / "copy.png").write_bytes((good / "cat" / "01.png").read_bytes())
    problem = only_problem(write_toml(good, DATASET + subset("cat") + subset("dog")))
    assert problem.where == str(good / "dog" / "copy.png") and str(good / "cat" / "01.png") in problem.what


def test_the_same_picture_as_training_and_as_regularisation(good: Path) -> None:
    draw(good / "reg" / "a.png", shade=0)
    text = DATASET + subset("cat") + subset("reg", "is_reg = true").replace('"reg"', '"cat"')
    assert "the same image" in only_problem(write_toml(good, text)).what


def test_only_regularisation_pictures(good: Path) -> None:
    assert "only regularisation" in only_problem(write_toml(good, DATASET + subset("cat", "is_reg = true"))).what


def test_a_picture_too_narrow_for_any_bucket(good: Path) -> None:
    draw(good / "cat" / "line.png", (2000, 3), shade=90)
    keys = DATASET + "enable_bucket = true\nbucket_no_upscale = true\n"
    problem = only_problem(write_toml(good, keys + subset("cat")))
    assert "2000x3 is too" in problem.what


def warnings_of(config: TrainConfig) -> list[str]:
    return [str(warning) for warning in load_dataset(config)[1]]


def test_a_small_picture_is_a_warning(good: Path) -> None:
    draw(good / "cat" / "small.png", (32, 32), shade=90)
    (warning,) = warnings_of(write_toml(good, DATASET + subset("cat")))
    assert "small.png: is far smaller" in warning and "2.0 times" in warning


def test_a_copy_in_one_folder_is_a_warning(good: Path) -> None:
    (good / "cat" / "copy.png").write_bytes((good / "cat" / "01.png").read_bytes())
    (warning,) = warnings_of(write_toml(good, DATASET + subset("cat")))
    assert "copy.png: the same image as 01.png" in warning


def test_captions_that_are_not_used_are_a_warning(good: Path) -> None:
    (good / "cat" / "00.caption").write_text("a cat")
    (good / "cat" / "gone.txt").write_text("a cat")
    found = "\n".join(warnings_of(write_toml(good, DATASET + subset("cat", 'caption_extension = ".txt"'))))
    assert "captions without an image: gone.txt" in found and "do not end in .txt: 00.caption" in found


def test_some_pictures_without_captions_are_a_warning(good: Path) -> None:
    (good / "cat" / "00.txt").write_text("a cat")
    (warning,) = warnings_of(write_toml(good, DATASET + subset("cat")))
    assert "2 of 3 images have no caption file" in warning


def test_pictures_without_captions_are_normal_with_class_tokens(good: Path) -> None:
    (good / "cat" / "notes.md").write_text("an HTML page, not an image")
    Image.new("L", (64, 64)).save(good / "cat" / "grey.PNG")
    data, warnings = load_dataset(write_toml(good, DATASET + subset("cat")))
    assert not warnings and len(data.samples) == 4


@pytest.mark.parametrize("tokens", ["", "  "])
def test_empty_class_tokens_are_a_warning(good: Path, tokens: str) -> None:
    for path in (good / "cat").glob("*.png"):
        path.with_suffix(".txt").write_text("a cat")
    (warning,) = warnings_of(
        write_toml(good, DATASET + subset("cat").replace('class_tokens = "cat"', f'class_tokens = "{tokens}"'))
    )
    assert "data.toml:5: class_tokens is empty" in warning and "tjtoy toy" in warning
