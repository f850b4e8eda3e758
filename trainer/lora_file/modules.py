"""A LoRA in memory: its modules by canonical names, read from a file of any layout. Uses torch."""

import contextlib
import math
import mmap
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from .flux_names import SWAPPED_HALVES, fused_rows
from .header import ITEM_BYTES, Header, TensorInfo
from .keys import Survey
from .module_names import Target
from .numbers import FLOATS, INTEGERS, type_problem

CHUNK_BYTES = 1 << 20  # read at once, and looked through while the next ones are read
# The bits of the smallest number of each type that is infinite or NaN, without its sign.
FIRST_NOT_FINITE = {
    "F64": 0x7FF << 52, "F32": 0xFF << 23, "F16": 0x1F << 10, "BF16": 0xFF << 7, "F8_E5M2": 0x1F << 2, "F8_E4M3": 0x7F,
}  # fmt: skip


@dataclass(frozen=True)
class LoraModule:
    """One layer's adapter: weight change = alpha / rank * up @ down.

    down: [r, in] and up: [out, r], torch tensors of the same or different dtypes.
    """

    down: Any
    up: Any
    alpha: float

    @property
    def rank(self) -> int:
        """The rank: the number of rows of down."""
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        """What the product of up and down is multiplied by: alpha / rank."""
        return self.alpha / self.rank


def with_unit_scale(module: LoraModule) -> LoraModule:
    """The same weight change with alpha = rank: the scale is multiplied into up, which becomes float32.

    So a reader that loses alpha, and takes it for the rank, still has the right strength. A module of scale 1 is
    returned as it is.
    """
    if module.scale == 1:
        return module
    return replace(module, up=module.up.float() * module.scale, alpha=float(module.rank))


def file_modules(found: Survey, tensors: Mapping[str, Any], scales: Mapping[str, float]) -> dict[str, LoraModule]:
    """A file's LoRA modules by its own names. Raises ValueError for factors that do not fit together.

    tensors: by the file's keys; fp8 becomes bf16 (exactly), integers float32; scales: alpha / rank, by the file's
    module names. Adapters other than LoRA are left out: `more_than_lora` names them.
    """
    modules = {}
    for name, module in found.modules.items():
        if module.kind != "LoRA":
            continue
        if module.problem:
            raise ValueError(f"{name} {module.problem}")
        down, up = (with_numbers(tensors[module.keys[role]]).flatten(1) for role in ("down", "up"))
        modules[name] = LoraModule(down, up, scales[name] * down.shape[0])
    return modules


def canonical(found: Survey, modules: Mapping[str, LoraModule]) -> dict[str, LoraModule]:
    """The modules of a file by canonical names, a fused matrix (q, k, v and MLP in one) as one module for each part.

    modules: by the file's names. The product stays exactly the same. Modules of no known layer are left out. Raises
    ValueError for a fused matrix whose rows do not fit and for a layer that is there twice.
    """
    result: dict[str, LoraModule] = {}
    for name, module in modules.items():
        target = found.modules[name].target
        for part, layer in (_parts(target, module) if target else {}).items():
            if part in result:
                raise ValueError(f"it has {part} twice, once as {name}")
            result[part] = layer
    return result


def _parts(target: Target, module: LoraModule) -> dict[str, LoraModule]:
    if target.bfl == SWAPPED_HALVES:
        module = replace(module, up=_swapped(module.up))
    if len(target.modules) == 1:
        return {target.modules[0]: module}
    rows = fused_rows(target.modules, rows=module.up.shape[0], hidden=module.down.shape[1])
    return {part: replace(module, down=module.down.clone(), up=module.up[some].clone()) for part, some in rows.items()}


def _swapped(up: Any) -> Any:
    import torch

    return torch.cat(up.chunk(2)[::-1])


def with_numbers(tensor: Any) -> Any:
    """A torch tensor in a dtype to compute with: fp8 as bfloat16, which holds its numbers exactly, integers as float32.

    Any other tensor is returned as it is.
    """
    import torch

    if not tensor.is_floating_point():
        return tensor.to(torch.float32)
    return tensor.bfloat16() if tensor.element_size() == 1 else tensor


def not_finite(tensors: Mapping[str, Any]) -> list[str]:
    """The names of tensors that hold NaN or infinity."""
    return [name for name, tensor in tensors.items() if not bool(with_numbers(tensor).isfinite().all())]


def read_tensors(header: Header, known_finite: bool = False) -> tuple[dict[str, Any], list[str]]:
    """All tensors of a file by their keys, on the CPU, and the keys of those that hold NaN or infinity.

    known_finite: do not look for NaN and infinity, since there are none. The file is read into memory and never mapped,
    so that overwriting it in place changes nothing. Raises OSError, and ValueError for types that are not known and for
    a file that shrinks meanwhile.
    """
    import torch

    if problem := type_problem(header):
        raise ValueError(problem)
    memory = _memory(header.num_bytes - header.data_start)
    finite = _fill(memory, header, known_finite)

    def tensor(info: TensorInfo) -> Any:
        dtype, count = getattr(torch, _torch_name(info.dtype)), math.prod(info.shape)
        if not count:
            return torch.empty(info.shape, dtype=dtype)
        return torch.frombuffer(memory, dtype=dtype, count=count, offset=info.begin - header.data_start).view(
            info.shape
        )

    tensors = {name: tensor(info) for name, info in header.tensors.items()}
    return tensors, [] if finite else not_finite(tensors)


def _fill(memory: Any, header: Header, known_finite: bool = False) -> bool:
    """Read a file's data into memory; whether all numbers are finite. A thread looks while the next ones are read."""
    view, looks = memoryview(memory), []
    with header.path.open("rb", buffering=0) as file, ThreadPoolExecutor(1) as pool:
        file.seek(header.data_start)
        for dtype, begin, end in _runs(header):
            for start in range(begin, end, CHUNK_BYTES):
                part = view[start : min(start + CHUNK_BYTES, end)]
                done = 0
                while done < len(part):
                    count = file.readinto(part[done:])
                    if not count:
                        raise ValueError("it became shorter while it was read")
                    done += count
                looks += [] if known_finite else [pool.submit(_is_finite, part, dtype)]
        return all(look.result() for look in looks)


def _runs(header: Header) -> Iterator[tuple[str, int, int]]:
    """Neighbouring tensors of one type as one range of bytes from the start of the data."""
    for dtype, infos in groupby(header.tensors.values(), key=lambda info: info.dtype):
        run = list(infos)
        yield dtype, run[0].begin - header.data_start, run[-1].end - header.data_start


def _is_finite(part: memoryview, dtype: str) -> bool:
    """Infinity and NaN have the largest bits of their sign: as integers, they are the largest with and without it."""
    import numpy

    if dtype not in FIRST_NOT_FINITE:
        return True
    first = FIRST_NOT_FINITE[dtype]
    unsigned = numpy.frombuffer(part, f"u{ITEM_BYTES[dtype]}")
    sign = 1 << (8 * ITEM_BYTES[dtype] - 1)
    return int(unsigned.view(f"i{ITEM_BYTES[dtype]}").max()) < first and int(unsigned.max()) < sign + first


def _torch_name(dtype: str) -> str:
    return "bool" if dtype == "BOOL" else (FLOATS | INTEGERS)[dtype]


def _memory(size: int) -> Any:
    """A writable buffer, in huge pages where the system has them: filling it then takes a third of the time."""
    size = max(size, 1)
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return bytearray(size)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
