"""Every stage that makes the embedded base model, at a tiny size on the CPU, and what comes out of it."""

import json
import platform
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mini.__main__ import STAGES, main
from mini.training.export.card_text import card_text
from mini.training.export.figures import stage_figures
from mini.training.export.model_files import AUTOENCODER, CLIP, JUDGE, T5, TRANSFORMER, compare, export
from mini.training.recipe import TINY
from tests.two_ranks import run_both
from trainer.cli.sample import run as sample
from trainer.common.files import write_safetensors
from trainer.common.problems import Problems
from trainer.config import TrainConfig
from trainer.models.description import FLUX1
from trainer.models.identify import check_model_file
from trainer.models.text import find_tokenizer_dir
from trainer.models.weights import read_header

pytestmark = pytest.mark.slow
CPU = torch.device("cpu")
KEYS = {TRANSFORMER: "flux", AUTOENCODER: "ae", CLIP: "clip_l", T5: "t5xxl"}
FLAGS = {TRANSFORMER: "pretrained_model_name_or_path", AUTOENCODER: "ae", CLIP: "clip_l", T5: "t5xxl"}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which all stages have run; the minutes of the first command are over at once."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny matrices wait longer for each other than they compute
    folder = tmp_path_factory.mktemp("mini")
    command = ["all", f"--folder={folder}", "--size=tiny", "--guidance_steps=3"]
    assert main([*command, "--minutes=0"]) == 0
    assert not (folder / "export").exists()
    assert main(command) == 0
    torch.set_num_threads(threads)
    return folder


def test_the_files_are_those_that_the_trainer_loads(work):
    for name, key in KEYS.items():
        assert check_model_file(work / "export" / name, FLUX1.file(key), name) == []
        header = read_header(work / "export" / name)
        assert {tensor.dtype for tensor in header.tensors.values()} == {"BF16"}
        assert header.metadata["modelspec.license"] == "Apache-2.0" and header.metadata["recipe"] == "tiny"
    config = TrainConfig(clip_l=work / "export" / CLIP)
    assert find_tokenizer_dir(config) == work / "export" / "tokenizers"


def test_a_picture_is_drawn_with_them(work, tmp_path):
    files = [f"--{flag}={work / 'export' / name}" for name, flag in FLAGS.items()]
    drawn = ["--width=64", "--height=64", "--steps=2", f"--output={tmp_path}", "--t5xxl_max_token_length=64"]
    assert sample([*files, *drawn, "--prompt=a red bear toy on a beach"]) == 0
    assert (tmp_path / "000-seed0.png").stat().st_size > 0


def test_what_differs_from_the_trained_modules_is_found(work, tmp_path):
    """The stage has compared once; a decoder that was changed afterwards is told."""
    changed = tmp_path / "work"
    shutil.copytree(work, changed)
    assert max(compare(TINY, changed, work / "export", CPU).values()) < 0.05
    tensors = load_file(changed / "autoencoder.safetensors")
    tensors["decoder.conv_in.weight"] *= 2
    write_safetensors(changed / "autoencoder.safetensors", tensors)
    with pytest.raises(Problems, match="the decoder differs from the trained model's"):
        compare(TINY, changed, work / "export", CPU)


def test_numbers_that_are_not_finite_are_not_exported(work, tmp_path):
    changed = tmp_path / "work"
    shutil.copytree(work, changed, ignore=shutil.ignore_patterns("export", "pictures"))
    tensors = load_file(changed / "guided.safetensors")
    tensors["proj_out.bias"][0] = float("nan")
    write_safetensors(changed / "guided.safetensors", tensors)
    with pytest.raises(Problems, match="not finite"):
        export(TINY, changed, changed / "export")


def test_the_card_tells_what_the_stages_wrote_down(work):
    figures = json.loads((work / "export" / "figures.json").read_text())
    card = (work / "export" / "README.md").read_text()
    assert figures["stages"]["transformer"]["steps"] == TINY.transformer_steps
    assert figures["stages"]["guidance"]["steps"] == 3, "what was run, not what the recipe says"
    assert f"{figures['autoencoder']['psnr']:.1f} dB" in card and figures["recipe_sha256"] in card
    assert f"| places | {figures['scores']['columns'][0]['scores']['places']:.1f} |" in card
    assert f"`{JUDGE}`" in card and figures["files"][JUDGE]["bytes"] == (work / "export" / JUDGE).stat().st_size
    assert (work / "export" / "contact_sheet.jpg").read_bytes().startswith(b"\xff\xd8")


def test_the_card_tells_where_stages_ran_and_for_how_long(work):
    figures = json.loads((work / "export" / "figures.json").read_text())
    for stage in figures["stages"].values():
        assert stage["machines"] == [f"1 x CPU ({platform.machine()}), torch {torch.__version__}"]
    assert "was stopped after" not in card_text(figures)
    lines = [{"step": 2, "seconds": 5.0, "device": "one", "processes": 2, "torch": "2"}, {"step": 3, "seconds": 7.0}]
    lines += [{"step": 5, "seconds": 1.0, "device": "other", "processes": 1, "torch": "2"}]
    figures["stages"]["transformer"] |= stage_figures(lines)
    figures["stages"]["judge"]["steps"] = TINY.judge_steps + 3
    card = card_text(figures)
    assert "The stage transformer was stopped after 5 of its 6 steps." in card
    assert "The stage judge continued beyond its 6 steps." in card
    assert "| 5 | 4 x 1 |" in card and "| 0.1 min | 2 x one, torch 2; 1 x other, torch 2 |" in card


def test_a_stage_without_its_forerunners_says_what_is_missing(tmp_path, capsys):
    assert main(["export", f"--folder={tmp_path}", "--size=tiny"]) == 1
    told = capsys.readouterr().err
    assert "guided.safetensors" in told and "judge.safetensors" in told


def test_two_processes_make_it_too(tmp_path):
    run_both(main, ["all", f"--folder={tmp_path}", "--size=tiny"])
    assert (tmp_path / "export" / "README.md").exists()
    assert len(list((tmp_path / "pictures").glob("base-*.safetensors"))) == 2


def test_seconds_of_a_stage_that_was_stopped_add_up():
    lines = [
        {"step": 5, "loss": 2.0, "seconds": 10.0, "pictures_per_second": 4.0},
        {"step": 6, "held_out_loss": 1.5, "seconds": 12.0},
        {"step": 9, "loss": 1.0, "seconds": 3.0, "pictures_per_second": 6.0},
    ]
    assert stage_figures(lines) == {
        "loss": 1.0,
        "held_out_loss": 1.5,
        "pictures_per_second": 6.0,
        "steps": 9,
        "seconds": 15.0,
    }
    machine = {"device": "other", "processes": 1, "torch": "2"}
    assert stage_figures([*lines, {"step": 10, "seconds": 4.0} | machine])["seconds"] == 19.0, "longer than before"


def test_every_stage_is_in_the_command_line():
    assert next(iter(STAGES)) == "pictures", "the scenes' processes have to start before CUDA does"
    assert list(STAGES)[-2:] == ["export", "card"]
