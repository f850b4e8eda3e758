"""`python -m trainer compare` on a run of the very small FLUX: figures, one recommendation, an offline page."""

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.compare_cost import cost, write_judges
from benchmarks.random_judges import write_dinov2, write_siglip2
from benchmarks.selection.job import compare_run
from custom_nodes.flux_dreambooth.runs import Runs
from tests.recipe_files import Finished, Workshop
from trainer.cli import compare as command
from trainer.cli.compare import run as compare
from trainer.common.disk import mark_of
from trainer.common.files import write_json, write_text
from trainer.common.problems import Problems
from trainer.comparison import judges, pictures
from trainer.comparison.features import DEPTH, SIGMA
from trainer.comparison.judges import NO_SIGLIP
from trainer.config import to_toml
from trainer.engine import evaluation
from trainer.engine.evaluation import best_of

CPU = torch.device("cpu")
SMALL = ["--prompts=2", "--steps=2", "--size=64"]


@pytest.fixture(scope="module")
def run(workshop: Workshop) -> Finished:
    return workshop.train("compared", max_train_steps=6, save_every_n_steps=3)


def read(run: Finished) -> dict:
    return read_folder(run.folder)


def read_folder(folder: Path) -> dict:
    return json.loads((folder / "compare.json").read_text())


def test_a_run_is_measured_once_and_its_images_are_kept(run, capsys, monkeypatch):
    assert compare([str(run.folder), "--measure=base", *SMALL]) == 0
    said, found = capsys.readouterr().out, read(run)
    assert [each["step"] for each in found["checkpoints"]] == [3, 6]
    assert found["recommended"] in {each["file"] for each in found["checkpoints"]} and found["text"] in said
    kinds = [prompt["kind"] for prompt in found["prompts"]]
    assert kinds == ["alone"] * 2 + ["beside"] * 2 + ["class"] * 2 + ["neutral"] * 2
    last = found["checkpoints"][-1]
    assert len(last["likeness"]["values"]) == len(last["drift"]["values"]) == 4
    assert len(last["bleed"]["values"]) == len(last["class_bleed"]["values"]) == 2
    assert last["likeness_of"].keys() == {"tjtoy toy"} and "tjtoy toy, alone" in last["matrix"]
    assert last["loss_drift"]["mean"] != 0 and not found["held_out"]
    monkeypatch.setattr(pictures, "draw_prompts", lambda *_: pytest.fail("an image was generated again"))
    assert compare([str(run.folder), "--measure=base", "--drift_weight=0", *SMALL]) == 0
    again = read(run)
    assert again["checkpoints"][0]["likeness"] == found["checkpoints"][0]["likeness"]
    first = again["checkpoints"][0]
    assert first["score"] == pytest.approx(first["likeness"]["mean"] - first["bleed"]["mean"])
    page = Runs(run.config.run_dir).details("tj")["findings"]  # as ComfyUI's page has it
    assert page["recommended"]["file"] == Path(again["recommended"]).name and page["report"] == "current"
    assert page["recommended"]["reason"] == again["reason"] and len(page["measured"]) == 2


def test_the_page_needs_no_other_file(run):
    page = (run.folder / "report.html").read_text()
    assert not re.search(r"(src|href)=\"(?!data:)|url\(|<script|https?://", page)
    assert page.count("data:image/jpeg;base64,") == 3 * 8
    assert "prefers-color-scheme" in page and page.count("<svg") >= 3 and "Training loss" in page


def test_dinov2_and_siglip2_take_the_same_path(run, tmp_path):
    judges = [f"--dinov2={write_dinov2(tmp_path / 'dinov2')}", f"--siglip2={write_siglip2(tmp_path / 'siglip2')}"]
    assert compare([str(run.folder), *judges, *SMALL, f"--output={tmp_path}"]) == 0
    found = json.loads((tmp_path / "compare.json").read_text())
    assert found["source"] == "DINOv2"
    assert all(len(each["agreement"]["values"]) == 8 for each in found["checkpoints"])
    alone = [judges[0], f"--siglip2={tmp_path / 'none'}", "--overwrite"]
    assert compare([str(run.folder), *alone, *SMALL, f"--output={tmp_path}"]) == 0
    found = json.loads((tmp_path / "compare.json").read_text())
    assert found["source"] == "DINOv2" and not any("agreement" in each for each in found["checkpoints"])
    assert NO_SIGLIP in (tmp_path / "report.html").read_text()


def test_the_cost_of_a_checkpoint_is_told_by_stage(run, tmp_path, capsys):
    found = cost(run.folder, tmp_path / "64", [*write_judges(tmp_path, "tiny"), *SMALL, f"--output={tmp_path}/64"], CPU)
    assert found["resolution"] == 64 and found["images"] == 8 and found["start"] > 0
    for each in found["checkpoints"]:
        assert each.keys() == {"images", "losses", "features", "text"} and all(each[name] > 0 for name in each)
    assert capsys.readouterr().out == "", "the JSON is alone there"


