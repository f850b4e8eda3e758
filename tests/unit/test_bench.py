"""`python -m trainer bench`: settings, files, a whole small measurement on the CPU, and comparing two."""

import json
from dataclasses import replace
from pathlib import Path
from shutil import copytree

import pytest
import torch

from benchmarks import report
from benchmarks.measure import Length, prepare
from benchmarks.peak import measure_peak
from benchmarks.random_flux import ModelFiles, model_contents, model_files
from benchmarks.settings import PRESETS, Setting, merge_flags, read_settings
from benchmarks.workspace import DEFAULTS, Model, choose_model, disk_problems, write_dataset
from trainer.__main__ import main
from trainer.common.problems import Problems
from trainer.config import TrainConfig, parse_config
from trainer.data.dataset import load_dataset

CPU = torch.device("cpu")
CHOSEN = {"checkpointed": 57, "swapped": 0, "base": "fp8"}


def test_every_preset_is_a_command_line_that_train_takes():
    for name in PRESETS:
        on_gpu, elsewhere = (read_settings([name], [], [], [], gpu)[0] for gpu in (True, False))
        config = parse_config(on_gpu.flags)[0]
        assert config.mixed_precision == "bf16" and config.torch_compile == (name != "eager")
        config = parse_config(elsewhere.flags)[0]
        assert config.mixed_precision == "no" and not config.torch_compile
    assert {"rank16", "playbook", "512"} <= PRESETS.keys()


def test_a_later_flag_takes_the_place_of_an_earlier_one():
    merged = merge_flags(["--a", "1", "--b=2"], ["--b", "3", "4"], ["--a=5", "--c"])
    assert merged == ["--a=5", "--b", "3", "4", "--c"]
    own = ["small=rank16 --network_dim 4", "other=--seed=1"]
    small, other = read_settings([], own, ["--learning_rate=1e-3"], ["--resolution=64"], on_gpu=True)
    assert (small.name, other.name) == ("small", "other")
    config = parse_config(small.flags)[0]
    assert (config.network_dim, config.learning_rate, config.torch_compile) == (4, 1e-3, True)
    assert parse_config(other.flags)[0] == TrainConfig(seed=1, learning_rate=1e-3, resolution="64")


def test_what_is_wrong_with_settings_is_said_at_once():
    with pytest.raises(Problems) as found:
        read_settings(["rank16"], ["--seed=1", "a=fast", "rank16=--seed=1"], ["--max_train_steps=5"], [], True)
    text = str(found.value)
    assert "has no name" in text and "'fast' is not a preset" in text and "is the name of two settings" in text
    assert "--max_train_steps" in text and "--pictures" in text


def test_the_model_is_chosen_by_size_folder_and_device(tmp_path):
    assert choose_model(None, None, tmp_path, on_gpu=True).name == "full"
    assert choose_model(None, None, tmp_path, on_gpu=False) == Model("tiny", tmp_path / "models" / "tiny", True)
    own = choose_model(None, tmp_path, tmp_path, on_gpu=True)
    with pytest.raises(Problems, match=r"holds no flux1\*\.safetensors"):
        own.flags()
    assert not choose_model("mini", None, tmp_path, on_gpu=True).random and DEFAULTS["mini"]


def test_a_folder_of_model_files_is_read_by_their_names(tiny_flux: ModelFiles):
    folder = tiny_flux.ae.parents[1]
    assert parse_config(Model("model", folder, random=False).flags())[0].t5xxl == tiny_flux.t5xxl


