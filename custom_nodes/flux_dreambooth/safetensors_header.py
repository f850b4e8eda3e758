"""The header of a safetensors file, read without torch: names, shapes, offsets and metadata."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit
ITEM_BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip


@dataclass(frozen=True)
class TensorInfo:
    """One tensor; begin and end are bytes from the start of the data, which is at Header.data_start."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """What a safetensors file says about itself, tensors in the order of their bytes."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    data_start: int
    num_bytes: int

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Each tensor's shape."""
        return {name: info.shape for name, info in self.tensors.items()}


def read_header(path: Path) -> Header:
    """Read and check a header, and that the file has all of its bytes.

    Raises ValueError, saying what the file is instead and naming it, and OSError.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            start = file.read(512)
            _refuse_other_formats(start, size)
            length = int.from_bytes(start[:8], "little")
            if length > MAX_HEADER_BYTES:
                raise ValueError("not a safetensors file: it does not begin with a header's length")
            if 8 + length > size:
                raise ValueError(f"truncated: the header alone has {8 + length:,} bytes, the file has {size:,}")
            file.seek(8)
            text = file.read(length)
        tensors, metadata = _parse(text)
        _check_size(max((info.end for info in tensors.values()), default=0), size - 8 - length)
    except ValueError as error:
        raise ValueError(f"{path.name} cannot be read: {error}") from None
    return Header(tensors, metadata, 8 + length, size)


def _check_size(expected: int, there: int) -> None:
    if there < expected:
        raise ValueError(
            f"truncated: {expected - there:,} of {expected:,} bytes are missing; copy or download it again"
        )
    if there > expected:
        raise ValueError(f"damaged: {there - expected:,} bytes too many at the end")


def _refuse_other_formats(start: bytes, size: int) -> None:
    known = (
        (size == 0, "an empty file"),
        (start.startswith(b"version https://git-lfs"), "a git-lfs pointer, not the file it points to"),
        (start.startswith(b"GGUF"), "a GGUF file"),
        (start.startswith(b"PK\x03\x04"), "a zip, such as torch.save writes (pickle); it is not opened"),
        (start.startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")), "a pickle; it is not opened"),
        (start.lstrip()[:1] == b"<", "a web page (HTML or XML), such as a download server's error"),
        (start.lstrip()[:1] in (b"{", b"["), "JSON text, such as a download server's error"),
        (size < 10, f"only {size} bytes long"),
    )
    for found, what in known:
        if found and not _looks_like_safetensors(start):
            raise ValueError(f"it is {what}")


def _looks_like_safetensors(start: bytes) -> bool:
    return start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= MAX_HEADER_BYTES


def _parse(text: bytes) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    try:
        entries = json.loads(text)
        metadata = entries.pop("__metadata__", None) or {}
        infos = {name: _tensor_info(entry) for name, entry in entries.items()}
        metadata = {str(key): value for key, value in metadata.items() if isinstance(value, str)}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"not a safetensors file: its header is no valid JSON ({error})") from None
    ordered = dict(sorted(infos.items(), key=lambda item: (item[1].begin, item[1].end)))
    expected = 0
    for name, info in ordered.items():
        item_bytes = ITEM_BYTES.get(info.dtype)
        fits = item_bytes is None or info.end - info.begin == math.prod(info.shape) * item_bytes
        if info.begin != expected or info.end < info.begin or not fits:
            raise ValueError(f"damaged: the header's offsets of {name} do not fit")
        expected = info.end
    return ordered, metadata


def _tensor_info(entry: dict[str, Any]) -> TensorInfo:
    begin, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    for number in (begin, end, *shape):
        if type(number) is not int:
            raise ValueError("a shape or offset of the wrong kind")
        if number < 0:
            raise ValueError("a negative shape or offset")
    return TensorInfo(str(entry["dtype"]), shape, begin, end)
