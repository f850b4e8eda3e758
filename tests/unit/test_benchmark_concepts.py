"""The benchmark of several concepts: its datasets say what its rows claim, and its table gives medians."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.concepts.table import tabulate
from benchmarks.concepts.variants import DATASETS, VARIANTS, ConceptRun, needs_images, runs, write_dataset
from tests.recipe_files import ROOT
from trainer.config import parse_config
from trainer.data.dataset_config import DatasetConfig
from trainer.data.dataset_file import load_dataset_config

COMPLETE, MASKS, PAIRS, COMPANIONS, PRESERVATION, WORDS, Q_AND_K = VARIANTS


def read(run: ConceptRun, folder: Path) -> DatasetConfig:
    file = folder / "data.toml"
    data = run.dataset(folder / "photos")
    assert needs_images(data) == (run.config == "flux_data/demo_gpu.toml")
    write_dataset(file, data)
    return load_dataset_config(file, parse_config([f"--config_file={run.config}"])[0])


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("config", DATASETS)
def test_the_complete_method_is_that_of_the_shipped_file(tmp_path, config):
    run = ConceptRun(("tjtoy", "sparkgpu"), COMPLETE, 1, config)
    shipped = load_dataset_config(DATASETS[config], parse_config([f"--config_file={config}"])[0])
    made = read(run, tmp_path)
    assert made.sections[0].subsets and made.sections[0].compositions
    for kind in ("subsets", "compositions", "preservation"):
        own, theirs = (getattr(each.sections[0], kind) for each in (made, shipped))
        assert [replace(each, where="") for each in own] == [replace(each, where="") for each in theirs]


def test_each_variant_leaves_out_one_part(tmp_path):
    def section(variant: str):
        return read(ConceptRun(("tjtoy", "sparkgpu"), variant, 1), tmp_path).sections[0]

    assert [each.mask_background for each in section(MASKS).subsets] == ["1.0", "1.0"]
    assert [each.together for each in section(PAIRS).compositions] == [(1,), (1,)]
    assert [each.companions for each in section(COMPANIONS).compositions] == [None]
    assert not section(PRESERVATION).preservation
    (words,) = section(WORDS).preservation
    assert words.prompts is None and not words.scenes and not words.styles
    assert ConceptRun(("tjtoy", "sparkgpu"), Q_AND_K, 1).flags


def test_what_a_demo_does_not_have_cannot_be_left_out(tmp_path):
    def section(variant: str):
        return read(ConceptRun(("tjtoy", "sparkgpu"), variant, 1, "flux_data/demo.toml"), tmp_path).sections[0]

    assert not section(PAIRS).compositions
    assert [each.class_tokens for each in section(PRESERVATION).subsets] == ["tjtoy toy", "sparkgpu gpu"]
    assert len(section(MASKS).subsets) == 3
    for variant in (COMPANIONS, WORDS):
        with pytest.raises(ValueError, match="does not have what this leaves out"):
            section(variant)


def test_other_concepts_take_the_place_of_the_demos(tmp_path):
    (run,) = runs([["fenrik", "kopmi", "vaxtu"]], [COMPLETE], [7])
    section = read(run, tmp_path).sections[0]
    assert run.name == "demo_gpu-kopmi+vaxtu+fenrik-0-7"
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
