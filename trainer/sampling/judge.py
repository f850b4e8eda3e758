"""A small classifier of images of the tiny FLUX's world; it takes no part in training.

It was trained on labelled renders (mini/training/judge/). Its file lists the classes that it knows.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from trainer.common.files import write_safetensors
from trainer.common.problems import Problem, Problems
from trainer.models.weights import read_header

METADATA_KEY = "judge"
HINT = "give the judge of the tiny FLUX, models/mini/judge.safetensors"


@dataclass(frozen=True)
class Classes:
    """The names of what a judge recognises, in the order of its outputs. kinds: of objects; concepts: of subjects."""

    kinds: tuple[str, ...]
    colours: tuple[str, ...]
    places: tuple[str, ...]
    concepts: tuple[str, ...]


@dataclass(frozen=True)
class Shape:
    """The network's size.

    widths, depths: channels and residual blocks at 1/2, 1/4, 1/8, 1/16 of the image's side; hidden: width of the layer
    before the outputs.
    """

    widths: tuple[int, int, int, int] = (24, 48, 96, 160)
    depths: tuple[int, int, int, int] = (0, 1, 2, 1)
    hidden: int = 256


DEFAULT_SHAPE = Shape()


class Verdicts(NamedTuple):
    """A judge's outputs for n images: kinds [n, K], colours of each kind [n, K, C], places [n, P], concepts [n, N].

    Calling a `Judge` gives logits, `judge_pictures` probabilities. The colours of a kind are meaningful only if an
    object of that kind is in the image.
    """

    kinds: torch.Tensor
    colours: torch.Tensor
    places: torch.Tensor
    concepts: torch.Tensor


class Judge(nn.Module):
    """A residual convolutional network that classifies images of the tiny FLUX's world.

    It has two heads: one on features pooled over the image, for kinds, places and concepts, and one on features pooled
    by attention to a kind, for that kind's colour.
    """

    def __init__(self, classes: Classes, shape: Shape = DEFAULT_SHAPE):
        super().__init__()
        self.classes, self.shape = classes, shape
        into, layers = 3, []
        for width, depth in zip(shape.widths, shape.depths, strict=True):
            layers += [_convolution(into, width, stride=2), nn.ReLU(), *(_Residual(width) for _ in range(depth))]
            into = width
        self.trunk = nn.Sequential(*layers)
        outputs = len(classes.kinds) + len(classes.places) + len(classes.concepts)
        self.scene = nn.Sequential(nn.Linear(2 * into, shape.hidden), nn.ReLU(), nn.Linear(shape.hidden, outputs))
        self.gaze = nn.Conv2d(into, len(classes.kinds), 1)
        self.colour = nn.Sequential(nn.Linear(into, shape.hidden), nn.ReLU())
        self.colour_of_kind = nn.Linear(shape.hidden, len(classes.colours))

    def forward(self, pixels: torch.Tensor) -> Verdicts:
        """Returns logits. pixels: images [n, 3, H, W] in [-1, 1]."""
        features = self.trunk(pixels)
        pooled = torch.cat([features.mean((2, 3)), features.amax((2, 3))], dim=1)
        sizes = [len(self.classes.kinds), len(self.classes.places), len(self.classes.concepts)]
        kinds, places, concepts = self.scene(pooled).split(sizes, dim=1)
        weights = self.gaze(features).flatten(2).softmax(-1)  # [n, K, positions]
        seen = weights.to(features.dtype) @ features.flatten(2).transpose(1, 2)  # [n, K, channels]
        return Verdicts(kinds, self.colour_of_kind(self.colour(seen)), places, concepts)


class _Residual(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.first, self.second = _convolution(width, width), _convolution(width, width)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return F.relu(features + self.second(F.relu(self.first(features))))


def _convolution(into: int, out: int, stride: int = 1) -> nn.Sequential:
    kernel = 5 if into == 3 else 3
    return nn.Sequential(nn.Conv2d(into, out, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(out))


def to_unit_range(pictures: torch.Tensor) -> torch.Tensor:
    """Scale uint8 images to float32 in [-1, 1], the range of a judge's input."""
    return pictures.float() / 127.5 - 1


@torch.inference_mode()
def judge_pictures(judge: Judge, pictures: torch.Tensor, batch: int = 32) -> Verdicts:
    """Probabilities, float32 on the host, for images uint8 [n, 3, 256, 256] on any device.

    Puts the judge in eval mode. batch: images judged at once.
    """
    device = next(judge.parameters()).device
    judge.eval()
    parts = [judge(to_unit_range(part.to(device))) for part in pictures.split(batch)]
    logits = Verdicts(*(torch.cat(each).float().cpu() for each in zip(*parts, strict=True)))
    return Verdicts(
        logits.kinds.sigmoid(), logits.colours.sigmoid(), logits.places.softmax(1), logits.concepts.sigmoid()
    )


def save_judge(path: Path, judge: Judge) -> None:
    """Write a judge as safetensors: tensors of two or more dimensions in float16; classes and shape in the metadata."""
    tensors = {name: each.half() if each.ndim > 1 else each for name, each in judge.state_dict().items()}
    facts = {"classes": asdict(judge.classes), "shape": asdict(judge.shape)}
    write_safetensors(path, tensors, {METADATA_KEY: json.dumps(facts), "format": "pt"})


def load_judge(path: Path, device: torch.device | str = "cpu") -> Judge:
    """Load a judge that `save_judge` wrote: in float32, in eval mode, without gradients.

    Raises `Problems` if the file cannot be read or is not a judge's.
    """
    try:
        header = read_header(path)
    except (ValueError, OSError) as error:
        raise Problems([Problem(str(path), f"cannot be read: {error}", HINT)]) from error
    facts = header.metadata.get(METADATA_KEY)
    if facts is None:
        raise Problems([Problem(str(path), "is not a judge: its metadata names no classes", HINT)])
    try:
        judge = _build(json.loads(facts))
        judge.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        raise Problems([Problem(str(path), f"is corrupt: {error}", HINT)]) from error
    return judge.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)  # type: ignore[call-overload]


def _build(facts: Mapping[str, Any]) -> Judge:
    classes = Classes(**{name: tuple(names) for name, names in facts["classes"].items()})
    numbers = facts["shape"]
    return Judge(classes, Shape(tuple(numbers["widths"]), tuple(numbers["depths"]), numbers["hidden"]))
