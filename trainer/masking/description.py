"""The two published models that create masks, and the files needed of each. Imports no torch."""

from trainer.models.published_files import PublishedModel

DETECTOR = PublishedModel(
    key="detector",
    title="GroundingDINO",
    group="masks",
    repository="IDEA-Research/grounding-dino-base",
    kinds=("grounding-dino",),
    files=("config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json"),
)
SEGMENTER = PublishedModel(
    key="segmenter",
    title="SAM 2",
    group="masks",
    repository="facebook/sam2.1-hiera-large",
    kinds=("sam2", "sam2_video"),  # the published file holds the video model, which contains the one for images
    files=("config.json", "model.safetensors"),
)
MASK_MODELS = (DETECTOR, SEGMENTER)
