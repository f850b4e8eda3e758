"""Captions and triggers, read as an experienced trainer reads them: what is said, and when nothing is."""

from pathlib import Path

import pytest

from tests.dataset_files import draw, write_toml
from tests.recipe_files import ROOT
from trainer.config import TrainConfig
from trainer.data.dataset import TrainingData, load_dataset
from trainer.lora.metadata import triggers
from trainer.models.text import Tokenizers, load_tokenizers
from trainer.preflight.captions import caption_warnings, long_caption_warnings

DATASET = "[[datasets]]\nresolution = 64\n"


@pytest.fixture(scope="module")
def tokenizers() -> Tokenizers:
    return load_tokenizers(ROOT / "models" / "mini" / "tokenizers")


def subset(name: str, class_tokens: str | None = "tjtoy toy", keys: str = "") -> str:
    tokens = "" if class_tokens is None else f'class_tokens = "{class_tokens}"\n'
    return f'[[datasets.subsets]]\nimage_dir = "{{folder}}/{name}"\n{tokens}{keys}\n'


def write(folder: Path, captions: list[str], shade: int = 0) -> None:
    for number, caption in enumerate(captions):
        path = draw(folder / f"{number:02}.png", shade=shade + number)
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")


def load(folder: Path, text: str) -> TrainingData:
    return load_dataset(write_toml(folder, DATASET + text))[0]


def told(folder: Path, text: str, tokenizers: Tokenizers) -> str:
    return "\n".join(map(str, caption_warnings(load(folder, text), tokenizers)))


VARIED = [
    "tjtoy toy in a studio",
    "a tjtoy toy next to a red car",
    "tjtoy toy, snow falling",
    "the tjtoy toy under a lamp",
    "someone holds tjtoy toy",
]


def test_good_captions_are_not_spoken_of(tmp_path: Path, tokenizers: Tokenizers) -> None:
    write(tmp_path / "toy", VARIED)
    assert told(tmp_path, subset("toy"), tokenizers) == ""


