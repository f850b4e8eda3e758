"""Apply a LoRA file to ComfyUI's models with ComfyUI's own machinery, and say what was applied.

What the file's names and strengths mean is the knowledge of `lora_file`; ComfyUI gets the tensors under the names that
every version of it reads.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .lora_file.description import Surveyed, survey_file, with_strengths
from .lora_file.foreign import foreign_kind
from .lora_file.keys import Module, Survey
from .lora_file.modules import read_tensors, with_numbers
from .lora_file.numbers import alpha_keys
from .lora_file.strength import ADAPTER_CONFIG
from .lora_matching import BIASES, Match, bias_of, match, part_of, weight_part

PARTS = {"transformer": "transformer", "clip": "CLIP", "t5": "T5"}
# A tensor's role -> what its key ends in for ComfyUI; other roles are the ends themselves (.lokr_w1 …).
SUFFIXES = {
    "down": ".lora_down.weight", "up": ".lora_up.weight", "mid": ".lora_mid.weight", "reshape": ".reshape_weight",
    "dora_scale": ".dora_scale", "diff": ".diff", "set": ".set_weight",
}  # fmt: skip
OWN_ROLES = ("alpha", "magnitude", *BIASES)  # what becomes something else here
_finite: dict[Path, str] = {}  # files without NaN, by the signature that they had


@dataclass(frozen=True)
class LoadedLora:
    """A LoRA file in memory as it was when its signature was taken."""

    path: Path
    signature: str
    tensors: dict[str, Any]
    file: Surveyed

    @property
    def survey(self) -> Survey:
        """The file's modules."""
        return self.file.survey

    @property
    def metadata(self) -> dict[str, str]:
        """The header's metadata."""
        return self.file.header.metadata


@dataclass(frozen=True)
class Applied:
    """The patched model and CLIP (unchanged if nothing applies to them), and one line for the user."""

    model: Any
    clip: Any
    summary: str


def signature(path: Path) -> str:
    """Changes whenever the file or PEFT's settings next to it do: inode, size, times in nanoseconds. Raises OSError."""
    config = path.with_name(ADAPTER_CONFIG)
    stats = [path.stat(), *([config.stat()] if config.is_file() else [])]
    return "+".join(f"{stat.st_ino}:{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}" for stat in stats)


