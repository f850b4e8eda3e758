"""The node that generates images with a run's checkpoints, side by side."""

from collections.abc import Iterator
from typing import Any

from . import grid, lora_loading, sampling
from .applied_loras import AppliedLoras
from .findings import Measured, find_for_files
from .lora_files import lora_path
from .node_texts import Node
from .nodes_prompt import file_version
from .nodes_sample import sampling_widgets, t5_length_of
from .runs import runs_dir
from .safetensors_header import read_header
from .sheet import Sheet

LARGEST_PREVIEW = 1024


class CheckpointGrid(Node):
    """Checkpoints of a run x strengths x prompts as one labelled sheet, with the same seed everywhere."""

    FUNCTION = "draw"
    RETURN_TYPES = ("IMAGE", "IMAGE")
    RETURN_NAMES = ("sheet", "pictures")
    SEARCH_ALIASES = ("xy plot", "epochs", "lora comparison", "contact sheet")

    @classmethod
    def inputs(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL",),
                "clip": ("CLIP",),
                "vae": ("VAE",),
                "run": (list(_runs()) or [""],),
                "checkpoints": ("STRING", {"default": grid.ALL}),
                "strengths": ("STRING", {"default": "0, 1"}),
                "prompts": ("STRING", {"multiline": True}),
                **sampling_widgets(),
                "cell_size": ("INT", {"default": 512, "min": 64, "max": 2048, "step": 16}),
            }
        }

    @classmethod
    def VALIDATE_INPUTS(cls, run: str | None) -> bool | str:  # noqa: N802 (ComfyUI's name)
        return True if run in (None, "") or _checkpoints(str(run)) else _no_run(str(run))

    @classmethod
    def IS_CHANGED(cls, run: str, **_: Any) -> Any:  # noqa: N802
        return [(each.file, file_version(each.file)) for each in _checkpoints(run)]

    def draw(
        self,
        model: Any,
        clip: Any,
        vae: Any,
        run: str,
        checkpoints: str,
        strengths: str,
        prompts: str,
        width: int,
        height: int,
        seed: int,
        steps: int,
        guidance: float,
        sampler: str,
        schedule: str,
        t5_length: int,
        cell_size: int,
    ) -> tuple[Any, Any]:
        sampling.refuse_other_models(model, clip)
        settings = sampling.Settings(seed, steps, guidance, sampler, schedule)
        chosen = grid.choose(_checkpoints(run), checkpoints)
        numbers = grid.read_strengths(strengths)
        if not chosen and any(numbers):
            raise ValueError(_no_run(run))
        rows = grid.plan(grid.read_prompts(prompts), chosen, numbers)
        applied = AppliedLoras(tuple((each.file, read_header(lora_path(each.file)).metadata) for each in chosen))
        length = t5_length or t5_length_of(model, applied).tokens
        measured, keep = _known(run)
        sheet = Sheet(
            run,
            f"seed {seed}, {steps} steps, {sampler}, {schedule}, guidance {guidance:g}, {width} x {height}",
            [grid.column_label(cell) for cell in rows[0]],
            [grid.row_label(row, sum(map(bool, numbers))) for row in rows],
            _cell(width, height, cell_size),
            [grid.column_foot(cell, measured) for cell in rows[0]],
            grid.column_of(rows[0], keep),
        )
        return _Drawing(model, clip, vae, settings, (width, height), length, sheet).draw(rows)