@pytest.mark.parametrize("name", ["data.toml", "data_demo.toml"])
def test_the_shipped_data_has_no_warning(tokenizers: Tokenizers, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config = TrainConfig(dataset_config=Path("flux_data") / name, max_train_epochs=1)
    data, warnings = load_dataset(config)
    assert caption_warnings(data, tokenizers) == [] and not data.notes
    assert not [warning for warning in warnings if "keep_tokens" not in str(warning)]


def test_a_trigger_that_no_caption_has(tmp_path: Path, tokenizers: Tokenizers) -> None:
    write(tmp_path / "toy", ["a robot in a studio", "a red car", "snow"])
    said = told(tmp_path, subset("toy"), tokenizers)
    assert "'tjtoy toy' is in none of the 3 captions: 00.png, 01.png, 02.png" in said
    assert 'caption_prefix = "tjtoy toy"' in said
    assert triggers(load(tmp_path, subset("toy"))) == []
    prefixed = subset("toy", keys='caption_prefix = "tjtoy toy"')
    assert "is in none" not in told(tmp_path, prefixed, tokenizers)
    assert triggers(load(tmp_path, prefixed)) == ["tjtoy toy"]


def test_a_trigger_that_some_captions_lack(tmp_path: Path, tokenizers: Tokenizers) -> None:
    write(tmp_path / "toy", [*VARIED, "a robot on the moon", "TJTOY  Toy at sea"])
    said = told(tmp_path, subset("toy"), tokenizers)
    assert "is missing in 1 of 7 captions: 05.png" in said and "none of" not in said
    assert triggers(load(tmp_path, subset("toy"))) == ["tjtoy toy"]


def test_a_concept_that_preserves_the_base_promises_no_trigger(tmp_path: Path, tokenizers: Tokenizers) -> None:
    write(tmp_path / "toy", VARIED)
    kept = subset("toy", keys="custom_attributes = { diff_output_preservation = true }")
    assert triggers(load(tmp_path, kept)) == [] and told(tmp_path, kept, tokenizers) == ""


def test_every_line_of_a_wildcard_caption_is_read(tmp_path: Path, tokenizers: Tokenizers) -> None:
    write(tmp_path / "toy", ["tjtoy toy here\na robot there", "tjtoy toy at home\ntjtoy toy outside"])
    said = told(tmp_path, subset("toy", keys="enable_wildcard = true"), tokenizers)
    assert "is missing in 1 of 4 captions: 00.png" in said
    assert "missing" not in told(tmp_path, subset("toy"), tokenizers)


def test_a_phrase_in_four_fifths_of_the_captions(tmp_path: Path, tokenizers: Tokenizers) -> None:
    common = [f"tjtoy toy {place} on a white background" for place in ("left", "right", "front", "seen")]
    write(tmp_path / "toy", [*common, "tjtoy toy outdoors"])
    said = told(tmp_path, subset("toy"), tokenizers)
    assert "'white background' is in 4 of 5 captions: it will share the trigger's meaning" in said
    assert "'white' is" not in said, "only the longest phrase"
    write(tmp_path / "toy", [*common[:3], "tjtoy toy outdoors", "tjtoy toy in snow"])
    assert "share the trigger" not in told(tmp_path, subset("toy"), tokenizers)


@pytest.mark.parametrize(
    ("class_tokens", "words"),
    [
        ("toy", "is an ordinary word"),
        ("red robot", "are ordinary words"),
        ("woman", "is an ordinary word"),
        ("tjtoy", "has no class word"),
        ("xqzvkwjpbnmfgh toy", "tokens for CLIP"),
    ],
)
def test_triggers_that_learn_badly(tmp_path: Path, tokenizers: Tokenizers, class_tokens: str, words: str) -> None:
    write(tmp_path / "toy", [class_tokens])
    assert words in told(tmp_path, subset("toy", class_tokens), tokenizers)


@pytest.mark.parametrize("other", ["tjtoy2 gpu", "tjtoy gpu", "tj gpu"])
def test_two_triggers_that_contain_each_other(tmp_path: Path, tokenizers: Tokenizers, other: str) -> None:
    write(tmp_path / "toy", VARIED)
    write(tmp_path / "gpu", [f"{other} on a desk"], shade=90)
    assert "contains the trigger of" in told(tmp_path, subset("toy") + subset("gpu", other), tokenizers)
    write(tmp_path / "gpu", ["sparkgpu gpu on a desk"], shade=90)
    assert told(tmp_path, subset("toy") + subset("gpu", "sparkgpu gpu"), tokenizers) == ""


def test_one_concept_in_two_folders_is_one(tmp_path: Path, tokenizers: Tokenizers) -> None:
    write(tmp_path / "toy", VARIED)
    write(tmp_path / "more", ["tjtoy toy asleep"], shade=90)
    assert told(tmp_path, subset("toy") + subset("more"), tokenizers) == ""


def test_tag_dropout_that_drops_the_trigger(tmp_path: Path, tokenizers: Tokenizers) -> None:
    write(tmp_path / "toy", VARIED)
    dropping = "caption_tag_dropout_rate = 0.1\n"
    assert "drops the trigger" in told(tmp_path, subset("toy", keys=dropping), tokenizers)
    assert "drops" not in told(tmp_path, subset("toy", keys=dropping + "keep_tokens = 1"), tokenizers)


def test_long_captions_are_named_by_their_image(tmp_path: Path, tokenizers: Tokenizers) -> None:
    write(tmp_path / "toy", ["tjtoy toy " + "y" * 90, *VARIED[1:]])
    data = load(tmp_path, subset("toy"))
    prompt = "z" * 200
    clip_only = list(long_caption_warnings(data, [*data.captions_used(1), prompt], tokenizers, 512))
    (said,) = map(str, clip_only)
    assert "CLIP reads only the first 77 tokens of 2 captions: 00.png (" in said and "'zzzz" in said
    both = [str(w) for w in long_caption_warnings(data, data.captions_used(1), tokenizers, 32)]
    assert [text.split()[1] for text in both] == ["T5", "CLIP"]


def test_captions_that_t5_cannot_read_are_named(tmp_path: Path, tokenizers: Tokenizers) -> None:
    """FLUX.1's own T5 has no Korean, no braces and no angle brackets; this one lacks what its vocabulary lacks."""
    if tokenizers.t5.unk_token_id not in tokenizers.t5("토", add_special_tokens=False).input_ids:
        pytest.skip("this tokenizer reads every byte")
    write(tmp_path / "toy", ["tjtoy toy 토", *VARIED[1:]])
    assert "T5 does not know characters of 1 caption: 00.png (토)" in told(tmp_path, subset("toy"), tokenizers)


def test_an_ordinary_word_with_an_article_gets_a_sensible_example(tmp_path: Path, tokenizers: Tokenizers) -> None:
    write(tmp_path / "toy", ["a toy in snow"])
    assert 'such as "tjtoy toy"' in told(tmp_path, subset("toy", "a toy"), tokenizers)


def test_an_ordinary_trigger_within_another_concepts(tmp_path: Path, tokenizers: Tokenizers) -> None:
    write(tmp_path / "men", ["man on a chair"])
    write(tmp_path / "one", ["tjx man in snow"], shade=90)
    said = told(tmp_path, subset("men", "man") + subset("one", "tjx man"), tokenizers)
    assert "'tjx man' contains the trigger of 'man'" in said
    write(tmp_path / "human", ["tjx human in rain"], shade=120)
    said = told(tmp_path, subset("men", "man") + subset("human", "tjx human"), tokenizers)
    assert "contains" not in said


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ('keep_tokens_separator = "###"\nshuffle_caption = true', "keep_tokens_separator '###' is in none of the 2"),
        ('secondary_separator = ";;;"\nshuffle_caption = true', "secondary_separator ';;;' is in none of the 2"),
        ('caption_separator = ";"\nshuffle_caption = true', "no caption has two tags to shuffle, separated by ';'"),
        ("keep_tokens = 3\nshuffle_caption = true", "shuffle_caption has no effect"),
        ("enable_wildcard = true", "enable_wildcard has no effect: no caption has several lines"),
    ],
)
def test_settings_that_no_caption_gives_anything_to_do(
    tmp_path: Path, tokenizers: Tokenizers, keys: str, words: str
) -> None:
    write(tmp_path / "toy", ["tjtoy toy, red, in snow", "tjtoy toy, asleep"])
    write(tmp_path / "used", ["tjtoy toy ### red; blue;;; big; far, {old|new}, cold"] * 2, shade=90)
    assert words in told(tmp_path, subset("toy", keys=keys), tokenizers)
    keys = keys.replace("keep_tokens = 3", "")
    assert "no effect" not in told(tmp_path, subset("used", keys=keys), tokenizers)


