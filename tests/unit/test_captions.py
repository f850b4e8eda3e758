from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from trainer.common.problems import Problem
from trainer.data.captions import (
    caption_variant,
    caption_varies,
    contains_phrase,
    plain_caption,
    possible_captions,
    read_caption,
    split_caption,
)
from trainer.data.dataset_config import SubsetConfig

TAGS = "a, b, c, d, e, f"


def subset(**settings: Any) -> SubsetConfig:
    return SubsetConfig(image_dir=Path("folder"), **settings)


def variants(count: int, lines: tuple[str, ...] = (TAGS,), **settings: Any) -> list[str]:
    return [caption_variant(subset(**settings), lines, 7, epoch, "key", 0) for epoch in range(count)]


def test_the_first_line_with_prefix_and_suffix() -> None:
    assert variants(1, ("one", "two"), caption_prefix="pre", caption_suffix="suf") == ["pre one suf"]


def test_a_draw_is_a_pure_function_of_its_names() -> None:
    settings = subset(shuffle_caption=True, caption_dropout_rate=0.2, caption_tag_dropout_rate=0.2)
    once = [caption_variant(settings, (TAGS,), 7, epoch, "key", 0) for epoch in range(20)]
    again = [caption_variant(settings, (TAGS,), 7, epoch, "key", 0) for epoch in reversed(range(20))]
    assert once == again[::-1]
    assert once != [caption_variant(settings, (TAGS,), 8, epoch, "key", 0) for epoch in range(20)]
    assert once != [caption_variant(settings, (TAGS,), 7, epoch, "other", 0) for epoch in range(20)]
    assert once != [caption_variant(settings, (TAGS,), 7, epoch, "key", 1) for epoch in range(20)]


def test_shuffling_keeps_the_first_tags_and_loses_none() -> None:
    found = [caption.split(", ") for caption in variants(30, shuffle_caption=True, keep_tokens=2)]
    assert all(tags[:2] == ["a", "b"] and sorted(tags) == list("abcdef") for tags in found)
    assert len({tuple(tags) for tags in found}) > 5


def test_keep_tokens_separator_fixes_both_ends() -> None:
    lines = ("a, b ||| c, d, e ||| f",)
    found = variants(30, lines, shuffle_caption=True, keep_tokens_separator="|||")
    assert all(caption.startswith("a, b, ") and caption.endswith(", f") for caption in found)
    assert len(set(found)) == 6


def test_secondary_separator_keeps_tags_together() -> None:
    found = variants(20, ("x;;y, z",), shuffle_caption=True, secondary_separator=";;")
    assert set(found) == {"x,y, z", "z, x,y"}


def test_wildcards_choose_and_doubled_braces_are_literal() -> None:
    found = Counter(variants(200, ("a {red|blue} {{cap}}", "other"), enable_wildcard=True))
    assert set(found) == {"a red {cap}", "a blue {cap}", "other"}
    assert found["other"] > found["a red {cap}"] > 20


def test_every_line_of_a_wildcard_caption_has_the_prefix() -> None:
    found = variants(50, ("one", "two"), enable_wildcard=True, caption_prefix="pre")
    assert set(found) == {"pre one", "pre two"}


def test_dropout_rates() -> None:
    dropped = variants(2000, caption_dropout_rate=0.25).count("")
    assert 400 < dropped < 600
    tags = [caption.split(", ") for caption in variants(2000, caption_tag_dropout_rate=0.5, keep_tokens=1)]
    assert all(found[0] == "a" for found in tags)
    assert 2.3 < sum(len(found) - 1 for found in tags) / 2000 < 2.7


def test_every_nth_epoch_is_without_captions() -> None:
    found = variants(6, ("text",), caption_dropout_every_n_epochs=3)
    assert found == ["text", "text", "", "text", "text", ""]


def test_token_warm_up_adds_tags_with_the_steps() -> None:
    warming = subset(token_warmup_min=1, token_warmup_step=10, keep_tokens=1)
    counts = [len(caption_variant(warming, (TAGS,), 0, 0, "key", 0, step, 100).split(", ")) for step in (0, 5, 9, 10)]
    assert counts == [2, 4, 5, 6]
    share = subset(token_warmup_min=1, token_warmup_step=0.1, keep_tokens=1)
    assert caption_variant(share, (TAGS,), 0, 0, "key", 0, 5, 100) == "a, b, c, d"


