"""The two published models that create masks, and the files needed of each. Imports no torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class MaskModel:
    """A model on the Hugging Face Hub.

    key: its name in messages. title: what it is. kinds: the `model_type` that its config.json may have. files: what is
    needed of it, by their names in the repository and in its folder.
    """

    key: str
    title: str
    repository: str
    kinds: tuple[str, ...]
    files: tuple[str, ...]

    @property
    def folder(self) -> str:
        """The model's folder, relative to models/."""
        return f"masks/{self.repository.rpartition('/')[2]}"


DETECTOR = MaskModel(
    key="detector",
    title="GroundingDINO",
    repository="IDEA-Research/grounding-dino-base",
    kinds=("grounding-dino",),
    files=("config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json"),
)
SEGMENTER = MaskModel(
    key="segmenter",
    title="SAM 2",
    repository="facebook/sam2.1-hiera-large",
    kinds=("sam2", "sam2_video"),  # the published file holds the video model, which contains the one for images
    files=("config.json", "model.safetensors"),
)
MASK_MODELS = (DETECTOR, SEGMENTER)
