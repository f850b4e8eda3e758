"""A hub with small files under FLUX's names, and a place to download them to."""

import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.fake_hub import FakeHub, serving
from trainer.__main__ import main
from trainer.models.description import FLUX1

MIB = 1 << 20
DEV, KREA, SCHNELL = (base.source.repository for base in FLUX1.bases)
TEXT_ENCODERS = FLUX1.clip.file.source.repository
OTHER_TOKEN = "hf_otherTokenOtherToken"  # of somebody whom the hub does not know


def made_up_file(size: int, seed: int) -> bytes:
    """A safetensors file of one tensor with `size` bytes of data."""
    header = json.dumps({"data": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(i * 31 + seed & 255 for i in range(256)) * (size // 256)


def family(checkpoint: str, seed: int) -> dict[str, bytes]:
    """The files of a FLUX.1 repository, with some that nobody wants."""
    return {
        checkpoint: made_up_file(4 * MIB, seed),
        "ae.safetensors": made_up_file(MIB, 9),
        "README.md": b"# a model card",
        "transformer/diffusion_pytorch_model.safetensors": b"not wanted",
        "tokenizer/vocab.json": b'{"a": 0}',
        "tokenizer/merges.txt": b"#version: 0.2\n",
        "tokenizer/tokenizer_config.json": json.dumps({"seed": seed}).encode(),
        "tokenizer_2/spiece.model": b"\x0a\x0e" * 700,
        "tokenizer_2/tokenizer.json": b'{"b": 1}',
    }


def flux_hub() -> FakeHub:
    """The repositories of the base models, which are gated, and that of the text encoders."""
    encoders = {
        "clip_l.safetensors": made_up_file(MIB, 3),
        "t5xxl_fp16.safetensors": made_up_file(2 * MIB, 4),
        "t5xxl_fp8_e4m3fn.safetensors": made_up_file(MIB, 5),
    }
    files = {
        DEV: family("flux1-dev.safetensors", 1),
        KREA: family("flux1-krea-dev.safetensors", 3),
        SCHNELL: family("flux1-schnell.safetensors", 2),
        TEXT_ENCODERS: encoders,
    }
    return FakeHub(files, gated={DEV, KREA, SCHNELL})


@contextmanager
def reachable(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[FakeHub]:
    """A hub that this process takes for the real one; `folder` is home and current folder, we are logged in."""
    with serving(flux_hub()) as hub:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(folder / "saved_token"))
        monkeypatch.setattr("trainer.hub.patience.WAITS", (0.01,) * 3)
        for name in ("HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE", "HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HF_TOKEN", hub.token)
        monkeypatch.chdir(folder)
        yield hub


def download(*argv: str) -> int:
    """The exit status of `python -m trainer download`; argparse ends the program itself."""
    try:
        return main(["download", *argv])
    except SystemExit as ended:
        return int(ended.code or 0)


def models_here() -> dict[str, bytes]:
    """All files below models/ except the record."""
    found = (path for path in Path("models").rglob("*") if path.is_file() and ".download" not in path.parts)
    return {str(path.relative_to("models")): path.read_bytes() for path in found}


def parts_here() -> list[Path]:
    return list(Path("models").rglob("*.part"))
