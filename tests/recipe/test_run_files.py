"""Twenty steps of a small FLUX: which files there are, what they are called, and what is in them."""

import re
import stat

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.recipe_files import Finished, Workshop
from trainer.config import parse_config
from trainer.lora.info import describe

STEPS = 20
STEP_KEYS = {
    "kind", "time", "step", "loss", "gradient_norm", "learning_rate", "seconds", "seconds_per_picture", "epoch",
    "loss_average", "loss_change", "alignment", "update_rms", "strength",
}  # fmt: skip
VALIDATION_KEYS = {"kind", "time", "step", "loss", "loss_q125", "loss_q375", "loss_q625", "loss_q875"}


@pytest.fixture(scope="module")
def run(workshop: Workshop) -> Finished:
    """Four epochs of five pictures; saved after the third, every eight steps, and at the end."""
    return workshop.train(
        "files",
        max_train_steps=STEPS,
        save_every_n_epochs=3,
        save_every_n_steps=8,
        validate_every_n_steps=5,
        save_state_on_train_end=True,
        log_with="tensorboard",
    )


def test_output_dir_holds_lora_files_with_kohyas_names_and_nothing_else(run):
    assert run.status == 0
    assert run.loras() == [
        "tj-000003.safetensors",
        "tj-step00000008.safetensors",
        "tj-step00000016.safetensors",
        "tj.safetensors",
    ]
    assert {stat.S_IMODE(path.stat().st_mode) for path in run.config.output_dir.iterdir()} == {0o644}


def test_the_runs_folder_holds_all_the_rest(run):
    state = [f"state-step00000020/{name}" for name in ("adapter-00000.safetensors", "optimizer-00000.safetensors")]
    assert run.files() == sorted(
        [
            ".lock",
            "config.toml",
            "log.jsonl",
            *state,
            "state-step00000020/state.json",
            "tensorboard/tj/events.out.tfevents",
            "tensorboard/tj/events.out.tfevents",
            "tensorboard/tj/hparams.yml",
        ]
    )


@pytest.mark.usefixtures("run")
def test_nothing_else_was_written_anywhere(workshop):
    written = {path.name for path in workshop.folder.iterdir()}
    assert written == {"toy", "data.toml", ".cache", "files"}
    assert {path.name for path in (workshop.folder / "files").iterdir()} == {"loras", "runs"}
    cached = [path for path in (workshop.folder / ".cache").rglob("*") if path.is_file()]
    assert len(cached) == 5 + 2, "five latents, one caption of two encoders"


def test_the_loss_at_fixed_quantiles_falls(run):
    losses = [line["loss"] for line in run.log("validation")]
    assert [line["step"] for line in run.log("validation")] == [5, 10, 15, 20]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.9 * losses[0]


def test_every_line_of_the_log_has_its_keys(run):
    steps = run.log("step")
    assert [line["step"] for line in steps] == list(range(1, STEPS + 1))
    assert all(line.keys() == STEP_KEYS for line in steps)
    assert [line["epoch"] for line in steps] == [1 + (step - 1) // 5 for step in range(1, STEPS + 1)]
    assert all(line.keys() == VALIDATION_KEYS for line in run.log("validation"))
    saved = run.log("checkpoint")
    assert [line["file"] for line in saved] == [
        "tj-step00000008.safetensors",
        "tj-000003.safetensors",
        "tj-step00000016.safetensors",
        "tj.safetensors",
    ]
    assert saved[-1]["state"] == str(run.state(20))
    (start,) = run.log("start")
    assert (start["step"], start["total_steps"], start["epochs"]) == (0, STEPS, 4)
    (estimate,), (finish,) = run.log("estimate"), run.log("finish")
    assert (estimate["step"], finish["step"]) == (10, STEPS) and estimate["seconds_left"] > 0
    assert finish["promised"] == pytest.approx(estimate["finish"], abs=1)
    others = len(saved) + len(run.log("validation")) + len(run.log("verdict"))
    assert len(run.log()) == 1 + len(steps) + others + 2


def test_the_resolved_config_gives_the_same_config_again(run):
    again, notices = parse_config([f"--config_file={run.folder / 'config.toml'}"])
    assert again == run.config
    assert not [notice for notice in notices if "no effect" in notice]


def test_tensorboard_has_the_curves(run):
    events = EventAccumulator(str(run.folder / "tensorboard" / "tj")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, STEPS + 1))
    logged = [line["loss"] for line in run.log("validation")]
    assert [event.value for event in events.Scalars("validation/loss")] == pytest.approx(logged)


def test_the_files_grow_from_one_another(run):
    """Down starts as it was drawn, up at zero; both move, and each file says how far it is."""
    first, last = run.tensors("tj-step00000008"), run.tensors()
    assert first.keys() == last.keys()
    ups = [name for name in last if ".lora_B." in name]
    assert len(ups) == 40, "every linear layer of two double and two single blocks"
    assert all(last[name].abs().max() > 0 and not torch.equal(first[name], last[name]) for name in ups)
    assert all(tensor.dtype == torch.bfloat16 for name, tensor in last.items() if not name.endswith("alpha"))
    for name, step, epoch in (("tj-step00000008", 8, 2), ("tj-000003", 15, 3), ("tj", 20, 4)):
        metadata = run.metadata(name)
        assert (metadata["ss_steps"], metadata["ss_epoch"]) == (str(step), str(epoch))
        assert metadata["modelspec.title"] == name


def test_the_file_says_what_it_is(run):
    facts = describe(run.lora())
    assert "tjtoy toy" in str(facts)
    text = " ".join(run.metadata().values())
    assert str(run.config.output_dir.parent) not in text, "a path of this machine"
    assert not re.search(r"/(tmp|home|root)/", text)
