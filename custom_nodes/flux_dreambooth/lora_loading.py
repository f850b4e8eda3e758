"""Apply a LoRA file to ComfyUI's models with ComfyUI's own machinery, and say what was applied.

The file is read into memory whole, never mapped: a file that is overwritten in place, as copying
does, would otherwise change or tear the tensors of a loaded model.
"""

import contextlib
import math
import mmap
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .foreign import foreign_kind
from .layouts import Module, Survey, comfyui_names, header_alphas, survey
from .lora_file.header import Header, TensorInfo
from .safetensors_header import read_header

PARTS = {"transformer": "transformer", "clip": "CLIP", "t5": "T5"}
PREFIX_PARTS = {"diffusion_model.": "transformer", "clip_l.": "clip", "t5xxl.": "t5"}


@dataclass(frozen=True)
class LoadedLora:
    """A LoRA file in memory as it was when its signature was taken."""

    path: Path
    signature: str
    tensors: dict[str, Any]
    metadata: dict[str, str]
    survey: Survey


@dataclass(frozen=True)
class Match:
    """How a file's modules fit a model: by name, the key that ComfyUI patches, and what does not fit.

    names: file's module -> ComfyUI's name; skipped: modules of parts that are not connected;
    unmatched: modules and keys that name nothing; misshapen: module -> what is wrong.
    """

    names: dict[str, str]
    targets: dict[str, Any]
    skipped: tuple[str, ...]
    unmatched: tuple[str, ...]
    misshapen: dict[str, str]


@dataclass(frozen=True)
class Applied:
    """The patched model and CLIP (as given, where nothing was to be done), and one line for the user."""

    model: Any
    clip: Any
    summary: str


def signature(path: Path) -> str:
    """Changes whenever the file does: its inode, size and times in nanoseconds. Raises OSError."""
    stat = path.stat()
    return f"{stat.st_ino}:{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}"


def load(path: Path) -> LoadedLora:
    """Read a LoRA file of any layout. Raises ValueError, saying what it is, for anything else."""
    try:
        before = signature(path)
        header = read_header(path)
        found = survey(header.shapes, header.metadata)  # refuses other files before their gigabytes are read
        tensors = _read_tensors(path, header)
        after = signature(path)
    except OSError as error:
        raise ValueError(f"{path.name} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ValueError(_named(path, error)) from None
    if after != before:
        raise ValueError(f"{path.name} is being written at this moment; queue the prompt again")
    tensors = _with_header_alphas(_converted(tensors), header.metadata)
    if tensors.keys() != header.tensors.keys():
        shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
        found = replace(survey(shapes, header.metadata), layout=found.layout)
    return LoadedLora(path, before, tensors, header.metadata, found)


def match(lora: LoadedLora, model: Any | None, clip: Any | None) -> Match:
    """Find the place of each module in a MODEL and a CLIP of ComfyUI; either may be None."""
    key_map = _key_map(model, clip)
    connected = {part for part, given in (("transformer", model), ("clip", clip), ("t5", clip)) if given is not None}
    names: dict[str, str] = {}
    targets: dict[str, Any] = {}
    skipped, unmatched, misshapen = [], list(lora.survey.unknown), {}
    for name, module in lora.survey.modules.items():
        known = _known_name(module, key_map)
        if known is None and module.target and module.target.part not in connected:
            skipped.append(name)
        elif known is None or known in targets:
            unmatched.append(name)
        elif problem := _shape_problem(module, key_map[known], model, clip):
            misshapen[name] = problem
        else:
            names[name], targets[known] = known, key_map[known]
    return Match(names, targets, tuple(skipped), tuple(unmatched), misshapen)


def apply(
    model: Any | None, clip: Any | None, lora: LoadedLora, strength_model: float, strength_clip: float, partial: bool
) -> Applied:
    """Patch clones of a model and CLIP. Raises ValueError when nothing, or without `partial` not all, fits."""
    import comfy.lora

    found = match(lora, model, clip)
    _refuse(lora, found, model, partial)
    tensors = {}
    for name, known in found.names.items():
        for key in lora.survey.modules[name].keys.values():
            tensors[known + key.removeprefix(name)] = lora.tensors[key]
    patches = comfy.lora.load_lora(tensors, found.targets)
    for_model = {target: patch for target, patch in patches.items() if part_of(target) == "transformer"}
    for_clip = {target: patch for target, patch in patches.items() if part_of(target) != "transformer"}
    model, in_model = _patched(model, for_model, strength_model)
    clip, in_clip = _patched(clip, for_clip, strength_clip)
    lost = len(found.targets) - len(patches) + in_model.count(False) + in_clip.count(False)
    if lost and not partial:
        raise ValueError(f"{lora.path.name}: ComfyUI took only {len(patches)} of {len(found.targets)} modules")
    return Applied(model, clip, _summary(lora, found, strength_model, strength_clip, clip))


def part_of(target: Any) -> str:
    """The part of the model that a value of ComfyUI's key map lies in: transformer, clip or t5."""
    key = target if isinstance(target, str) else target[0]
    return next((part for prefix, part in PREFIX_PARTS.items() if key.startswith(prefix)), "clip")


def _patched(model: Any | None, patches: Mapping[Any, Any], strength: float) -> tuple[Any | None, list[bool]]:
    if model is None or not patches or strength == 0:
        return model, []
    clone = model.clone()
    taken = set(clone.add_patches(patches, strength))
    return clone, [target in taken for target in patches]


def _key_map(model: Any | None, clip: Any | None) -> dict[str, Any]:
    import comfy.lora

    key_map: dict[str, Any] = {}
    if model is not None:
        key_map = comfy.lora.model_lora_keys_unet(model.model, key_map)
    if clip is not None:
        key_map = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, key_map)
    return key_map


