"""The nodes that write new LoRA files: smaller ones and sums."""

import logging
from pathlib import Path
from typing import Any

from . import lora_files, lora_loading
from .lora_file import algebra
from .lora_file.keys import more_than_lora
from .lora_file.metadata import merged_metadata, with_new_ranks
from .lora_file.modules import LoraModule, canonical, file_modules
from .lora_file.writing import all_finite, diffusers_tensors, lost_by_rounding, tensors_hash, tensors_like
from .node_texts import Node
from .nodes_lora import state_of
from .report import size_text

NO_LORA = "none"
DTYPES = {"as the file": None, "bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
OVERWRITE = ("BOOLEAN", {"default": False})


class ResizeLoRA(Node):
    """Writes a LoRA of lower rank, each layer by SVD."""

    SEARCH_ALIASES = ("shrink lora", "lora rank", "svd")
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("done",)
    FUNCTION = "resize"
    OUTPUT_NODE = True

    @classmethod
    def inputs(cls) -> dict[str, Any]:
        return {
            "required": {
                "lora_name": (lora_files.lora_names(),),
                "rank": ("INT", {"default": 32, "min": 1, "max": 1024}),
                "energy": (
                    "FLOAT",
                    {
                        "default": 1.0, "min": 0.01, "max": 1.0, "step": 0.001
                    },
                ),
                "new_name": ("STRING", {"default": ""}),
                "dtype": (list(DTYPES),),
                "overwrite": OVERWRITE,
            }
        }  # fmt: skip

    @classmethod
    def VALIDATE_INPUTS(cls, lora_name: str | None) -> bool | str:  # noqa: N802 (ComfyUI's name)
        return lora_files.valid_names(lora_name)

    @classmethod
    def IS_CHANGED(cls, lora_name: str, **_: Any) -> str:  # noqa: N802
        return state_of(lora_name)

    def resize(
        self, lora_name: str, rank: int, energy: float, new_name: str, dtype: str, overwrite: bool
    ) -> dict[str, Any]:
        import comfy.model_management
        import comfy.utils

        path = _new_path(new_name.strip() or f"{Path(lora_name).with_suffix('')}-rank{rank}", overwrite)
        lora = lora_loading.load(lora_files.lora_path(lora_name))
        modules = plain_modules(lora)
        bar = comfy.utils.ProgressBar(len(modules))
        device = comfy.model_management.get_torch_device()
        smaller, kept = algebra.resize(
            modules, rank, energy if energy < 1 else None, device, progress=lambda: _advance(bar)
        )
        before, after, new_type = _ranks(modules), _ranks(smaller), _dtype(dtype, modules)
        note = {"modelspec.resized_from": f"{lora.path.name}, rank {before} to {after}, {kept:.2%} of the squared norm"}
        metadata = with_new_ranks(lora.metadata, [module.rank for module in smaller.values()]) | note
        tensors = all_finite(tensors_like(lora.survey, smaller, new_type), new_type)
        text = f"{lora.path.name}: rank {before} to {after}, {kept:.2%} of the squared norm kept"
        remarks = [lora.file.strengths.note, lost_by_rounding(smaller, new_type)]
        return _written(path, tensors, metadata, overwrite, "; ".join([text, *filter(None, remarks)]))


class MergeLoRAs(Node):
    """Writes the weighted sum of up to four LoRAs."""

    SEARCH_ALIASES = ("combine loras", "add loras")
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("done",)
    FUNCTION = "merge"
    OUTPUT_NODE = True

    @classmethod
    def inputs(cls) -> dict[str, Any]:
        names, weight = lora_files.lora_names(), ("FLOAT", {"default": 1.0, "min": -10.0, "max": 10.0, "step": 0.01})
        optional: dict[str, Any] = {}
        for number in (3, 4):
            optional |= {f"lora_{number}": ([NO_LORA, *names],), f"weight_{number}": weight}
        return {
            "required": {
                "lora_1": (names,),
                "weight_1": weight,
                "lora_2": (names,),
                "weight_2": weight,
                "rank": ("INT", {"default": 0, "min": 0, "max": 1024}),
                "new_name": ("STRING", {"default": "merged"}),
                "dtype": (list(DTYPES),),
                "overwrite": OVERWRITE,
            },
            "optional": optional,
        }

    @classmethod
    def VALIDATE_INPUTS(  # noqa: N802
        cls, lora_1: str | None, lora_2: str | None, lora_3: str | None = NO_LORA, lora_4: str | None = NO_LORA
    ) -> bool | str:
        return lora_files.valid_names(*(name for name in (lora_1, lora_2, lora_3, lora_4) if name != NO_LORA))

    @classmethod
    def IS_CHANGED(cls, **inputs: Any) -> str:  # noqa: N802
        names = [inputs.get(f"lora_{number}") or NO_LORA for number in range(1, 5)]
        return "\n".join(state_of(name) for name in names if name != NO_LORA)

    def merge(
        self, lora_1: str, lora_2: str, rank: int, new_name: str, dtype: str, overwrite: bool, **more: Any
    ) -> dict[str, Any]:
        import comfy.model_management
        import comfy.utils

        path = _new_path(new_name, overwrite)
        names = {1: lora_1, 2: lora_2, 3: more.get("lora_3") or NO_LORA, 4: more.get("lora_4") or NO_LORA}
        weighted, sources, first, remarks = [], [], {}, []
        for number, name in names.items():
            if name == NO_LORA:
                continue
            lora, weight = lora_loading.load(lora_files.lora_path(name)), float(more.get(f"weight_{number}", 1.0))
            modules = plain_modules(lora)
            first = first or modules
            weighted.append((canonical(lora.survey, modules), weight))
            sources.append((lora.path.stem, lora.metadata, weight))
            remarks += [f"{lora.path.name}: {lora.file.strengths.note}"] if lora.file.strengths.note else []
        merged = algebra.merge(weighted)
        text = f"merged {len(sources)} LoRAs, rank {_ranks(merged)}"
        if rank:
            bar = comfy.utils.ProgressBar(len(merged))
            device = comfy.model_management.get_torch_device()
            merged, kept = algebra.resize(merged, rank, None, device, progress=lambda: _advance(bar))
            text += f", cut to {_ranks(merged)} with {kept:.2%} of the squared norm kept"
        metadata, new_type = merged_metadata(sources, [module.rank for module in merged.values()]), _dtype(dtype, first)
        remarks += filter(None, [lost_by_rounding(merged, new_type)])
        tensors = all_finite(diffusers_tensors(merged, new_type), new_type)
        return _written(path, tensors, metadata, overwrite, "; ".join([text, *remarks]))


def plain_modules(lora: lora_loading.LoadedLora) -> dict[str, LoraModule]:
    """A file's modules by its own names. Raises ValueError where it holds anything but plain LoRA, saying what."""
    if more := more_than_lora(lora.survey):
        raise ValueError(
            f"{lora.path.name} is not plain LoRA, which alone can be resized and merged: {'; '.join(more)}"
        )
    try:
        return file_modules(lora.survey, lora.tensors, lora.file.strengths.scales)
    except ValueError as error:
        raise ValueError(f"{lora.path.name} is not complete: {error}") from None


def _advance(bar: Any) -> None:
    import comfy.model_management

    comfy.model_management.throw_exception_if_processing_interrupted()
    bar.update(1)


def _folder() -> Path:
    """Where new files go: the first folder that ComfyUI lists LoRAs from."""
    import folder_paths

    return Path(folder_paths.get_folder_paths("loras")[0])


def _new_path(name: str, overwrite: bool) -> Path:
    path = lora_files.output_path(name, _folder())
    lora_files.refuse_existing(path, overwrite)  # before minutes of SVD
    return path


def _dtype(choice: str, layers: dict[str, LoraModule]) -> Any:
    import torch

    name = DTYPES[choice]
    return getattr(torch, name) if name else next(iter(layers.values())).down.dtype


def _ranks(layers: dict[str, LoraModule]) -> str:
    ranks = sorted({layer.rank for layer in layers.values()})
    return str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]}-{ranks[-1]}"


def _written(
    path: Path, tensors: dict[str, Any], metadata: dict[str, str], overwrite: bool, text: str
) -> dict[str, Any]:
    from safetensors.torch import save_file

    metadata = {"format": "pt"} | metadata | {"sshs_model_hash": tensors_hash(tensors)}
    lora_files.write_file(path, lambda target: save_file(tensors, target, metadata=metadata), overwrite)
    name = path.relative_to(_folder()).as_posix()
    line = "; ".join([text, f"written to models/loras/{name}, {size_text(path.stat().st_size)}"])
    logging.info(line)
    return {"ui": {"text": [line], "written": [name]}, "result": (line,)}


NODES = (ResizeLoRA, MergeLoRAs)
