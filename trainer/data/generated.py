"""Images that the base model generates for a run, each a pure function of its prompt, its seed and the model.

No file has to exist when a run is planned: an image is known by the digest of how it is made, and
`trainer.generation` makes those that are missing.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from trainer.common.problems import Problem, Problems
from trainer.config import TrainConfig
from trainer.data.sampler_keys import Sampler
from trainer.images.decode import NotReadable, Size, decode

VERSION = "1"  # part of every digest: raise it when the same settings would give other images
PIXELS_PER_TOKEN = 16


@dataclass(frozen=True)
class Generated:
    """An image that the base model generates, in place of an image file in a `Sample`.

    folder: where generated images are kept. models: a digest of the model files and of how they read text. name: what
    messages call it. seed: of its noise.
    """

    folder: Path
    models: str
    name: str
    prompt: str
    seed: int
    size: Size
    steps: int
    guidance: float
    converted: bool = False

    @property
    def sha256(self) -> str:
        """A digest of everything that the pixels depend on."""
        parts = (VERSION, self.models, self.prompt, self.seed, self.size, self.steps, self.guidance)
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    @property
    def path(self) -> Path:
        """Not a file but a name for messages."""
        return Path(f"{self.name}: {self.prompt}")

    @property
    def file(self) -> Path:
        """The PNG file, whether or not it exists yet."""
        digest = self.sha256
        return self.folder / digest[:2] / f"{digest}.png"

    @property
    def forward_passes(self) -> int:
        """How often the transformer runs for it."""
        return self.steps

    @property
    def is_complete(self) -> bool:
        """Whether it has been generated."""
        return self.file.exists()

    @property
    def width(self) -> int:
        return self.size[0]

    @property
    def height(self) -> int:
        return self.size[1]

    def read(self, flatten: bool = True) -> Image.Image:
        """Decode the file: mode RGB. flatten: without effect, since the image has no transparency.

        Raises `Problems` if it has not been generated yet, or cannot be read.
        """
        try:
            return decode(self.file.read_bytes(), self.file.suffix).to_rgb(flatten)
        except (NotReadable, OSError) as error:
            hint = "delete it and start again: it is generated again"
            raise Problems([Problem(str(self.file), f"this generated image cannot be read: {error}", hint)]) from error


@dataclass(frozen=True)
class Generator:
    """Names the images of one base model. folder, models: as in `Generated`."""

    folder: Path
    models: str

    def image(self, name: str, prompt: str, number: int, size: Size, sampler: Sampler) -> Generated:
        """The image `number` of a set, at `size` rounded down to what the transformer can generate."""
        sides = [max(PIXELS_PER_TOKEN, side // PIXELS_PER_TOKEN * PIXELS_PER_TOKEN) for side in size]
        seed = sampler.seed + number
        return Generated(
            self.folder, self.models, name, prompt, seed, (sides[0], sides[1]), sampler.steps, sampler.guidance
        )


def cache_folder(config: TrainConfig) -> Path | None:
    """The folder of all that a run caches: --cache_dir, or .cache next to the dataset file; None without either."""
    if config.cache_dir or not config.dataset_config:
        return config.cache_dir
    return config.dataset_config.parent / ".cache"


def generator_of(config: TrainConfig, models: str) -> Generator:
    """The generator of a run, whose images are in its cache. models: see `Generated`; "" if the models are invalid."""
    folder = cache_folder(config)
    assert folder
    return Generator(folder / "generated", models)


def missing_images(images: Iterable[Generated]) -> list[Generated]:
    """Those of the images that have not been generated yet, each once, in the same order."""
    return [image for image in dict.fromkeys(images) if not image.is_complete]
