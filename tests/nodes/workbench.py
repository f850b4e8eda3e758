"""Images in bytes, as a browser sends them."""

import io
from typing import Any

from PIL import Image


def encoded(shade: int = 0, size: tuple[int, int] = (40, 30), kind: str = "PNG", **options: Any) -> bytes:
    target = io.BytesIO()
    Image.new("RGB", size, (shade, 90, 120)).save(target, kind, **options)
    return target.getvalue()
