"""The node that loads the tiny FLUX that comes with the project, or one like it."""

from pathlib import Path
from typing import Any

from . import mini
from .node_texts import Node


class LoadMiniFlux(Node):
    """Loads MODEL, CLIP and VAE of a tiny FLUX.1 from one folder of ComfyUI's models."""

    FUNCTION = "load"
    RETURN_TYPES = ("MODEL", "CLIP", "VAE")
    SEARCH_ALIASES = ("tiny flux", "demo model")

    @classmethod
    def inputs(cls) -> dict[str, Any]:
        return {"required": {"folder": (mini.folders(_models()) or ["mini"],)}}

    @classmethod
    def IS_CHANGED(cls, folder: str) -> str:  # noqa: N802 (ComfyUI's name)
        try:
            return mini.find_files(_models() / folder).fingerprint
        except OSError as error:
            return str(error)

    def load(self, folder: str) -> tuple[Any, Any, Any]:
        import folder_paths

        return mini.load(_models() / folder, folder_paths.get_folder_paths("embeddings"))


def _models() -> Path:
    import folder_paths

    return Path(folder_paths.models_dir)


NODES = (LoadMiniFlux,)