def load(path: Path) -> LoadedLora:
    """Read a LoRA file of any layout. Raises ValueError for any other file, naming its kind, and for NaN."""
    try:
        before = signature(path)
        header, found = survey_file(path)  # refuses other files before their gigabytes are read
        tensors, broken = read_tensors(header, known_finite=_finite.get(path) == before)
        alphas = {key: with_numbers(tensors[key]).flatten()[:64].tolist() for key in alpha_keys(found)}
        file = with_strengths(header, found, alphas)
        after = signature(path)
    except OSError as error:
        raise ValueError(f"{path.name} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ValueError(f"{path.name} cannot be used: {error}") from None
    if after != before:
        raise ValueError(f"{path.name} is being written at this moment; queue the prompt again")
    if broken:
        raise ValueError(
            f"{path.name} cannot be used: numbers in {len(broken)} of its {len(tensors)} tensors are not finite "
            f"(NaN), as {broken[0]}, and images would turn black; take an earlier checkpoint of the run"
        )
    _finite[path] = before
    return LoadedLora(path, before, tensors, file)


def apply(
    model: Any | None, clip: Any | None, lora: LoadedLora, strength_model: float, strength_clip: float, partial: bool
) -> Applied:
    """Patch clones of a model and CLIP. Raises ValueError if no module fits, or without `partial` if not all fit."""
    import comfy.lora

    found = match(lora.survey, model, clip)
    _refuse(lora, found, model, partial)
    patches = comfy.lora.load_lora(_for_comfyui(lora, found, model, clip), found.targets)
    lost = sum(not _changes_biases_only(lora.survey.modules[name]) for name in found.names) - len(patches)
    patches |= _bias_patches(lora, found)
    total = len(patches) + lost
    for_model = {target: patch for target, patch in patches.items() if part_of(target) == "transformer"}
    for_clip = {target: patch for target, patch in patches.items() if part_of(target) != "transformer"}
    model, in_model = _patched(model, for_model, strength_model)
    clip, in_clip = _patched(clip, for_clip, strength_clip)
    lost += in_model.count(False) + in_clip.count(False)
    if lost and not partial:
        raise ValueError(
            f"{lora.path.name}: ComfyUI took {total - lost} of {total} changes. Turn on allow_partial to apply those."
        )
    return Applied(model, clip, _summary(lora, found, patches, strength_model, strength_clip, clip))


def _for_comfyui(lora: LoadedLora, found: Match, model: Any | None, clip: Any | None) -> dict[str, Any]:
    """The file's tensors under ComfyUI's names, with alphas that give the file's own strength."""
    import torch

    tensors: dict[str, Any] = {}
    for name, known in found.names.items():
        module = lora.survey.modules[name]
        for role, key in module.keys.items():
            if role not in OWN_ROLES:
                tensors[known + SUFFIXES.get(role, role)] = lora.tensors[key]
        if "down" in module.keys:
            tensors[f"{known}.alpha"] = torch.tensor(lora.file.strengths.scales[name] * (module.rank or 1))
        elif "alpha" in module.keys:
            tensors[f"{known}.alpha"] = lora.tensors[module.keys["alpha"]].float().flatten()[0]
        if "magnitude" in module.keys:
            tensors[f"{known}.dora_scale"] = _dora_scale(lora, module, found.targets[known], model, clip)
        if name in found.widened:
            outputs, inputs = module.shapes["up"][0], module.shapes["down"][1]
            tensors[f"{known}.reshape_weight"] = torch.tensor([outputs, inputs])
    return tensors


def _dora_scale(lora: LoadedLora, module: Module, target: Any, model: Any | None, clip: Any | None) -> Any:
    """ComfyUI's `dora_scale` [out, 1] with the effect of PEFT's magnitude m.

    PEFT makes m * (W + c) / |W + c| of W, with row norms and c = scale * up @ down; ComfyUI makes
    dora_scale * (W + c) / |W|. Raises ValueError where the model's weights are packed.
    """
    weight = weight_part(target, model, clip)
    if weight is None or weight.dim() != 2 or not weight.is_floating_point():
        raise ValueError(
            f"{lora.path.name} is DoRA of PEFT, which needs the model's own weights, and this model holds them packed: "
            "load the model as bf16 or fp8"
        )
    weight = weight.float()
    down, up = (with_numbers(lora.tensors[module.keys[role]]).float().to(weight.device) for role in ("down", "up"))
    changed = weight + lora.file.strengths.scales[module.name] * (up @ down)
    magnitude = with_numbers(lora.tensors[module.keys["magnitude"]]).float().flatten().to(weight.device)
    return (magnitude * weight.norm(dim=1) / changed.norm(dim=1)).unsqueeze(1).cpu()


def _changes_biases_only(module: Module) -> bool:
    return module.keys.keys() <= {*BIASES, "alpha"}


def _bias_patches(lora: LoadedLora, found: Match) -> dict[Any, Any]:
    """Patches for changes of biases, q's, k's and v's too; ComfyUI reads them only from BFL's control LoRAs."""
    patches = {}
    for name, known in found.names.items():
        module, target = lora.survey.modules[name], found.targets[known]
        role = next((role for role in BIASES if role in module.keys), None)
        if role:
            scale = lora.file.strengths.scales.get(name, 1.0) if role == "bias" else 1.0
            change = scale * with_numbers(lora.tensors[module.keys[role]]).float()
            patches[bias_of(target)] = ("diff", (change,))
    return patches


def _patched(model: Any | None, patches: Mapping[Any, Any], strength: float) -> tuple[Any | None, list[bool]]:
    if model is None or not patches or strength == 0:
        return model, []
    clone = model.clone()
    taken = set(clone.add_patches(patches, strength))
    return clone, [target in taken for target in patches]


def _refuse(lora: LoadedLora, found: Match, model: Any | None, partial: bool) -> None:
    name, total = lora.path.name, len(lora.survey.modules)
    kind = f"the connected model ({type(model.model).__name__})" if model is not None else "what is connected"
    remedy = f"Turn on allow_partial to apply the {len(found.names)} that fit."
    if found.misshapen and not (partial and found.names):
        first, why = next(iter(found.misshapen.items()))
        meaning = remedy if found.names else "The file belongs to another base model or is damaged."
        count = len(found.misshapen)
        some = f"1 of {total} modules has" if count == 1 else f"{count} of {total} modules have"
        raise ValueError(f"{name} does not fit {kind}: {some} the wrong shape. First, {first} {why}. {meaning}")
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
            f"{_some(found.unmatched)}.{hint} {remedy}"
        )


def _summary(
    lora: LoadedLora,
    found: Match,
    patches: Iterable[Any],
    strength_model: float,
    strength_clip: float,
    clip: Any | None,
) -> str:
    counts = dict.fromkeys(PARTS, 0)
    for target in patches:
        counts[part_of(target)] += 1
    strengths = {"transformer": strength_model, "clip": strength_clip, "t5": strength_clip}
    applied = [f"{count} {PARTS[part]} keys at {strengths[part]:g}" for part, count in counts.items() if count]
    text = f"{lora.path.name} ({lora.survey.title}): applied {', '.join(applied)}"
    if found.skipped:
        text += f"; {len(found.skipped)} not applied, as {'CLIP' if clip is None else 'the model'} is not connected"
    if left := len(found.unmatched) + len(found.misshapen):
        text += f"; {left} left out: {_some([*found.unmatched, *found.misshapen])}"
    return f"{text}; {lora.file.strengths.note}" if lora.file.strengths.note else text


def _some(names: Any, count: int = 4) -> str:
    names = list(names)
    shown = ", ".join(names[:count])
    return f"{shown} and {len(names) - count} more" if len(names) > count else shown