def test_random_files_are_kept_when_they_are_whole_and_fit_on_the_disk(tiny_flux: ModelFiles, tmp_path, monkeypatch):
    copytree(tiny_flux.ae.parents[1], tmp_path / "tiny")
    model = Model("tiny", tmp_path / "tiny", random=True)
    assert model.missing_bytes == 0 and not disk_problems(model, tmp_path)
    clip = model_files(model.folder).clip_l
    clip.write_bytes(clip.read_bytes()[:-1])
    assert model.missing_bytes == tiny_flux.clip_l.stat().st_size
    full = Model("full", tmp_path / "full", random=True)
    assert full.missing_bytes == sum(content.total_bytes or 0 for content in model_contents(model_files(clip), "full"))
    monkeypatch.setattr("benchmarks.workspace.free_disk_bytes", lambda _: 10**9)
    (problem,) = disk_problems(full, tmp_path)
    assert "34.2 GB" in problem.what and "1.0 GB are free" in problem.what and "--size" in problem.hint


@pytest.mark.parametrize("images", ["plain", "mixed"])
def test_pictures_are_of_the_resolution_and_shapes_asked(tmp_path, images):
    config = TrainConfig(resolution="256", max_train_steps=5, gradient_accumulation_steps=4)
    dataset = write_dataset(tmp_path, config, draws=20, images=images)
    data = load_dataset(replace(config, dataset_config=dataset))[0]
    buckets = {sample.bucket for sample in data.samples}
    assert (len(buckets) > 2) if images == "mixed" else buckets == {(256, 256)}
    assert sum(sample.num_repeats for sample in data.samples) >= 20, "no group is cut short by an epoch's end"


def test_a_run_is_as_long_as_asked(tiny_flux: ModelFiles, tmp_path):
    flags = [*Model("model", tiny_flux.ae.parents[1], random=False).flags(), *DEFAULTS["tiny"]]
    flags += ["--gradient_accumulation_steps=2", "--train_batch_size=3", "--network_dim=4"]
    prepared = prepare(Setting("a b", tuple(flags)), tmp_path, Length(2, 40, 1), "plain")
    assert (prepared.job.measured, prepared.job.steps, prepared.job.pictures_per_step) == (7, 10, 6)
    assert prepared.plan.schedule.total_steps == 11 and prepared.job.low_rank_side == 4
    assert prepared.job.read(prepared.job.write()) == prepared.job


def test_products_are_timed_on_the_cpu():
    peak = measure_peak("fp32", CPU, seconds=0.05)
    assert peak is not None and 1e-4 < peak.tflops < 100


def measured(name: str = "rank16", seconds: float = 0.4, **more) -> dict:
    figures = {"seconds_per_picture": seconds, "lowest": seconds, "highest": seconds, "first_step": 30.0}
    figures |= {"tflop_per_picture": 171.0, "tflop_recomputed": 74.0, "tflops": 171 / seconds, "share_of_peak": 0.5}
    figures |= {
        "peak_precision": "bf16",
        "checkpoint": None,
        "optimizer_step": 0.01,
        "processor": 0.3,
        "host_gib": 2.0,
        "chosen": CHOSEN,
        **more,
    }
    setting = {"name": name, "flags": [], "figures": figures, "breakdown": None, "failure": ""}
    described = {"machine": {"device": "H", "device_gib": 80.0}, "versions": {"torch": "2.11"}, "peaks": {}}
    return {"schema": 1, "written": "", "model": "full", **described, "settings": [setting]}


def write(path: Path, found: dict) -> str:
    path.write_text(json.dumps(found))
    return str(path)


def test_two_measurements_are_compared_by_their_ratios(tmp_path, capsys):
    before, after = write(tmp_path / "a.json", measured()), write(tmp_path / "b.json", measured(seconds=0.44))
    assert main(["bench", "--compare", before, after, "--tolerance", "0.2"]) == 0
    out = capsys.readouterr().out
    assert "| rank16 | s per image | 0.400 | 0.440 | 1.100 |" in out and "before," not in out
    assert main(["bench", "--compare", before, after]) == 1
    assert "rank16 is slower by more than 5%" in capsys.readouterr().err
    assert main(["bench", "--compare", after, before]) == 0


