"""--route of sample and evaluate, and --keep_apart of convert: from files to images, on the tiny random FLUX."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks.random_flux import ModelFiles
from tests.kept_logging import logging_kept  # noqa: F401 (a fixture)
from tests.unit import test_evaluation
from trainer.cli import convert, evaluate, sample
from trainer.common.problems import Problems
from trainer.lora.adapter import adapter_alphas, adapter_parameters, add_lora, linear_modules
from trainer.lora.file import load_lora, save_lora
from trainer.lora.info import describe, render
from trainer.lora_file.apart import parts_of
from trainer.lora_file.metadata import APART
from trainer.models.load import load_clip, load_transformer

models, quick = test_evaluation.models, test_evaluation.quick  # fixtures


@pytest.fixture(scope="module")
def loras(tmp_path_factory: pytest.TempPathFactory, tiny_flux: ModelFiles) -> list[Path]:
    """Two random LoRAs, the second with layers of CLIP."""
    folder, paths = tmp_path_factory.mktemp("loras"), []
    for trigger, with_clip in (("tjtoy toy", False), ("sparkgpu gpu", True)):
        transformer = load_transformer(tiny_flux.transformer, "cpu", torch.float32)
        clip = load_clip(tiny_flux.clip_l, "cpu", torch.float32, 0) if with_clip else None
        for model in (transformer, clip):
            if model is not None:
                add_lora(model, dict.fromkeys(linear_modules(model), 3), None, seed=len(paths))
        parameters = adapter_parameters(transformer, clip)
        for parameter in parameters.values():
            torch.nn.init.normal_(parameter, 0, 0.1, torch.Generator().manual_seed(len(paths)))
        path = folder / f"{trigger.split()[0]}.safetensors"
        metadata = {"modelspec.trigger_phrase": trigger, "ss_steps": "9"}
        save_lora(path, parameters, adapter_alphas(transformer, clip), metadata, torch.float32)
        paths.append(path)
    return paths


def flags(files: ModelFiles, output: Path, *prompts: str) -> list[str]:
    names = {"pretrained_model_name_or_path": files.transformer, "clip_l": files.clip_l, "t5xxl": files.t5xxl}
    names |= {"ae": files.ae, "tokenizer_dir": files.tokenizer_dir, "t5xxl_max_token_length": 32, "output": output}
    sizes = {"width": 64, "height": 32, "steps": 2}
    return [f"--{name}={value}" for name, value in {**names, **sizes}.items()] + [
        f"--prompt={text}" for text in prompts
    ]


def pixels(path: Path) -> list[int]:
    with Image.open(path) as picture:
        return list(picture.convert("RGB").tobytes())


@pytest.mark.usefixtures("logging_kept")
def test_sample_routes_and_shows_the_masks(tiny_flux, loras, tmp_path: Path, capsys):
    prompts = ("a bear", "tjtoy toy next to sparkgpu gpu")
    together = [f"--lora={path}" for path in loras]
    assert sample.run([*flags(tiny_flux, tmp_path / "base", *prompts)]) == 0
    assert sample.run([*flags(tiny_flux, tmp_path / "merged", *prompts), *together]) == 0
    capsys.readouterr()
    assert sample.run([*flags(tiny_flux, tmp_path / "routed", *prompts), *together, "--route"]) == 0
    printed = capsys.readouterr().out.split()
    names = ["000-seed0.png", "001-seed1.png", "001-seed1.masks.png"]
    assert printed == [str(tmp_path / "routed" / name) for name in names]
    images = {kind: [pixels(tmp_path / kind / name) for name in names[:2]] for kind in ("base", "merged", "routed")}
    assert images["routed"][0] == images["base"][0] != images["merged"][0]
    assert len({tuple(of_kind[1]) for of_kind in images.values()}) == 3
    with Image.open(tmp_path / "routed" / names[2]) as masks:
        assert masks.size == (64, 32) and masks.info["routed"] == "True"


@pytest.mark.usefixtures("logging_kept")
def test_one_file_of_several_routes_as_they_do(tiny_flux, loras, tmp_path: Path, capsys):
    both = tmp_path / "both.safetensors"
    argv = [str(loras[0]), f"{loras[1]}:0.5", f"--output={both}", "--keep_apart", "--class_words=tjtoy toy=a toy"]
    assert convert.run(argv) == 0
    assert "kept apart: tjtoy, called by 'tjtoy toy'" in capsys.readouterr().out
    lora = load_lora(both)
    first, second = parts_of("both", lora.modules, lora.metadata)
    assert first.triggers == {"tjtoy toy": "a toy"} and second.triggers == {"sparkgpu gpu": ""}
    for name, module in load_lora(loras[1]).modules.items():
        ours = second.modules[name]
        torch.testing.assert_close(ours.up @ ours.down, module.up @ module.down / 2)
    prompt = "tjtoy toy next to sparkgpu gpu"
    for kind, files in (("one", [both]), ("two", [loras[0], f"{loras[1]}:0.5"])):
        given = [f"--lora={path}" for path in files]
        assert sample.run([*flags(tiny_flux, tmp_path / kind, prompt), *given, "--route"]) == 0
    one, two = (torch.tensor(pixels(tmp_path / kind / "000-seed0.png")) for kind in ("one", "two"))
    assert (one - two).abs().max() <= 1
    told = describe(both)
    adapters = [("tjtoy", ["tjtoy toy"], 3), ("sparkgpu", ["sparkgpu gpu"], 3)]
    assert [tuple(each.values()) for each in told["adapters"]] == adapters
    assert "kept apart     sparkgpu, called by 'sparkgpu gpu', rank 3" in render(told)
    again = tmp_path / "again.safetensors"
    assert convert.run([str(both), f"--output={again}"]) == 0
    assert "its adapters become one; --keep_apart keeps them apart" in capsys.readouterr().out
    assert APART not in load_lora(again).metadata and load_lora(again).metadata["ss_steps"] == "9"
    assert convert.run([str(both), f"--output={again}", "--overwrite", "--keep_apart", "--save_precision=bf16"]) == 0
    assert load_lora(again).metadata[APART] == lora.metadata[APART]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--format=kohya", "--keep_apart"], "--format: mixes adapters"),
        (["--rank=2", "--keep_apart"], "--rank: mixes adapters"),
        (["--class_words=x"], "is not TRIGGER=WORDS"),
        (["--class_words=x=y"], "acts with --keep_apart only"),
        (["--class_words=x=y", "--keep_apart"], "class words of 'x': it is no trigger"),
    ],
)
def test_what_cannot_be_kept_apart_is_said(loras, tmp_path: Path, more: list[str], words: str):
    with pytest.raises(Problems, match=words):
        convert.run([*map(str, loras), f"--output={tmp_path / 'x.safetensors'}", *more])
    assert not (tmp_path / "x.safetensors").exists()


def test_route_needs_loras_and_says_what_is_left_out(tiny_flux, loras, tmp_path: Path):
    with pytest.raises(Problems, match="no LoRA to route"):
        sample.parse([*flags(tiny_flux, tmp_path, "x"), "--route"])
    _, _, notices = sample.parse(
        [*flags(tiny_flux, tmp_path, "a bear"), "--route", *(f"--lora={each}" for each in loras)]
    )
    assert any("layers that act on no tokens, as those of CLIP" in notice for notice in notices)
    assert any("'a bear' calls no LoRA" in notice for notice in notices)
    with pytest.raises(Problems, match="--class_words: acts with --route only"):
        sample.parse([*flags(tiny_flux, tmp_path, "x"), "--class_words=tjtoy toy=a toy"])


@pytest.mark.usefixtures("quick", "logging_kept")
def test_evaluate_compares_the_sum_with_the_routed_ones(models, loras, tmp_path: Path, capsys):
    table = tmp_path / "table.json"
    given = [f"--lora={path}" for path in loras]
    assert evaluate.run([f"--models={models}", *given, "--route", "--prompts=1", f"--json={table}"]) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["base", "tjtoy", "sparkgpu", "merged", "routed"]
    base, *_, merged, routed = json.loads(table.read_text())["columns"]
    assert all(routed["scores"][name] == base["scores"][name] for name in ("objects", "colours", "places"))
    assert routed["scores"]["tjtoy"] not in (base["scores"]["tjtoy"], merged["scores"]["tjtoy"])
    with pytest.raises(Problems, match="no LoRA to route"):
        evaluate.run([f"--models={models}", "--route"])
