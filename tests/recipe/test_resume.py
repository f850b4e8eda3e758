"""A run that was stopped and resumed gives the same files, bit for bit, as one that was not."""

import json
from pathlib import Path

import pytest
import torch

from tests.dataset_files import draw
from tests.recipe_files import ONE_FOLDER, Finished, Workshop, touching
from tests.unit.test_compositions import draw_subject
from trainer.common.problems import Problems
from trainer.preflight.check import make_plan
from trainer.preflight.resume import find_state

EVERYTHING_THAT_IS_DRAWN = """
[general]
flip_aug = true
shuffle_caption = true
caption_dropout_rate = 0.3
caption_tag_dropout_rate = 0.2

[[datasets]]
resolution = 64
batch_size = 2

[[datasets.subsets]]
image_dir = "{folder}/toy"
class_tokens = "tjtoy toy, red, round, small, on a desk"
num_repeats = 3
"""
# 15 pictures in 8 batches (the last of one picture), 3 batches a step: 3 steps an epoch, the last of two batches
STEPS, STOPPED_AT = 7, 4
COMMON = {
    "gradient_accumulation_steps": 3,
    "max_train_steps": STEPS,
    "ema_decay": 0.9,
    "network_dropout": 0.1,
    "network_args": ["rank_dropout=0.1", "module_dropout=0.1"],
    "save_state_on_train_end": True,
    "validate_every_n_steps": 3,
    "lr_scheduler": "cosine_with_restarts",
    "lr_warmup_steps": 2,
}
UP = "transformer.transformer_blocks.0.attn.to_q.lora_B.weight"
OPTIMIZERS = {
    "AdamW with CLIP": {"optimizer_type": "AdamW", "text_encoder_lr": 5e-4},
    "Prodigy": {"optimizer_type": "Prodigy", "learning_rate": 1.0},
    "bf16": {"optimizer_type": "AdamW", "mixed_precision": "bf16", "full_bf16": True, "gradient_checkpointing": True},
}


def assert_same_state(a: Path, b: Path) -> None:
    """Every file of two states is the same, byte for byte; of their progress only the time may differ."""
    names = sorted(path.name for path in a.iterdir())
    assert names == sorted(path.name for path in b.iterdir())
    for name in names:
        if name != "state.json":
            assert (a / name).read_bytes() == (b / name).read_bytes(), name
    left, right = (json.loads((folder / "state.json").read_text()) for folder in (a, b))
    for part in ("optimizer", "scheduler", "ema", "files"):
        assert left[part] == right[part], part


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_stop_and_resume_is_bitwise_the_straight_run(workshop, optimizer):
    settings = {
        **COMMON,
        **OPTIMIZERS[optimizer],
        "dataset_config": workshop.dataset(EVERYTHING_THAT_IS_DRAWN, "all.toml"),
    }
    straight = workshop.train(f"{optimizer} straight", **settings)
    place = f"{optimizer} resumed"
    with touching("stop", STOPPED_AT):
        stopped = workshop.train(place, **settings)
    assert stopped.status == 0
    assert stopped.loras() == [f"tj-step{STOPPED_AT:08d}.safetensors"]
    assert not (stopped.folder / "stop").exists()

    resumed = workshop.train(place, **settings, resume=stopped.folder)
    assert straight.metadata() == resumed.metadata()
    assert straight.lora().read_bytes() == resumed.lora().read_bytes()
    assert_same_state(straight.state(STEPS), resumed.state(STEPS))
    for kind, keys in (("step", ("step", "loss", "gradient_norm", "learning_rate")), ("validation", ("step", "loss"))):
        lines = [[{key: line[key] for key in keys} for line in run.log(kind)] for run in (straight, resumed)]
        assert lines[0] == lines[1]


@pytest.fixture(scope="module")
def stopped(workshop: Workshop) -> Finished:
    """A run of four steps that was stopped after the second."""
    with touching("stop", 2):
        return workshop.train("stopped", max_train_steps=4)


def test_another_setting_is_refused_by_name(workshop, stopped):
    with pytest.raises(Problems, match=r"learning_rate: 0\.001 before, 0\.002 now\n.*--resume_anyway"):
        workshop.train("stopped", max_train_steps=4, resume=stopped.folder, learning_rate=2e-3)


def test_another_picture_is_refused_by_name(workshop, stopped):
    draw(workshop.folder / "other" / "00.png", shade=77)
    other = ONE_FOLDER + '\n[[datasets.subsets]]\nimage_dir = "{folder}/other"\nclass_tokens = "other"\n'
    with pytest.raises(Problems, match=r"00\.png"):
        data = workshop.dataset(other, "other/data.toml")
        workshop.train("stopped", max_train_steps=4, resume=stopped.folder, dataset_config=data)


def test_a_changed_picture_is_refused_by_name(workshop, stopped):
    path = workshop.folder / "toy" / "03.png"
    before = path.read_bytes()
    draw(path, shade=99)
    try:
        with pytest.raises(Problems, match=r"03\.png"):
            workshop.train("stopped", max_train_steps=4, resume=stopped.folder)
    finally:
        path.write_bytes(before)


def test_another_number_of_processes_is_refused(workshop, stopped):
    config = workshop.config("stopped", max_train_steps=4, resume=stopped.folder)
    with pytest.raises(Problems, match="1 process, now there are 2"):
        find_state(config, make_plan(config, num_processes=2))


def test_resume_anyway_goes_on_with_the_new(workshop, stopped):
    settings = {"max_train_steps": 5, "resume": stopped.state(2), "learning_rate": 2e-3}
    run = workshop.train("stopped", **settings, resume_anyway=True)
    assert run.status == 0
    assert [(line["step"], line["learning_rate"]) for line in run.log("step")[2:]] == [(3, 2e-3), (4, 2e-3), (5, 2e-3)]
    assert not torch.equal(*(run.tensors(name)[UP] for name in ("tj", "tj-step00000002")))


WITH_COMPOSITES = """
[[datasets]]
resolution = 128
batch_size = 2

[[datasets.subsets]]
image_dir = "{folder}/red"
class_tokens = "tjtoy toy"
flip_aug = true
masked_loss = true
mask_background = "preserve"

[[datasets.subsets]]
image_dir = "{folder}/blue"
class_tokens = "sparkgpu gpu"
masked_loss = true
mask_background = 0.2

[[datasets.compositions]]
num_images = 7
"""


def test_composites_and_masks_resume_bit_for_bit(workshop):
    for name, box in (("red", (30, 20, 100, 130)), ("blue", (20, 40, 140, 110))):
        for number in range(2):
            draw_subject(workshop.folder / name, f"{number}", (200, 0, 0), box)
    settings = {
        "dataset_config": workshop.dataset(WITH_COMPOSITES, "composites.toml"),
        "max_train_steps": 6,
        "save_every_n_steps": 3,
        "save_state": True,
    }
    straight = workshop.train("composites straight", **settings)
    losses = [line["loss"] for line in straight.log("step")]
    assert len(losses) == 6 and all(loss > 0 for loss in losses)
    resumed = workshop.train("composites resumed", **settings, resume=straight.state(3))
    assert [line["loss"] for line in resumed.log("step")] == losses[3:]
    assert_same_state(straight.state(6), resumed.state(6))
    (workshop.folder / "composites.toml").write_text(
        (workshop.folder / "composites.toml").read_text().replace("num_images = 7", "num_images = 8")
    )
    with pytest.raises(Problems, match="dataset 0 composition 0"):
        workshop.train("composites changed", **settings, resume=straight.state(3))
