"""The adapter on disk: what a training writes, and LoRA files of any tool as starting points.

Names in the program and in our files are those of diffusers and PEFT:
`transformer.transformer_blocks.0.attn.to_q`, `text_encoder.text_model.encoder.layers.0.mlp.fc1`. What the files of
other tools mean is the knowledge of `trainer.lora_file`.
"""

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from trainer.common.files import write_safetensors
from trainer.common.problems import Problem, Problems, raise_if_any
from trainer.common.text import counted
from trainer.lora.adapter import file_module, linear_modules
from trainer.lora.info import unreadable
from trainer.lora_file.description import Surveyed, look_into
from trainer.lora_file.keys import more_than_lora
from trainer.lora_file.metadata import with_ranks
from trainer.lora_file.module_names import T5
from trainer.lora_file.modules import LoraModule, canonical, file_modules, read_tensors
from trainer.lora_file.writing import diffusers_tensors, tensors_hash

MAX_HEADER_BYTES = 1 << 20  # ComfyUI does not show the metadata of a larger one
FIRST_TO_GO = ("ss_tag_frequency", "ss_datasets", "flux_dreambooth", "ss_dataset_dirs")
LEFT_OUT = "flux_dreambooth_left_out"
ADAPTABLE = ("transformer.transformer_blocks.", "transformer.single_transformer_blocks.", "text_encoder.")
FROM_FILE = "--dim_from_weights takes layers and ranks from the file"
PLAIN_ONLY = "plain LoRA of FLUX.1's layers is read here; ComfyUI's loaders, or diffusers, may apply this file"


@dataclass(frozen=True)
class LoraFile:
    """A LoRA in memory.

    modules: by diffusers' names, like `transformer.transformer_blocks.0.attn.to_q`; metadata: the file's; layout: of
    the file it was read from, like "diffusers" or "kohya"; note: what had to be assumed about its strength, None if the
    file states it.
    """

    modules: dict[str, LoraModule]
    metadata: dict[str, str]
    layout: str = "diffusers"
    note: str | None = None


def save_lora(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    alphas: Mapping[str, float],
    metadata: Mapping[str, str],
    dtype: torch.dtype = torch.bfloat16,
) -> tuple[str, ...]:
    """Write an adapter to a LoRA file, atomically.

    tensors, alphas: as `adapter_parameters` and `adapter_alphas` return them; dtype: of the tensors in the file.
    Returns the metadata keys that were left out to keep the header under 1 MiB, each with its length. Raises
    `Problems`, and leaves an existing file alone, if a number is not finite in `dtype`.
    """
    return write_lora(path, snapshot_lora(path, tensors, alphas, dtype), metadata)


