"""The published model that writes captions, and the files needed of it. Imports no torch."""

from trainer.models.published_files import PublishedModel

CAPTIONER = PublishedModel(
    key="captioner",
    title="Florence-2",
    group="captions",
    repository="florence-community/Florence-2-large",  # in the layout of transformers' own class, without code
    kinds=("florence2",),
    files=("config.json", "model.safetensors", "tokenizer.json"),
)
CAPTION_MODELS = (CAPTIONER,)
