import contextlib
from dataclasses import replace
from pathlib import Path

import pytest

from tests.dataset_files import write_toml
from trainer.common.problems import Problem, Problems
from trainer.config import TrainConfig
from trainer.data.dataset_config import DatasetConfig
from trainer.data.dataset_file import load_dataset_config


def load(config: TrainConfig) -> DatasetConfig:
    assert config.dataset_config
    return load_dataset_config(config.dataset_config, config)


def problems_of(folder: Path, text: str) -> tuple[Problem, ...]:
    with pytest.raises(Problems) as caught:
        load(write_toml(folder, text))
    return caught.value.problems


def one_subset(keys: str = "", dataset_keys: str = "", general_keys: str = "") -> str:
    return (
        f"[general]\n{general_keys}\n[[datasets]]\n{dataset_keys}\n"
        f'[[datasets.subsets]]\nimage_dir = "{{folder}}"\n{keys}\n'
    )


def test_a_key_falls_back_from_subset_to_dataset_to_general_to_flag(tmp_path: Path) -> None:
    config = write_toml(tmp_path, one_subset("keep_tokens = 4", "keep_tokens = 3", "keep_tokens = 2"))
    assert load(config).subsets[0].keep_tokens == 4
    config = write_toml(tmp_path, one_subset("", "keep_tokens = 3", "keep_tokens = 2"))
    assert load(config).subsets[0].keep_tokens == 3
    config = write_toml(tmp_path, one_subset("", "", "keep_tokens = 2"))
    assert load(config).subsets[0].keep_tokens == 2
    config = replace(write_toml(tmp_path, one_subset()), keep_tokens=1, train_batch_size=5, resolution="512,768")
    section = load(config).sections[0]
    assert (section.subsets[0].keep_tokens, section.batch_size, section.resolution) == (1, 5, (512, 768))


def test_an_empty_text_takes_back_what_is_set_above(tmp_path: Path) -> None:
    text = one_subset('caption_prefix = ""', "", 'caption_prefix = "a photo"\ncaption_suffix = "."')
    (subset,) = load(write_toml(tmp_path, text)).subsets
    assert (subset.caption_prefix, subset.caption_suffix) == (None, ".")


def test_flags_are_read_as_keys_are(tmp_path: Path) -> None:
    settings = {"caption_extension": "cap", "resize_interpolation": "linear", "resolution": "320,256"}
    config = load(replace(write_toml(tmp_path, one_subset()), **settings))
    assert (config.subsets[0].caption_extension, config.subsets[0].resize_interpolation) == (".cap", "bilinear")
    assert config.sections[0].resolution == (320, 256)
    keys = 'caption_extension = "cap"\nresize_interpolation = "Linear"'
    assert load(write_toml(tmp_path, one_subset(keys, "resolution = [320, 256]"))).subsets == config.subsets


def test_resolution_is_a_side_or_a_pair(tmp_path: Path) -> None:
    assert load(write_toml(tmp_path, one_subset("", "resolution = 512"))).sections[0].resolution == (512, 512)
    pair = load(write_toml(tmp_path, one_subset("", "resolution = [512, 768]")))
    assert pair.sections[0].resolution == (512, 768)


def test_image_dir_starts_at_the_current_folder_then_beside_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_toml(tmp_path / "data", '[[datasets]]\n[[datasets.subsets]]\nimage_dir = "cat"\n')
    (tmp_path / "data" / "cat").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load(config).subsets[0].image_dir == tmp_path / "data" / "cat"
    (tmp_path / "cat").mkdir()
    assert load(config).subsets[0].image_dir == Path("cat")


def test_all_problems_come_at_once_each_with_its_line(tmp_path: Path) -> None:
    text = one_subset('num_repeat = 2\nflip_aug = "yes"\nrandom_crop = true\nbatch_size = 2', "num_repeats = 0")
    lines = text.splitlines()
    found = {problem.where.rsplit(":", 1)[1]: str(problem) for problem in problems_of(tmp_path, text)}
    expected = {
        "num_repeat = 2": "did you mean num_repeats",
        'flip_aug = "yes"': "true or false",
        "random_crop = true": "not supported",
        "batch_size = 2": "put it into [general] or [[datasets]]",
        "num_repeats = 0": "at least 1",
    }
    assert found.keys() == {str(lines.index(line) + 1) for line in expected}
    for line, words in expected.items():
        assert words in found[str(lines.index(line) + 1)]


def test_refused_keys_that_ask_for_nothing_are_let_pass(tmp_path: Path) -> None:
    text = one_subset("color_aug = false\nrandom_crop = false\nalpha_mask = false", "network_multiplier = 1.0")
    assert load(write_toml(tmp_path, text)).notices == ()


