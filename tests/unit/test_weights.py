"""Headers, fingerprints and streaming of safetensors files."""

import threading

import pytest
import torch
from safetensors.torch import load_file, save_file

from trainer.models import weights
from trainer.models.weights import fingerprint, read_header, stream_tensors


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(0)
    return {
        "matrix": torch.randn(70, 33, generator=generator),
        "half": torch.randn(5, 2, 3, generator=generator).half(),
        "brain": torch.randn(1000, generator=generator).bfloat16(),
        "count": torch.arange(7),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 4),
    }


@pytest.fixture
def path(tensors, tmp_path):
    save_file(tensors, tmp_path / "some.safetensors", metadata={"format": "pt"})
    return tmp_path / "some.safetensors"


def test_header_says_what_the_file_has(path, tensors):
    header = read_header(path)
    assert {name: info.shape for name, info in header.tensors.items()} == {
        name: tuple(tensor.shape) for name, tensor in tensors.items()
    }
    assert header.tensors["brain"].dtype == "BF16"
    assert header.metadata == {"format": "pt"}
    assert max(info.end for info in header.tensors.values()) == header.num_bytes == path.stat().st_size


@pytest.mark.parametrize("staging_bytes", [64, 1000, 1 << 20])
def test_streamed_tensors_are_the_files(path, tensors, monkeypatch, staging_bytes):
    monkeypatch.setattr(weights, "STAGING_BYTES", staging_bytes)
    monkeypatch.setattr(weights, "MIN_READ", 10)  # so that several threads fill a buffer
    streamed = dict(stream_tensors(path, "cpu"))
    assert streamed.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert streamed[name].dtype == tensor.dtype
        assert torch.equal(streamed[name], tensor), name


def test_only_floating_point_is_cast_and_only_what_is_asked_for_is_read(path, tensors):
    streamed = dict(stream_tensors(path, "cpu", torch.float64, ["count", "half"]))
    assert streamed.keys() == {"count", "half"}
    assert streamed["count"].dtype == torch.int64
    assert torch.equal(streamed["half"], tensors["half"].double())


def test_a_consumer_that_stops_early_leaves_no_thread(path, monkeypatch):
    monkeypatch.setattr(weights, "STAGING_BYTES", 64)
    stream = stream_tensors(path, "cpu")
    next(stream)
    stream.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "weights"]


def test_a_file_that_shrinks_while_it_is_read_is_an_error(path, monkeypatch):
    monkeypatch.setattr(weights, "STAGING_BYTES", 64)
    stream = stream_tensors(path, "cpu")
    next(stream)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    with pytest.raises(ValueError, match="became shorter"):
        list(stream)


def test_fp8_without_a_dtype_becomes_bfloat16_and_row_scales_apply(tmp_path):
    quantised = torch.randn(4, 8, generator=torch.Generator().manual_seed(0)).to(torch.float8_e4m3fn)
    rows = torch.tensor([1.0, 2.0, 0.5, 4.0])
    save_file(
        {"a.weight": quantised, "a.weight_scale": rows, "b.weight": quantised.clone(), "a.input_scale": torch.ones(())},
        tmp_path / "fp8.safetensors",
    )
    streamed = dict(stream_tensors(tmp_path / "fp8.safetensors", "cpu"))
    assert streamed.keys() == {"a.weight", "b.weight"}
    assert torch.equal(streamed["a.weight"], (quantised.float() * rows[:, None]).bfloat16())
    assert torch.equal(streamed["b.weight"], quantised.bfloat16())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("staging_bytes", [64, 1 << 20])
def test_streaming_to_a_gpu_changes_nothing(path, monkeypatch, staging_bytes):
    monkeypatch.setattr(weights, "STAGING_BYTES", staging_bytes)
    for name, tensor in stream_tensors(path, "cuda"):
        assert tensor.device.type == "cuda"
        assert torch.equal(tensor.cpu(), load_file(path)[name]), name


def test_fingerprint_sees_content_metadata_and_size(path, tensors, tmp_path):
    known = {fingerprint(path)}
    changed = tmp_path / "changed.safetensors"
    save_file(tensors, changed, metadata={"format": "pt"})
    assert fingerprint(changed) in known
    save_file(tensors, changed, metadata={"format": "np"})
    assert fingerprint(changed) not in known
    save_file(tensors | {"matrix": tensors["matrix"] + 1}, changed, metadata={"format": "pt"})
    assert fingerprint(changed) not in known


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "an empty file"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "a web page"),
        (b'{"error": "Invalid credentials in Authorization header"}', "JSON text"),
        (b"GGUF\x03\x00\x00\x00" + bytes(64), "a GGUF file"),
        (b"PK\x03\x04" + bytes(64), "pickle"),
        (b"\x80\x02}q\x00." + bytes(64), "a pickle"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "git-lfs pointer"),
        (b"\x00\x01", "only 2 bytes"),
        (bytes(64), "its header cannot be read"),
        ((5000).to_bytes(8, "little") + b'{"a":', "truncated: the header alone"),
        (b"hello, this is some text that goes on", "does not begin with a header"),
    ],
)
def test_what_is_not_safetensors_is_named(tmp_path, content, reason):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        read_header(path)


def test_bytes_that_are_missing_or_too_many_are_counted(path):
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match=f"truncated: 100 of {len(whole):,} bytes are missing"):
        read_header(path)
    path.write_bytes(whole + b"x")
    with pytest.raises(ValueError, match="1 bytes too many"):
        read_header(path)
