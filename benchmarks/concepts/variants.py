"""The method of a demo for concepts of the tiny FLUX's world, complete or without a part."""

import copy
import json
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mini.world.concepts import DESIGNS
from mini.world.scene import CONCEPTS, TOYS

DATASETS = {  # of each demo's settings
    "flux_data/demo_gpu.toml": Path("flux_data/data_demo_gpu.toml"),
    "flux_data/demo.toml": Path("flux_data/data_demo.toml"),
}
Dataset = dict[str, Any]


def _without_masks(section: Dataset) -> None:
    for subset in section["subsets"]:
        if subset.get("masked_loss"):
            subset["mask_background"] = 1.0  # the photograph is learned as it is; its mask still cuts the concept out


def _without_pairs(section: Dataset) -> None:
    section["compositions"] = [each for each in section["compositions"] if each.get("together") == 1]


def _without_companions(section: Dataset) -> None:
    section["compositions"] = [each for each in section["compositions"] if each.get("together") != 1]


def _without_preservation(section: Dataset) -> None:
    section.pop("preservation", None)
    section["subsets"] = [each for each in section["subsets"] if not _preserves(each)]


def _class_words_only(section: Dataset) -> None:
    for preservation in section.get("preservation", ()):
        del preservation["prompts"]
        preservation.update(styles=[], scenes=[])


def _preserves(subset: Mapping[str, Any]) -> bool:
    return "diff_output_preservation" in subset.get("custom_attributes", {})


def _as_it_is(section: Dataset) -> None:
    """Changes nothing."""


VARIANTS: Mapping[str, tuple[Callable[[Dataset], None], tuple[str, ...]]] = {  # what changes in the dataset; flags
    "complete": (_as_it_is, ()),
    "photographs without masks": (_without_masks, ()),
    "no composites of the concepts together": (_without_pairs, ()),
    "no companions": (_without_companions, ()),
    "no preservation": (_without_preservation, ()),
    "class words preserved only": (_class_words_only, ()),
    "q and k adapted": (_as_it_is, ("--network_args=network_reg_dims=(to_[qk]|add_[qk]_proj)=32",)),
}


@dataclass(frozen=True)
class ConceptRun:
    """One training. concepts: two or three names of `DESIGNS`, toys first. variant: of `VARIANTS`. config: of
    `DATASETS`."""

    concepts: tuple[str, ...]
    variant: str
    seed: int
    config: str = next(iter(DATASETS))

    @property
    def name(self) -> str:
        """A name for files."""
        number, demo = list(VARIANTS).index(self.variant), Path(self.config).stem
        return f"{demo}-{'+'.join(self.concepts)}-{number}-{self.seed}"

    @property
    def flags(self) -> tuple[str, ...]:
        """What the variant adds to the command line."""
        return VARIANTS[self.variant][1]

    def dataset(self, photos: Path) -> Dataset:
        """What the dataset file holds. photos: has a folder of photographs for each concept that is not the demo's.

        Raises ValueError if the variant leaves out what the demo's method does not have.
        """
        data = tomllib.loads(DATASETS[self.config].read_text(encoding="utf-8"))
        (section,) = data["datasets"]
        toy, card, *others = section["subsets"]
        folders = {name: photos / name if name not in CONCEPTS else Path("flux_data") / name for name in self.concepts}
        models = {name: toy if is_toy(name) else card for name in self.concepts}
        section["subsets"] = [
            {**models[name], "image_dir": str(folders[name]), "class_tokens": class_tokens(name)}
            for name in self.concepts
        ] + others
        together, *with_companions = section["compositions"]
        if len(self.concepts) > 2:
            together["together"] = [2, len(self.concepts)]
        if with_companions:
            of_toy, of_card = with_companions
            with_companions = [
                {**copy.deepcopy(of_toy if is_toy(name) else of_card), "concepts": class_tokens(name)}
                for name in self.concepts
            ]
        section["compositions"] = [together, *with_companions]
        change, _ = VARIANTS[self.variant]
        before = copy.deepcopy(section)
        change(section)
        if section == before and change is not _as_it_is:
            raise ValueError(f"{self.config} does not have what this leaves out: {self.variant}")
        return data


def is_toy(name: str) -> bool:
    """Whether a concept is a toy and not a card."""
    return DESIGNS[name].kind in ("toy", *TOYS)


def class_tokens(name: str) -> str:
    """The trigger of a concept, such as "tjtoy toy"."""
    return f"{name} {'toy' if is_toy(name) else 'gpu'}"


def runs(
    groups: Sequence[Sequence[str]], variants: Sequence[str], seeds: Sequence[int], config: str = ConceptRun.config
) -> list[ConceptRun]:
    """All trainings of groups of concepts, in the order in which their results are most useful."""
    return [
        ConceptRun(tuple(sorted(group, key=lambda name: not is_toy(name))), variant, seed, config)
        for variant in variants
        for group in groups
        for seed in seeds
    ]


def write_dataset(path: Path, data: Dataset) -> None:
    """Write a dataset file, one line for each of its tables."""
    path.write_text("".join(f"{key} = {_as_toml(value)}\n" for key, value in data.items()), encoding="utf-8")


def needs_images(data: Dataset) -> bool:
    """Whether the base model has to generate images for a dataset."""
    (section,) = data["datasets"]
    return "preservation" in section or any("companions" in each for each in section["compositions"])


def _as_toml(value: Any) -> str:
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{key} = {_as_toml(each)}' for key, each in value.items())} }}"
    if isinstance(value, list):
        return f"[{', '.join(map(_as_toml, value))}]"
    return json.dumps(value)  # texts, numbers, true and false are written alike
