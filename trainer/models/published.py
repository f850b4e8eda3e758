"""Models published on the Hugging Face Hub that help a training without being part of it: masks, likeness.

They are loaded through transformers' own classes, from folders that `trainer download` filled. Images are prepared here
with Pillow and torch, because transformers' fast image processors need torchvision.
"""

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer

from trainer.common.problems import Problem, Problems
from trainer.lora_file.header import read_header
from trainer.models.published_files import PublishedModel

WEIGHTS = "model.safetensors"
IMAGE_NET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and standard deviation of its images' channels
Complete = Callable[[torch.nn.Module, Collection[str]], Collection[str]]


def folder_problems(model: PublishedModel, folder: Path) -> Iterator[Problem]:
    """What is wrong with a model's folder, found without reading its weights.

    It checks that all files exist, that config.json is of the right model, and the header of the weights file.
    """
    missing = [name for name in model.files if not (folder / name).is_file()]
    if missing:
        what = f"the {model.key} ({model.title}) lacks {', '.join(missing)}"
        yield Problem(str(folder), what, f"{model.download}, or give another folder with --{model.key}")
        return
    try:
        kind = read_json(model, folder / "config.json").get("model_type")
        if kind not in model.kinds:
            what = f"holds a model of type {kind!r}, not {model.title}"
            yield Problem(str(folder / "config.json"), what, f"give a folder of {model.title} with --{model.key}")
    except Problems as found:
        yield from found.problems
    try:
        read_header(folder / WEIGHTS)
    except ValueError as error:
        yield Problem(str(folder / WEIGHTS), f"cannot be read: {error}", _again(model))


def _again(model: PublishedModel) -> str:
    return f"delete it, then {model.download}"


def class_problems(names: Collection[str], version: str) -> Iterator[Problem]:
    """A problem if the installed transformers lacks one of these classes. version: the first that has them."""
    import transformers

    missing = [name for name in names if not hasattr(transformers, name)]
    if missing:
        what = f"version {transformers.__version__} has no {' and no '.join(missing)}"
        yield Problem("transformers", what, f"pip install 'transformers>={version}'")


def read_json(model: PublishedModel, path: Path) -> dict[str, Any]:
    """The object in one of a model's JSON files. Raises `Problems` if it cannot be read or is something else."""
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(held, dict):
            raise ValueError("is not an object")
        return held
    except (OSError, ValueError) as error:
        raise Problems([Problem(str(path), f"cannot be read: {error}", _again(model))]) from error


def config_values(model: PublishedModel, folder: Path) -> dict[str, Any]:
    """The values of a model's config.json, without those that name a class or code of its own."""
    held = read_json(model, folder / "config.json")
    return {name: value for name, value in held.items() if name not in ("auto_map", "model_type")}


def load_tokenizer(model: PublishedModel, folder: Path) -> Tokenizer:
    """A model's tokenizer, which neither pads nor truncates. Raises `Problems` if its file cannot be read."""
    path = folder / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        problem = Problem(str(path), f"cannot be read as a tokenizer: {error}", _again(model))
        raise Problems([problem]) from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def load_model(
    model: PublishedModel, folder: Path, kind: Any, config: Any, device: torch.device, complete: Complete | None = None
) -> Any:
    """The model in float32 and eval mode, every one of its weights taken from the file.

    kind, config: transformers' class and its configuration; complete: called with the module and the names of the
    tensors that the file lacks, it sets those that follow from others and returns the rest. Raises `Problems` if the
    file cannot be loaded or a tensor is missing or of another shape.
    """
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # what it would warn of is checked below
    logging.disable_progress_bar()
    try:
        module, info = kind.from_pretrained(
            str(folder), config=config, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # the library raises many types for a damaged file
        problem = Problem(str(folder), f"cannot be loaded: {error}", _again(model))
        raise Problems([problem]) from error
    finally:
        logging.set_verbosity(verbosity)
    missing = {str(key) for key in info["missing_keys"]}
    missing = set(complete(module, missing)) if complete else missing
    wrong = sorted({*missing, *(str(key) for key in info["mismatched_keys"])})
    if wrong:
        what = f"lacks {len(wrong)} of the model's tensors, {wrong[0]} first"
        raise Problems([Problem(str(folder / WEIGHTS), what, _again(model))])
    return module.to(device, torch.float32).eval()


def normalized(
    image: Image.Image, device: torch.device, moments: tuple[tuple[float, ...], tuple[float, ...]] = IMAGE_NET
) -> torch.Tensor:
    """An RGB image as float32 [1, 3, H, W], with each channel's mean subtracted and divided by its deviation.

    moments: means and standard deviations of the channels, for pixels from 0 to 1.
    """
    pixels = torch.from_numpy(np.array(image, np.uint8)).to(device).permute(2, 0, 1).float()[None] / 255
    mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in moments)
    return (pixels - mean) / std


def without_kind(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a part of config.json, without the one that names its class."""
    return {name: value for name, value in values.items() if name != "model_type"}
