"""GroundingDINO and SAM 2 from their folders, through transformers' own classes.

Images are prepared here with Pillow and torch, as the published preprocessing does it, because transformers' fast image
processors need torchvision.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer

from trainer.common.problems import Problem, Problems
from trainer.lora_file.header import read_header
from trainer.masking.create import Box, Detection
from trainer.masking.description import DETECTOR, SEGMENTER, MaskModel

DOWNLOAD = "run `sh download.sh --masks`"
IMAGE_MEAN, IMAGE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, which both models were trained with
WEIGHTS = "model.safetensors"
POSITIONS = (  # one tensor of SAM 2 under two names; a file written by some versions of transformers has only one
    "shared_image_embedding.positional_embedding",
    "prompt_encoder.shared_embedding.positional_embedding",
)
COMPUTED = ".relative_position_index"  # buffers of Swin that follow from its window size; not in every file


class GroundingDino:
    """GroundingDINO: finds what a phrase names in an image (Liu et al. 2023, arXiv:2303.05499)."""

    def __init__(self, folder: Path, device: torch.device):
        """Raises `Problems` if the folder does not hold a complete model."""
        from transformers import GroundingDinoConfig, GroundingDinoForObjectDetection

        values = _config_values(folder)
        values["disable_custom_kernels"] = True
        self.model = _load(GroundingDinoForObjectDetection, folder, GroundingDinoConfig.from_dict(values), device)
        self.tokenizer = _tokenizer(folder)
        sizes = _read_json(folder / "preprocessor_config.json").get("size", {})
        self.shortest, self.longest = int(sizes.get("shortest_edge", 800)), int(sizes.get("longest_edge", 1333))
        self.device = device

    @torch.no_grad()
    def __call__(self, image: Image.Image, phrase: str) -> list[Detection]:
        """Every box that the model proposes, in pixels of the image; its score is that of its best-matching token.

        image: RGB. phrase: what to look for, such as "toy"; case does not matter.
        """
        tokens = self.tokenizer.encode(f"{phrase.strip().rstrip('.').lower()}.")
        scale = min(self.shortest / min(image.size), self.longest / max(image.size))
        width, height = (max(1, round(side * scale)) for side in image.size)
        pixels = _normalized(image.resize((width, height), Image.Resampling.BILINEAR), self.device)
        found = self.model(
            pixel_values=pixels,
            pixel_mask=torch.ones(1, height, width, dtype=torch.long, device=self.device),
            input_ids=torch.tensor([tokens.ids], device=self.device),
            token_type_ids=torch.tensor([tokens.type_ids], device=self.device),
            attention_mask=torch.tensor([tokens.attention_mask], device=self.device),
        )
        scores = found.logits[0].float().sigmoid().amax(dim=-1)
        center, size = found.pred_boxes[0].float().split(2, dim=-1)
        corners = torch.cat([center - size / 2, center + size / 2], dim=-1).clamp(0, 1)
        boxes = corners * torch.tensor([*image.size, *image.size], device=self.device)
        return [
            Detection((box[0], box[1], box[2], box[3]), score)
            for box, score in zip(boxes.tolist(), scores.tolist(), strict=True)
        ]


class Sam2:
    """SAM 2: segments the object in a box (Ravi et al. 2024, arXiv:2408.00714)."""

    def __init__(self, folder: Path, device: torch.device):
        """Raises `Problems` if the folder does not hold a complete model."""
        from transformers import Sam2Config, Sam2Model

        values = _config_values(folder)
        parts = ("vision_config", "prompt_encoder_config", "mask_decoder_config")  # those of the video model fit too
        config: Any = Sam2Config.from_dict({name: _without_kind(values[name]) for name in parts if name in values})
        self.model = _load(Sam2Model, folder, config, device)
        side = config.prompt_encoder_config.image_size
        self.side = side if isinstance(side, int) else int(side[0])
        self.device = device

    @torch.no_grad()
    def __call__(self, image: Image.Image, boxes: Sequence[Box]) -> Image.Image:
        """One mask of the objects in all boxes: mode L, the size of the image, 255 inside and 0 outside.

        image: RGB. boxes: left, top, right, bottom in its pixels.
        """
        resized = image.resize((self.side, self.side), Image.Resampling.BILINEAR)
        scale = torch.tensor([self.side / side for side in (*image.size, *image.size)])
        found = self.model(
            pixel_values=_normalized(resized, self.device),
            input_boxes=(torch.tensor([list(boxes)]) * scale).to(self.device),
            multimask_output=False,  # a box is not ambiguous
        )
        inside = torch.zeros(image.size[::-1], dtype=torch.bool, device=self.device)
        for logits in found.pred_masks[0].float():  # [1, h, w], coarser than the image
            inside |= torch.nn.functional.interpolate(logits[None], inside.shape, mode="bilinear")[0, 0] > 0
        return Image.fromarray(inside.to(torch.uint8).mul(255).cpu().numpy())


def model_problems(detector: Path, segmenter: Path) -> list[Problem]:
    """What is wrong with transformers' version and the folders of the two models, found without reading their weights.

    It checks that all files exist, that config.json is of the right model, and the header of the weights file.
    """
    return [
        *_version_problems(),
        *_folder_problems(DETECTOR, detector),
        *_folder_problems(SEGMENTER, segmenter),
    ]


def _version_problems() -> Iterator[Problem]:
    import transformers

    missing = [name for name in ("GroundingDinoForObjectDetection", "Sam2Model") if not hasattr(transformers, name)]
    if missing:
        what = f"version {transformers.__version__} has no {' and no '.join(missing)}"
        yield Problem("transformers", what, "pip install 'transformers>=4.56'")


def _folder_problems(model: MaskModel, folder: Path) -> Iterator[Problem]:
    missing = [name for name in model.files if not (folder / name).is_file()]
    if missing:
        what = f"the {model.key} ({model.title}) lacks {', '.join(missing)}"
        yield Problem(str(folder), what, f"{DOWNLOAD}, or give another folder with --{model.key}")
        return
    try:
        kind = _read_json(folder / "config.json").get("model_type")
        if kind not in model.kinds:
            what = f"holds a model of type {kind!r}, not {model.title}"
            yield Problem(str(folder / "config.json"), what, f"give a folder of {model.title} with --{model.key}")
    except Problems as found:
        yield from found.problems
    try:
        read_header(folder / WEIGHTS)
    except ValueError as error:
        yield Problem(str(folder / WEIGHTS), f"cannot be read: {error}", f"delete it, then {DOWNLOAD}")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(held, dict):
            raise ValueError("is not an object")
        return held
    except (OSError, ValueError) as error:
        problem = Problem(str(path), f"cannot be read: {error}", f"delete it, then {DOWNLOAD}")
        raise Problems([problem]) from error


def _config_values(folder: Path) -> dict[str, Any]:
    """config.json without what would name code of its own or a class."""
    held = _read_json(folder / "config.json")
    return {name: value for name, value in held.items() if name not in ("auto_map", "model_type")}


def _without_kind(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != "model_type"}


def _tokenizer(folder: Path) -> Tokenizer:
    path = folder / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        problem = Problem(str(path), f"cannot be read as a tokenizer: {error}", f"delete it, then {DOWNLOAD}")
        raise Problems([problem]) from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _load(kind: Any, folder: Path, config: Any, device: torch.device) -> Any:
    """The model in float32, every one of its weights taken from the file."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # what it would warn of is checked below
    logging.disable_progress_bar()
    try:
        model, info = kind.from_pretrained(
            str(folder), config=config, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # the library raises many types for a damaged file
        problem = Problem(str(folder), f"cannot be loaded: {error}", f"delete it, then {DOWNLOAD}")
        raise Problems([problem]) from error
    finally:
        logging.set_verbosity(verbosity)
    missing = {key for key in info["missing_keys"] if not key.endswith(COMPUTED)}
    if len(lacking := missing & {*POSITIONS}) == 1:
        missing -= lacking
        _copy_positions(model, *lacking)
    wrong = sorted({*missing, *(str(key) for key in info["mismatched_keys"])})
    if wrong:
        what = f"lacks {len(wrong)} of the model's tensors, {wrong[0]} first"
        raise Problems([Problem(str(folder / WEIGHTS), what, f"delete it, then {DOWNLOAD}")])
    return model.to(device, torch.float32).eval()


def _copy_positions(model: torch.nn.Module, lacking: str) -> None:
    (held,) = {*POSITIONS} - {lacking}
    tensors = model.state_dict()
    tensors[lacking].copy_(tensors[held])


def _normalized(image: Image.Image, device: torch.device) -> torch.Tensor:
    """RGB as float32 [1, 3, H, W] with ImageNet's mean and deviation."""
    pixels = torch.from_numpy(np.array(image, np.uint8)).to(device).permute(2, 0, 1).float()[None] / 255
    mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (IMAGE_MEAN, IMAGE_STD))
    return (pixels - mean) / std
