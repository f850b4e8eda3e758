"""The benchmark of several concepts: its datasets say what its rows claim, and its table gives medians."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.concepts.table import tabulate
from benchmarks.concepts.variants import DATASET, VARIANTS, ConceptRun, runs
from tests.recipe_files import ROOT
from trainer.config import parse_config
from trainer.data.dataset_config import DatasetConfig
from trainer.data.dataset_file import load_dataset_config

COMPLETE, MASKS, PAIRS, COMPANIONS, PRESERVATION, WORDS, Q_AND_K = VARIANTS


def read(run: ConceptRun, folder: Path) -> DatasetConfig:
    file = folder / "data.toml"
    file.write_text(run.dataset(folder / "photos"), encoding="utf-8")
    return load_dataset_config(file, parse_config(["--config_file=flux_data/demo_gpu.toml"])[0])


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_the_complete_method_is_that_of_the_shipped_file(tmp_path):
    run = ConceptRun(("tjtoy", "sparkgpu"), COMPLETE, 1)
    shipped = load_dataset_config(DATASET, parse_config(["--config_file=flux_data/demo_gpu.toml"])[0])
    made = read(run, tmp_path)
    for kind in ("subsets", "compositions", "preservation"):
        own, theirs = (getattr(each.sections[0], kind) for each in (made, shipped))
        assert own and [replace(each, where="") for each in own] == [replace(each, where="") for each in theirs]


def test_each_variant_leaves_out_one_part(tmp_path):
    def section(variant: str):
        return read(ConceptRun(("tjtoy", "sparkgpu"), variant, 1), tmp_path).sections[0]

    assert [each.mask_background for each in section(MASKS).subsets] == ["1.0", "1.0"]
    assert [each.together for each in section(PAIRS).compositions] == [(1,), (1,)]
    assert [each.companions for each in section(COMPANIONS).compositions] == [None]
    assert not section(PRESERVATION).preservation
    assert section(WORDS).preservation[0].prompts is None
    assert ConceptRun(("tjtoy", "sparkgpu"), Q_AND_K, 1).flags


def test_other_concepts_take_the_place_of_the_demos(tmp_path):
    (run,) = runs([["fenrik", "kopmi", "vaxtu"]], [COMPLETE], [7])
    section = read(run, tmp_path).sections[0]
    assert run.name == "kopmi+vaxtu+fenrik-0-7"
    assert [each.class_tokens for each in section.subsets] == ["kopmi toy", "vaxtu toy", "fenrik gpu"]
    assert [str(each.image_dir) for each in section.subsets] == [
        str(tmp_path / "photos" / name) for name in run.concepts
    ]
    assert section.compositions[0].together == (2, 3)
    assert [each.concepts for each in section.compositions[1:]] == [("kopmi toy",), ("vaxtu toy",), ("fenrik gpu",)]
    assert [len(each.relations) for each in section.compositions] == [3, 2, 2, 2]


def test_the_table_gives_the_median_and_all(tmp_path):
    asked = runs([["tjtoy", "sparkgpu"]], [COMPLETE, MASKS], [1, 2, 3])
    assert tabulate(tmp_path, asked) == "no results yet"
    for run, both in zip(asked[:3], (10.0, 90.0, 40.0), strict=True):
        base = {"scores": {"both": 0.0}}
        column = {"scores": {"both": both}, "relations": {"holding": {"images": 2, "prompts": 16}}}
        (tmp_path / f"{run.name}.json").write_text(json.dumps({"columns": [base, column]}))
    lines = tabulate(tmp_path, asked).splitlines()
    assert lines[0] == "| tjtoy + sparkgpu | both | holding, of 16 |"
    assert lines[2:] == ["| base model | 0 |  |", "| complete | 40 (10, 90, 40) | 2 (2, 2, 2) |"]
