"""The numbers of a LoRA file without torch: arrays of float32, norms, alphas, and whether they are finite."""

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, BinaryIO

from .header import Header, TensorInfo
from .keys import Module, Survey
from .strength import Strengths

# safetensors' types that a LoRA's numbers come in -> torch's name of them
FLOATS = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
}  # fmt: skip
INTEGERS = {"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool"}


def type_problem(header: Header) -> str | None:
    """Why the tensors of a file have types that cannot be read as numbers, for a message; None if they can be read."""
    if strange := [info for info in header.tensors.values() if info.dtype not in FLOATS | INTEGERS]:
        kinds = ", ".join(sorted({info.dtype for info in strange}))
        return f"tensors of type {kinds} are not read here, as {strange[0].name}; save it as bf16 or fp16"
    return None


def integer_problem(header: Header, found: Survey) -> str | None:
    """Why the matrices of a file are no numbers of a LoRA: they are integers, which a quantizer wrote; else None."""
    keys = (module.keys[role] for module in found.modules.values() for role in ("down", "up") if role in module.keys)
    if whole := [key for key in keys if header.tensors[key].dtype in INTEGERS]:
        kind = INTEGERS[header.tensors[whole[0]].dtype]
        return f"its weights are quantized to {kind}, as {whole[0]}, which is not read; take the file in bf16 or fp16"
    return None


def read_array(file: BinaryIO, info: TensorInfo) -> Any:
    """Read one tensor of an open safetensors file as a numpy array of float32 in its shape.

    Raises OSError, and ValueError for a file that became shorter.
    """
    import numpy

    file.seek(info.begin)
    raw = file.read(info.end - info.begin)
    if len(raw) != info.end - info.begin:
        raise ValueError("it became shorter while it was read")
    if info.dtype == "BF16":
        values = (numpy.frombuffer(raw, numpy.uint16).astype(numpy.uint32) << 16).view(numpy.float32)
    elif info.dtype == "F8_E5M2":  # the upper byte of a float16
        values = (numpy.frombuffer(raw, numpy.uint8).astype(numpy.uint16) << 8).view(numpy.float16)
    elif info.dtype == "F8_E4M3":
        values = numpy.asarray(_e4m3(), numpy.float32)[numpy.frombuffer(raw, numpy.uint8)]
    else:
        values = numpy.frombuffer(raw, (FLOATS | INTEGERS)[info.dtype])
    return values.astype(numpy.float32, copy=False).reshape(info.shape)


@cache
def _e4m3() -> tuple[float, ...]:
    """All 256 numbers of float8_e4m3fn: sign, 4 bits of exponent (bias 7), 3 of mantissa; no infinity, one NaN."""

    def value(byte: int) -> float:
        sign, exponent, mantissa = -1.0 if byte & 0x80 else 1.0, (byte >> 3) & 15, byte & 7
        if byte & 0x7F == 0x7F:
            return math.nan
        return sign * (mantissa / 8 * 2**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7))

    return tuple(value(byte) for byte in range(256))


def read_alphas(header: Header, found: Survey) -> dict[str, list[float]]:
    """Read the numbers of each alpha tensor of a file, by its key; of a longer one, the first 64.

    found: the result of `survey` for the file. Raises OSError, and ValueError for a file that became shorter.
    """
    with header.path.open("rb") as file:
        return {key: read_array(file, header.tensors[key]).ravel()[:64].tolist() for key in alpha_keys(found)}


def alpha_keys(found: Survey) -> list[str]:
    """The keys of a file's alpha tensors."""
    return [module.keys["alpha"] for module in found.modules.values() if "alpha" in module.keys]


def product_norm(down: Any, up: Any) -> float:
    """The Frobenius norm of up @ down, as the trace of a product of two r x r matrices.

    down: [r, in] and up: [out, r], float32 arrays or tensors. NaN if they hold one.
    """
    square = float(((up.T @ up) * (down @ down.T)).sum())
    return math.sqrt(max(square, 0.0)) if square == square else math.nan


def change_norms(header: Header, found: Survey, strengths: Strengths) -> tuple[dict[str, float], tuple[str, ...]]:
    """The Frobenius norm of each module's weight change, scale * up @ down, by its name in the file.

    Also returns the names of the modules with numbers that are not finite; the norm of such a module is NaN. Modules
    that are not a product of two matrices have no norm; DoRA's is that before its rescaling. Reads the complete file.
    """
    import numpy

    norms, broken = {}, []
    with header.path.open("rb") as file:
        for name, module in found.modules.items():
            arrays = {role: read_array(file, header.tensors[key]) for role, key in module.keys.items()}
            finite = all(numpy.isfinite(array).all() for array in arrays.values())
            broken += [] if finite else [name]
            if is_product(module):
                down, up = (arrays[role].reshape(len(arrays[role]), -1) for role in ("down", "up"))
                with numpy.errstate(all="ignore"):
                    norms[name] = abs(strengths.scales[name]) * product_norm(down, up) if finite else math.nan
    return norms, tuple(broken)


def is_product(module: Module) -> bool:
    """Whether a module's weight change is scale * up @ down (for DoRA: before its rescaling)."""
    return module.kind in ("LoRA", "DoRA") and module.problem is None and "mid" not in module.keys


def type_names(header: Header, found: Survey) -> list[str]:
    """The dtypes of the tensors of a file's adapters, without alphas: torch's names, each once, sorted."""
    keys = [
        key
        for module in found.modules.values()
        for role, key in module.keys.items()
        if role not in ("alpha", "reshape")
    ]
    return sorted({(FLOATS | INTEGERS).get(header.tensors[key].dtype, header.tensors[key].dtype) for key in keys})


def block_norms(norms: Mapping[str, float], blocks: Sequence[str]) -> dict[str, float]:
    """The Frobenius norm of each block's complete change, by the block's name.

    norms: of the modules' changes; blocks: the block of each of these modules, in the same order.
    """
    squares: dict[str, float] = {}
    for norm, block in zip(norms.values(), blocks, strict=True):
        squares[block] = squares.get(block, 0.0) + norm**2
    return {block: math.sqrt(square) for block, square in squares.items()}