@pytest.mark.parametrize(
    "key",
    [
        "color_aug = true",
        "random_crop = true",
        "face_crop_aug_range = [1.0, 3.0]",
        'metadata_file = "meta.json"',
    ],
)
def test_unsupported_keys_are_refused_by_name(tmp_path: Path, key: str) -> None:
    (problem,) = problems_of(tmp_path, one_subset(key))
    assert problem.what == f"{key.split()[0]} is not supported" and problem.hint


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ("resolution = 1000", "not divisible by 16"),
        ("resolution = 1280\nenable_bucket = true", "max_bucket_reso 1024 is smaller"),
        ("resolution = 512\nenable_bucket = true\nmin_bucket_reso = 640", "min_bucket_reso 640 is larger"),
        ("enable_bucket = true\nbucket_reso_steps = 40", "multiple of 16"),
        ('resolution = "1024"', "a side or [width, height]"),
        ("resolution = [1024, 1024, 3]", "a side or [width, height]"),
        ("batch_size = 0", "at least 1"),
        ("batch_size = true", "a whole number"),
        ("validation_split = 1.5", "at most 0.9"),
        ("caption_dropout_rate = nan", "a finite number"),
        ('resize_interpolation = "best"', "one of"),
        ('caption_separator = ""', "not empty"),
    ],
)
def test_wrong_values_of_a_dataset(tmp_path: Path, keys: str, words: str) -> None:
    (problem,) = problems_of(tmp_path, one_subset("", keys))
    assert words in str(problem)


def test_bucketing_needs_no_divisible_resolution(tmp_path: Path) -> None:
    load(write_toml(tmp_path, one_subset("", "resolution = 1000\nenable_bucket = true")))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[general]\n", "has no [[datasets]]"),
        ("[datasets]\nresolution = 512\n", "two brackets"),
        ("[[datasets]]\nresolution = 512\n", "has no subsets"),
        ("[[datasets]]\n[[datasets.subsets]]\nnum_repeats = 1\n", "has no image_dir"),
        ("resolution = 512\n[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'a'\n", "under [general]"),
    ],
)
def test_wrong_structure(tmp_path: Path, text: str, words: str) -> None:
    assert any(words in str(problem) for problem in problems_of(tmp_path, text))


def test_the_same_folder_twice_in_one_dataset(tmp_path: Path) -> None:
    subset = '[[datasets.subsets]]\nimage_dir = "{folder}"\n'
    (problem,) = problems_of(tmp_path, "[[datasets]]\n" + subset + subset)
    assert problem.where.endswith(":4") and "twice" in problem.what
    load(write_toml(tmp_path, "[[datasets]]\n" + subset + "[[datasets]]\nresolution = 512\n" + subset))


def test_sides_are_rounded_outward_and_said(tmp_path: Path) -> None:
    keys = "resolution = 512\nenable_bucket = true\nmin_bucket_reso = 300\nmax_bucket_reso = 1000"
    config = load(write_toml(tmp_path, one_subset("", keys)))
    assert (config.sections[0].min_bucket_reso, config.sections[0].max_bucket_reso) == (256, 1024)
    assert len(config.notices) == 2


def test_settings_that_change_nothing_are_said_once(tmp_path: Path) -> None:
    text = one_subset("cache_info = true", "max_bucket_reso = 2048", "keep_tokens = 2")
    second = '[[datasets.subsets]]\nimage_dir = "{folder}/b"\n'
    notices = load(write_toml(tmp_path, text + second)).notices
    assert sorted(notice.what.split()[0] for notice in notices) == ["cache_info", "keep_tokens", "max_bucket_reso"]


def test_preservation_of_the_base_model_is_the_only_attribute(tmp_path: Path) -> None:
    text = one_subset("custom_attributes = { diff_output_preservation = true }")
    assert load(write_toml(tmp_path, text)).subsets[0].diff_output_preservation
    (problem,) = problems_of(tmp_path, one_subset("custom_attributes = { other = true }"))
    assert "custom_attributes" in problem.what


def test_json_is_refused(tmp_path: Path) -> None:
    config = TrainConfig(dataset_config=tmp_path / "data.json")
    with pytest.raises(Problems, match="as TOML"):
        load(config)