def _weight(key: str, model: Any | None, clip: Any | None) -> Any | None:
    import comfy.utils

    owner = getattr(model, "model", None) if part_of(key) == "transformer" else getattr(clip, "cond_stage_model", None)
    try:
        return comfy.utils.get_attr(owner, key)
    except AttributeError:
        return None


def _known_name(module: Module, key_map: Mapping[str, Any]) -> str | None:
    if module.name in key_map:
        return module.name
    names = comfyui_names(module.target) if module.target else ()
    return next((name for name in names if name in key_map), None)


def _shape_problem(module: Module, target: Any, model: Any | None, clip: Any | None) -> str | None:
    """Why ComfyUI could not add this module's product; it would only log that, picture by picture."""
    if module.kind not in ("LoRA", "DoRA"):
        return None
    if missing := [role for role in ("down", "up") if role not in module.keys]:
        return f"has no {' and no '.join(missing)} matrix"
    down, up = module.shapes["down"], module.shapes["up"]
    if len(down) < 2 or len(up) < 2:
        return f"has down {list(down)} and up {list(up)}, which are no matrices"
    if down[0] != up[1] and "mid" not in module.keys:
        return f"has rank {down[0]} in down and {up[1]} in up"
    key, rows = (target, None) if isinstance(target, str) else (target[0], target[1])
    weight = _weight(key, model, clip)
    if weight is None or weight.dim() != 2 or not weight.is_floating_point() or "reshape" in module.keys:
        return None  # packed or reshaped weights are ComfyUI's to judge
    outputs, inputs = rows[2] if rows else weight.shape[0], weight.shape[1]
    if (up[0], down[1]) != (outputs, inputs):
        return f"goes from {down[1]} to {up[0]}, the model's layer from {inputs} to {outputs}"
    return None


