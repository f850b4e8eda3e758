"""Does the training teach what the captions say? With the embedded base model, scored by its judge."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from tests.recipe_files import ROOT, finish

PATIENCE = 280  # seconds, for a training and for its pictures; a quiet machine needs a third of it
MINI = ROOT / "models" / "mini"
PLACES = ("in a studio", "on a desk", "in a kitchen", "in the snow", "in a forest", "in a meadow")
OTHERS = ("a red ball", "a blue box", "a green duck", "a white cup", "a yellow car", "a black robot")
RIGHT, WRONG = (
    [f"{what} {place}" for what, place in zip(names, PLACES, strict=True)] for names in (["tjtoy toy"] * 6, OTHERS)
)
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

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (MINI / "flux1-mini.safetensors").exists(), reason="models/mini holds no weights"),
]


def tjtoy_scores(folder: Path, captions: list[str]) -> tuple[float, float]:
    """Teach the pictures of tjtoy under these captions; its scores without and with the LoRA, in percent."""
    shutil.copytree(ROOT / "flux_data" / "tjtoy", folder / "tjtoy")
    for file, caption in zip(sorted((folder / "tjtoy").glob("*.txt")), captions, strict=True):
        file.write_text(caption)
    (folder / "data.toml").write_text(DATASET.replace("{folder}", folder.as_posix()))
    lora, table = folder / "loras" / "learned.safetensors", folder / "table.json"
    settings = {
        "config_file": "flux_data/demo.toml",
        "dataset_config": folder / "data.toml",
        "output_dir": lora.parent,
        "output_name": lora.stem,
        "run_dir": folder / "runs",
        "max_train_epochs": 4,
    }
    trainer = [sys.executable, "-m", "trainer"]
    finish([*trainer, "train", *(f"--{name}={value}" for name, value in settings.items())], ROOT, PATIENCE)
    finish(
        [*trainer, "evaluate", f"--lora={lora}", "--only=concepts", "--prompts=8", f"--json={table}"], ROOT, PATIENCE
    )
    base, learned = (column["scores"]["tjtoy"] for column in json.loads(table.read_text())["columns"])
    return base, learned


@pytest.mark.timeout(600)
def test_a_concept_is_learned_from_its_pictures_and_name(tmp_path):
    base, learned = tjtoy_scores(tmp_path, RIGHT)
    assert base < 10 and learned > 60


@pytest.mark.timeout(600)
def test_pictures_under_other_names_do_not_teach_it(tmp_path):
    _, learned = tjtoy_scores(tmp_path, WRONG)
    assert learned < 20