def notices_of(folder: Path, text: str, **settings) -> list[str]:
    config = replace(write_toml(folder, text), **settings)
    return [f"{notice.where.rpartition('/')[2]}: {notice.what}" for notice in load(config).notices]


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ('caption_separator = "|"', "has no effect without shuffle_caption"),
        ('keep_tokens_separator = "||"', "keeps no tags in place without shuffle_caption"),
        ('secondary_separator = ";"', "groups no tags without shuffle_caption"),
        ("keep_tokens = 3", "has no effect without shuffle_caption"),
        ("token_warmup_min = 2", "has no effect without token_warmup_step"),
        ("caption_dropout_rate = 1\nshuffle_caption = true", "shuffle_caption has no effect because every caption"),
        ("caption_dropout_every_n_epochs = 1\ncaption_dropout_rate = 0.1", "drops every caption"),
    ],
)
def test_a_caption_key_without_effect_is_reported(tmp_path: Path, key: str, words: str) -> None:
    (notice,) = notices_of(tmp_path, one_subset(key))
    name = key.split()[0] if "\n" not in key else ""
    assert name in notice and words in notice
    assert notice.startswith("data.toml:")


@pytest.mark.parametrize(
    ("key", "dataset_key"),
    [
        ('caption_separator = "|"', "shuffle_caption = true"),
        ('caption_separator = "|"', 'secondary_separator = ";"\ncaption_tag_dropout_rate = 0.1'),
        ('keep_tokens_separator = "||"', "token_warmup_step = 3"),
        ("keep_tokens = 3", "caption_tag_dropout_rate = 0.1"),
        ("bucket_no_upscale = true", ""),
    ],
)
def test_a_key_with_an_effect_is_not_reported(tmp_path: Path, key: str, dataset_key: str) -> None:
    if key.startswith("bucket"):
        assert not notices_of(tmp_path, one_subset("", f"{key}\nenable_bucket = true"))
    else:
        assert not notices_of(tmp_path, one_subset(key, dataset_key))


def test_a_key_of_general_with_an_effect_in_one_subset_is_not_reported(tmp_path: Path) -> None:
    second = '[[datasets.subsets]]\nimage_dir = "{folder}/b"\nshuffle_caption = true\n'
    assert not notices_of(tmp_path, one_subset("", "", "keep_tokens = 2") + second)


def test_validation_seed_needs_a_split(tmp_path: Path) -> None:
    (notice,) = notices_of(tmp_path, one_subset("", "validation_seed = 3"))
    assert "validation_seed has no effect without validation_split" in notice
    assert not notices_of(tmp_path, one_subset("", "validation_seed = 3\nvalidation_split = 0.1"))


def test_a_value_that_every_table_below_overrides_is_reported(tmp_path: Path) -> None:
    (notice,) = notices_of(tmp_path, one_subset("num_repeats = 2", "num_repeats = 3"))
    assert notice.startswith("data.toml:4: num_repeats has no effect: every table below")
    (notice,) = notices_of(tmp_path, one_subset("", "batch_size = 2"), train_batch_size=4)
    assert notice.startswith("--train_batch_size: has no effect: the dataset file sets its own batch_size")
    assert not notices_of(tmp_path, one_subset("", "batch_size = 4"), train_batch_size=4)
    assert not notices_of(tmp_path, one_subset("", "resolution = 512"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"caption_separator": "|"}, "--caption_separator: has no effect without shuffle_caption"),
        ({"keep_tokens": 2}, "--keep_tokens: has no effect"),
        ({"bucket_no_upscale": True}, "--bucket_no_upscale: has no effect without enable_bucket"),
        ({"secondary_separator": ";"}, "--secondary_separator: groups no tags"),
    ],
)
def test_a_flag_without_effect_in_any_dataset_is_reported(tmp_path: Path, settings: dict, words: str) -> None:
    (notice,) = notices_of(tmp_path, one_subset(), **settings)
    assert notice.startswith(words)


@pytest.mark.parametrize("name", [r"F:\toys\nice car", r"..\robot\back", r"F:\new"])
def test_escapes_in_a_windows_path_say_how_to_write_it(tmp_path: Path, name: str) -> None:
    (problem,) = problems_of(tmp_path, f'[[datasets]]\n[[datasets.subsets]]\nimage_dir = "{name}"\n')
    assert problem.where.endswith(":3") and f"'{name}'" in problem.hint
    assert f'"{name.replace(chr(92), "/")}"' in problem.hint
    assert not any(ord(letter) < 32 for letter in problem.what + problem.hint)


def test_a_windows_path_in_single_quotes_is_read(tmp_path: Path) -> None:
    name = r"F:\toys\nice car"
    text = f"[[datasets]]\n[[datasets.subsets]]\nimage_dir = '{name}'\n"
    (problem,) = problems_of(tmp_path, text)
    assert problem.what == f"image_dir is {name}, a path of Windows" and "/mnt/f/toys/nice car" in problem.hint
    (tmp_path / name).mkdir()
    with contextlib.chdir(tmp_path):  # a folder may be called so
        assert load(write_toml(tmp_path, text)).subsets[0].image_dir == Path(name)


def test_names_of_other_trainers_say_which_key_to_use(tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path, one_subset('trigger_word = "x"'))
    assert problem.hint == "use class_tokens"
