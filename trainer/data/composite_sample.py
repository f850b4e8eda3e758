"""A composite as a sample: what stands in for its file and its subset, what it is called, what is behind it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random

from trainer.data.compose import Composite, CompositeMask, MakesImage, Plain
from trainer.data.composition_file import CompositionConfig
from trainer.data.dataset_config import SubsetConfig
from trainer.data.relations import Relation
from trainer.data.samples import Sample


def composite_sample(
    composition: CompositionConfig,
    index: tuple[int, int],
    number: int,
    recipe: MakesImage,
    caption: str,
    companion: str | None = None,
) -> Sample:
    """The sample of one composite.

    index: of the dataset and of its composition. number: of the composite. companion: the other thing in it, if any.
    """
    kind = "composite" if companion is None else "companion"
    digest, path = recipe.sha256, Path(f"{kind} {number:03}: {caption}")
    return Sample(
        key=f"{index[0]}.{'composition' if companion is None else 'companions'} {index[1]}/{number:03}",
        picture=Composite(path, recipe, digest),
        subset=_subset(composition),
        dataset_index=index[0],
        lines=(caption,),
        bucket=recipe.size,
        resized=recipe.size,
        crop=(0, 0),
        interpolation="area",
        num_repeats=1,
        is_reg=False,
        loss_weight=1.0,
        preserves_output=False,
        mask=CompositeMask(path, recipe, digest),
        composition=index[1],
        companion=companion,
    )


def _subset(composition: CompositionConfig) -> SubsetConfig:
    """What stands in for the subset of a composite: its caption is taken as it is, its mask weighs as asked."""
    return SubsetConfig(
        image_dir=Path("composites"),
        where=composition.where,
        caption_dropout_rate=0.0,
        masked_loss=True,
        mask_background=composition.mask_background,
        mask_dilation=composition.mask_dilation,
    )


def plain_backdrop(rng: Random) -> Plain:
    """A backdrop in a light colour and a shade of it."""
    above = tuple(rng.randint(120, 245) for _ in range(3))
    shade = rng.randint(-40, 30)
    below = tuple(min(255, max(60, value + shade)) for value in above)
    return Plain((above[0], above[1], above[2]), (below[0], below[1], below[2]), rng.uniform(0.45, 0.7))


def in_turn(relations: Sequence[Relation], count: int) -> list[Relation]:
    """`count` relations by weight, spread evenly: always the one that is furthest behind its share."""
    total = sum(relation.weight for relation in relations)
    used: Mapping[str, float] = {relation.name: 0.0 for relation in relations}
    order = []
    for step in range(1, count + 1):
        behind = max(relations, key=lambda each: each.weight * step / total - used[each.name])
        used = {**used, behind.name: used[behind.name] + 1}
        order.append(behind)
    return order


def fill_template(template: str, names: Sequence[str], relation: str, place: str) -> str:
    """Fill in a caption template, with white space collapsed.

    names: of the two or more concepts, for {first}, {second}. relation: such as "holding", for {relation}. place: such
    as "on a plain background", for {place}. {concepts} becomes "A holding B", or "A, B and C" for more than two.
    """
    pair = f"{names[0]} {relation} {names[1]}"
    concepts = pair if len(names) == 2 else f"{', '.join(names[:-1])} and {names[-1]}"
    text = template.format(concepts=concepts, first=names[0], second=names[1], relation=relation, place=place)
    return " ".join(text.split())
