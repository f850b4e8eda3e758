"""The demo from its command line, with very small random models, an untrained judge and two steps."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks.random_flux import ModelFiles
from tests.dataset_files import draw_folder
from tests.recipe_files import ROOT, read_log
from tests.unit.test_compositions import draw_subject
from trainer.cli import demo, evaluate
from trainer.cli.demo import PROMPTS, run
from trainer.common.files import write_safetensors
from trainer.common.problems import Problems
from trainer.config import parse_config
from trainer.lora.file import load_lora
from trainer.sampling.judge import Classes, Judge, Shape, save_judge

CLASSES = Classes(("toy", "bear"), ("red", "blue"), ("beach", "desk"), ("tjtoy", "sparkgpu"))
TEXTS = {"tjtoy": ["tjtoy toy on a desk"], "sparkgpu": ["sparkgpu gpu on a beach"], "both": ["tjtoy toy, sparkgpu gpu"]}
SMALL = ["--network_dim=2", "--max_train_epochs=2", "--save_every_n_epochs=1", "--prompts=1"]


@pytest.fixture
def project(tmp_path: Path, tiny_flux: ModelFiles, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder laid out as the repository: the demo's own settings, small pictures, small models."""
    models = tmp_path / "models" / "mini"
    models.mkdir(parents=True)
    files = (tiny_flux.transformer, tiny_flux.ae, tiny_flux.clip_l, tiny_flux.t5xxl)
    for name, file in zip(evaluate.FILES.values(), files, strict=True):
        shutil.copy(file, models / name)
    shutil.copytree(tiny_flux.tokenizer_dir, models / "tokenizers")
    torch.manual_seed(0)
    save_judge(models / evaluate.JUDGE, Judge(CLASSES, Shape((8, 8, 8, 8), (0, 0, 0, 0), 8)))
    base = {"prompt": "a red bear toy on a beach", "objects": [["bear", "red"]], "place": "beach"}
    (models / evaluate.PROMPTS).write_text(json.dumps({"base": [base], **TEXTS}))
    draw_subject(tmp_path / "flux_data" / "tjtoy", "00", (220, 20, 20), (40, 20, 110, 150))
    draw_subject(tmp_path / "flux_data" / "sparkgpu", "00", (20, 20, 220), (30, 30, 130, 130))
    draw_folder(tmp_path / "flux_data" / "backgrounds", [(64, 64)])
    (tmp_path / "flux_data" / "backgrounds" / "00.txt").write_text("on a desk")
    others = draw_folder(tmp_path / "flux_data" / "regularisation", [(64, 64)], shade=150)
    for picture in others.glob("*.png"):
        picture.with_suffix(".txt").write_text("a red toy on a desk")
    for name in ("demo.toml", "data_demo.toml"):
        shutil.copy(ROOT / "flux_data" / name, tmp_path / "flux_data" / name)
    data = (tmp_path / "flux_data" / "data_demo.toml").read_text()
    small = (("resolution", 96, 1), ("num_repeats", 1, 3), ("num_images", 2, 1), ("images_per_epoch", 1, 1))
    for key, value, times in small:
        data, changes = re.subn(rf"(?m)^{key} = \d+", f"{key} = {value}", data)
        assert changes == times
    (tmp_path / "flux_data" / "data_demo.toml").write_text(data)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluate, "USUAL", replace(evaluate.USUAL, width=64, height=64, steps=1))
    return tmp_path


@pytest.mark.slow
def test_it_trains_draws_and_scores_over_an_earlier_demo(project, capsys):
    loras = project / "models" / "loras"
    write_safetensors(loras / "demo.safetensors", {"weight": torch.zeros(1)}, {"ss_output_name": "demo"})
    (loras / "mine.safetensors").write_bytes(b"of the user")
    assert run(SMALL) == 0
    said, logged = capsys.readouterr()
    assert "replacing demo.safetensors in models/loras, from an earlier demo" in logged
    assert sorted(path.name for path in loras.glob("demo*")) == ["demo-000001.safetensors", "demo.safetensors"]
    assert len(load_lora(loras / "demo.safetensors").modules) > 1, "written anew"
    assert (loras / "mine.safetensors").read_bytes() == b"of the user"
    pictures = sorted(path.name for path in (project / "output" / "demo").glob("*.png"))
    names = ("base", "epoch-1", "final")
    assert pictures == sorted(f"{number}-{name}.png" for number in range(1, len(PROMPTS) + 1) for name in names)
    with Image.open(project / "output" / "demo" / "contact_sheet.jpg") as sheet:
        assert sheet.width > 3 * 256 and sheet.height > len(PROMPTS) * 256
    scores = json.loads((project / "output" / "demo" / "scores.json").read_text())
    assert [column["name"] for column in scores["columns"]] == ["base", "final"]
    assert set(scores["columns"][0]["scores"]) == {"tjtoy", "sparkgpu", "both"}
    assert scores["columns"][0]["scores"]["tjtoy"] != scores["columns"][1]["scores"]["tjtoy"], "the LoRA is applied"
    for path in ("models/loras/demo.safetensors", "output/demo/contact_sheet.jpg", "output/demo/1-base.png"):
        assert path in said
    assert "training took" in said
    assert len(read_log(project / "runs" / "demo" / "log.jsonl", "step")) == 2


def test_a_file_that_is_not_the_demos_stays(project):
    mine = project / "models" / "loras" / "demo.safetensors"
    mine.parent.mkdir()
    mine.write_bytes(b"of the user")
    with pytest.raises(Problems, match="is in the way"):
        run(SMALL)
    assert mine.read_bytes() == b"of the user" and not (project / "output").exists()


def test_without_a_judge_nothing_is_trained(project):
    (project / "models" / "mini" / evaluate.JUDGE).unlink()
    with pytest.raises(Problems, match=r"judge\.safetensors"):
        run(SMALL)
    assert not (project / "models" / "loras").exists()


def test_the_settings_of_the_repository_save_a_checkpoint_on_the_way():
    config, notices = parse_config([f"--config_file={ROOT / 'flux_data' / 'demo.toml'}"])
    assert not notices and config.max_train_epochs and config.save_every_n_epochs
    assert (config.max_train_epochs - 1) // config.save_every_n_epochs == 1
    assert (config.network_dim, config.learning_rate, config.seed) == (32, 3e-3, 42)


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(
    ("can", "flags", "expected"),
    [
        (True, [], "bf16"),
        (False, [], "no"),
        (True, ["--mixed_precision=no"], "no"),
        (False, ["--mixed_precision=bf16"], "bf16"),
    ],
)
def test_it_computes_in_what_the_machine_is_fast_in_unless_told(monkeypatch, can, flags, expected):
    told = []
    monkeypatch.setattr(demo, "computes_bf16", lambda _device: can)
    monkeypatch.setattr(demo, "train", lambda config, *_: told.append(config.mixed_precision) or 130)
    assert run([*SMALL, *flags]) == 130 and told == [expected]
