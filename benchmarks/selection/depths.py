"""A comparison's figures with features of other depths of the base model, and at other noise, prompt by prompt."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from trainer.comparison.compare import Comparer
from trainer.comparison.features import FluxFeatures
from trainer.comparison.measures import drifts, make_references, similarity, training_image

SIGMAS = (0.1, 0.25, 0.5, 0.75)


def figures_at_depths(
    comparer: Comparer, images: Sequence[Sequence[Image.Image]], sigmas: Sequence[float] = SIGMAS
) -> list[dict[str, Any]]:
    """For each of the sigmas and each block of the transformer: what was measured.

    images: of each checkpoint, one for each prompt. An entry has "sigma", "block", and by concept "floor", "room" (as
    in `Reference`) and "base", the similarity of the base model's image for each prompt; then "checkpoints", for each
    "similarity" by concept, and "drift" for each plain prompt.
    """
    return [entry for sigma in sigmas for entry in _at_sigma(comparer, images, sigma)]


def _at_sigma(comparer: Comparer, images: Sequence[Sequence[Image.Image]], sigma: float) -> list[dict[str, Any]]:
    source, prompts = comparer.source, comparer.prompts
    device, no_text = source.vae.device, source.texts([""])[""]
    with source.applied(None) as transformer:
        blocks = len(transformer.transformer_blocks) + len(transformer.single_transformer_blocks)
        depths = [block / blocks for block in range(blocks)]
        features = FluxFeatures(transformer, source.vae, no_text, source.settings.width, depths, sigma)

        def grids(images: Sequence[Image.Image]) -> list[list[torch.Tensor]]:
            """By depth, then by image."""
            return [list(each) for each in zip(*features(images), strict=True)]

        training = [training_image(sample) for concept in comparer.concepts for sample in concept.samples]
        known = {image.tobytes(): grid for image, grid in zip(training, features(training), strict=True)}
        entries, references, bases = [], [], []
        for block, grids_of_base in enumerate(grids(comparer.base)):
            base = _stacked(grids_of_base, device)

            def of_training(images: Sequence[Image.Image], block: int = block) -> list[torch.Tensor]:
                return [known[image.tobytes()][block].to(device) for image in images]

            found = make_references(of_training, comparer.concepts, prompts, list(base))
            concepts = {
                each.concept.name: {
                    "floor": each.floor,
                    "room": each.room,
                    "base": _rounded(similarity(each.regions, base)),
                }
                for each in found
            }
            entries.append({"sigma": sigma, "block": block, "concepts": concepts, "checkpoints": []})
            references.append(found)
            bases.append(base)
        for of_checkpoint in images:
            for entry, found, base, grids_of_block in zip(
                entries, references, bases, grids(of_checkpoint), strict=True
            ):
                patches = _stacked(grids_of_block, device)
                measured = {each.concept.name: _rounded(similarity(each.regions, patches)) for each in found}
                drift = [round(value, 2) for value in drifts(prompts, list(base), list(patches))]
                entry["checkpoints"].append({"similarity": measured, "drift": drift})
    return entries


def _stacked(grids: Sequence[torch.Tensor], device: torch.device) -> torch.Tensor:
    """The patches of images that all have the same size: [images, n, D]."""
    return torch.stack([grid.flatten(0, 1) for grid in grids]).to(device)


def _rounded(values: torch.Tensor) -> list[float]:
    return [round(value, 4) for value in values.tolist()]