def test_without_features_losses_decide_and_the_page_says_so(run, tmp_path, capsys):
    assert compare([str(run.folder), "--measure=loss", *SMALL, f"--output={tmp_path}"]) == 0
    found = json.loads((tmp_path / "compare.json").read_text())
    for each in found["checkpoints"]:
        assert each["score"] == pytest.approx(each["loss_on_images"]["mean"] - each["loss_drift"]["mean"])
    said = capsys.readouterr().out
    assert "score = fall of the loss - " in said and "likeness" not in said and "held-out" not in said
    assert "losses alone, which are weaker" in (tmp_path / "report.html").read_text()


def test_a_lora_of_another_rank_and_a_copy_of_nothing(run, workshop, tmp_path):
    """A file of another rank is loaded anew, and the base model stays what it was: zeros change nothing."""
    other = workshop.train("other_rank", max_train_steps=1, network_dim=2)
    zeros = {name: each if name.endswith("alpha") else 0 * each for name, each in load_file(other.lora()).items()}
    save_file(zeros, tmp_path / "nothing.safetensors")
    argv = [str(run.folder), "--measure=base", *SMALL, f"--output={tmp_path}", f"--lora={tmp_path}/nothing.safetensors"]
    assert compare(argv) == 0
    nothing = json.loads((tmp_path / "compare.json").read_text())["checkpoints"][-1]
    assert nothing["name"] == "nothing"
    assert nothing["drift"]["mean"] == pytest.approx(0, abs=0.5) and nothing["loss_drift"]["mean"] == pytest.approx(0)
    assert nothing["bleed"]["mean"] == pytest.approx(0, abs=0.5)


def test_a_training_measures_itself_and_names_the_best_file(workshop, caplog, monkeypatch):
    """Twice in two epochs, at the size of `compare`; the base model's images are generated once and found by it."""
    monkeypatch.setattr(judges, "usual_side", lambda _: 64)
    monkeypatch.setattr(evaluation, "usual_side", lambda _: 64)
    monkeypatch.setattr(evaluation, "STEPS", 2)
    caplog.set_level("INFO")
    settings = {"max_train_epochs": 2, "save_every_n_epochs": 1, "evaluate_every_n_epochs": 1}
    found = workshop.train("watched", **settings)
    first, last = found.log("evaluation")
    assert (first["step"], last["step"]) == (5, 10) and first["likeness"] != last["likeness"]
    assert {"score", "error", "bleed", "drift", "copied", "loss_on_images", "loss_drift"} <= first.keys()
    (best,) = found.log("recommendation")
    assert best["best_step"] in (5, 10) and (found.config.output_dir / best["file"]).is_file()
    assert "best of 2 evaluations: tj" in caplog.text
    page = Runs(found.config.run_dir).details("tj")
    assert (page["findings"]["recommended"]["file"], page["findings"]["recommended"]["by"]) == (best["file"], "end")
    assert len(page["findings"]["measured"]) == 2 and page["broken_lines"] == 0
    plain = workshop.train("unwatched", **settings | {"evaluate_every_n_epochs": None})
    assert not plain.log("evaluation") and "which of the 2 LoRA files to keep" in caplog.text
    assert all(torch.equal(found.tensors()[name], each) for name, each in plain.tensors().items())


def test_the_last_line_of_a_run():
    step = {"kind": "checkpoint", "step": 5, "file": "tj-000001.safetensors"}
    assert "nothing to choose from" in best_of([step], "runs/tj")[1]
    measured = {"kind": "evaluation", "error": 2.0, "likeness": 60.0, "bleed": 4.0, "drift": 6.0}
    events = [step, {**measured, "step": 5, "score": 50.0}, {**measured, "step": 8, "score": 55.0}]
    best, line = best_of(events, "runs/tj")
    assert best == {"best_step": 8, "file": "", "score": 55.0}
    assert "step 8, at which no LoRA file was saved" in line and "python -m trainer compare runs/tj" in line
    best, line = best_of([*events, {**measured, "step": 8, "score": 40.0}], "runs/tj")
    assert best["file"] == "tj-000001.safetensors" and "score 50.0 ± 2.0" in line
    none = {"bleed": [0.0, 0.0], "drift": [0.0, 0.0], "kind": "evaluation_values"}
    values = [{**none, "step": 5, "benefit": [70.0, 40.0]}, {**none, "step": 8, "benefit": [52.0, 48.0]}]
    events = [step, {**measured, "step": 5, "score": 55.0}, {**measured, "step": 8, "score": 50.0}]
    assert best_of(events, "runs/tj")[0]["best_step"] == 5
    assert best_of([*events, *values], "runs/tj")[0]["best_step"] == 8  # the difference says nothing: the later one
    assert best_of([*events, {"kind": "evaluation_values", "step": 5}, values[1]], "runs/tj")[0]["best_step"] == 5
    broken = {**measured, "step": 2, "score": float("nan")}
    assert best_of([broken, *events], "runs/tj")[0]["best_step"] == 5


