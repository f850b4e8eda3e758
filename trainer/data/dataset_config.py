"""What a dataset file says, as typed values: datasets, their subsets, and the defaults of each key."""

from dataclasses import dataclass, fields
from pathlib import Path

from trainer.common.problems import Problem
from trainer.config import TrainConfig
from trainer.data.composition_file import CompositionConfig
from trainer.data.preservation_file import PreservationConfig

PIXELS_PER_TOKEN = 16  # the autoencoder's factor of 8 times the transformer's 2x2 patches
Size = tuple[int, int]  # width, height in pixels


def parse_size(resolution: str) -> Size:
    """Width and height of a resolution setting, written as "side" or "width,height"."""
    width, *rest = (int(side) for side in resolution.split(","))
    return (width, rest[0]) if rest else (width, width)


USUAL_SIZE = parse_size(TrainConfig.resolution)


@dataclass(frozen=True, kw_only=True)
class SubsetConfig:
    """One [[datasets.subsets]]: a folder of images of one concept. Fields have the names of the file's keys.

    where: the table's place in the file, for messages.
    """

    image_dir: Path
    where: str = ""
    is_reg: bool = False
    num_repeats: int = 1
    class_tokens: str | None = None
    caption_extension: str | None = TrainConfig.caption_extension
    caption_separator: str = TrainConfig.caption_separator
    caption_prefix: str | None = TrainConfig.caption_prefix
    caption_suffix: str | None = TrainConfig.caption_suffix
    shuffle_caption: bool = TrainConfig.shuffle_caption
    keep_tokens: int = TrainConfig.keep_tokens
    keep_tokens_separator: str | None = TrainConfig.keep_tokens_separator or None
    secondary_separator: str | None = TrainConfig.secondary_separator
    enable_wildcard: bool = TrainConfig.enable_wildcard
    caption_dropout_rate: float = TrainConfig.caption_dropout_rate
    caption_dropout_every_n_epochs: int = TrainConfig.caption_dropout_every_n_epochs
    caption_tag_dropout_rate: float = TrainConfig.caption_tag_dropout_rate
    token_warmup_min: int = TrainConfig.token_warmup_min
    token_warmup_step: float = TrainConfig.token_warmup_step
    flip_aug: bool = TrainConfig.flip_aug
    resize_interpolation: str | None = TrainConfig.resize_interpolation
    diff_output_preservation: bool = False
    conditioning_data_dir: Path | None = None
    masked_loss: bool = TrainConfig.masked_loss
    alpha_mask: bool = TrainConfig.alpha_mask
    mask_background: str = TrainConfig.mask_background
    mask_dilation: int = 0

    @property
    def masks_loss(self) -> bool:
        """Whether the masks of images that have one limit or weight the loss."""
        return self.masked_loss or self.alpha_mask

    @property
    def preserves_background(self) -> bool:
        """Whether the target outside of a mask is the base model's own prediction."""
        return self.mask_background == "preserve"

    @property
    def background_weight(self) -> float:
        """The loss weight outside of a mask. Raises ValueError if `preserves_background`, which has none."""
        return 0.0 if self.mask_background == "ignore" else float(self.mask_background)

    @property
    def concept(self) -> str:
        """What the subset teaches, for messages: its class_tokens, else its folder's name."""
        return self.class_tokens or self.image_dir.name


@dataclass(frozen=True, kw_only=True)
class DatasetSection:
    """One [[datasets]]: images that are trained at one resolution. Fields have the names of the file's keys.

    resolution: (width, height) in pixels. where: the table's place in the file, for messages.
    """

    subsets: tuple[SubsetConfig, ...]
    compositions: tuple[CompositionConfig, ...] = ()
    preservation: tuple[PreservationConfig, ...] = ()
    where: str = ""
    resolution: Size = USUAL_SIZE
    batch_size: int = TrainConfig.train_batch_size
    enable_bucket: bool = TrainConfig.enable_bucket
    min_bucket_reso: int = TrainConfig.min_bucket_reso
    max_bucket_reso: int = TrainConfig.max_bucket_reso
    bucket_reso_steps: int = TrainConfig.bucket_reso_steps
    bucket_no_upscale: bool = TrainConfig.bucket_no_upscale
    validation_split: float = TrainConfig.validation_split
    validation_seed: int | None = TrainConfig.validation_seed


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """A complete dataset file. notices: warnings of keys and flags that are accepted but have no effect."""

    path: Path
    sections: tuple[DatasetSection, ...]
    notices: tuple[Problem, ...] = ()

    @property
    def subsets(self) -> tuple[SubsetConfig, ...]:
        """The subsets of all datasets, in the file's order."""
        return tuple(subset for section in self.sections for subset in section.subsets)


SUBSET_DEFAULTS = {each.name: each.default for each in fields(SubsetConfig)}
SECTION_DEFAULTS = {each.name: each.default for each in fields(DatasetSection)}
DEFAULTS = {**SUBSET_DEFAULTS, **SECTION_DEFAULTS}
FOLDERS = ("image_dir", "conditioning_data_dir")
MASK_SETTINGS = ("masked_loss", "alpha_mask", "mask_background", "mask_dilation")
