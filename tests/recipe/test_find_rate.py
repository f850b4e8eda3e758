"""`python -m trainer find_rate`: what it tries, what it says, and that it touches nothing of the run itself."""

import json
from contextlib import closing
from pathlib import Path

import pytest
from accelerate import Accelerator

from tests.recipe_files import ONE_FOLDER, Workshop
from trainer.cli import find_rate
from trainer.common.problems import Problems
from trainer.preflight.check import make_plan
from trainer.rates.sweep import Sweep, sweep_config
from trainer.train import own_run_dir

RATES = ("1e-4", "1e-2", "30")
SETTINGS = {"max_train_steps": 40, "loss_type": "l1"}


def find(workshop: Workshop, place: str, *options: str, **settings) -> int:
    return find_rate.run([*workshop.argv(place, **{**SETTINGS, **settings}), "--steps=10", *options])


def record(workshop: Workshop, place: str) -> Path:
    return workshop.folder / place / "runs/tj_find_rate/rates.json"


@pytest.fixture(scope="module")
def found(workshop: Workshop) -> dict:
    find(workshop, "found", "--rates", *RATES)
    return json.loads(record(workshop, "found").read_text())


def test_each_rate_starts_from_the_same_adapter_on_the_same_batches(found):
    """The first loss is that of the step before any update, so it is the same everywhere."""
    assert len(found["base"]) == 10
    firsts = {each["losses"][0] for each in found["rates"] if each["losses"]}
    assert firsts == {found["base"][0]}
    low, high, *_ = found["rates"]
    assert low["losses"][1:] != high["losses"][1:]


@pytest.mark.usefixtures("found")
def test_no_lora_file_is_written(workshop):
    assert not list((workshop.folder / "found").rglob("*.safetensors"))


def test_a_repeated_sweep_continues(workshop, found, capsys):
    path = record(workshop, "found")
    path.write_text(json.dumps({**found, "rates": found["rates"][:1]}))
    find(workshop, "found", "--rates", *RATES)
    assert json.loads(path.read_text()) == found
    said = capsys.readouterr()
    assert "rates.json: 0.0001 are done" in said.err and "rate 0.0001:" not in said.err
    assert "0.01" in said.out and "exploded" in said.out


@pytest.mark.usefixtures("found")
def test_a_sweep_with_other_settings_is_not_continued(workshop, capsys):
    find(workshop, "found", "--rates", "1e-4", network_dim=2)
    assert "network_dim: 4 before, 2 now" in capsys.readouterr().err


def test_prodigy_is_held_at_each_step_size(workshop, capsys):
    status = find(workshop, "prodigy", "--rates", "1e-3", "1e-2", optimizer_type="Prodigy", learning_rate=1)
    out = capsys.readouterr().out
    assert (status == 0) == ("prodigy_d" in out)


def test_mistakes_are_found_before_anything_is_loaded(workshop):
    with pytest.raises(Problems) as problems:
        find_rate.run([*workshop.argv("bad"), "--steps=2", "--rates", "0"])
    assert len(problems.value.problems) == 2


def test_a_file_of_something_else_is_not_replaced(workshop):
    path = record(workshop, "foreign")
    path.parent.mkdir(parents=True)
    path.write_text("my rates")
    with pytest.raises(Problems, match="is not a record of find_rate"):
        find(workshop, "foreign", "--rates", *RATES)
    assert path.read_text() == "my rates"


def test_images_that_are_only_preserved_have_no_rate(workshop):
    dataset = workshop.dataset(ONE_FOLDER + "custom_attributes = { diff_output_preservation = true }\n", "kept.toml")
    with pytest.raises(Problems, match="only preserves the base model"):
        find(workshop, "kept", dataset_config=dataset)


def test_a_loss_of_nothing_explodes_at_no_rate(workshop):
    """Three times a loss of 0 is no limit: what follows is as good as no training."""
    config = sweep_config(workshop.config("nothing", max_train_steps=10))
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    plan = make_plan(config, 1, accelerator.device)
    with own_run_dir(config), closing(Sweep(config, accelerator, plan, 2)) as sweep:
        sweep.base(lambda _step: None)
        found = sweep.losses(1e-4, (0.0, 0.0), lambda _step: None)
    assert len(found.losses) == 2 and not found.diverged