def test_a_separator_that_is_idle_without_shuffling_is_reported_with_the_settings_alone(
    tmp_path: Path, tokenizers: Tokenizers
) -> None:
    write(tmp_path / "toy", ["tjtoy toy, red", "tjtoy toy, asleep"])
    for name in ("keep_tokens_separator", "secondary_separator"):
        data, warnings = load_dataset(write_toml(tmp_path, DATASET + subset("toy", keys=f'{name} = "###"')))
        assert sum(name in str(warning) for warning in warnings) == 1
        assert not any(name in str(warning) for warning in caption_warnings(data, tokenizers))


def test_separators_in_a_caption_prefix_count(tmp_path: Path, tokenizers: Tokenizers) -> None:
    write(tmp_path / "toy", ["red, in snow", "asleep, big"])
    keys = 'caption_prefix = "tjtoy toy ||| "\nkeep_tokens_separator = "|||"\nshuffle_caption = true'
    assert "no effect" not in told(tmp_path, subset("toy", keys=keys), tokenizers)


def test_characters_that_nobody_sees_are_named(tmp_path: Path, tokenizers: Tokenizers) -> None:
    write(tmp_path / "toy", [f"{VARIED[0]}\u200b\x1b", f"{VARIED[1]}\u2028\t\u200d", *VARIED[2:]])
    said = told(tmp_path, subset("toy"), tokenizers)
    assert "1 caption has invisible characters: 00.png (U+001B U+200B)" in said
