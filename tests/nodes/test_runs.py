"""The runs/ folder as the browser sees it: of a real run, while it grows, and full of hostile things."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.random_flux import ModelFiles
from custom_nodes.flux_dreambooth import training_log
from custom_nodes.flux_dreambooth.lora_file.concepts import Concept, read_concepts
from custom_nodes.flux_dreambooth.runs import NotNow, Runs, find_runs_dir
from custom_nodes.flux_dreambooth.training_log import MAX_LINE, TrainingLog
from tests.nodes.run_writer import RunWriter
from tests.recipe_files import make_workshop

HOSTILE = (
    "..", ".", "", "../outside", "..\\outside", "/etc", "tj/..", "tj/../../outside", "tj\0", "\0", "~", ".hidden",
    "link", "a" * 300, "tj/samples", "C:\\tj", "%2e%2e", "tj\n", "\ud800", "nobody",
)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """runs/ with a run `tj`, beside a run that is outside of it and linked from within."""
    RunWriter(tmp_path, "outside").steps(3)
    writer = RunWriter(tmp_path / "runs")
    writer.steps(3)
    writer.samples("a")
    (tmp_path / "runs/link").symlink_to(tmp_path / "outside")
    (tmp_path / "runs/.hidden").mkdir()
    (tmp_path / "runs/.hidden/log.jsonl").write_text("")
    (tmp_path / "runs/empty").mkdir()
    (tmp_path / "runs/file").write_text("")
    return tmp_path / "runs"


@pytest.fixture
def runs(folder: Path) -> Runs:
    return Runs(folder)


def set_age(folder: Path, seconds: float) -> None:
    for file in folder.iterdir():
        os.utime(file, (time.time() - seconds,) * 2)


def forget_start(folder: Path) -> None:
    """The log of a trainer that did not say how long a run is."""
    lines = (folder / "log.jsonl").read_text().splitlines(keepends=True)
    (folder / "log.jsonl").write_text("".join(line for line in lines if '"start"' not in line))


def test_a_real_run_is_read(tmp_path: Path, tiny_flux: ModelFiles):
    settings = {
        "max_train_steps": 12,
        "save_every_n_epochs": 1,
        "validate_every_n_steps": 5,
        "sample_every_n_steps": 10,
    }
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("tjtoy toy --w 64 --h 64 --s 1\n")
    run = make_workshop(tmp_path, tiny_flux).train("here", sample_prompts=prompts, **settings)
    details = Runs(run.config.run_dir).details("tj", run.loras())
    shown = [details[key] for key in ("state", "step", "total", "epoch", "epochs", "seconds_left", "broken_lines")]
    assert shown == ["finished", 12, 12, 3, 3, 0, 0]
    assert [point[0] for point in details["curve"]] == list(range(1, 13))
    assert all(value is not None for point in details["curve"] for value in point)
    assert [step for step, _ in details["validation"]] == [5, 10]
    assert [(saved["file"], saved["lora"]) for saved in details["checkpoints"]] == [
        ("tj.safetensors", "tj.safetensors"),
        ("tj-000002.safetensors", "tj-000002.safetensors"),
        ("tj-000001.safetensors", "tj-000001.safetensors"),
    ]
    assert [(sample["step"], sample["prompt"]) for sample in details["samples"]] == [(10, "tjtoy toy")]
    assert Runs(run.config.run_dir).sample("tj", details["samples"][0]["file"]).startswith(b"\x89PNG")
    assert read_concepts(run.metadata()) == [Concept("tjtoy toy", "tjtoy toy", 5)]
    assert {"output_name": "tj", **settings}.items() <= details["settings"].items()
    json.dumps(details, allow_nan=False)


def test_settings_that_json_lacks_are_left_out(folder: Path, runs: Runs):
    held = '[a]\nx = nan\nwhen = 2020-01-01\ny = [1, inf]\nname = "banana"\n[b]\nz = [1]\n'
    (folder / "tj/config.toml").write_text(held)
    assert runs.details("tj")["settings"] == {"name": "banana", "z": [1]}


def test_only_what_was_added_is_read(folder: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch):
    read = []
    take = TrainingLog._take
    monkeypatch.setattr(TrainingLog, "_take", lambda log, data: (read.append(len(data)), take(log, data)))
    runs.details("tj")
    size = (folder / "tj/log.jsonl").stat().st_size
    runs.details("tj")
    with (folder / "tj/log.jsonl").open("a") as file:
        file.write('{"kind": "step", "step": 4, "loss": 0.5')
        file.flush()
        assert runs.details("tj")["step"] == 3
        file.write("}\n")
    assert runs.details("tj")["step"] == 4
    assert sum(read) == size + len('{"kind": "step", "step": 4, "loss": 0.5}\n')


def test_a_log_that_was_replaced_is_read_anew(folder: Path, runs: Runs):
    assert runs.details("tj")["step"] == 3
    (folder / "tj/log.jsonl").rename(folder / "tj/log-20260101-000000.jsonl")
    assert runs.details("tj")["state"] == "preparing"
    (folder / "tj/log.jsonl").write_text('{"kind": "step", "step": 1, "loss": 0.5}\n')
    assert [point[0] for point in runs.details("tj")["curve"]] == [1]


def test_a_resumed_run_has_each_step_once(tmp_path: Path):
    writer = RunWriter(tmp_path)
    writer.steps(10)
    writer.step = 6
    writer.steps(2)
    assert [point[0] for point in Runs(tmp_path).details("tj")["curve"]] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_removed_checkpoints_are_gone_and_missing_files_cannot_be_used(tmp_path: Path):
    writer = RunWriter(tmp_path, per_epoch=10)
    for _ in range(3):
        writer.steps(10)
        writer.checkpoint()
    writer.line("checkpoint", file="tj-000004.safetensors", removed="tj-000001.safetensors, state-step00000010")
    listed = Runs(tmp_path).details("tj", ["sub/tj-000002.safetensors", "x.safetensors"])["checkpoints"]
    assert {saved["file"]: saved["lora"] for saved in listed} == {
        "tj-000004.safetensors": None,
        "tj-000003.safetensors": None,
        "tj-000002.safetensors": "sub/tj-000002.safetensors",
    }


def length(runs: Runs) -> tuple[Any, ...]:
    run = runs.details("tj")
    return run["state"], run["step"], run["total"], run["epochs"], run["seconds_left"]


def test_a_run_says_at_its_start_how_long_it_is(tmp_path: Path):
    writer, runs = RunWriter(tmp_path, total=35, per_epoch=7, seconds=2.0), Runs(tmp_path)
    (writer.folder / "config.toml").write_text("[training]\nmax_train_steps = 1600\nmax_train_epochs = 5\n")
    assert length(runs) == ("preparing", 0, None, 5, None)
    writer.start()
    assert length(runs) == ("running", 0, 35, 5, None)
    writer.steps(1)
    assert length(runs) == ("running", 1, 35, 5, 68.0)


def test_a_run_that_goes_on_may_have_another_length(tmp_path: Path):
    writer, runs = RunWriter(tmp_path, total=20, per_epoch=10, seconds=2.0), Runs(tmp_path)
    writer.steps(10)
    writer.checkpoint(with_state=True)
    writer.steps(4)
    writer.validation()
    set_age(writer.folder, 5000)
    assert length(runs) == ("stopped", 14, 20, 2, 12.0)
    writer.total = 40
    writer.start(10)
    assert length(runs) == ("running", 10, 40, 4, 60.0)
    assert runs.details("tj")["validation"] == [] and len(runs.details("tj")["curve"]) == 10
    writer.steps(1)
    assert length(runs) == ("running", 11, 40, 4, 58.0)
    writer.start(13)  # not every step has a line
    assert length(runs) == ("running", 13, 40, 4, 54.0)


def test_length_of_a_run_whose_log_does_not_say_it(tmp_path: Path):
    writer, runs = RunWriter(tmp_path, per_epoch=7, seconds=2.0), Runs(tmp_path)
    (writer.folder / "config.toml").write_text("[training]\nmax_train_steps = 1600\nmax_train_epochs = 5\n")
    writer.steps(7)
    forget_start(writer.folder)
    assert length(runs) == ("running", 7, None, 5, None)
    writer.steps(1)
    assert length(runs) == ("running", 8, 35, 5, 54.0)


def test_a_long_curve_has_few_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(training_log, "MAX_STEPS", 500)
    writer = RunWriter(tmp_path, total=5000)
    writer.steps(2000)
    curve = Runs(tmp_path).details("tj")["curve"]
    assert len(curve) <= 300 and curve[-1][0] == 2000 and curve[0][0] < 30


def test_no_run_and_no_folder(tmp_path: Path):
    assert Runs(tmp_path).overview() == {"found": True, "runs": []}
    assert Runs(tmp_path / "missing").overview() == {"found": False, "runs": []}
    (tmp_path / "file").touch()
    assert Runs(tmp_path / "file").overview() == {"found": False, "runs": []}


def test_where_runs_are(tmp_path: Path):
    pack, base = tmp_path / "repository/custom_nodes/flux_dreambooth", tmp_path / "base"
    for made in (pack, base):
        made.mkdir(parents=True)
    assert find_runs_dir({"FLUX_RUNS_DIR": "/elsewhere"}, base, pack) == Path("/elsewhere")
    assert find_runs_dir({}, base, pack) == base / "runs"
    (tmp_path / "repository/trainer").mkdir()
    (tmp_path / "repository/runs").mkdir()
    assert find_runs_dir({}, base, pack) == tmp_path / "repository/runs"
    (base / "runs").mkdir()
    assert find_runs_dir({}, base, pack) == base / "runs"


def test_wishes_become_files_that_the_trainer_finds(folder: Path, runs: Runs):
    for wish in ("save", "save", "stop"):
        runs.ask("tj", wish)
    assert runs.details("tj")["asked"] == ["save", "stop"]
    assert all((folder / "tj" / wish).read_bytes() == b"" for wish in ("save", "stop"))


def test_a_run_that_ended_is_not_asked(folder: Path, runs: Runs):
    set_age(folder / "tj", 5000)
    with pytest.raises(NotNow, match="not going on"):
        runs.ask("tj", "stop")
    assert not (folder / "tj/stop").exists(), "the next start would stop at once"


def test_a_wish_never_follows_a_link(folder: Path, runs: Runs):
    (folder / "tj/save").symlink_to(folder.parent / "made")
    with pytest.raises(NotNow, match="cannot be written"):
        runs.ask("tj", "save")
    assert not (folder.parent / "made").exists()


@pytest.mark.parametrize("wish", ["delete", "../save", "save\0", "", "log.jsonl", "samples/x"])
def test_nothing_else_can_be_asked(folder: Path, runs: Runs, wish: str):
    before = sorted(folder.rglob("*"))
    with pytest.raises(LookupError):
        runs.ask("tj", wish)
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_leads_out(folder: Path, runs: Runs, name: str):
    before = sorted(folder.parent.rglob("*"))
    for call in (runs.details, lambda n: runs.ask(n, "save"), lambda n: runs.sample(n, "tj-step00000003-00.png")):
        with pytest.raises(LookupError):
            call(name)
    assert sorted(folder.parent.rglob("*")) == before


@pytest.mark.parametrize("name", [*HOSTILE, "../log.jsonl", "../samples/tj-step00000003-00.png"])
def test_no_picture_leads_out(runs: Runs, name: str):
    for file in (name, f"{name}-step00000003-00.png"):
        with pytest.raises(LookupError):
            runs.sample("tj", file)


def test_only_pictures_that_are_files_are_given(folder: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch):
    samples = folder / "tj/samples"
    assert runs.sample("tj", "tj-step00000003-00.png").startswith(b"\x89PNG")
    (folder.parent / "secret.png").write_bytes((samples / "tj-step00000003-00.png").read_bytes())
    (samples / "tj-step00000003-01.png").symlink_to(folder.parent / "secret.png")
    (samples / "tj-step00000003-02.png").write_text("<script>")
    (samples / "tj-step00000003-03.png").mkdir()
    os.mkfifo(samples / "tj-step00000003-04.png")
    for index in range(1, 5):
        with pytest.raises(LookupError):
            runs.sample("tj", f"tj-step00000003-{index:02d}.png")
    monkeypatch.setattr("custom_nodes.flux_dreambooth.runs.MAX_SAMPLE", 10)
    with pytest.raises(LookupError):
        runs.sample("tj", "tj-step00000003-00.png")


def test_a_linked_samples_folder_is_not_looked_into(folder: Path, runs: Runs):
    (folder / "tj/samples").rename(folder.parent / "pictures")
    (folder / "tj/samples").symlink_to(folder.parent / "pictures")
    assert runs.details("tj")["samples"] == []
    with pytest.raises(LookupError):
        runs.sample("tj", "tj-step00000003-00.png")


@pytest.mark.parametrize("kind", ["link", "fifo", "folder"])
def test_a_log_that_is_no_file_is_not_read(folder: Path, runs: Runs, kind: str):
    log = folder / "tj/log.jsonl"
    log.unlink()
    if kind == "link":
        log.symlink_to(folder.parent / "outside/log.jsonl")
    elif kind == "fifo":
        os.mkfifo(log)
    else:
        log.mkdir()
    assert runs.details("tj")["curve"] == []


BROKEN = (
    b"{", b"null", b"[]", b"3", b'"x"', b'{"kind": "step"}', b'{"kind": "step", "step": "9"}', b"\xff\xfe\x00",
    b'{"kind": "step", "step": -1}', b'{"kind": "step", "step": 1e999}', b'{"kind": "step", "step": true}',
    b'{"kind": "checkpoint", "step": 9}', b'{"kind": "checkpoint", "step": 9, "file": "../../x"}',
    b'{"kind": "checkpoint", "step": 9, "file": ["a"]}', b'{"kind": "sample", "step": 9, "file": "a/.."}',
    b'{"kind": "validation", "step": 9, "loss": NaN}', b"[" * 50_000, b'{"step": ' + b"9" * 50_000 + b"}",
    b'{"kind": "start", "step": 9}', b'{"kind": "start", "step": 9, "total_steps": "9"}',
    b'{"kind": "start", "step": 9, "total_steps": 0}', b'{"kind": "start", "total_steps": 9}',
    b'{"kind": "step", "step": 5, "x": "' + b"y" * MAX_LINE + b'"}',
)  # fmt: skip


def test_broken_lines_are_counted_and_left_out(folder: Path, runs: Runs):
    with (folder / "tj/log.jsonl").open("ab") as file:
        file.write(b"\n".join(BROKEN) + b'\n{"kind": "step", "step": 4, "loss": Infinity, "learning_rate": NaN}\n')
        file.write(b'{"kind": ["x"], "step": 9}\n{"kind": "news", "step": 9}\n')
    details = runs.details("tj")
    assert details["broken_lines"] == len(BROKEN)
    assert details["curve"][-1] == [4, None, None, None]
    assert details["checkpoints"] == [] and details["total"] == 400
    json.dumps(details, allow_nan=False)


def test_a_giant_line_takes_no_memory_and_ends_at_its_end(folder: Path, runs: Runs):
    with (folder / "tj/log.jsonl").open("ab") as file:
        for _ in range(8):
            file.write(b"x" * 2**20)
        file.flush()
        assert runs.details("tj")["broken_lines"] == 1
        assert len(runs._logs["tj"].rest) <= MAX_LINE
        file.write(b'x\n{"kind": "step", "step": 4, "loss": 0.5}\n')
    details = runs.details("tj")
    assert (details["step"], details["broken_lines"]) == (4, 1)


def test_of_a_giant_log_the_end_is_read(runs: Runs, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(training_log, "MAX_BYTES", 700)
    details = runs.details("tj")
    assert 0 < len(details["curve"]) < 3 and details["step"] == 3 and details["broken_lines"] == 0


@pytest.mark.parametrize(
    "text", [b"", b"\xff", b"a = [", b'max_train_steps = "x"', b"max_train_steps = -1", b"[" * 9999]
)
def test_a_broken_config_leaves_the_length_open(folder: Path, runs: Runs, text: bytes):
    (folder / "tj/config.toml").write_bytes(text)
    forget_start(folder / "tj")
    assert runs.details("tj")["total"] is None
