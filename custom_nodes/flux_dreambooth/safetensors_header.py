"""A safetensors file's header, with messages that name the file, as ComfyUI shows them."""

from pathlib import Path

from .lora_file import header
from .lora_file.header import Header

__all__ = ["Header", "read_header"]


def read_header(path: Path) -> Header:
    """Read and check a header, and that the file has all of its bytes.

    Raises ValueError, naming the file and saying what it is instead, and OSError.
    """
    try:
        return header.read_header(path)
    except ValueError as error:
        again = ["copy or download it again"] if str(error).startswith(("truncated", "damaged")) else []
        raise ValueError("; ".join([f"{path.name} cannot be read: {error}", *again])) from None
