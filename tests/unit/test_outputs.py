"""Names that cannot be written, and files of an earlier run: both are reported before a run starts."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.random_flux import ModelFiles
from tests.recipe_files import Workshop, check_report, make_workshop
from trainer.common.files import write_text
from trainer.common.problems import Problems
from trainer.config import TrainConfig
from trainer.preflight import outputs
from trainer.preflight.check import make_plan
from trainer.preflight.outputs import earlier_files, in_words, name_problems, require_names

LETTER = "토"  # three bytes in UTF-8


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory, tiny_flux: ModelFiles) -> Workshop:
    return make_workshop(tmp_path_factory.mktemp("outputs"), tiny_flux, pictures=1)


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    return TrainConfig(output_dir=tmp_path / "loras", run_dir=tmp_path / "runs", output_name="tj")


def with_bytes(config: TrainConfig, length: int) -> TrainConfig:
    return replace(config, output_name=LETTER * (length // 3) + "x" * (length % 3))


def longest_name(config: TrainConfig) -> int:
    """Bytes of the longest output_name that is accepted."""
    return max(length for length in range(1, 256) if not name_problems(with_bytes(config, length)))


def test_the_longest_accepted_name_can_be_written_and_one_more_byte_is_refused(config):
    longest = longest_name(config)
    fits, too_long = with_bytes(config, longest), with_bytes(config, longest + 1)
    write_text(fits.output_dir / f"{fits.output_name}-step00000100.safetensors", "a checkpoint of a stopped run")
    with pytest.raises(OSError, match="name too long"):
        write_text(too_long.output_dir / f"{too_long.output_name}-step00000100.safetensors", "")
    (problem,) = name_problems(too_long)
    assert f"has {longest + 1} bytes" in problem.what and f"at most {longest} bytes" in problem.hint


def test_a_long_name_is_in_the_report_with_all_other_problems(workshop):
    problems = check_report(workshop.config("long", output_name=LETTER * 80, ae=workshop.folder / "absent"))
    assert any("--output_name: has 240 bytes" in problem for problem in problems) and len(problems) == 2


def test_the_limit_is_that_of_the_file_system(config, monkeypatch):
    usual = longest_name(config)
    monkeypatch.setattr(os, "pathconf", lambda _folder, _name: 143)  # eCryptfs
    assert longest_name(config) == usual - (255 - 143)


def test_a_name_with_broken_unicode_is_refused(config):
    (problem,) = name_problems(replace(config, output_name="tj\udcff"))
    assert "not valid UTF-8" in problem.what


def test_what_only_the_file_system_knows_is_tried_before_training(config, monkeypatch):
    require_names(config)
    assert list(config.output_dir.parent.iterdir()) == []
    monkeypatch.setattr(outputs, "_name_limit", lambda _folder: 10_000)
    long = with_bytes(config, 250)
    assert not name_problems(long)
    with pytest.raises(Problems, match="cannot be created"):
        require_names(long)


@pytest.mark.parametrize("folder", ["loras/tj.safetensors", "loras/tj-000004.safetensors", "runs/tj/config.toml"])
def test_a_folder_in_the_way_of_a_file(config, tmp_path, folder):
    (tmp_path / folder).mkdir(parents=True)
    (problem,) = name_problems(config)
    assert problem.where == str(tmp_path / folder) and "is a folder" in problem.what


@pytest.mark.parametrize("file", ["samples", "state-step00000002"])
def test_a_file_in_the_way_of_a_folder(config, tmp_path, file):
    write_text(tmp_path / "runs" / "tj" / file, "mine")
    (problem,) = name_problems(config)
    assert problem.where == str(tmp_path / "runs" / "tj" / file) and "needs a folder" in problem.what


OWN = (
    "loras/tj.safetensors", "loras/tj-000002.safetensors", "loras/tj-step00000010.safetensors",
    "runs/tj/state-step00000010/state.json", "runs/tj/samples/tj-step00000010-00.png",
)  # fmt: skip
OTHERS = (
    "loras/tj2.safetensors", "loras/tj-v2-000001.safetensors", "loras/tj-000002.txt", "loras/tj-02.safetensors",
    "runs/tj/log.jsonl", "runs/tj/config.toml", "runs/tj/state-step00000011/mine.txt", "runs/tj/samples/mine.png",
)  # fmt: skip


def test_files_of_an_earlier_run_are_those_with_its_names(config, tmp_path):
    for file in (*OWN, *OTHERS):
        write_text(tmp_path / file, "")
    found = [str(path.relative_to(tmp_path)) for path in earlier_files(config)]
    assert sorted(found) == sorted(file.removesuffix("/state.json") for file in OWN)


@pytest.mark.parametrize("file", OWN)
def test_a_new_run_is_refused_where_an_earlier_one_has_left_files(workshop, file):
    place = file.replace("/", " ")
    config = workshop.config(place)
    written = workshop.folder / place / file
    write_text(written, "of an earlier run")
    (problem,) = check_report(config)
    name = written.parent.name if file.endswith("state.json") else written.name
    assert problem.startswith("--output_name=tj: an earlier run") and name in problem
    assert "--overwrite" in problem and ("--resume=" in problem) == file.endswith("state.json")
    plan = make_plan(replace(config, overwrite=True))
    assert f"files of an earlier run to replace: {name}" in plan.summary()
    assert written.read_text() == "of an earlier run", "a check writes nothing"


def test_no_earlier_files_are_not_mentioned(workshop):
    assert "earlier run" not in make_plan(workshop.config("new")).summary()


def test_many_names_are_counted(tmp_path):
    paths = [tmp_path / "a" / f"{index}" for index in range(9)]
    assert in_words(paths[:2]) == f"0, 1 in {tmp_path / 'a'}"
    assert in_words([*paths[:1], tmp_path / "b" / "x"]) == f"0 in {tmp_path / 'a'}; x in {tmp_path / 'b'}"
    assert in_words(paths).endswith("; and 1 more")
