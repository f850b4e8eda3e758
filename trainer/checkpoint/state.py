"""The exact training state as a folder of safetensors and JSON, without pickle, written completely or not at all.

    state-…/  state.json          the structure of everything, progress, size and SHA-256 of each file
              adapter-00000.safetensors  optimizer-00000.safetensors …  ema-00000.safetensors

Each file has at most SHARD_BYTES, unless a single tensor is larger; this bounds the host memory that a save needs.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from trainer.checkpoint.state_folder import (
    CHOOSE_ANOTHER,
    HASH_THREADS,
    MANIFEST,
    begin,
    file_entry,
    file_problems,
    put_in_place,
    recover,
)
from trainer.checkpoint.tree import TreeWriter, decode
from trainer.common.files import write_json, write_safetensors
from trainer.common.problems import Problem, Problems, raise_if_any
from trainer.optim.ema import Ema

FORMAT = "flux-dreambooth-state-1"
PARTS = ("adapter", "optimizer", "ema")
SHARD_BYTES = 2**31


@dataclass(frozen=True)
class State:
    """A saved training state whose files were verified; tensors are read when asked for.

    progress: as given to `save_state`; manifest: the content of state.json.
    """

    folder: Path
    progress: dict[str, Any]
    manifest: dict[str, Any]

    def tensors(self, part: str, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """Read the tensors of a part ("adapter", "optimizer" or "ema") onto `device`, by their names in the files.

        Those that were in host memory when they were saved stay in host memory.
        """
        on_host, found = set(self.manifest["on_host"]), {}
        for path in self._files(part):
            found.update(load_file(path, device=str(device)))
        return {name: tensor.cpu() if name in on_host else tensor for name, tensor in found.items()}

    def shapes(self, part: str) -> dict[str, tuple[int, ...]]:
        """The shapes of a part's tensors, by their names in the files; reads only the files' headers.

        part: "adapter", "optimizer" or "ema".
        """
        found = {}
        for path in self._files(part):
            with safe_open(path, "pt") as file:
                found.update({name: tuple(file.get_slice(name).get_shape()) for name in file.keys()})  # noqa: SIM118
        return found

    def value(self, part: str, device: torch.device | str = "cpu") -> Any:
        """Read a part: for "adapter" its tensors by name, for "optimizer" or "ema" its state_dict.

        None for "ema" if the run had no moving average. device: where the tensors go, except those that were in host
        memory when they were saved.
        """
        return decode(self.manifest[part], self.tensors(part, device))

    def _files(self, part: str) -> list[Path]:
        return [self.folder / name for name in self.manifest["files"] if name.startswith(f"{part}-")]


def save_state(
    folder: Path,
    *,
    tensors: Mapping[str, Tensor],
    optimizer: Optimizer,
    scheduler: LRScheduler,
    ema: Ema | None,
    progress: dict[str, Any],
) -> None:
    """Write a training state to `folder`, completely or not at all, and replace a state that is there.

    tensors: the adapter's, by name; ema: None without a moving average; progress: plain JSON, as `load_state` gives it
    back. Everything is written and flushed under a temporary name next to `folder`, then renamed: a kill or a full disk
    leaves existing states intact. A full disk raises one of FULL_DISK_ERRORS.
    """
    parts = {
        "adapter": dict(tensors),
        "optimizer": optimizer.state_dict(),
        "ema": ema.state_dict() if ema else None,
        "scheduler": scheduler.state_dict(),
        "progress": progress,
    }
    temporary = begin(folder)
    try:
        _write(temporary, parts, _class_name(optimizer))
        put_in_place(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load_state(folder: Path) -> State:
    """Open a saved state after verifying the size and SHA-256 of each of its files.

    Raises `Problems` if `folder` is not a state, or naming each file that is missing or corrupt.
    """
    recover(folder.parent)
    manifest = _read_manifest(folder)
    raise_if_any(file_problems(folder, manifest["files"]))
    return State(folder, decode(manifest["progress"], {}), manifest)


def read_progress(folder: Path) -> dict[str, Any]:
    """The `progress` that was given to `save_state`; no tensor is read, no checksum verified.

    Raises `Problems` if `folder` is not a state or its state.json is corrupt.
    """
    return decode(_read_manifest(folder)["progress"], {})


@torch.no_grad()
def restore(
    state: State,
    *,
    parameters: Mapping[str, Tensor],
    optimizer: Optimizer,
    scheduler: LRScheduler,
    ema: Ema | None,
    keep_settings: bool = False,
) -> None:
    """Copy a saved state, bit for bit, into parameters, optimizer, scheduler and moving average.

    parameters: the adapter's, by name; ema: None without a moving average. keep_settings: keep learning rate, weight
    decay and the like as they are configured now (--resume_anyway), instead of restoring them. Raises `Problems` if the
    state belongs to another adapter or optimizer.
    """
    raise_if_any(_mismatches(state, parameters, optimizer, ema))
    device = next(iter(parameters.values())).device
    for name, tensor in state.value("adapter").items():
        parameters[name].copy_(tensor)
    if ema is not None:
        ema.load_state_dict(state.value("ema"))
    settings = [_settings(group) for group in optimizer.param_groups]
    _restore_optimizer(state, optimizer, device)
    saved = decode(state.manifest["scheduler"], {})
    if not keep_settings:
        scheduler.load_state_dict(saved)
        return
    for group, setting in zip(optimizer.param_groups, settings, strict=True):
        group.update(setting)
    _wind_forward(scheduler, saved["last_epoch"])


def _write(folder: Path, parts: dict[str, Any], optimizer_class: str) -> None:
    manifest: dict[str, Any] = {"format": FORMAT, "optimizer_class": optimizer_class}
    writers = {name: TreeWriter() for name in parts}
    for name, value in parts.items():
        manifest[name] = writers[name].encode(value, name)
        assert name in PARTS or not writers[name].tensors, f"{name} has tensors"
    every = [item for part in PARTS for item in writers[part].tensors.items()]
    manifest["on_host"] = [name for name, tensor in every if tensor.device.type == "cpu"]
    with ThreadPoolExecutor(HASH_THREADS) as pool:
        entries = {}
        for part in PARTS:
            for index, shard in enumerate(_shards(writers[part].tensors)):
                path = folder / f"{part}-{index:05d}.safetensors"
                write_safetensors(path, {name: _alone(tensor) for name, tensor in shard.items()})
                entries[path.name] = pool.submit(file_entry, path)  # while the next file is written
        manifest["files"] = {name: entry.result() for name, entry in entries.items()}
    write_json(folder / MANIFEST, manifest)


def _shards(tensors: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    shard, size = {}, 0
    for name, tensor in tensors.items():
        if shard and size + tensor.nbytes > SHARD_BYTES:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor
        size += tensor.nbytes
    if shard:
        yield shard


def _alone(tensor: Tensor) -> Tensor:
    """A copy in host memory of its own; safetensors refuses tensors that share memory."""
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise Problems([Problem(str(folder), f"not a training state: it has no {MANIFEST}", CHOOSE_ANOTHER)])
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise Problems([Problem(str(path), f"corrupt: {error}", CHOOSE_ANOTHER)]) from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise Problems([Problem(str(path), f"not a state in the format {FORMAT}", CHOOSE_ANOTHER)])
    return manifest


def _mismatches(state: State, parameters: Mapping[str, Tensor], optimizer: Optimizer, ema: Ema | None) -> list[Problem]:
    where, problems = str(state.folder), []
    shapes = {name.removeprefix("adapter/"): shape for name, shape in state.shapes("adapter").items()}
    differing = [name for name, p in parameters.items() if shapes.get(name) != tuple(p.shape)]
    differing += [name for name in shapes if name not in parameters]
    if differing:
        what = f"the state of another adapter: {len(differing)} tensors differ, first {differing[0]}"
        problems.append(Problem(where, what, "keep network_dim and network_args as they were"))
    if state.manifest["optimizer_class"] != _class_name(optimizer):
        what = f"the state of {state.manifest['optimizer_class']}, not of {_class_name(optimizer)}"
        problems.append(Problem(where, what, "keep optimizer_type as it was"))
    if ema is not None and state.manifest["ema"] is None:
        problems.append(Problem(where, "was saved without a moving average", "remove --ema_decay"))
    return problems


def _class_name(optimizer: Optimizer) -> str:
    cls = type(getattr(optimizer, "optimizer", optimizer))  # accelerate wraps it
    return f"{cls.__module__}.{cls.__qualname__}"


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "params" and not isinstance(value, Tensor)}


def _restore_optimizer(state: State, optimizer: Optimizer, device: torch.device) -> None:
    optimizer.state.clear()  # first, so that the device never has two of them
    saved = state.value("optimizer", device)
    try:
        optimizer.load_state_dict(saved)
    except ValueError as error:
        hint = "keep the optimizer and the trained layers as they were"
        raise Problems([Problem(str(state.folder), f"the optimizer does not fit: {error}", hint)]) from error
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, values in saved["state"].items():
        restored = optimizer.state[parameters[index]]
        for name, value in values.items():
            # torch casts state to the parameter's dtype, which would round fp32 state
            if isinstance(value, Tensor) and restored[name].dtype != value.dtype:
                restored[name] = value.to(restored[name].device)


def _wind_forward(scheduler: LRScheduler, last_epoch: int) -> None:
    assert isinstance(scheduler, LambdaLR)
    scheduler.last_epoch, scheduler._step_count = last_epoch, last_epoch + 1
    rates = [base * rate(last_epoch) for base, rate in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)]
    for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    scheduler._last_lr = rates