def test_the_benchmark_measures_at_every_block(workshop):
    """At the depth and noise of `trainer compare` the figures are its own."""
    workshop.train("selection", max_train_steps=2, save_every_n_steps=1, output_name="run")
    folder = workshop.folder / "selection"
    found = compare_run(folder, ["--prompts=1", "--steps=1", "--size=64"], sigmas=(SIGMA,))
    assert len(found["checkpoints"]) == 2 and {each.name for each in folder.glob("*.webp")} == {
        "base.webp", "step1.webp", "step2.webp",
    }  # fmt: skip
    blocks = [each["block"] for each in found["depths"]]
    assert blocks == list(range(len(blocks)))
    (own,) = (each for each in found["depths"] if each["block"] == round(DEPTH * len(blocks)))
    (concept,) = own["concepts"].values()
    for checkpoint, measured in zip(found["checkpoints"], own["checkpoints"], strict=True):
        (similarity,) = measured["similarity"].values()
        likeness = [100 * (each - concept["floor"]) / concept["room"] for each in similarity]
        assert likeness[:2] == pytest.approx(checkpoint["likeness"]["values"], abs=0.2)
        assert measured["drift"] == pytest.approx(checkpoint["drift"]["values"], abs=0.01)


def test_a_broken_file_of_the_run_is_named_and_the_others_are_compared(run, tmp_path, capsys):
    """A LoRA of another base model is named, too, in place of a flag that may be given several times."""
    copied = tmp_path / "tj"
    write_text(copied / "config.toml", to_toml(replace(run.config, output_dir=copied, run_dir=tmp_path)))
    nan = {name: each if name.endswith("alpha") else math.nan * each for name, each in run.tensors().items()}
    save_file(nan, copied / "tj-step00000001.safetensors")
    for name in ("tj-step00000003", "tj"):
        shutil.copy(run.lora(name), copied)
    argv = [str(copied), "--measure=loss", *SMALL]
    assert compare(argv) == 0
    said, found = capsys.readouterr().out, read_folder(copied)
    assert [each["step"] for each in found["checkpoints"]] == [3, 6] and "left out: " in said
    assert "tj-step00000001" in found["left_out"][0] and "not finite" in (copied / "report.html").read_text()
    (tmp_path / "garbage.safetensors").write_bytes(b"none")
    with pytest.raises(Problems) as problems:
        compare([*argv, f"--lora={copied}/tj-step00000001.safetensors", f"--lora={tmp_path}/garbage.safetensors"])
    assert len(problems.value.problems) == 2
    wide = {name: each if each.ndim < 2 else each.repeat_interleave(2, 1) for name, each in run.tensors().items()}
    save_file({name: each.contiguous() for name, each in wide.items()}, tmp_path / "wide.safetensors")
    with pytest.raises(Problems, match=r"wide\.safetensors: "):
        compare([*argv, f"--lora={tmp_path}/wide.safetensors"])


def test_a_report_of_another_run_is_not_replaced(run, tmp_path, monkeypatch):
    (tmp_path / "report.html").write_text("<p>my own</p>")
    write_json(tmp_path / "compare.json", {"origin": mark_of("compare", "other run")})
    argv = [str(run.folder), *SMALL, f"--output={tmp_path}"]
    with pytest.raises(Problems) as found:
        compare(argv)
    assert [Path(each.where).name for each in found.value.problems] == ["compare.json", "report.html"]
    monkeypatch.setattr(command, "compare_files", lambda *_: pytest.fail("reached"))
    with pytest.raises(pytest.fail.Exception, match="reached"):
        compare([*argv, "--overwrite"])


def test_mistakes_are_named_before_a_model_is_loaded(run, tmp_path):
    for argv, words in (
        ([str(tmp_path)], "is not a run"),
        ([str(run.folder), f"--lora={tmp_path}/none.safetensors"], "no such file"),
        ([str(run.folder), "--prompts=0"], "0 is less than 1"),
        ([str(run.folder), "--size=100"], "not a multiple of 16"),
        ([str(run.folder), f"--seed={2**64}", "--bleed_weight=nan"], "is not from 0 to .*\n.*nan is not a number"),
        ([str(run.folder), f"--lora={tmp_path}"], "is a folder"),
        ([str(run.folder), "--measure=dinov2", f"--dinov2={tmp_path}"], "sh download.sh --judges"),
    ):
        with pytest.raises(Problems, match=words):
            compare(argv)
