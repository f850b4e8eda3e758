"""What a check says of folders to write into, of files out of reach, and of disks that are nearly full."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

import trainer.common.disk
from benchmarks.random_flux import ModelFiles
from tests.recipe_files import ONE_FOLDER, Workshop, check_report, has, make_workshop
from trainer.checkpoint.naming import is_due, lora_path, position_after, remove_outdated, run_dir, state_path
from trainer.common.disk import has_mark, mark_of, output_problems
from trainer.config import TrainConfig
from trainer.data.dataset import Schedule
from trainer.preflight.check import make_plan
from trainer.preflight.disk import Growth, growth


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory, tiny_flux: ModelFiles) -> Workshop:
    return make_workshop(tmp_path_factory.mktemp("disk"), tiny_flux, pictures=4)


@pytest.mark.parametrize("flag", ["output_dir", "run_dir", "cache_dir"])
def test_a_file_in_the_way_of_a_folder(workshop, tmp_path, flag):
    (tmp_path / "file").touch()
    (problem,) = check_report(workshop.config("way", **{flag: tmp_path / "file" / "below"}))
    assert problem.startswith(f"--{flag}=") and f"{tmp_path / 'file'} is not a folder" in problem


@pytest.mark.parametrize("flag", ["output_dir", "run_dir", "cache_dir"])
def test_a_folder_that_may_not_be_written_into(workshop, tmp_path, monkeypatch, flag):
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode, **more: path != tmp_path and allowed(path, mode, **more))
    (problem,) = check_report(workshop.config("closed", **{flag: tmp_path / "new" / "below"}))
    assert problem.startswith(f"--{flag}=") and f"no permission to write to {tmp_path}" in problem


@pytest.fixture
def close(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Take away the right to look below a folder, for root too."""
    stat, closed = Path.stat, []

    def refuse(self: Path, **more):
        if any(folder in self.parents for folder in closed):
            raise PermissionError(13, "Permission denied", str(self))
        return stat(self, **more)

    monkeypatch.setattr(Path, "stat", refuse)
    return closed.append


def test_files_out_of_reach_are_problems_together(workshop, tmp_path, close):
    (tmp_path / "data.toml").write_text(ONE_FOLDER.replace("{folder}", str(tmp_path / "closed")))
    close(tmp_path / "closed")
    settings = {
        "ae": tmp_path / "closed" / "ae.safetensors",
        "tokenizer_dir": tmp_path / "closed" / "tokenizers",
        "dataset_config": tmp_path / "data.toml",
        "sample_prompts": tmp_path / "closed" / "prompts.txt",
        "sample_at_first": True,
        "resume": tmp_path / "closed" / "state",
    }
    problems = check_report(workshop.config("reach", **settings))
    for words in ("--ae", "vocab.json", "image_dir", "--sample_prompts", "closed/state"):
        assert has(problems, words, "Permission denied"), words


def test_a_picture_folder_out_of_reach_hides_no_other_problem(workshop, tmp_path, close):
    text = ONE_FOLDER + '[[datasets.subsets]]\nimage_dir = "absent"\nclass_tokens = "x"\n'
    (tmp_path / "data.toml").write_text(text.replace("{folder}", str(tmp_path / "closed")))
    close(tmp_path / "closed")
    problems = check_report(workshop.config("hide", dataset_config=tmp_path / "data.toml"))
    assert has(problems, "toy cannot be looked at") and has(problems, "absent does not exist") and len(problems) == 2


PER_EPOCH, LORA, STATE = 3, 7, 20
RULES = [
    {},
    {"save_every_n_epochs": 1, "save_state": True},
    {"save_every_n_epochs": 1, "save_last_n_epochs": 2, "save_state": True},
    {"save_every_n_epochs": 2, "save_last_n_epochs": 3, "save_last_n_epochs_state": 1, "save_state": True},
    {"save_every_n_steps": 2, "save_last_n_steps": 5, "save_state_on_train_end": True},
    {"save_every_n_steps": 4, "save_every_n_epochs": 2, "save_last_n_steps": 4, "save_state": True},
]


def written(config: TrainConfig, schedule: Schedule, start: int) -> int:
    """The most bytes that a run really adds to its folders, with files of these sizes."""

    def used() -> int:
        folders = (config.output_dir, run_dir(config))
        return sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())

    before, most = used(), 0
    for step in range(start + 1, schedule.total_steps + 1):
        position = position_after(schedule, step)
        due = is_due(position, config.save_every_n_epochs, config.save_every_n_steps)
        if due or position.ends_run:
            path, folder = lora_path(config, position), state_path(config, step)
            most = max(most, used() + LORA)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bytes(LORA))
            if config.save_state or (position.ends_run and config.save_state_on_train_end):
                most = max(most, used() + STATE)
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "state.json").write_bytes(bytes(STATE))
            remove_outdated(config, position, schedule.steps_per_epoch)
    return most - before


