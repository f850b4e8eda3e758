"""What the boxes of AVIF, HEIC and JPEG 2000 files say about colours, which Pillow does not read (ISO/IEC 14496-12)."""

import struct
from collections.abc import Iterator

CONTAINERS = ("AVIF", "HEIC", "JPEG 2000")


def color_boxes(data: bytes, kind: str) -> list[bytes]:
    """The contents of the colr boxes of a file's image, in order; empty where the file has none or is damaged.

    data: the file's content. kind: its format; only `CONTAINERS` have boxes. In AVIF and HEIC, only the boxes of the
    primary image count, not those of thumbnails and gain maps.
    """
    try:
        return list(_of_jpeg_2000(data) if kind == "JPEG 2000" else _of_primary_image(data))
    except (struct.error, IndexError):  # cut short; the decoder reports what is damaged
        return []


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The type and content of each box, one after the other."""
    at = 0
    while at + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        header = 8
        if length == 1:
            (length,), header = struct.unpack_from(">Q", data, at + 8), 16
        length = length or len(data) - at  # 0: to the end of the file
        if length < header:
            return
        yield name, data[at + header : at + length]
        at += length


def _content(data: bytes, name: bytes) -> bytes:
    return next((content for found, content in _boxes(data) if found == name), b"")


def _of_jpeg_2000(data: bytes) -> Iterator[bytes]:
    return (content for name, content in _boxes(_content(data, b"jp2h")) if name == b"colr")


def _of_primary_image(data: bytes) -> Iterator[bytes]:
    """ISO/IEC 23008-12: meta names the primary item (pitm); ipma lists the properties (ipco) that it has, from 1."""
    meta = _content(data, b"meta")[4:]
    pitm, iprp = _content(meta, b"pitm"), _content(meta, b"iprp")
    if not pitm or not iprp:
        return
    (primary,) = struct.unpack_from(">I" if pitm[0] else ">H", pitm, 4)
    properties = list(_boxes(_content(iprp, b"ipco")))
    for index in _properties_of(primary, _content(iprp, b"ipma")):
        if 0 < index <= len(properties) and properties[index - 1][0] == b"colr":
            yield properties[index - 1][1]


def _properties_of(item: int, ipma: bytes) -> Iterator[int]:
    version, wide = ipma[0], ipma[3] & 1
    (count,) = struct.unpack_from(">I", ipma, 4)
    at = 8
    for _ in range(count):
        (found,) = struct.unpack_from(">I" if version else ">H", ipma, at)
        at += 4 if version else 2
        number, at = ipma[at], at + 1
        size = 2 if wide else 1
        indices = struct.unpack_from(f">{number}{'H' if wide else 'B'}", ipma, at)
        at += number * size
        if found == item:
            yield from (index & (0x7FFF if wide else 0x7F) for index in indices)