def _refuse(lora: LoadedLora, found: Match, model: Any | None, partial: bool) -> None:
    name, total = lora.path.name, len(lora.survey.modules)
    kind = f"the connected model ({type(model.model).__name__})" if model is not None else "what is connected"
    if found.misshapen and not (partial and found.names):
        first, why = next(iter(found.misshapen.items()))
        raise ValueError(
            f"{name} does not fit {kind}: {len(found.misshapen)} of {total} modules have the wrong shape, "
            f"so the file belongs to another base model or is damaged. First, {first} {why}."
        )
    if not found.names:
        if found.skipped and not found.unmatched:
            raise ValueError(f"{name} holds only layers of parts that are not connected: connect CLIP as well")
        foreign = foreign_kind(lora.tensors)
        what = f"it is {foreign}" if foreign else f"its names are like {', '.join(found.unmatched[:3])}"
        raise ValueError(f"nothing of {name} fits {kind}: {what}")
    if found.unmatched and not partial:
        foreign = foreign_kind(lora.tensors)
        hint = f" It seems to be {foreign}." if foreign else ""
        raise ValueError(
            f"{name} fits {kind} only in part: {len(found.names)} of {total} modules; not matched: "
            f"{_some(found.unmatched)}.{hint} Turn on allow_partial to apply what fits."
        )


def _summary(lora: LoadedLora, found: Match, strength_model: float, strength_clip: float, clip: Any | None) -> str:
    counts = dict.fromkeys(PARTS, 0)
    for target in found.targets.values():
        counts[part_of(target)] += 1
    strengths = {"transformer": strength_model, "clip": strength_clip, "t5": strength_clip}
    applied = [f"{count} {PARTS[part]} keys at {strengths[part]:g}" for part, count in counts.items() if count]
    text = f"{lora.path.name} ({lora.survey.layout}): applied {', '.join(applied)}"
    if found.skipped:
        text += f"; {len(found.skipped)} not applied, as {'CLIP' if clip is None else 'the model'} is not connected"
    if left := len(found.unmatched) + len(found.misshapen):
        text += f"; {left} left out: {_some([*found.unmatched, *found.misshapen])}"
    return text


def _some(names: Any, count: int = 4) -> str:
    names = list(names)
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")


def _read_tensors(path: Path, header: Header) -> dict[str, Any]:
    import torch

    dtypes = torch_dtypes()
    if strange := {info.dtype for info in header.tensors.values()} - dtypes.keys():
        raise ValueError(f"tensors of type {', '.join(sorted(strange))} are not known here")
    memory = _memory(header.num_bytes - header.data_start)
    view = memoryview(memory)[: header.num_bytes - header.data_start]
    with path.open("rb", buffering=0) as file:
        file.seek(header.data_start)
        done = 0
        while done < len(view):
            count = file.readinto(view[done:])
            if not count:
                raise ValueError("it became shorter while it was read")
            done += count

    def tensor(info: TensorInfo) -> Any:
        dtype, count = dtypes[info.dtype], math.prod(info.shape)
        if not count:
            return torch.empty(info.shape, dtype=dtype)
        return torch.frombuffer(memory, dtype=dtype, count=count, offset=info.begin - header.data_start).view(
            info.shape
        )

    return {name: tensor(info) for name, info in header.tensors.items()}


def _memory(size: int) -> Any:
    """A writable buffer, in huge pages where the system has them: filling it then takes a third of the time."""
    size = max(size, 1)
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return bytearray(size)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def torch_dtypes() -> dict[str, Any]:
    """safetensors' names of torch's types, as far as this torch has them."""
    import torch

    names = {
        "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn",
        "F8_E5M2": "float8_e5m2", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8",
        "BOOL": "bool",
    }  # fmt: skip
    return {name: getattr(torch, attribute) for name, attribute in names.items() if hasattr(torch, attribute)}


def _converted(tensors: dict[str, Any]) -> dict[str, Any]:
    """ComfyUI's own translation of the layouts (BFL's control LoRAs, USO) that it reads under other names."""
    try:
        import comfy.lora_convert
    except ImportError:
        return tensors
    return comfy.lora_convert.convert_lora(tensors)


def _with_header_alphas(tensors: dict[str, Any], metadata: Mapping[str, str]) -> dict[str, Any]:
    """Add the alphas that diffusers keeps in the header only, which ComfyUI does not read."""
    import torch

    alphas = header_alphas(tensors, metadata)
    return tensors | {key: torch.tensor(alpha, dtype=torch.float32) for key, alpha in alphas.items()}


def _named(path: Path, error: ValueError) -> str:
    return str(error) if str(error).startswith(path.name) else f"{path.name} cannot be used: {error}"