class _Drawing:
    """The models and numbers of one grid, and its progress."""

    def __init__(
        self,
        model: Any,
        clip: Any,
        vae: Any,
        settings: sampling.Settings,
        size: tuple[int, int],
        t5_length: int,
        sheet: Sheet,
    ):
        self.model, self.clip, self.vae = model, clip, vae
        self.settings, self.size, self.t5_length, self.sheet = settings, size, t5_length, sheet
        self.done = 0
        self.bar: Any = None

    def draw(self, rows: list[list[grid.Cell]]) -> tuple[Any, Any]:
        """The sheet and all images as IMAGE. Prompts are encoded first, so that each model is loaded once."""
        import comfy.utils
        import torch

        cells = list(dict.fromkeys(cell for row in rows for cell in row))
        self.bar = comfy.utils.ProgressBar(len(cells) * self.settings.steps)
        conditionings = self._encode(cells)
        images: dict[grid.Cell, Any] = {}
        small: dict[grid.Cell, Any] = {}
        for cell, model in self._models(cells):
            images[cell] = self._picture(model, conditionings[cell])
            small[cell] = _as_picture(images[cell]).resize(self.sheet.cell)
            self.done += self.settings.steps
            self._tell(self.sheet.draw(_placed(rows, small)))
        sheet = self.sheet.draw(_placed(rows, small))
        return _as_image(sheet), torch.cat([images[cell] for row in rows for cell in row])

    def _encode(self, cells: list[grid.Cell]) -> dict[grid.Cell, Any]:
        encoded: dict[grid.Cell, Any] = {}
        for (checkpoint, strength), group in _grouped(cells).items():
            _, clip = self._applied(None, self.clip, checkpoint, strength)
            for cell in group:
                _stop_if_asked()
                encoded[cell] = sampling.encode(clip, cell.prompt, self.t5_length, self.settings.guidance)
        return encoded

    def _models(self, cells: list[grid.Cell]) -> Iterator[tuple[grid.Cell, Any]]:
        for (checkpoint, strength), group in _grouped(cells).items():
            model, _ = self._applied(self.model, None, checkpoint, strength)
            for cell in group:
                yield cell, model

    def _applied(self, model: Any, clip: Any, checkpoint: grid.Checkpoint | None, strength: float) -> tuple[Any, Any]:
        """The model and CLIP with a checkpoint applied; a LoRA without a part for CLIP leaves CLIP unchanged."""
        if checkpoint is None:
            return model, clip
        lora = lora_loading.load(lora_path(checkpoint.file))
        if model is None and not any(m.target and m.target.part != "transformer" for m in lora.survey.modules.values()):
            return model, clip
        applied = lora_loading.apply(model, clip, lora, strength, strength, partial=False)
        return applied.model, applied.clip

    def _picture(self, model: Any, positive: Any) -> Any:
        _stop_if_asked()
        latent = sampling.empty_latent(model, *self.size)
        drawn = sampling.sample(model, positive, latent, self.settings, self._step)
        return self.vae.decode(drawn["samples"])

    def _step(self, step: int, *_: Any) -> None:
        self.bar.update_absolute(self.done + min(step + 1, self.settings.steps - 1))

    def _tell(self, sheet: Any) -> None:
        self.bar.update_absolute(self.done, preview=("JPEG", sheet, LARGEST_PREVIEW))


def _grouped(cells: list[grid.Cell]) -> dict[tuple[grid.Checkpoint | None, float], list[grid.Cell]]:
    groups: dict[tuple[grid.Checkpoint | None, float], list[grid.Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.checkpoint, cell.strength), []).append(cell)
    return groups


def _placed(rows: list[list[grid.Cell]], pictures: dict[grid.Cell, Any]) -> dict[tuple[int, int], Any]:
    places = ((row, column, cell) for row, cells in enumerate(rows) for column, cell in enumerate(cells))
    return {(row, column): pictures[cell] for row, column, cell in places if cell in pictures}


def _cell(width: int, height: int, longest: int) -> tuple[int, int]:
    scale = min(1.0, longest / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _as_picture(image: Any) -> Any:
    from PIL import Image

    return Image.fromarray((image[0].cpu().float().clamp(0, 1) * 255).round().byte().numpy())


def _as_image(picture: Any) -> Any:
    import numpy as np
    import torch

    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255)[None]


def _stop_if_asked() -> None:
    import comfy.model_management

    comfy.model_management.throw_exception_if_processing_interrupted()


def _runs() -> dict[str, list[grid.Checkpoint]]:
    import folder_paths

    return grid.runs(folder_paths.get_filename_list("loras"))


def _checkpoints(run: str) -> list[grid.Checkpoint]:
    """A run's checkpoints by its name, with either system's slashes; none if it has none."""
    found = _runs()
    return found.get(run) or found.get(run.replace("\\", "/")) or found.get(run.replace("/", "\\")) or []


def _known(run: str) -> tuple[dict[str, Measured], str | None]:
    """The figures of a run's checkpoints and the one to keep, both by the names in ComfyUI's list, if known."""
    import folder_paths

    return find_for_files(runs_dir(), run, folder_paths.get_filename_list("loras"))


def _no_run(run: str) -> str:
    return f"there is no LoRA of the run {run!r} in models/loras: choose another run, or press R when it has one"


NODES = (CheckpointGrid,)
