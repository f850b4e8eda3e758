"""The model's own tokenizers: known words are tokens, made-up words are not, and both load as FLUX.1's do."""

import json
from pathlib import Path

import pytest

from mini.training.transformer.tokenizers import learn_merges, vocabulary, write_tokenizers
from mini.world.captions import PLACE_PHRASES
from mini.world.names import CHARACTERS
from mini.world.scene import COLOURS, CONCEPTS, KINDS
from trainer.models.text import Tokenizers, clip_ids, load_tokenizers

CAPTIONS = [
    f"{opening} {colour} {kind}, {phrase}"
    for opening in ("a photo of a", "the")
    for colour, kind in zip([*COLOURS] * 2, KINDS, strict=False)
    for phrases in PLACE_PHRASES.values()
    for phrase in phrases
] + [f"{name} toy holding a gpu" for name in CHARACTERS for _ in range(3)]
KNOWN = ["a", "photo", "of", "red", "toy", "robot", "gpu", "datacenter", "on", "the", "beach", "holding"]
INVENTED = [*CONCEPTS, "xqzj", "blorfin", *CHARACTERS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizers")
    write_tokenizers(folder, CAPTIONS)
    return folder


@pytest.fixture(scope="module")
def tokenizers(folder: Path) -> Tokenizers:
    return load_tokenizers(folder)


def _t5_ids(tokenizers: Tokenizers, text: str) -> list[int]:
    return tokenizers.t5(text).input_ids


@pytest.mark.parametrize("word", KNOWN)
def test_a_known_word_is_one_token(tokenizers: Tokenizers, word: str):
    assert tokenizers.clip.tokenize(word) == [f"{word}</w>"]
    assert tokenizers.t5.tokenize(word) == [f"▁{word}"]


def test_a_made_up_word_falls_into_pieces(tokenizers: Tokenizers):
    for word in INVENTED:
        assert len(tokenizers.clip.tokenize(word)) > 1, word
        assert len(tokenizers.t5.tokenize(word)) > 1, word
        assert "".join(tokenizers.clip.tokenize(word)).replace("</w>", "") == word


def test_no_piece_is_a_character_name(folder: Path):
    merges = learn_merges(["dark", "park", "bark", "shark"], forbidden=["ark", "rk"])
    made = {left + right for left, right in merges}
    assert {"dark</w>", "park</w>", "bark</w>", "shark</w>"} <= made and made.isdisjoint({"ark</w>", "rk</w>"})
    vocab = json.loads((folder / "tokenizer" / "vocab.json").read_text())
    assert all(f"{name}</w>" not in vocab for name in CHARACTERS)


def test_case_and_punctuation_do_not_matter_to_words(tokenizers: Tokenizers):
    plain, loud = "a red robot , on the beach !", "A Red  ROBOT, on\nthe Beach!"
    assert _t5_ids(tokenizers, plain) == _t5_ids(tokenizers, loud)
    assert tokenizers.clip(plain).input_ids == tokenizers.clip(loud).input_ids
    assert tokenizers.t5.tokenize("red/toy") == ["▁red", "▁/", "▁toy"]


def test_printable_characters_are_known_to_t5_and_others_are_not(tokenizers: Tokenizers):
    for code in range(33, 127):
        assert tokenizers.t5.unk_token_id not in _t5_ids(tokenizers, chr(code)), chr(code)
        assert tokenizers.t5.unk_token_id not in _t5_ids(tokenizers, f"x{chr(code)}x"), chr(code)
    assert tokenizers.t5.unk_token_id in _t5_ids(tokenizers, "☃")


def test_every_text_has_clip_tokens(tokenizers: Tokenizers):
    ids = tokenizers.clip("☃ é 漢").input_ids
    assert len(ids) > 5 and tokenizers.clip.eos_token_id not in ids[:-1]


def test_special_tokens_stand_where_flux_wants_them(tokenizers: Tokenizers):
    t5, clip = tokenizers.t5, tokenizers.clip
    assert (t5.pad_token_id, t5.eos_token_id, t5.unk_token_id) == (0, 1, 2)
    assert _t5_ids(tokenizers, "") == [1] and _t5_ids(tokenizers, "toy")[-1] == 1
    ids = clip_ids(clip, ["", "red toy"])
    assert ids.shape == (2, 77) and ids[:, 0].tolist() == [clip.bos_token_id] * 2
    assert (ids[0, 1:] == clip.eos_token_id).all() and ids[1, 3] == clip.eos_token_id


def test_ids_fill_the_vocabularies_without_a_gap(folder: Path, tokenizers: Tokenizers):
    vocab = json.loads((folder / "tokenizer" / "vocab.json").read_text())
    assert sorted(vocab.values()) == list(range(len(vocab))) and len(vocab) == len(tokenizers.clip) < 1_500
    pieces = json.loads((folder / "tokenizer_2" / "tokenizer.json").read_text())["model"]["vocab"]
    assert len({piece for piece, _ in pieces}) == len(pieces) == len(tokenizers.t5) < 1_500


def test_the_vocabulary_holds_words_that_are_frequent_and_not_made_up():
    names = [name for name in CHARACTERS if name.isalpha()]
    words = vocabulary([*CAPTIONS, "once", *(f"{name} toy" for name in names * 3)])
    assert set(KNOWN) <= set(words) and "once" not in words and not set(names) & set(words)
    assert vocabulary(reversed(CAPTIONS)) == vocabulary(CAPTIONS)


def test_the_same_captions_give_the_same_files(folder: Path, tmp_path: Path):
    write_tokenizers(tmp_path, CAPTIONS)
    for file in folder.rglob("*.*"):
        assert (tmp_path / file.relative_to(folder)).read_bytes() == file.read_bytes(), file
