"""What is known about a run's checkpoints: read from logs and comparisons that are whole, broken, old or of others."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from custom_nodes.flux_dreambooth import findings, grid
from custom_nodes.flux_dreambooth.routes_report import read_report
from custom_nodes.flux_dreambooth.runs import Runs
from custom_nodes.flux_dreambooth.sheet import INK, Sheet
from tests.nodes.run_writer import RunWriter
from trainer.engine.evaluation import best_of

SCORES = {40: 31.0, 80: 62.5, 120: 50.0}
FILES = {40: "tj-000001.safetensors", 80: "tj-000002.safetensors", 120: "tj.safetensors"}


def written(runs: Path, evaluated: bool = True) -> RunWriter:
    """A run of three checkpoints, the second one the best, which has ended."""
    run = RunWriter(runs, total=120, per_epoch=40)
    for step, score in SCORES.items():
        run.steps(40)
        run.checkpoint()
        if evaluated:
            figures = {"likeness": score + 10, "bleed": 4.0, "drift": 6.0}
            run.line("evaluation", score=score, error=2.0, loss_on_images=3.0, loss_drift=-1.0, **figures)
        assert run.step == step
    return run


def compared(run: RunWriter, **changed: Any) -> Path:
    """compare.json as `trainer compare` writes it; the first checkpoint is the best."""
    names = ("likeness", "bleed", "drift", "loss_on_images", "loss_drift")
    rows = [
        {"name": f"step {step}", "file": f"/loras/{file}", "step": step, "score": 90.0 - step / 10, "error": 1.5}
        | {name: {"mean": float(index), "spread": 1.0, "values": []} for index, name in enumerate(names)}
        for step, file in FILES.items()
    ]
    content = {"recommended": f"/loras/{FILES[40]}", "text": "Keep step 40: … The next best is step 80.", "close": []}
    path = run.folder / "compare.json"
    path.write_text(json.dumps(content | {"reason": "next", "checkpoints": rows} | changed))
    os.utime(path, (time.time() + 60,) * 2)
    return path


def found(runs: Path, name: str = "tj") -> dict[str, Any]:
    details = Runs(runs).details(name)
    json.dumps(details, allow_nan=False)
    assert details["broken_lines"] == 0
    return details["findings"]


def test_a_run_without_measures_says_nothing(tmp_path: Path):
    written(tmp_path, evaluated=False)
    nothing = {"measured": {}, "recommended": None, "verdicts": [], "report": None}
    assert found(tmp_path) == nothing


def test_evaluations_name_the_best_so_far_and_at_the_end_what_the_trainer_says(tmp_path: Path):
    run = written(tmp_path)
    best = found(tmp_path)["recommended"]
    assert (best["file"], best["step"], best["by"], best["of"]) == (FILES[80], 80, "so_far", 3)
    assert best["measured"]["score"] == 62.5 and best["measured"]["figures"] == {
        "likeness": 72.5,
        "bleed": 4.0,
        "drift": 6.0,
    }
    assert {*found(tmp_path)["measured"]} == {*FILES.values()}
    said, _ = best_of([json.loads(line) for line in run.log.read_text().splitlines()], "runs/tj")
    assert (said["best_step"], said["file"]) == (80, FILES[80])  # the trainer's own choice
    run.line("recommendation", **said)
    assert found(tmp_path)["recommended"] == {**best, "by": "end"}
    run.start(80)  # it goes on from a state
    assert found(tmp_path)["recommended"]["by"] == "so_far"


def test_a_step_without_a_file_is_recommended_as_a_step(tmp_path: Path):
    run = written(tmp_path, evaluated=False)
    run.step = 100
    run.line("evaluation", score=1.0, error=0.5, loss_on_images=3.0, loss_drift=-1.0)
    best = found(tmp_path)["recommended"]
    assert (best["file"], best["step"]) == (None, 100)
    assert (
        best["measured"]["figures"] == {"loss_on_images": 3.0, "loss_drift": -1.0} and found(tmp_path)["measured"] == {}
    )


def test_a_comparison_of_all_checkpoints_is_taken_before_the_log(tmp_path: Path):
    run = written(tmp_path)
    compared(run)
    known = found(tmp_path)
    best = known["recommended"]
    assert (best["file"], best["step"], best["by"], best["measured"]["score"]) == (FILES[40], 40, "compare", 86.0)
    assert (best["reason"], best["next"], best["newer"]) == ("next", 82.0, 0)
    assert known["measured"][FILES[120]] == {
        "score": 78.0,
        "error": 1.5,
        "figures": {"likeness": 0.0, "bleed": 1.0, "drift": 2.0},
    }


def test_a_comparison_of_an_earlier_run_with_the_same_name_is_of_no_use(tmp_path: Path):
    run = written(tmp_path, evaluated=False)
    (run.folder / "report.html").write_text("<p>")
    for file in (compared(run), run.folder / "report.html"):
        os.utime(file, (time.time() - 3600,) * 2)
    assert found(tmp_path) == {"measured": {}, "recommended": None, "verdicts": [], "report": "earlier"}
    os.utime(run.folder / "report.html")
    assert found(tmp_path)["report"] == "current"


def test_checkpoints_newer_than_the_comparison_are_counted_and_have_no_figures(tmp_path: Path):
    run = written(tmp_path, evaluated=False)
    compared(run)
    lines = [json.loads(line) for line in run.log.read_text().splitlines()]
    lines = [line | ({"time": time.time() + 999} if line.get("file") == FILES[120] else {}) for line in lines]
    run.log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    known = found(tmp_path)
    assert known["recommended"]["newer"] == 1 and {*known["measured"]} == {FILES[40], FILES[80]}
    run.line("evaluation", score=3.0, error=1.0)  # the log knows more
    assert found(tmp_path)["recommended"]["by"] == "so_far"


def test_a_file_of_another_folder_may_be_the_best(tmp_path: Path):
    run = written(tmp_path, evaluated=False)
    compared(run, recommended="D:\\loras\\other.safetensors")
    best = found(tmp_path)["recommended"]
    assert (best["file"], best["step"], best["measured"]) == ("other.safetensors", None, None)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", "[" * 9999, '{"checkpoints": []}', '{"recommended": 3, "checkpoints": []}',
     '{"recommended": "tj.safetensors", "checkpoints": 3}', '{"recommended": "tj.safetensors", "checkpoints": [3, {}]}',
     '{"recommended": "../tj", "checkpoints": [{"file": "x/tj.safetensors", "score": NaN}]}', "\udcff"],
)  # fmt: skip
def test_a_broken_comparison_leaves_the_log(tmp_path: Path, content: str):
    run = written(tmp_path)
    (run.folder / "compare.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    assert found(tmp_path)["recommended"]["by"] == "so_far"


def test_an_old_comparison_is_read_without_what_it_lacks(tmp_path: Path):
    compared(written(tmp_path, evaluated=False), reason=None, close=3)
    best = found(tmp_path)["recommended"]
    assert (best["reason"], best["close"]) == ("", ()) and best["text"].startswith("Keep step 40")


def test_links_are_not_followed(tmp_path: Path):
    run = written(tmp_path / "runs", evaluated=False)
    for name, file in (("compare.json", compared(run)), ("report.html", tmp_path / "page")):
        file.rename(tmp_path / "x") if file.exists() else (tmp_path / "x").write_text("secret")
        (run.folder / name).symlink_to(tmp_path / "x")
    assert found(tmp_path / "runs") == {"measured": {}, "recommended": None, "verdicts": [], "report": None}
    with pytest.raises(LookupError):
        read_report(tmp_path / "runs", "tj")


def test_verdicts_are_the_latest_of_each_kind_and_a_new_start_forgets_them(tmp_path: Path):
    run = written(tmp_path, evaluated=False)
    run.line("verdict", verdict="too_high", holds=True, text="too high", loss=2.0, loss_at_start=1.0)
    run.line("verdict", verdict="overfitting", holds=True, text="overfitting", since=80, held_out=float("nan"))
    run.line("verdict", verdict="too_high", holds=False, text="no longer so", loss=2.0, loss_at_start=1.0)
    first, second = found(tmp_path)["verdicts"]
    assert first == {"kind": "overfitting", "step": 120, "holds": True, "text": "overfitting", "facts": {"since": 80}}
    assert (second["kind"], second["holds"], second["facts"]) == ("too_high", False, {"loss": 2, "loss_at_start": 1})
    run.start(40)  # the guard of a resumed run says again what still holds
    assert found(tmp_path)["verdicts"] == []


def test_broken_events_are_counted(tmp_path: Path):
    run = written(tmp_path, evaluated=False)
    run.line("verdict", verdict="too_high", holds="yes", text="x")
    run.line("evaluation", score=float("inf"))
    run.line("evaluation", likeness=3)
    run.line("recommendation", best_step=-1)
    assert Runs(tmp_path).details("tj")["broken_lines"] == 4


def test_the_report_is_one_of_a_run(tmp_path: Path):
    run = written(tmp_path, evaluated=False)
    with pytest.raises(LookupError, match="have not been compared"):
        read_report(tmp_path, "tj")
    (run.folder / "report.html").write_text("<p>")
    assert read_report(tmp_path, "tj") == b"<p>"
    for name in ("..", "tj/../tj", "", "nobody", "queue"):
        with pytest.raises(LookupError):
            read_report(tmp_path, name)


def test_the_grid_knows_files_by_their_names_in_the_list(tmp_path: Path):
    compared(written(tmp_path))
    listed = [f"mine/{file}" for file in FILES.values()]
    measured, keep = findings.find_for_files(tmp_path, "mine/tj", listed)
    assert {*measured} == {*listed} and keep == listed[0]
    measured, keep = findings.find_for_files(tmp_path, "tj", [*listed, FILES[40]])  # two files, one name
    assert {*measured} == {*listed[1:]} and keep is None
    for run in ("nobody", "..", "", "x\0"):
        assert findings.find_for_files(tmp_path, run, listed) == ({}, None)


def test_a_sheet_frames_the_recommended_column_and_writes_figures_below(tmp_path: Path):
    written(tmp_path)
    measured, keep = findings.find_for_files(tmp_path, "tj", FILES.values())
    cells = grid.plan(["a"], grid.runs(FILES.values())["tj"], [0.0, 1.0])[0]
    feet = [grid.column_foot(cell, measured) for cell in cells]
    assert feet[:3] == ["", "likeness 41\nbleed 4\ndrift 6", "likeness 72\nbleed 4\ndrift 6"]
    marked = grid.column_of(cells, keep)
    assert marked == 2
    labels = [grid.column_label(cell) for cell in cells]
    plain = Sheet("tj", "a note", labels, ["a"], (160, 160))
    full = Sheet("tj", "a note", labels, ["a"], (160, 160), feet, marked)
    pictures = {(0, column): Image.new("RGB", (160, 160), (200, 60 * column, 90)) for column in range(4)}
    assert full.draw(pictures).height > plain.draw(pictures).height
    nothing = Sheet("tj", "a note", labels, ["a"], (160, 160), ["", "", "", ""], grid.column_of(cells, None))
    assert nothing.draw(pictures).tobytes() == plain.draw(pictures).tobytes()
    drawn = full.draw(pictures)
    dark = [x for x in range(drawn.width) if all(drawn.getpixel((x, y)) == INK for y in range(160, 260))]
    left, right = dark[0], dark[-1]  # the frame's sides, around the third image
    assert drawn.getpixel(((left + right) // 2, 220)) == (200, 120, 90) and 160 < right - left < 176
