"""The keys of a dataset file that say how the base model generates images."""

from dataclasses import dataclass

from trainer.config.fields import Spec
from trainer.config.values import SPECS

SAMPLER_SPECS = {  # the keys of a table that says how images are generated
    "seed": SPECS["seed"],
    "steps": Spec(type=int, ge=1, le=1000),
    "guidance": Spec(type=float, ge=0),
}


@dataclass(frozen=True)
class Sampler:
    """How images are generated. seed: of the first image, the next one has the next seed, whatever the run's seed is.

    steps: of the Euler sampler. guidance: FLUX's embedded guidance.
    """

    seed: int = 0
    steps: int = 20
    guidance: float = 3.5
