"""When files are written, what they are called, and which are kept: by rule, and by kohya's own functions."""

import argparse
from pathlib import Path

import pytest

from tests.kohya_source import kohya_functions
from trainer.checkpoint.naming import (
    Position,
    checkpoint_name,
    is_due,
    lora_path,
    position_after,
    remove_outdated,
    run_dir,
    state_path,
)
from trainer.checkpoint.state_folder import latest_state
from trainer.config import TrainConfig
from trainer.data.dataset import Schedule

PER_EPOCH = 5


def schedule(total: int) -> Schedule:
    return Schedule(batches_per_step=1, steps_per_epoch=PER_EPOCH, total_steps=total, num_epochs=-(-total // PER_EPOCH))


def make_config(folder: Path, **settings) -> TrainConfig:
    return TrainConfig(output_dir=folder / "loras", run_dir=folder / "runs", output_name="tj", **settings)


def make_state(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "state.json").write_text("{}")
    return folder


def train(config: TrainConfig, total: int, touched: tuple[int, ...] = ()) -> tuple[list[str], list[str]]:
    """Write and rotate empty files as a run does; returns the LoRA files and states that are left.

    touched: the steps at which `runs/NAME/save` was touched.
    """
    config.output_dir.mkdir(parents=True, exist_ok=True)
    for step in range(1, total + 1):
        position = position_after(schedule(total), step)
        due = is_due(position, config.save_every_n_epochs, config.save_every_n_steps)
        if due or position.ends_run or step in touched:
            lora_path(config, position).touch()
            if (config.save_state and not position.ends_run) or step in touched:
                make_state(state_path(config, step))
            remove_outdated(config, position, PER_EPOCH)
    return names(config.output_dir), names(run_dir(config))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_positions_count_from_one():
    at = {step: position_after(schedule(12), step) for step in (0, 1, 5, 6, 12)}
    assert at[0] == Position(step=0, epoch=0, ends_epoch=False, ends_run=False)
    assert at[1] == Position(step=1, epoch=1, ends_epoch=False, ends_run=False)
    assert at[5] == Position(step=5, epoch=1, ends_epoch=True, ends_run=False)
    assert at[6] == Position(step=6, epoch=2, ends_epoch=False, ends_run=False)
    assert at[12] == Position(step=12, epoch=3, ends_epoch=False, ends_run=True)


@pytest.mark.parametrize(
    ("every_epochs", "every_steps", "expected"),
    [(None, None, []), (1, None, [5, 10, 15]), (2, None, [10]), (None, 4, [4, 8, 12, 16]), (3, 6, [6, 12, 15])],
)
def test_due_steps(every_epochs, every_steps, expected):
    due = [s for s in range(17) if is_due(position_after(schedule(17), s), every_epochs, every_steps)]
    assert due == expected


def test_names_are_kohyas(tmp_path):
    config = make_config(tmp_path, save_every_n_epochs=2, save_every_n_steps=3)
    found = {step: checkpoint_name(config, position_after(schedule(25), step)) for step in (3, 10, 15, 25)}
    assert found == {3: "tj-step00000003", 10: "tj-000002", 15: "tj-step00000015", 25: "tj"}
    epoch_name, step_name, last_name = kohya_functions(
        "train_util.py",
        "get_epoch_ckpt_name",
        "get_step_ckpt_name",
        "get_last_ckpt_name",
        default_if_none=lambda value, default: default if value is None else value,
        DEFAULT_EPOCH_NAME="",
        DEFAULT_STEP_NAME="",
        DEFAULT_LAST_OUTPUT_NAME="",
        EPOCH_FILE_NAME="{}-{:06d}",
        STEP_FILE_NAME="{}-step{:08d}",
    )
    args = argparse.Namespace(output_name="tj")
    assert epoch_name(args, ".safetensors", 2) == f"{found[10]}.safetensors"
    assert step_name(args, ".safetensors", 3) == f"{found[3]}.safetensors"
    assert last_name(args, ".safetensors") == lora_path(config, position_after(schedule(25), 25)).name


def test_everything_is_kept_unless_told_otherwise(tmp_path):
    loras, states = train(make_config(tmp_path, save_every_n_epochs=1, save_state=True), 20)
    assert loras == [f"tj-{n:06d}.safetensors" for n in (1, 2, 3)] + ["tj.safetensors"]
    assert states == [f"state-step{5 * n:08d}" for n in (1, 2, 3)]


@pytest.mark.parametrize(("every", "last", "epochs"), [(1, 1, 6), (1, 3, 9), (2, 2, 10), (2, 2, 11), (3, 4, 8)])
def test_the_last_epochs_are_kept(tmp_path, every, last, epochs):
    """The last n numbered files, and the run's last one, which has no number."""
    config = make_config(tmp_path, save_every_n_epochs=every, save_last_n_epochs=last, save_state=True)
    numbered = list(range(every, epochs, every))[-last:]
    loras, states = train(config, epochs * PER_EPOCH)
    assert loras == [f"tj-{epoch:06d}.safetensors" for epoch in numbered] + ["tj.safetensors"]
    assert states == [f"state-step{epoch * PER_EPOCH:08d}" for epoch in numbered]


def kohyas_epochs(every: int, last: int, epochs: int) -> set[int]:
    (remove_no,) = kohya_functions("train_util.py", "get_remove_epoch_no")
    args = argparse.Namespace(save_every_n_epochs=every, save_last_n_epochs=last)
    kept: set[int] = set()
    for epoch in range(every, epochs, every):
        kept = (kept | {epoch}) - {remove_no(args, epoch)}
    return kept


@pytest.mark.parametrize(("every", "last", "epochs"), [(1, 1, 6), (1, 3, 9), (2, 2, 10), (2, 2, 11), (3, 4, 8)])
def test_kept_epochs_are_kohyas(tmp_path, every, last, epochs):
    config = make_config(tmp_path, save_every_n_epochs=every, save_last_n_epochs=last)
    expected = [f"tj-{epoch:06d}.safetensors" for epoch in sorted(kohyas_epochs(every, last, epochs))]
    assert train(config, epochs * PER_EPOCH)[0] == [*expected, "tj.safetensors"]


def kohyas_steps(every: int, last: int, total: int) -> set[int]:
    (remove_no,) = kohya_functions("train_util.py", "get_remove_step_no")
    args = argparse.Namespace(save_every_n_steps=every, save_last_n_steps=last)
    kept: set[int] = set()
    for step in range(every, total + 1, every):
        kept = (kept | {step}) - {remove_no(args, step)}
    return kept


@pytest.mark.parametrize(("every", "last", "total"), [(10, 30, 50), (10, 30, 57), (4, 10, 39), (7, 7, 40), (3, 1, 20)])
def test_kept_steps_are_kohyas(tmp_path, every, last, total):
    """save_last_n_steps counts steps, not files; the run's last file has no number here."""
    config = make_config(tmp_path, save_every_n_steps=every, save_last_n_steps=last, save_state=True)
    expected = sorted(kohyas_steps(every, last, total) - {total})
    loras, states = train(config, total)
    assert loras == [f"tj-step{step:08d}.safetensors" for step in expected] + ["tj.safetensors"]
    assert states == [f"state-step{step:08d}" for step in expected]


def test_kept_steps_by_rule(tmp_path):
    config = make_config(tmp_path, save_every_n_steps=10, save_last_n_steps=30)
    assert train(config, 51)[0] == [f"tj-step{step:08d}.safetensors" for step in (20, 30, 40, 50)] + ["tj.safetensors"]


def test_states_have_rules_of_their_own(tmp_path):
    config = make_config(
        tmp_path, save_every_n_epochs=1, save_last_n_epochs=4, save_last_n_epochs_state=1, save_state=True
    )
    loras, states = train(config, 6 * PER_EPOCH)
    assert len(loras) == 5 and states == ["state-step00000025"]


def test_a_save_within_an_epoch_drops_no_epoch_too_early(tmp_path):
    config = make_config(tmp_path, save_every_n_epochs=2, save_last_n_epochs=2, save_state=True)
    loras, states = train(config, 7 * PER_EPOCH, touched=(23, 28, 33))
    assert [name for name in loras if "step" not in name] == [
        "tj-000004.safetensors",
        "tj-000006.safetensors",
        "tj.safetensors",
    ]
    assert {"state-step00000020", "state-step00000030", "state-step00000033"} <= set(states)


def test_foreign_files_are_never_touched(tmp_path):
    config = make_config(tmp_path, save_every_n_epochs=1, save_last_n_epochs=1, save_state=True)
    foreign = ["other-000001.safetensors", "tj2-000001.safetensors", "tj-1.safetensors", "tj-000001.safetensors.bak"]
    foreign += ["tj-000001-000001.safetensors", "tj-final.safetensors", "notes.txt"]
    config.output_dir.mkdir(parents=True)
    for name in foreign:
        (config.output_dir / name).touch()
    kept = make_state(run_dir(config) / "my-state").name, make_state(run_dir(config) / "state-old").name
    loras, states = train(config, 4 * PER_EPOCH)
    assert set(loras) == {*foreign, "tj-000003.safetensors", "tj.safetensors"}
    assert set(states) == {*kept, "state-step00000015"}


def test_a_state_that_holds_a_users_file_is_left_and_the_run_goes_on(tmp_path):
    config = make_config(tmp_path, save_every_n_epochs=1, save_last_n_epochs=1, save_state=True)
    (make_state(state_path(config, 5)) / "notes.txt").write_text("mine")
    config.output_dir.mkdir(parents=True)
    removed = remove_outdated(config, position_after(schedule(20), 10), PER_EPOCH)
    assert removed == [] and (state_path(config, 5) / "notes.txt").read_text() == "mine"


def test_a_name_with_signs_of_patterns_means_itself(tmp_path):
    config = TrainConfig(
        output_dir=tmp_path,
        run_dir=tmp_path / "runs",
        output_name="a+b[1]",
        save_every_n_epochs=1,
        save_last_n_epochs=1,
    )
    (tmp_path / "aab1-000001.safetensors").touch()
    loras, _ = train(config, 3 * PER_EPOCH)
    assert loras == ["a+b[1]-000002.safetensors", "a+b[1].safetensors", "aab1-000001.safetensors"]


def test_latest_state_of_a_run_or_the_state_itself(tmp_path):
    assert latest_state(tmp_path) is None and latest_state(tmp_path / "state-step00000001") is None
    first, last = (make_state(tmp_path / f"state-step{step:08d}") for step in (90, 100))
    (tmp_path / "state-step00000200").mkdir()  # not whole: it has no manifest
    assert latest_state(tmp_path) == last and latest_state(first) == first
