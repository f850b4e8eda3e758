"""Which LoRA files are applied to a MODEL and CLIP, by the numbers in their patches, whoever loaded them.

A patch holds the tensors of its file. A file of ComfyUI's list is recognized by the bytes of one of them, so that
loaders of any pack, and graphs that do not name the file, are understood. Files are opened only where a shape fits.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from .lora_file.header import Header, read_header
from .lora_files import lora_path

SAMPLE_BYTES = 64  # of a tensor's beginning, which are compared


@dataclass(frozen=True)
class AppliedLoras:
    """LoRAs that are applied, the first one first.

    files: their names in ComfyUI's list and their metadata; unknown: whether there are others, of no listed file.
    """

    files: tuple[tuple[str, Mapping[str, str]], ...] = ()
    unknown: bool = False


@dataclass(frozen=True)
class _Sample:
    """The shape of a tensor and its first bytes."""

    shape: tuple[int, ...]
    data: bytes


def applied_loras(model: Any, clip: Any, likely: Sequence[str], listed: Iterable[str]) -> AppliedLoras:
    """Recognize the LoRAs that patch a MODEL or CLIP.

    likely: names to try first, such as those that the graph gives; listed: all names of ComfyUI's list.
    """
    files: dict[str, Mapping[str, str]] = {}
    unknown = False
    names = [*dict.fromkeys([*reversed(likely), *listed])]
    for samples in _applications(model, clip):
        found = next(((name, header) for name in names if (header := _holding(name, samples))), None)
        if found is None:
            unknown = True
        else:
            name, header = found
            files.pop(name, None)
            files[name] = header.metadata
    if _acts_without_patches(model, clip):
        files |= {name: header.metadata for name in likely if name not in files and (header := _header_of(name))}
    return AppliedLoras(tuple(files.items()), unknown)


def _acts_without_patches(model: Any, clip: Any) -> bool:
    """Whether LoRAs may act in other ways: hooks while sampling, injections ("bypass"), a model of another pack."""
    patchers = (model, clip.patcher)
    network = getattr(model.model, "diffusion_model", None)
    return (
        any(getattr(patcher, "forced_hooks", None) or getattr(patcher, "injections", None) for patcher in patchers)
        or type(network).__module__.partition(".")[0] != "comfy"
    )


def _applications(model: Any, clip: Any) -> Iterator[list[_Sample]]:
    """Samples of the tensors of each LoRA that was applied, in the order of applying."""
    groups: dict[Any, tuple[int, list[Any]]] = {}
    for patcher in (model, clip.patcher):
        for patches in patcher.patches.values():
            for place, patch in enumerate(patches):
                strength, change = patch[0], patch[1]
                if strength == 0 or not _is_lora(change):
                    continue
                # ComfyUI gives all changes of one file the same set of keys.
                group = id(change.loaded_keys) if hasattr(change, "loaded_keys") else "plain"
                last, changes = groups.get(group, (0, []))
                groups[group] = max(last, place), [*changes, change] if len(changes) < 8 else changes
    if len(groups) > 1:
        groups.pop("plain", None)  # biases and norms of the others
    for _, changes in sorted(groups.values(), key=lambda each: each[0]):
        yield [sample for change in changes for tensor in _tensors(change) if (sample := _sample_of(tensor))]


def _is_lora(change: Any) -> bool:
    return hasattr(change, "weights") or (isinstance(change, tuple) and change[:1] in (("diff",), ("set",), ("lora",)))


def _tensors(change: Any) -> Iterator[Any]:
    values = getattr(change, "weights", None) or (change[1] if isinstance(change, tuple) else ())
    for value in values if isinstance(values, list | tuple) else ():
        if hasattr(value, "dtype") and value.numel() > 1:
            yield value


def _sample_of(tensor: Any) -> _Sample | None:
    """None if the beginning is all zeros, which tells nothing."""
    import torch

    count = max(1, SAMPLE_BYTES // tensor.element_size())
    start = tensor.detach().reshape(-1)[:count].cpu().contiguous()
    data = bytes(start.view(torch.uint8).tolist())
    return _Sample(tuple(tensor.shape), data) if any(data) else None


def _holding(name: str, samples: Sequence[_Sample]) -> Header | None:
    """The header of a file that begins a tensor as one of the samples does, else None."""
    header = _header_of(name)
    if header is None:
        return None
    shapes = {sample.shape for sample in samples}
    wanted = {(sample.shape, sample.data) for sample in samples}
    try:
        with header.path.open("rb") as file:
            for info in header.tensors.values():
                if info.shape in shapes:
                    file.seek(info.begin)
                    data = file.read(min(SAMPLE_BYTES, info.end - info.begin))
                    if (info.shape, data) in wanted:
                        return header
    except OSError:
        return None
    return None


def _header_of(name: str) -> Header | None:
    """A listed file's header, None if it cannot be read."""
    try:
        path = lora_path(name)
        stat = path.stat()
        return _read(path, stat.st_mtime_ns, stat.st_size)
    except (OSError, ValueError):
        return None


@lru_cache(maxsize=64)  # a header of FLUX takes some 400 KB
def _read(path: Path, _time: int, _size: int) -> Header:
    return read_header(path)