def snapshot_lora(
    path: Path, tensors: Mapping[str, torch.Tensor], alphas: Mapping[str, float], dtype: torch.dtype = torch.bfloat16
) -> dict[str, torch.Tensor]:
    """Copy an adapter's tensors to the host, as a LoRA file will hold them; later steps do not change the copy.

    path: only named in errors; tensors, alphas: as `adapter_parameters` and `adapter_alphas` return them. Returns the
    tensors by their names in the file. Raises `Problems` if a number is not finite in `dtype`.
    """
    modules = {
        name: LoraModule(tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"], alpha)
        for name, alpha in alphas.items()
    }
    assert len(tensors) == 2 * len(modules)
    kept = {tensor.untyped_storage().data_ptr() for tensor in tensors.values()}
    stored, finite = {}, {}
    for name, tensor in diffusers_tensors(modules, dtype):
        if not name.endswith(".alpha"):
            finite[name] = _all_finite(tensor)  # on its own device, which is asked once, below
        host = tensor.cpu()
        stored[name] = host.clone() if host.untyped_storage().data_ptr() in kept else host
    are_finite = torch.stack([*finite.values()]).tolist()
    if broken := [name for name, good in zip(finite, are_finite, strict=True) if not good]:
        what = f"not written: {len(broken)} of {len(finite)} tensors hold numbers that are not finite, as {broken[0]}"
        raise Problems([Problem(str(path), what, "lower --learning_rate; fp16 has a smaller range than bf16")])
    return stored


def _all_finite(tensor: torch.Tensor) -> torch.Tensor:
    """Whether every number is, from the smallest and largest (NaN is both): no second tensor of this size."""
    return torch.stack(tensor.aminmax()).isfinite().all()


def write_lora(path: Path, stored: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Write the tensors that `snapshot_lora` returned to a LoRA file, atomically. May run on any thread.

    Rank and alpha in the metadata, if given, are set to those of the tensors. Returns the metadata keys that were left
    out to keep the header under 1 MiB, each with its length.
    """
    ranks = [len(tensor) for name, tensor in stored.items() if name.endswith(".lora_A.weight")]
    return write_tensors(path, stored, with_ranks(metadata, ranks))


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Write a LoRA file, atomically, with kohya's hash of the tensors added to the metadata.

    tensors: by their names in the file, on any device. Returns the metadata keys that were left out to keep the header
    under 1 MiB, each with its length.
    """
    tensors = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
    kept, left_out = _fitting(tensors, dict(metadata) | {"sshs_model_hash": tensors_hash(tensors)})
    write_safetensors(path, tensors, kept)
    return left_out


def _fitting(tensors: Mapping[str, torch.Tensor], metadata: dict[str, str]) -> tuple[dict[str, str], tuple[str, ...]]:
    room = MAX_HEADER_BYTES - sum(len(name) + 120 for name in tensors) - 1024
    by_size = sorted(metadata, key=lambda key: (key not in FIRST_TO_GO, -len(metadata[key])))
    left_out = []
    while _json_size(metadata) > room:
        key = by_size.pop(0)
        left_out.append(f"{key} ({len(metadata.pop(key))} characters)")
        metadata[LEFT_OUT] = ", ".join(left_out)
    return metadata, tuple(left_out)


def _json_size(metadata: Mapping[str, str]) -> int:
    return len(json.dumps(metadata, ensure_ascii=True))


def load_lora(path: Path, with_t5: bool = False) -> LoraFile:
    """Read a LoRA of any tool's layout, fp8 too; path: the file, or a folder that PEFT or diffusers wrote.

    A fused matrix (q, k, v and MLP in one) becomes one module for each part, with exactly the same product. with_t5:
    accept T5's layers, which are an error otherwise. Raises `Problems` for a file that cannot be read, for numbers that
    are not finite, and for anything but plain LoRA of the linear layers of FLUX.1 and its text encoders.
    """
    file = _plain(path, with_t5)
    try:
        tensors, broken = read_tensors(file.header)
        if broken:
            what = f"{len(broken)} of {len(tensors)} tensors hold numbers that are not finite, as {broken[0]}"
            raise Problems([Problem(str(path), what, "the training that wrote it failed; take an earlier checkpoint")])
        return _lora_file(file, tensors)
    except Problems:
        raise
    except (OSError, ValueError) as error:
        raise Problems([unreadable(path, error)]) from error


def load_lora_shapes(path: Path) -> LoraFile:
    """Read a LoRA's modules, alphas and metadata, but not its weights: the matrices are on the meta device.

    path: the file, or a folder that PEFT or diffusers wrote. Raises `Problems` for a file that cannot be read and for
    anything but plain LoRA of the linear layers of FLUX.1's transformer and CLIP.
    """
    file = _plain(path)
    tensors = {name: torch.empty(info.shape, device="meta") for name, info in file.header.tensors.items()}
    try:
        return _lora_file(file, tensors)
    except ValueError as error:
        raise Problems([unreadable(path, error)]) from error


def _plain(path: Path, with_t5: bool = False) -> Surveyed:
    """A file's header if it holds plain LoRA only."""
    try:
        file = look_into(path)
    except (OSError, ValueError) as error:
        raise Problems([unreadable(path, error)]) from error
    problems = [Problem(str(path), f"not only LoRA: {what}", PLAIN_ONLY) for what in more_than_lora(file.survey)]
    t5 = [name for name, module in file.survey.modules.items() if module.target and module.target.part == T5]
    if t5 and not with_t5:
        what = f"{counted(len(t5), 'layer is', 'layers are')} T5's, as {t5[0]}, which the trainer does not adapt"
        problems.append(Problem(str(path), what, "info and convert read them, ComfyUI applies them"))
    raise_if_any(problems)
    return file


def _lora_file(file: Surveyed, tensors: Mapping[str, torch.Tensor]) -> LoraFile:
    modules = canonical(file.survey, file_modules(file.survey, tensors, file.strengths.scales))
    return LoraFile(modules, file.header.metadata, file.survey.layout, file.strengths.note)


def ranks_from(lora: LoraFile, model: nn.Module) -> dict[str, int]:
    """The rank that a LoRA has for each linear layer of a model that can be adapted; 0 for layers it does not adapt.

    model: a transformer or a CLIP text model. The keys are names as in `model.named_modules()`.
    """
    names = {name: file_module(model, name) for name in linear_modules(model)}
    return {name: lora.modules[full].rank if full in lora.modules else 0 for name, full in names.items()}


def copy_into(lora: LoraFile, parameters: Mapping[str, nn.Parameter], alphas: Mapping[str, float], where: str) -> None:
    """Copy a file's LoRA into the adapter, as the start of a training.

    parameters, alphas: as `adapter_parameters` and `adapter_alphas` return them. The up matrices are scaled so that the
    weight change is the file's, even if alpha differs. Raises `Problems`, and changes nothing, if modules or ranks
    differ; where: the flag or file to name in them.
    """
    raise_if_any(misfits(lora, {name: parameter.shape for name, parameter in parameters.items()}, where))
    for name, alpha in alphas.items():
        module, down = lora.modules[name], parameters[f"{name}.lora_A.weight"]
        down.data.copy_(module.down)
        parameters[f"{name}.lora_B.weight"].data.copy_(module.up.float() * (module.scale * len(down) / alpha))


def misfits(lora: LoraFile, shapes: Mapping[str, tuple[int, ...]], where: str) -> list[Problem]:
    """Why a LoRA cannot be the start of a training: layers, ranks or sizes that differ, one problem of each kind.

    shapes: of the run's adapter tensors, by their names in the LoRA file (`NAME.lora_A.weight`, `NAME.lora_B.weight`);
    where: the flag or file to name in the problems. Returns none if the LoRA fits.
    """
    ours = {name.rsplit(".lora_", 1)[0] for name in shapes}
    problems = []
    for here, there, names in (
        ("the file", "this run", lora.modules.keys() - ours),
        ("this run", "the file", ours - lora.modules.keys()),
    ):
        if names:
            problems.append(
                Problem(where, f"{_first_of(names)} adapted in {here} but not in {there}", _layers_hint(names, here))
            )
    both = [name for name in sorted(lora.modules) if name in ours]
    ranks = {name: (lora.modules[name].rank, shapes[f"{name}.lora_A.weight"][0]) for name in both}
    if other := {name: pair for name, pair in ranks.items() if pair[0] != pair[1]}:
        theirs, mine = (_numbers(pair[side] for pair in other.values()) for side in (0, 1))
        what = f"{_first_of(other)} of rank {theirs} in the file and {mine} in this run"
        problems.append(Problem(where, what, FROM_FILE))
    widths = {
        name: (file, run)
        for name in both
        if (file := _widths(lora.modules[name].down.shape, lora.modules[name].up.shape))
        != (run := _widths(shapes[f"{name}.lora_A.weight"], shapes[f"{name}.lora_B.weight"]))
    }
    if widths:
        (file, run), *_ = widths.values()
        what = f"{_first_of(widths)} of another size: {file} in the file and {run} in this run"
        problems.append(Problem(where, what, "the file belongs to another base model"))
    return problems


def _layers_hint(names: Iterable[str], adapted_in: str) -> str:
    if not all(name.startswith(ADAPTABLE) for name in names):
        return "only layers of the blocks are trained here"
    if all(name.startswith("text_encoder.") for name in names):
        return (
            "--text_encoder_lr above 0 trains CLIP-L's LoRA"
            if adapted_in == "the file"
            else "--text_encoder_lr 0 trains none of CLIP-L"
        )
    return FROM_FILE


def _first_of(names: Collection[str]) -> str:
    return f"{min(names)} and {len(names) - 1} more are" if len(names) > 1 else f"{min(names)} is"


def _numbers(values: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(set(values))))


def _widths(down: tuple[int, ...], up: tuple[int, ...]) -> str:
    return f"{down[1]} to {up[0]}"