def test_what_cannot_be_compared_is_said(tmp_path, capsys):
    other = measured("512") | {"model": "small"}
    assert main(["bench", "--compare", write(tmp_path / "a", measured()), write(tmp_path / "b", other)]) == 0
    out = capsys.readouterr().out
    assert "model: full before, small after" in out and "rank16: only before" in out and "512: only after" in out
    assert main(["bench", "--compare", str(tmp_path / "absent"), write(tmp_path / "c", {"schema": 0})]) == 1
    assert "cannot be read" in capsys.readouterr().err
    assert main(["bench", "--compare", str(tmp_path / "c"), str(tmp_path / "a")]) == 1
    assert "is not a measurement" in capsys.readouterr().err


def test_a_failure_is_a_result_and_shows_its_last_lines():
    found = measured()
    found["settings"].append({"name": "big", "flags": [], "figures": None, "breakdown": None, "failure": "memory"})
    text = report.render(found)
    assert (
        "base fp8, 57 blocks recomputed" in text
        and "171 + 74" in text
        and "50% bf16" in text
        and "big failed:\n    memory" in text
    )


def test_dry_run_says_what_would_be_done_and_writes_nothing(tmp_path, capsys):
    work = tmp_path / "work"
    assert main(["bench", "--size=tiny", f"--work={work}", "--dry_run", "--network_dim=3"]) == 0
    text = capsys.readouterr().err
    assert "GB of random weights to write" in text and "--network_dim=3" in text and "40 images timed" in text
    assert not work.exists()
    assert main(["bench", "--size=tiny", f"--work={work}", "--network_dmi=3", "--pictures=40"]) == 1
    assert not work.exists(), "problems of flags come before any file"
    assert main(["bench", "--size=tiny", f"--work={work}", "--pictures=0"]) == 1
    for flag in ("output", "report"):
        (tmp_path / flag).write_text("a measurement")
        assert main(["bench", "--size=tiny", f"--work={work}", "--dry_run", f"--{flag}={tmp_path / flag}"]) == 1
        assert f"--{flag}={tmp_path / flag}: there is a file of this name" in capsys.readouterr().err
    assert (
        main(["bench", "--size=tiny", f"--work={work}", "--dry_run", f"--output={tmp_path / 'output'}", "--overwrite"])
        == 0
    )


@pytest.mark.slow
def test_a_small_bench_from_end_to_end(tiny_flux: ModelFiles, tmp_path, capsys):
    copytree(tiny_flux.ae.parents[1], tmp_path / "models" / "tiny")
    out = tmp_path / "bench.json"
    own = ["--setting", "fine=--network_dim=4 --mixed_precision=no"]
    argv = ["bench", "--size=tiny", f"--work={tmp_path}", "--pictures=3", "--warm_up=1", "--profile=1", *own]
    page = tmp_path / "page.md"
    assert main([*argv, "--peak_seconds=0.05", f"--output={out}", f"--report={page}"]) == 0
    written = page.read_text()
    assert "| fine |" in written and "--network_dim=4 --mixed_precision=no`" in written and str(tmp_path) not in written
    found = json.loads(out.read_text())
    (setting,) = found["settings"]
    figures = setting["figures"]
    assert setting["name"] == "fine" and figures["pictures_timed"] == 3
    assert 0 < figures["lowest"] <= figures["seconds_per_picture"] <= figures["highest"] < figures["first_step"]
    assert 0 < figures["share_of_peak"] < 2 and figures["checkpoint"] > 0 and figures["optimizer_step"] > 0
    assert figures["processor"] > 0
    assert figures["encoded"] == 9 and figures["torch_allocated_gib"] is None and figures["host_gib"] > 0.1
    assert figures["chosen"].items() >= {"checkpointed": 0, "swapped": 0, "base": "bf16"}.items()
    assert figures["launches"] == "there is no GPU" and figures["synchronizations"] is None
    assert not figures["by_kind"], "all batches are of one kind"
    assert {"large products", "low-rank products", "optimizer and clipping"} <= setting["breakdown"]["seconds"].keys()
    assert found["versions"]["torch"] == torch.__version__ and "fp32" in found["peaks"]
    assert "| fine |" in capsys.readouterr().out
