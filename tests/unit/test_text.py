"""Tokenizers found and loaded from disk alone."""

import logging
from types import SimpleNamespace

import pytest
import torch

from benchmarks.random_tokenizers import write_clip_tokenizer, write_t5_tokenizer
from trainer.common.problems import Problems
from trainer.models.text import CLIP_LENGTH, clip_ids, find_tokenizer_dir, load_tokenizers, truncated_captions


def write_both(folder):
    write_clip_tokenizer(folder / "tokenizer")
    write_t5_tokenizer(folder / "tokenizer_2")
    return folder


@pytest.fixture
def tokenizers(tmp_path):
    return load_tokenizers(write_both(tmp_path))


def test_every_missing_file_is_told_at_once(tmp_path):
    with pytest.raises(Problems) as raised:
        load_tokenizers(tmp_path)
    names = [problem.where.removeprefix(f"{tmp_path}/") for problem in raised.value.problems]
    assert names == ["tokenizer/vocab.json", "tokenizer/merges.txt", "tokenizer_2/tokenizer.json"]


def test_a_damaged_tokenizer_is_a_problem(tmp_path):
    (write_both(tmp_path) / "tokenizer_2" / "tokenizer.json").write_text("{}")
    with pytest.raises(Problems, match="cannot be read as a tokenizer"):
        load_tokenizers(tmp_path)


def test_folders_are_looked_for_beside_clip_l(tmp_path):
    config = SimpleNamespace(tokenizer_dir=None, clip_l=tmp_path / "text_encoders" / "clip_l.safetensors")
    assert find_tokenizer_dir(config) is None
    assert find_tokenizer_dir(SimpleNamespace(tokenizer_dir=tmp_path, clip_l=None)) == tmp_path
    above = write_both(tmp_path / "tokenizers")
    assert find_tokenizer_dir(config) == above
    beside = write_both(tmp_path / "text_encoders" / "tokenizers")
    assert find_tokenizer_dir(config) == beside


def test_clip_ids_are_padded_and_cut_to_77(tokenizers):
    ids = clip_ids(tokenizers.clip, ["toy", "x" * 200])
    begin, end = tokenizers.clip.bos_token_id, tokenizers.clip.eos_token_id
    assert ids.shape == (2, 77) and ids.dtype == torch.int64
    assert ids[:, 0].tolist() == [begin, begin]
    assert (ids[0, 4:] == end).all() and ids[1, -1] == end and ids[1, -2] != end


def test_captions_longer_than_the_text_are_found(tokenizers):
    assert truncated_captions(tokenizers.t5, ["short", "y" * 40], 20) == ["y" * 40]
    assert truncated_captions(tokenizers.t5, [], 20) == []


def test_the_fingerprint_is_of_the_content(tmp_path):
    first = load_tokenizers(write_both(tmp_path / "a")).fingerprint
    again = write_both(tmp_path / "b")
    assert load_tokenizers(again).fingerprint == first
    (again / "tokenizer" / "merges.txt").write_text("#version: 0.3\n")
    assert load_tokenizers(again).fingerprint != first


def test_looking_for_long_captions_warns_of_nothing(tokenizers, caplog, capfd):
    logging.getLogger("transformers").propagate = True
    tokenizers.t5.model_max_length = 20
    assert truncated_captions(tokenizers.t5, ["y" * 40], 20) and truncated_captions(
        tokenizers.clip, ["y" * 100], CLIP_LENGTH
    )
    assert "longer than" not in caplog.text + capfd.readouterr().err


def test_clip_reads_77_tokens_with_begin_and_end(tokenizers):
    assert truncated_captions(tokenizers.clip, ["y" * 75, "y" * 76], CLIP_LENGTH) == ["y" * 76]
