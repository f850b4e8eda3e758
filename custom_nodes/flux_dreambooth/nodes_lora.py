"""The nodes that load a LoRA and report on it."""

import logging
from pathlib import Path
from typing import Any

from . import lora_files, lora_loading
from .lora_file.concepts import read_concepts
from .lora_file.description import Description, describe
from .lora_file.keys import Module, Survey
from .lora_matching import match
from .node_texts import Node
from .report import Report, as_picture, as_text, facts_of, norms_by_block

STRENGTH = {"default": 1.0, "min": -100.0, "max": 100.0, "step": 0.01}


class LoadFluxDreamBoothLoRA(Node):
    """Applies a LoRA of any FLUX.1 layout; reads it again whenever the file changes."""

    SEARCH_ALIASES = ("lora loader", "load lora")
    RETURN_TYPES = ("MODEL", "CLIP", "STRING")
    RETURN_NAMES = ("model", "clip", "applied")
    FUNCTION = "load"

    def __init__(self):
        self._loaded: lora_loading.LoadedLora | None = None

    @classmethod
    def inputs(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL",),
                "lora_name": (
                    lora_files.lora_names(),
                    {"tooltip": "A run's files are listed together, the final one first."},
                ),
                "checkpoint": (
                    list(lora_files.CHECKPOINTS),
                    {"default": lora_files.THIS_FILE},
                ),
                "strength_model": ("FLOAT", STRENGTH),
                "strength_clip": ("FLOAT", STRENGTH),
            },
            "optional": {
                "clip": ("CLIP",),
                "allow_partial": (
                    "BOOLEAN",
                    {"default": False},
                ),
            },
        }

    @classmethod
    def VALIDATE_INPUTS(cls, lora_name: str | None) -> bool | str:  # noqa: N802 (ComfyUI's name)
        return lora_files.valid_names(lora_name, checkpoint=lora_files.NEWEST)  # whatever is chosen: its run is enough

    @classmethod
    def IS_CHANGED(cls, lora_name: str, checkpoint: str = lora_files.THIS_FILE, **_: Any) -> str:  # noqa: N802
        """The selected file and its signature: ComfyUI runs the node again only if they have changed."""
        return state_of(lora_name, checkpoint)

    def load(
        self,
        model: Any,
        lora_name: str,
        checkpoint: str,
        strength_model: float,
        strength_clip: float,
        clip: Any = None,
        allow_partial: bool = False,
    ) -> dict[str, Any]:
        path = lora_files.lora_path(lora_name, checkpoint)
        self._loaded = fresh(self._loaded, path)
        applied = lora_loading.apply(model, clip, self._loaded, strength_model, strength_clip, allow_partial)
        logging.info(applied.summary)
        return {"ui": {"text": [applied.summary]}, "result": (applied.model, applied.clip, applied.summary)}


def state_of(lora_name: str, checkpoint: str = lora_files.THIS_FILE) -> str:
    """What IS_CHANGED compares: the selected path and the file's signature."""
    try:
        path = lora_files.lora_path(lora_name, checkpoint)
        return f"{path}:{lora_loading.signature(path)}"
    except (OSError, ValueError) as error:
        return str(error)


def fresh(loaded: lora_loading.LoadedLora | None, path: Path) -> lora_loading.LoadedLora:
    """The file as it is now, from memory if that copy is current. Raises ValueError."""
    try:
        if loaded and loaded.path == path and loaded.signature == lora_loading.signature(path):
            return loaded
    except OSError as error:
        raise ValueError(f"{path.name} cannot be read: {error.strerror}") from error
    return lora_loading.load(path)


class LoRAReport(Node):
    """What a LoRA file is: layout, rank, norms by block, training settings, concepts, and how it fits a model."""

    SEARCH_ALIASES = ("lora info", "lora metadata", "trigger words")
    RETURN_TYPES = ("STRING", "IMAGE")
    RETURN_NAMES = ("report", "plot")
    FUNCTION = "report"
    OUTPUT_NODE = True

    @classmethod
    def inputs(cls) -> dict[str, Any]:
        return {
            "required": {"lora_name": (lora_files.lora_names(),)},
            "optional": {
                "model": ("MODEL",),
                "clip": ("CLIP",),
            },
        }

    @classmethod
    def VALIDATE_INPUTS(cls, lora_name: str | None) -> bool | str:  # noqa: N802 (ComfyUI's name)
        return lora_files.valid_names(lora_name)

    @classmethod
    def IS_CHANGED(cls, lora_name: str, **_: Any) -> str:  # noqa: N802
        return state_of(lora_name)

    def report(self, lora_name: str, model: Any = None, clip: Any = None) -> dict[str, Any]:
        file = described(lora_files.lora_path(lora_name))
        found = report_of(file, _fit_lines(file.file.survey, model, clip))
        text, plot = as_text(found), _as_image(as_picture(found))
        return {"ui": {"text": [text], **_preview(plot)}, "result": (text, plot)}


def described(path: Path) -> Description:
    """What a file is, from its header and numbers. Raises ValueError, naming the file and what is wrong with it."""
    try:
        return describe(path)
    except OSError as error:
        raise ValueError(f"{path.name} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ValueError(f"{path.name} cannot be read: {error}") from None


def report_of(found: Description, fit: tuple[str, ...] = ()) -> Report:
    """The report on a file; `fit`: lines on how it fits a model."""
    header, survey = found.file.header, found.file.survey
    kinds = [kind_of(module) for module in survey.modules.values()]
    return Report(
        file=header.path.name,
        num_bytes=header.num_bytes,
        layout=survey.title,
        dtypes=found.dtypes,
        ranks=found.ranks,
        scales=found.scales,
        kinds={kind: kinds.count(kind) for kind in sorted(set(kinds))},
        norms=norms_by_block(survey, found.norms),
        not_finite=found.not_finite,
        unknown=survey.unknown,
        notes=found.notes,
        facts=facts_of(header.metadata),
        concepts=tuple(read_concepts(header.metadata)),
        fit=fit,
    )


def kind_of(module: Module) -> str:
    """What the report counts a module as: `transformer`, `CLIP`, `transformer (LoHa)` …"""
    part = lora_loading.PARTS[module.target.part] if module.target else "unknown"
    return part if module.kind == "LoRA" else f"{part} ({module.kind})"


def _fit_lines(survey: Survey, model: Any, clip: Any) -> tuple[str, ...]:
    if model is None and clip is None:
        return ()
    found, total = match(survey, model, clip), len(survey.modules)
    if len(found.names) == total and not found.unmatched:
        return (f"all {total} modules fit the connected model",)
    lines = [f"{len(found.names)} of {total} modules match the connected model"]
    lines += [f"{len(found.skipped)} are for a part that is not connected"] if found.skipped else []
    lines += [f"{len(found.unmatched)} name nothing there: {', '.join(found.unmatched[:4])}"] if found.unmatched else []
    lines += [f"{name} {why}" for name, why in list(found.misshapen.items())[:4]]
    return tuple(lines)


def _as_image(picture: Any) -> Any:
    """ComfyUI's IMAGE, [1, height, width, 3] in 0..1, of a PIL picture."""
    import numpy
    import torch

    return torch.from_numpy(numpy.asarray(picture).astype(numpy.float32) / 255.0)[None]


def _preview(image: Any) -> dict[str, Any]:
    import nodes

    return nodes.PreviewImage().save_images(image, filename_prefix="lora_report")["ui"]


NODES = (LoadFluxDreamBoothLoRA, LoRAReport)
