"""The random model files: the real files' sizes, bytes as safetensors writes them, one seed one file."""

import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer, T5TokenizerFast  # pyright: ignore[reportAttributeAccessIssue]

from benchmarks.random_flux import (
    REAL_BYTES,
    SIZES,
    autoencoder_shapes,
    clip_shapes,
    file_header,
    t5_shapes,
    transformer_shapes,
    write_model_files,
)

FULL = SIZES["full"]
# How many bytes the published headers are longer than a plain one: their descriptions.
DESCRIPTIONS = {"flux1-dev.safetensors": 29_040, "ae.safetensors": 440}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_model_files(tmp_path_factory.mktemp("models"), size="tiny")


@pytest.mark.parametrize(
    ("name", "shapes", "dtype", "metadata"),
    [
        ("flux1-dev.safetensors", transformer_shapes(FULL), torch.bfloat16, {"format": "pt"}),
        ("ae.safetensors", autoencoder_shapes(FULL), torch.float32, {"format": "pt"}),
        ("clip_l.safetensors", clip_shapes(FULL), torch.float16, {"format": "pt"}),
        ("t5xxl_fp16.safetensors", t5_shapes(FULL), torch.float16, {}),
    ],
)
def test_full_size_weighs_what_the_published_file_weighs(name, shapes, dtype, metadata):
    data = sum(math.prod(shape) for shape in shapes.values()) * dtype.itemsize
    plain = len(file_header(shapes, dtype, metadata)) + data
    assert plain + DESCRIPTIONS.get(name, 0) == REAL_BYTES[name]
    assert len(file_header(shapes, dtype, metadata, REAL_BYTES[name])) + data == REAL_BYTES[name]


def test_bytes_are_those_that_safetensors_writes(files, tmp_path):
    for path in (files.transformer, files.ae, files.clip_l):
        again = tmp_path / path.name
        save_file(load_file(path), again, metadata={"format": "pt"})
        assert again.read_bytes() == path.read_bytes()


def test_the_same_seed_gives_the_same_bytes(files, tmp_path):
    again = write_model_files(tmp_path / "same", size="tiny", seed=0)
    other = write_model_files(tmp_path / "other", size="tiny", seed=1)
    assert again.clip_l.read_bytes() == files.clip_l.read_bytes()
    assert other.clip_l.read_bytes() != files.clip_l.read_bytes()


def test_nothing_is_zero_and_the_embedding_is_there_twice(files):
    tensors = load_file(files.t5xxl)
    assert torch.equal(tensors["shared.weight"], tensors["encoder.embed_tokens.weight"])
    for path in (files.transformer, files.ae, files.clip_l, files.t5xxl):
        assert all(tensor.float().std() > 1e-3 for tensor in load_file(path).values() if tensor.numel() > 3)


def test_tokenizers_load_with_transformers(files):
    clip = CLIPTokenizer.from_pretrained(files.tokenizer_dir / "tokenizer", local_files_only=True)
    t5 = T5TokenizerFast.from_pretrained(files.tokenizer_dir / "tokenizer_2", local_files_only=True)
    ids = clip("A toy").input_ids
    assert (ids[0], ids[-1]) == (clip.bos_token_id, clip.eos_token_id)
    assert len(ids) == 2 + len("atoy")
    assert t5("a toy").input_ids[-1] == t5.eos_token_id
    assert t5.decode(t5("a toy").input_ids, skip_special_tokens=True) == "a toy"
    assert len(t5) <= SIZES["tiny"].t5_vocabulary
