"""GroundingDINO and SAM 2 from their folders, through transformers' own classes.

Images are prepared as the published preprocessing does it.
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from trainer.common.problems import Problem
from trainer.masking.create import Box, Detection
from trainer.masking.description import DETECTOR, SEGMENTER
from trainer.models.published import (
    class_problems,
    config_values,
    folder_problems,
    load_model,
    load_tokenizer,
    normalized,
    read_json,
    without_kind,
)

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

        values = config_values(DETECTOR, folder)
        values["disable_custom_kernels"] = True
        self.model = load_model(
            DETECTOR,
            folder,
            GroundingDinoForObjectDetection,
            GroundingDinoConfig.from_dict(values),
            device,
            _not_computed,
        )
        self.tokenizer = load_tokenizer(DETECTOR, folder)
        sizes = read_json(DETECTOR, folder / "preprocessor_config.json").get("size", {})
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
        pixels = normalized(image.resize((width, height), Image.Resampling.BILINEAR), self.device)
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

        values = config_values(SEGMENTER, folder)
        parts = ("vision_config", "prompt_encoder_config", "mask_decoder_config")  # those of the video model fit too
        config: Any = Sam2Config.from_dict({name: without_kind(values[name]) for name in parts if name in values})
        self.model = load_model(SEGMENTER, folder, Sam2Model, config, device, _with_positions)
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
            pixel_values=normalized(resized, self.device),
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
        *class_problems(("GroundingDinoForObjectDetection", "Sam2Model"), "4.56"),
        *folder_problems(DETECTOR, detector),
        *folder_problems(SEGMENTER, segmenter),
    ]


def _not_computed(_: torch.nn.Module, missing: Collection[str]) -> set[str]:
    return {key for key in missing if not key.endswith(COMPUTED)}


def _with_positions(model: torch.nn.Module, missing: Collection[str]) -> set[str]:
    """Copy the tensor of POSITIONS that the file has to the one that it lacks; returns what else is missing."""
    lacking = {*missing} & {*POSITIONS}
    if len(lacking) != 1:
        return {*missing}
    tensors = model.state_dict()
    (name,), (held,) = lacking, {*POSITIONS} - lacking
    tensors[name].copy_(tensors[held])
    return {*missing} - lacking