def test_a_plain_caption_never_varies() -> None:
    lively = subset(shuffle_caption=True, caption_dropout_rate=1.0, caption_tag_dropout_rate=1.0)
    assert plain_caption(lively, (TAGS,), 3, "key") == TAGS
    assert caption_varies(lively) and not caption_varies(subset(caption_prefix="x", keep_tokens=2))


@pytest.mark.parametrize(
    ("separator", "text", "expected"),
    [
        (";", "a; b, c;d", {"a; b, c; d", "a; d; b, c"}),
        (" | ", "a | b | c", {"a | b | c", "a | c | b"}),
        (",", "a,b,c", {"a, b, c", "a, c, b"}),
    ],
)
def test_tags_are_joined_by_their_own_separator(separator: str, text: str, expected: set[str]) -> None:
    assert set(variants(20, (text,), shuffle_caption=True, keep_tokens=1, caption_separator=separator)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a, b ||| c, d ||| e", "a, b, c, d, e"),
        ("tjtoy toy ||| on a desk", "tjtoy toy, on a desk"),
        ("a ||| b ||| c ||| d", "a, b, c, d"),
        ("||| a", "a"),
    ],
)
@pytest.mark.parametrize("shuffle", [False, True])
def test_keep_tokens_separator_never_reaches_the_encoders(text: str, expected: str, shuffle: bool) -> None:
    settings = {"keep_tokens_separator": "|||", "shuffle_caption": shuffle}
    assert all("|" not in caption for caption in variants(10, (text,), **settings))
    assert plain_caption(subset(**settings), (text,), 3, "key") == expected
    assert possible_captions(subset(**settings), (text,)) == (expected,)


def test_paragraphs_are_one_caption_and_lines_are_for_wildcards() -> None:
    text = "tjtoy toy in a studio.\r\n\r\nIt is lit from the left.\rThe floor is grey.\n"
    whole = "tjtoy toy in a studio. It is lit from the left. The floor is grey."
    assert split_caption(text, wildcard=False) == (whole,)
    assert split_caption(text, wildcard=True) == tuple(f"{part}." for part in whole.rstrip(".").split(". "))
    assert split_caption(" \n\n", wildcard=False) == () == split_caption("", wildcard=True)


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85", "\v", "\f", "\x1c"])
def test_only_line_ends_split_lines(character: str) -> None:
    text = f"tjtoy toy on a desk,{character}beside a red mug"
    assert split_caption(text, wildcard=False) == split_caption(text, wildcard=True) == (text,)


@pytest.mark.parametrize(
    ("caption", "phrase", "found"),
    [
        ("a TJTOY  toy, red", "tjtoy toy", True),
        ("a tjtoy\u2028toy", "tjtoy toy", True),
        ("tjtoys toy", "tjtoy", False),
        ("mytjtoy toy", "tjtoy toy", False),
        ("tjtoy, toy", "tjtoy toy", False),
        ("책상 위의 토이가 있다", "토이", True),
        ("(tjtoy toy:1.2)", "tjtoy toy", True),
        ("a+b toy", "a+b", True),
    ],
)
def test_a_phrase_is_found_by_its_words(caption: str, phrase: str, found: bool) -> None:
    assert contains_phrase(caption, phrase) == found


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("tjtoy toy".encode("utf-16"), "the caption is not UTF-8 but UTF-16"),
        ("tjtoy toy".encode("utf-16-le"), "contains zero bytes"),
        (b"tjtoy\0toy", "contains zero bytes"),
    ],
)
def test_a_caption_in_another_encoding_is_not_trained(tmp_path: Path, data: bytes, words: str) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(data)
    found = read_caption([file], wildcard=False)
    assert isinstance(found, Problem) and words in str(found) and found.hint == "save it as UTF-8"


@pytest.mark.parametrize("text", ["\u200b", "\ufeff \r\n", "\u00a0\n\u2060"])
def test_a_caption_of_invisible_characters_is_empty(text: str) -> None:
    assert split_caption(text, wildcard=False) == ()
