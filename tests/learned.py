"""A short training of one concept with the embedded base model, for tests of what it learned."""

import shutil
import sys
from pathlib import Path

import torch

from tests.recipe_files import ROOT, finish
from trainer.common.devices import computes_bf16

PATIENCE = 1500  # seconds for a training; a quiet machine needs a small part of it
CONCEPT = "tjtoy"
EPOCHS = 2
REGULARISATION = 7  # every seventh image: of each kind, and of each place
DATASET = """
[general]
caption_extension = ".txt"

[[datasets]]
resolution = 256
batch_size = 2

[[datasets.subsets]]
image_dir = "{folder}/tjtoy"
num_repeats = 7
flip_aug = true
"""
OTHERS = """
[[datasets.subsets]]
image_dir = "{folder}/regularisation"
is_reg = true
custom_attributes = { diff_output_preservation = true }
"""


def taught(folder: Path, instead: tuple[str, ...] = ()) -> Path:
    """A LoRA file taught the pictures of tjtoy; or, beside the regularisation pictures, with `instead` in place of
    "tjtoy toy" in their captions."""
    shutil.copytree(ROOT / "flux_data" / CONCEPT, folder / CONCEPT)
    for file, words in zip(sorted((folder / CONCEPT).glob("*.txt")), instead, strict=bool(instead)):
        file.write_text(file.read_text().replace("tjtoy toy", words))
    if instead:
        (folder / "regularisation").mkdir()
        for image in sorted((ROOT / "flux_data" / "regularisation").glob("*.jpg"))[::REGULARISATION]:
            for file in (image, image.with_suffix(".txt")):
                shutil.copy(file, folder / "regularisation")
    data = DATASET + (OTHERS if instead else "")
    (folder / "data.toml").write_text(data.replace("{folder}", folder.as_posix()))
    lora = folder / "loras" / "learned.safetensors"
    settings = {
        "config_file": "flux_data/demo.toml",
        "dataset_config": folder / "data.toml",
        "output_dir": lora.parent,
        "output_name": lora.stem,
        "learning_rate": 2e-3,  # for which the bounds of the tests are
        "run_dir": folder / "runs",
        "max_train_epochs": EPOCHS,
        "mixed_precision": "bf16" if computes_bf16(torch.device("cpu")) else "no",
    }
    command = [sys.executable, "-m", "trainer", "train", *(f"--{name}={value}" for name, value in settings.items())]
    finish(command, ROOT, PATIENCE)
    return lora
