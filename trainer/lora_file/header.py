"""The header of a safetensors file: names, types, shapes, byte ranges and metadata, checked against the file's size."""

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
    """One tensor of a safetensors file, as its header lists it.

    dtype: as safetensors names it, such as "BF16"; begin, end: its bytes, counted from the start of the file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """The header of a safetensors file.

    tensors: by name, in the order of their bytes; num_bytes: size of the file; data_start: first byte after the header.
    """

    path: Path
    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    num_bytes: int
    data_start: int

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of the tensor called `name`; raises KeyError."""
        return self.tensors[name].shape

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Each tensor's shape, by its name."""
        return {name: info.shape for name, info in self.tensors.items()}


def read_header(path: Path) -> Header:
    """Read the header of a safetensors file, and check that it fits the file's size; no tensor is read.

    Raises OSError, and ValueError saying what the file is instead or how it is damaged, without its name.
    """
    size = path.stat().st_size
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
    end = max((info.end for info in tensors.values()), default=8 + length)
    if end > size:
        raise ValueError(f"truncated: {end - size:,} of {end:,} bytes are missing")
    if end < size:
        raise ValueError(f"damaged: {size - end:,} bytes too many at the end")
    return Header(path, tensors, metadata, size, 8 + length)


def _refuse_other_formats(start: bytes, size: int) -> None:
    known = (
        (size == 0, "an empty file"),
        (start.startswith(b"version https://git-lfs"), "a git-lfs pointer, not the file it points to"),
        (start.startswith(b"GGUF"), "a GGUF file"),
        (start.startswith(b"PK\x03\x04"), "a zip, such as torch.save writes (pickle); it is not opened"),
        (start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"), "a pickle; it is not opened"),
        (start.lstrip()[:1] == b"<", "a web page (HTML or XML), such as a download server's error"),
        (start.lstrip()[:1] in (b"{", b"["), "JSON text, such as a download server's error"),
        (size < 10, f"only {size} bytes long"),
    )
    for found, what in known:
        if found and not _looks_like_safetensors(start):
            raise ValueError(what)


def _looks_like_safetensors(start: bytes) -> bool:
    return start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= MAX_HEADER_BYTES


def _parse(text: bytes) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    first = 8 + len(text)
    try:
        entries = json.loads(text)
        metadata = entries.pop("__metadata__", None) or {}
        infos = [_tensor_info(name, entry, first) for name, entry in entries.items()]
        metadata = {key: value for key, value in metadata.items() if isinstance(value, str)}
    except RecursionError:
        raise ValueError("not a safetensors file: its header cannot be read (nested too deeply)") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a safetensors file: its header cannot be read ({error})") from None
    infos.sort(key=lambda info: (info.begin, info.end))
    expected = first
    for info in infos:
        item_bytes = ITEM_BYTES.get(info.dtype)
        fits = item_bytes is None or info.end - info.begin == math.prod(info.shape) * item_bytes
        if info.begin != expected or info.end < info.begin or not fits:
            raise ValueError(f"damaged: the header's offsets of {info.name} do not fit")
        expected = info.end
    return {info.name: info for info in infos}, metadata


def _tensor_info(name: str, entry: dict[str, Any], first: int) -> TensorInfo:
    begin, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    for number in (begin, end, *shape):
        if type(number) is not int:
            raise ValueError("a shape or offset of the wrong kind")
        if number < 0:
            raise ValueError("a negative shape or offset")
    return TensorInfo(name, str(entry["dtype"]), shape, first + begin, first + end)