@pytest.mark.parametrize("rules", RULES, ids=lambda rules: " ".join(rules) or "none")
@pytest.mark.parametrize("start", [0, 7])
def test_the_growth_is_that_of_a_run(tmp_path, rules, start):
    config = TrainConfig(output_dir=tmp_path / "loras", run_dir=tmp_path / "runs", output_name="tj", **rules)
    first, whole = (Schedule(1, PER_EPOCH, total, -(-total // PER_EPOCH)) for total in (start, 20))
    if start:
        written(config, first, 0)
    planned = growth(config, whole, start, LORA, STATE)
    assert max(map(sum, planned)) == written(config, whole, start)


def test_a_run_that_is_made_again_replaces_its_files(tmp_path):
    config = TrainConfig(
        output_dir=tmp_path / "loras", run_dir=tmp_path / "runs", save_every_n_epochs=1, save_state=True
    )
    schedule = Schedule(1, PER_EPOCH, 12, 4)
    assert max(map(sum, growth(config, schedule, 0, LORA, STATE))) == 4 * (LORA + STATE)
    written(config, schedule, 0)
    assert set(growth(config, schedule, 0, LORA, STATE)) == {Growth(LORA, 0), Growth(0, STATE)}


def test_room_for_what_is_kept_is_enough(workshop, monkeypatch):
    settings = {"max_train_steps": 400, "save_every_n_steps": 4, "save_last_n_steps": 4, "save_state": True}
    config = workshop.config("room", **settings, network_dim=64)
    plan = make_plan(config)
    kept = 3 * (plan.lora_bytes + plan.state_bytes)
    assert (plan.checkpoints, max(map(sum, plan.growth))) == (100, kept)
    monkeypatch.setattr(trainer.common.disk, "free_disk_bytes", lambda _: kept + plan.missing_cache_bytes)
    assert has([str(warning) for warning in make_plan(config).warnings], "if the run is stopped")
    monkeypatch.setattr(trainer.common.disk, "free_disk_bytes", lambda _: kept + plan.missing_cache_bytes - 1)
    (problem,) = check_report(config)
    assert problem.startswith("disk: ")


@pytest.mark.parametrize(
    ("settings", "bytes_each"),
    [
        ({}, 12),
        ({"full_bf16": True}, 6),
        ({"ema_decay": 0.9}, 16),
        ({"full_bf16": True, "ema_decay": 0.9}, 10),
        ({"optimizer_type": "Lion"}, 8),
        ({"optimizer_type": "Prodigy", "learning_rate": 1.0}, 18),
        ({"optimizer_type": "RMSprop"}, 12),
    ],
    ids=str,
)
def test_the_size_of_a_state(workshop, settings, bytes_each):
    plan = make_plan(workshop.config("state", **settings))
    assert plan.state_bytes == bytes_each * plan.adapter.num_parameters
    assert ("a state is about" in plan.summary()) == (settings.get("optimizer_type") == "RMSprop")


def test_no_output_file_is_replaced_unless_asked_or_recognized(tmp_path):
    new, own, other, link = (tmp_path / name for name in ("new/a.json", "own.json", "other.json", "link.json"))
    mark = mark_of("compare", 'a "tall" Bär')
    own.write_text(f'{{"origin": "{mark}"}}')
    other.write_text(" " * 1020 + mark)  # the mark is not at the start
    link.symlink_to(tmp_path / "gone")
    assert mark.isascii() and '"' not in mark and has_mark(own, mark) and not has_mark(tmp_path, mark)
    assert output_problems([("--json", new), ("--json", own)], is_own=lambda path: has_mark(path, mark)) == []
    assert output_problems([("--json", each) for each in (own, other, link)], overwrite=True) == []
    for path, is_own in ((own, None), (other, lambda path: has_mark(path, mark)), (link, None)):
        (problem,) = output_problems([("--json", path)], is_own=is_own)
        assert problem.where == f"--json={path}" and "a file of this name" in problem.what
        assert "--overwrite" in problem.hint
    assert not has_mark(own, mark_of("compare", "another"))
    (folder,) = output_problems([("--json", tmp_path)], overwrite=True)
    assert folder.what == "is a folder"
    (twice,) = output_problems([("--json", new), ("--sheet", tmp_path / "new/../new/a.json")], overwrite=True)
    assert twice.where.startswith("--sheet=") and "the file of --json" in twice.what
    assert not new.parent.exists(), "nothing is created"
