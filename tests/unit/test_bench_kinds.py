"""The bench's kinds of batches, and the small benchmarks next to it, on the CPU."""

import json

import pytest

from benchmarks import probe, report, sampling
from benchmarks.kinds import kind_of_step, seconds_by_kind
from benchmarks.workspace import write_dataset
from tests.unit.test_bench import measured
from trainer.config import TrainConfig
from trainer.data.dataset import load_dataset

KINDS = {"plain", "preserved", "background preserved", "weighted by place", "composite, weighted by place"}


def test_two_concepts_give_every_kind_of_batch_about_equally_often(tmp_path):
    config = TrainConfig(resolution="256", max_train_steps=5)
    dataset = write_dataset(tmp_path, config, draws=40, images="concepts")
    data = load_dataset(TrainConfig(resolution="256", dataset_config=dataset))[0]
    kinds = [kind_of_step([draws], None) for draws in data.batches(0)]
    assert {kind: kinds.count(kind) for kind in KINDS} == dict.fromkeys(KINDS, 8) and len(kinds) == 40
    named = [kind_of_step([draws], data.class_caption) for draws in data.batches(0)]
    assert {kind for kind in named if not kind.endswith(", class words")} == {"preserved"}


def test_seconds_are_told_apart_by_kind_and_shown_next_to_plain_ones():
    steps = [{"seconds_per_picture": seconds} for seconds in (0.2, 0.3, 0.4, 0.6, 0.2)]
    found = seconds_by_kind(steps, ["plain", "preserved", "preserved", "preserved", "plain"])
    assert found == {"plain": [0.2, 0.2, 0.2, 2], "preserved": [0.4, 0.3, 0.6, 3]}
    assert seconds_by_kind(steps, ["plain"] * 5) == {}
    waits = {"step.py:7": 3}
    text = report.render(measured(by_kind=found, launches="recorded", synchronizations=waits))
    assert "| rank16 | preserved | 0.400 (0.300-0.600) | 2.00 | 3 |" in text
    assert "rank16: CUDA graphs: recorded; the host waited for the GPU: step.py:7 3 times" in text
    assert "the host waited" not in report.render(measured())


def test_the_probe_and_one_image_are_timed(tiny_flux, tmp_path, capsys):
    output = tmp_path / "figures.json"
    assert probe.main(["--ranks=1", "--blocks", "1", "1", "--repeats=1", f"--output={output}"]) == 0
    (times,) = json.loads(output.read_text()).values()
    assert times.keys() == {"see_gradient", "see_update"}
    folder = tmp_path / "models" / "tiny"
    folder.parent.mkdir()
    folder.symlink_to(tiny_flux.ae.parents[1])
    words = ["--size=tiny", f"--work={tmp_path}", "--resolution=32", "--steps", "1", "2", "--precisions", "bf16"]
    assert sampling.main([*words, f"--output={output}"]) == 0
    ways = json.loads(output.read_text())["results"]
    assert [each["way"] for each in ways] == ["as it is", "blocks of training", "cache 0.1"]
    assert [each["seconds"].keys() for each in ways] == [{"1", "2"}, {"1"}, {"1", "2"}]
    assert all(each["off"] == pytest.approx(0, abs=1e-4) for each in ways)
    assert "| bf16 | blocks of training |" in capsys.readouterr().out
