"""The published models that measure likeness and agreement with a text. Imports no torch."""

from trainer.models.published_files import PublishedModel

DINOV2 = PublishedModel(
    key="dinov2",
    title="DINOv2",
    group="judges",
    repository="facebook/dinov2-base",
    kinds=("dinov2",),
    files=("config.json", "model.safetensors"),
)
SIGLIP2 = PublishedModel(
    key="siglip2",
    title="SigLIP 2",
    group="judges",
    repository="google/siglip2-base-patch16-224",
    kinds=("siglip",),  # SigLIP 2 at a fixed resolution has the architecture of SigLIP
    files=("config.json", "model.safetensors", "tokenizer.json"),
)
JUDGE_MODELS = (DINOV2, SIGLIP2)
