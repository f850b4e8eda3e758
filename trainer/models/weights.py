"""Streams the tensors of a safetensors file to a device.

Nothing is mapped into memory and nothing is held twice: each tensor goes through two small staging buffers to its
destination, so a 24 GB file takes 64 MiB of host memory. Several threads fill a buffer, because a single one copies
from the page cache more slowly than a GPU receives.
"""

import hashlib
import math
import os
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import torch

from trainer.lora_file.header import Header, TensorInfo, read_header

STAGING_BYTES = 32 << 20
READERS, MIN_READ = 4, 1 << 20  # threads that fill one buffer, and the fewest bytes worth a thread
FINGERPRINT_SAMPLES, FINGERPRINT_SAMPLE_BYTES = 256, 4096

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
SCALE_SUFFIXES = (".scale_weight", ".weight_scale")
# Tensors of quantized files that training does not need: scales of activations, and markers of how the weights were
# quantized.
IGNORED_SUFFIXES = (".scale_input", ".input_scale", ".comfy_quant", "scaled_fp8")


def fingerprint(path: Path) -> str:
    """A hex SHA-256 over a safetensors file's size, its header and 256 evenly spaced samples of its data.

    It distinguishes any two files that training could produce, and takes milliseconds for 24 GB. Raises OSError, and
    ValueError if it is not a complete safetensors file.
    """
    header = read_header(path)
    begin = min((info.begin for info in header.tensors.values()), default=header.num_bytes)
    digest = hashlib.sha256(str(header.num_bytes).encode())
    with path.open("rb") as file:
        digest.update(file.read(begin))
        span = header.num_bytes - begin
        for sample in range(FINGERPRINT_SAMPLES):
            file.seek(begin + span * sample // FINGERPRINT_SAMPLES)
            digest.update(file.read(FINGERPRINT_SAMPLE_BYTES))
        file.seek(max(begin, header.num_bytes - FINGERPRINT_SAMPLE_BYTES))
        digest.update(file.read())
    return digest.hexdigest()


def weight_names(header: Header) -> list[str]:
    """The names of a file's weights in the order of their bytes, without the scales and markers of quantized files."""
    return [name for name in header.tensors if not name.endswith(SCALE_SUFFIXES + IGNORED_SUFFIXES)]


def stream_tensors(
    path: Path,
    device: torch.device | str,
    dtype: torch.dtype | None = None,
    names: Sequence[str] | None = None,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, tensor on the device) for each weight, or for `names`, in the order of the file.

    Threads read ahead into two staging buffers, which are pinned for a GPU, while earlier copies are in flight. dtype:
    what floating-point weights are cast to; None keeps their dtype, but turns fp8 into bfloat16. fp8 e4m3 weights are
    multiplied by their scale if there is one. On a device that shares the host's memory, pages that were read are
    dropped from the page cache. Raises ValueError if the file becomes shorter meanwhile.
    """
    header, device = read_header(path), torch.device(device)
    wanted = weight_names(header) if names is None else names
    infos = sorted((header.tensors[name] for name in wanted), key=lambda info: info.begin)
    scales = _read_scales(header)
    with _StagedReader(path, infos, device) as reader:
        for info in infos:
            raw = reader.next_tensor(info)
            yield info.name, _decode(raw, info, scales.get(info.name), dtype)


def _read_scales(header: Header) -> dict[str, torch.Tensor]:
    scales = {}
    with header.path.open("rb") as file:
        for name, info in header.tensors.items():
            if name.endswith(SCALE_SUFFIXES):
                file.seek(info.begin)
                raw = torch.frombuffer(bytearray(file.read(info.end - info.begin)), dtype=DTYPES[info.dtype])
                scales[name.rpartition(".")[0] + ".weight"] = raw.float().reshape(info.shape)
    return scales


def _decode(raw: torch.Tensor, info: TensorInfo, scale: torch.Tensor | None, dtype: torch.dtype | None) -> torch.Tensor:
    tensor = raw.view(DTYPES[info.dtype]).reshape(info.shape)
    if not tensor.is_floating_point():
        return tensor
    if info.dtype == "F8_E4M3":
        dtype = dtype or torch.bfloat16
    if scale is None:
        return tensor if dtype is None else tensor.to(dtype)
    rows = (-1,) + (1,) * (tensor.ndim - 1)
    factor = scale.reshape(rows) if scale.numel() > 1 else scale.reshape(())
    return (tensor.float() * factor.to(tensor.device)).to(dtype or torch.float32)


@dataclass
class _Staging:
    """One buffer of host memory, and the copy out of it that has to finish before it is filled again."""

    buffer: torch.Tensor
    copied: torch.cuda.Event | None = None
    count: int = 0


@dataclass
class _StagedReader:
    """Fills tensors on a device from a file that a thread of its own reads."""

    path: Path
    infos: Sequence[TensorInfo]
    device: torch.device
    _free: "queue.Queue[_Staging | None]" = field(default_factory=queue.Queue)
    _full: "queue.Queue[_Staging | Exception]" = field(default_factory=queue.Queue)

    def __enter__(self) -> "_StagedReader":
        pinned = self.device.type == "cuda"
        for _ in range(2):
            self._free.put(_Staging(torch.empty(STAGING_BYTES, dtype=torch.uint8, pin_memory=pinned)))
        self._thread = threading.Thread(target=self._read_all, name="weights", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._free.put(None)  # ends the thread, also if the consumer stops early
        self._thread.join()
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()

    def next_tensor(self, info: TensorInfo) -> torch.Tensor:
        """The tensor's bytes, [n] uint8 on the device."""
        raw = torch.empty(info.end - info.begin, dtype=torch.uint8, device=self.device)
        filled = 0
        while filled < len(raw):
            staging = self._full.get()
            if isinstance(staging, Exception):
                raise staging
            part = staging.buffer[: staging.count]
            raw[filled : filled + staging.count].copy_(part, non_blocking=True)
            if self.device.type == "cuda":
                copied = torch.cuda.Event()
                copied.record(torch.cuda.current_stream(self.device))
                staging.copied = copied
            filled += staging.count
            self._free.put(staging)
        return raw

    def _read_all(self) -> None:
        try:
            with self.path.open("rb", buffering=0) as file, ThreadPoolExecutor(READERS) as readers:
                for info in self.infos:
                    if not self._read_one(file, info, readers):
                        return
        except Exception as error:
            self._full.put(error)

    def _read_one(self, file: BinaryIO, info: TensorInfo, readers: ThreadPoolExecutor) -> bool:
        position = info.begin
        while position < info.end:
            staging = self._free.get()
            if staging is None:
                return False
            if staging.copied is not None:
                staging.copied.synchronize()
            staging.count = min(len(staging.buffer), info.end - position)
            _read_together(file, staging.buffer[: staging.count].numpy().data, position, readers)
            position += staging.count
            _drop_cached_pages(file, self.device, position)
            self._full.put(staging)
        return True


def _read_together(file: BinaryIO, target: memoryview, begin: int, readers: ThreadPoolExecutor) -> None:
    share = max(math.ceil(len(target) / READERS), MIN_READ)
    starts = range(0, len(target), share)
    list(readers.map(lambda start: _read_exactly(file, target[start : start + share], begin + start), starts))


def _read_exactly(file: BinaryIO, target: memoryview, begin: int) -> None:
    filled = 0
    while filled < len(target):
        count = os.preadv(file.fileno(), [target[filled:]], begin + filled)
        if not count:
            raise ValueError(f"{file.name}: became shorter while it was being read")
        filled += count


def _drop_cached_pages(file: BinaryIO, device: torch.device, end: int) -> None:
    """Drop what was read, up to `end`, from the page cache if it competes with the device's memory."""
    if shares_host_memory(device) and hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.fileno(), 0, end, os.POSIX_FADV_DONTNEED)


def shares_host_memory(device: torch.device) -> bool:
    """Whether the device is a GPU that shares the host's memory, such as a DGX Spark's."""
    if device.type != "cuda":
        return False
    return bool(getattr(torch.cuda.get_device_properties(device), "is_integrated", False))
