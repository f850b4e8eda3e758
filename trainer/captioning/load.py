"""Florence-2 from its folder, through transformers' own class (Xiao et al. 2023, arXiv:2311.06242)."""

import re
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from trainer.captioning.description import CAPTIONER
from trainer.common.problems import Problem
from trainer.models.published import (
    class_problems,
    config_values,
    folder_problems,
    load_model,
    load_tokenizer,
    normalized,
)

TASK = "Describe in detail what is shown in the image."  # of <DETAILED_CAPTION>
SIDE = 768  # pixels; the image is squeezed to a square, as in the published preprocessing
BEAMS, NO_REPEAT, LONGEST = 3, 3, 128  # of the published examples; tokens
_LEFT_OVER = re.compile(r"<[^<>]*>")  # tokens of places and tasks


class Florence2:
    """Describes an image in a sentence or two."""

    def __init__(self, folder: Path, device: torch.device, side: int = SIDE):
        """side: pixels of the model's input. Raises `Problems` if the folder does not hold a complete model."""
        from transformers import Florence2Config, Florence2ForConditionalGeneration

        config: Any = Florence2Config.from_dict(config_values(CAPTIONER, folder))
        self.model = load_model(CAPTIONER, folder, Florence2ForConditionalGeneration, config, device)
        self.tokenizer = load_tokenizer(CAPTIONER, folder)
        self.config, self.text, self.device, self.side = config, config.text_config, device, side
        self.prompt = self.tokenizer.encode(TASK, add_special_tokens=False).ids
        self.image_tokens = 0  # known with the first image

    @torch.no_grad()
    def __call__(self, image: Image.Image) -> str:
        """What the model says about an RGB image; the same words every time."""
        pixels = normalized(image.resize((self.side, self.side), Image.Resampling.BICUBIC), self.device)
        self.image_tokens = self.image_tokens or self._count_tokens(pixels)
        words = [self.text.bos_token_id, *self.prompt, self.text.eos_token_id]
        ids = torch.tensor([[self.config.image_token_id] * self.image_tokens + words], device=self.device)
        found = self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=pixels,
            max_new_tokens=LONGEST,
            num_beams=BEAMS,
            no_repeat_ngram_size=NO_REPEAT,
            do_sample=False,
            early_stopping=True,
            decoder_start_token_id=self.text.decoder_start_token_id,
            bos_token_id=self.text.bos_token_id,
            eos_token_id=self.text.eos_token_id,
            pad_token_id=self.text.pad_token_id,
            forced_bos_token_id=self.text.bos_token_id,
            forced_eos_token_id=self.text.eos_token_id,
        )
        said = self.tokenizer.decode(found[0].tolist(), skip_special_tokens=True)
        return " ".join(_LEFT_OVER.sub(" ", said).split())

    def _count_tokens(self, pixels: torch.Tensor) -> int:
        """How many tokens of the text an image takes the place of."""
        features = self.model.get_image_features(pixels)
        return getattr(features, "pooler_output", features).shape[-2]  # a bare tensor in older versions


def model_problems(folder: Path) -> list[Problem]:
    """What is wrong with transformers' version and the model's folder, found without reading its weights."""
    return [*class_problems(("Florence2ForConditionalGeneration",), "4.56"), *folder_problems(CAPTIONER, folder)]
