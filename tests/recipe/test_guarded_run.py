"""The guard in a run of the very small FLUX: what it logs, when it stops, and that training does not notice it."""

import pytest

from custom_nodes.flux_dreambooth.runs import Runs
from tests.recipe_files import check_report, largest_difference, read_log
from trainer.common.problems import Problems
from trainer.engine import guard
from trainer.engine.probe import StepProbe
from trainer.guard.history import History
from trainer.guard.verdicts import Verdict, verdicts

SHORT = {"max_train_steps": 4, "save_precision": "float"}
TEXT = "overfitting since step 2 (made up)"


def test_a_rate_that_is_far_too_low_is_named_too(workshop):
    run = workshop.train("low", learning_rate=1e-7, max_train_steps=30)
    assert run.log("verdict")[0]["verdict"] == "too_low"
    (seen,) = Runs(run.config.run_dir).details("tj")["findings"]["verdicts"]  # as ComfyUI's page has it
    assert seen["kind"] == "too_low" and seen["holds"] and {"learned", "loss_at_start"} <= seen["facts"].keys()
    assert run.log("verdict")[0]["step"] >= 12


def test_the_guard_changes_no_weight(workshop, monkeypatch):
    watched = workshop.train("watched", **SHORT)
    for name in ("see_gradient", "see_update"):
        monkeypatch.setattr(StepProbe, name, lambda _self: None)
    blind = workshop.train("blind", **SHORT)
    assert blind.log("step")[-1]["update_rms"] == 0 < watched.log("step")[-1]["update_rms"]
    assert largest_difference(watched.tensors(), blind.tensors()) == 0


def overfits_at(step: int):
    def found(history: History) -> list[Verdict]:
        if history.steps[-1].step < step:
            return verdicts(history)
        return [Verdict("overfitting", step, TEXT, since=2)]

    return found


@pytest.mark.parametrize(("asked", "steps"), [("overfit", 3), ("never", 5)])
def test_only_when_asked_a_run_that_overfits_is_saved_and_stopped(workshop, monkeypatch, asked, steps):
    monkeypatch.setattr(guard, "verdicts", overfits_at(3))
    settings = {"max_train_steps": 5, "validation_split": 0.2, "validate_every_n_steps": 1, "stop_when": asked}
    run = workshop.train(asked, **settings)
    assert run.status == 0 and len(run.log("step")) == steps
    assert run.log("verdict")[0]["text"] == TEXT
    assert run.state(3).is_dir() == (asked == "overfit")
    assert [line["step"] for line in run.log("checkpoint")] == [steps]


def test_a_run_that_cannot_overfit_by_any_measure_is_refused(workshop):
    settings = {"max_train_steps": 5, "stop_when": "overfit"}
    (problem,) = check_report(workshop.config("refused", **settings))
    assert "--stop_when=overfit" in problem and "neither validated nor evaluated" in problem
    (problem,) = check_report(workshop.config("refused", **settings, validate_every_n_steps=1))
    assert "no images are held out" in problem


def test_a_loss_that_is_no_number_leaves_its_verdict_in_the_log(workshop):
    with pytest.raises(Problems, match="a lower --learning_rate usually helps"):
        workshop.train("nan", learning_rate=3e30, max_train_steps=5, optimizer_type="Lion")
    (said,) = read_log(workshop.folder / "nan/runs/tj/log.jsonl", "verdict")
    assert said["verdict"] == "too_high" and "no finite number" in said["text"]
