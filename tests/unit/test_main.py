"""`python -m trainer`: its help, its verbs, and the statuses that a shell sees."""

import importlib
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.random_flux import ModelFiles
from tests.kept_logging import logging_kept  # noqa: F401 (a fixture)
from tests.parity.test_transformer import make_transformer
from tests.recipe_files import ROOT, Workshop, environment, make_workshop
from trainer.__main__ import OUTSIDE, VERBS, main
from trainer.cli import sample
from trainer.lora.adapter import adapter_alphas, adapter_parameters, add_lora, linear_modules
from trainer.lora.file import load_lora, save_lora


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory, tiny_flux: ModelFiles) -> Workshop:
    return make_workshop(tmp_path_factory.mktemp("main"), tiny_flux, pictures=2)


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    transformer = make_transformer()
    add_lora(transformer, dict.fromkeys(linear_modules(transformer), 4), None, seed=0)
    parameters = adapter_parameters(transformer)
    for parameter in parameters.values():
        torch.nn.init.normal_(parameter, 0, 0.1)
    path = tmp_path_factory.mktemp("lora") / "tj.safetensors"
    metadata = {"ss_steps": "12", "modelspec.trigger_phrase": "tjtoy toy"}
    save_lora(path, parameters, adapter_alphas(transformer), metadata, torch.float32)
    return path


def test_help_lists_every_verb(capsys):
    for argv in ([], ["--help"], ["-h"]):
        assert main(argv) == 0
        text = capsys.readouterr().out
        assert all(f"  {verb}" in text and about in text for verb, about in VERBS.items())


def test_an_unknown_verb(capsys):
    assert main(["tarin"]) == 2
    assert "usage: python -m trainer" in capsys.readouterr().out


def test_every_verb_is_a_module_and_the_other_way_round():
    files = {path.stem for path in (ROOT / "trainer" / "cli").glob("*.py")} - {"__init__"}
    assert files | set(OUTSIDE) == set(VERBS) and not files & set(OUTSIDE)


def help_of(verb: str) -> object:
    """The status; argparse ends the program itself."""
    try:
        return main([verb, "--help"])
    except SystemExit as finished:
        return finished.code


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb, capsys):
    assert help_of(verb) == 0
    text = capsys.readouterr().out
    assert len(text) > 200 and "--" in text


@pytest.mark.parametrize("verb", ["train", "check"])
def test_help_explains_every_flag(verb, capsys):
    help_of(verb)
    text = capsys.readouterr().out
    for flag in ("--network_dim", "--timestep_sampling", "--save_every_n_epochs", "--resume", "--sample_prompts"):
        assert flag in text


def test_problems_are_counted_and_end_with_status_1(capsys):
    assert main(["check", "--network_dmi=4", "--learning_rate=fast"]) == 1
    text = capsys.readouterr().err
    assert text.startswith("2 problems found:\n") and "network_dim" in text and "--learning_rate" in text
    assert main(["info", "absent.safetensors"]) == 1
    assert capsys.readouterr().err.startswith("1 problem found:\n")


def test_check_prints_notices_and_the_plan(workshop, capsys):
    assert main(["check", *workshop.argv("check"), "--sdpa"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("sdpa: always on") and "2 images" in text and text.rstrip().endswith("No problems found.")
    assert not (workshop.folder / "check").exists(), "nothing is written"
    assert main(["check", *workshop.argv("check")]) == 0
    assert not capsys.readouterr().out.startswith("\n"), "no notices, no line"


def test_info_in_words_and_as_json(lora, capsys):
    assert main(["info", str(lora)]) == 0
    text = capsys.readouterr().out
    assert "tjtoy toy" in text and "12" in text
    assert main(["info", "--json", str(lora), str(lora)]) == 0
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first == second
    assert (first["steps"], first["ranks"], first["layout"]) == (12, [4], "diffusers")
    assert first["trigger_phrase"] == "tjtoy toy" and sum(first["modules"].values()) == len(load_lora(lora).modules)


def changes(path: Path) -> dict[str, torch.Tensor]:
    return {name: m.scale * m.up.float() @ m.down.float() for name, m in load_lora(path).modules.items()}


def test_convert_to_kohya_and_back_changes_no_layer(lora, tmp_path, capsys):
    kohya, back = tmp_path / "kohya.safetensors", tmp_path / "back.safetensors"
    assert main(["convert", str(lora), "--format=kohya", f"--output={kohya}"]) == 0
    assert main(["convert", str(kohya), f"--output={back}"]) == 0
    assert capsys.readouterr().out
    assert load_lora(kohya).layout == "kohya" and load_lora(back).metadata["ss_steps"] == "12"
    before, after = changes(lora), changes(back)
    assert before.keys() == after.keys()
    for name, change in before.items():
        torch.testing.assert_close(after[name], change, rtol=1e-5, atol=1e-6)


def test_convert_merges_with_weights_and_resizes(lora, tmp_path):
    both, small = tmp_path / "both.safetensors", tmp_path / "small.safetensors"
    assert main(["convert", f"{lora}:0.5", f"{lora}:0.25", f"--output={both}"]) == 0
    for name, change in changes(lora).items():
        torch.testing.assert_close(changes(both)[name], 0.75 * change, rtol=1e-4, atol=1e-6)
        break
    assert main(["convert", str(both), "--rank=4", f"--output={small}"]) == 0
    assert {module.rank for module in load_lora(small).modules.values()} == {4}


def test_convert_replaces_a_file_only_when_asked(lora, tmp_path):
    taken = tmp_path / "mine.safetensors"
    taken.write_text("mine")
    assert main(["convert", str(lora), f"--output={taken}"]) == 1
    assert taken.read_text() == "mine"
    assert main(["convert", str(lora), f"--output={taken}", "--overwrite"]) == 0
    assert load_lora(taken).modules


def test_an_unknown_layout_is_refused_by_the_parser(lora, tmp_path, capsys):
    with pytest.raises(SystemExit) as finished:
        main(["convert", str(lora), "--format=other", f"--output={tmp_path / 'x.safetensors'}"])
    assert finished.value.code == 2 and "other" in capsys.readouterr().err


def test_as_a_program(tmp_path):
    """Problems are told without a stack trace, and the status reaches the shell."""
    command = [sys.executable, "-m", "trainer"]
    options = {"env": environment(), "cwd": tmp_path, "capture_output": True, "text": True}
    assert subprocess.run([*command, "--help"], **options).returncode == 0
    failed = subprocess.run([*command, "info", "absent.safetensors"], **options)
    assert failed.returncode == 1 and "absent.safetensors" in failed.stderr and "Traceback" not in failed.stderr


def test_the_console_script_is_the_same_program(monkeypatch, capsys):
    script = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["flux-dreambooth"]
    module, _, function = script.partition(":")
    monkeypatch.setattr(sys, "argv", ["flux-dreambooth", "tarin"])
    assert getattr(importlib.import_module(module), function)() == 2
    assert "usage: python -m trainer" in capsys.readouterr().out


def test_the_package_is_typed():
    assert (ROOT / "trainer" / "py.typed").is_file()


HEAVY = ("torch", "diffusers", "transformers", "peft", "accelerate", "tensorboard")
IMPORTED = """
import sys
from trainer.__main__ import main
try:
    status = main(sys.argv[1:])
except SystemExit as finished:
    status = finished.code
print([status, *(name for name in {heavy} if name in sys.modules)])
"""


@pytest.mark.parametrize(
    ("argv", "status"),
    [
        (["--help"], 0),
        (["train", "--help"], 0),
        (["check", "--help"], 0),
        (["info", "--help"], 0),
        (["info", "{lora}"], 0),
        (["info", "--json", "{lora}"], 0),
        (["train", "--network_dmi=4"], 1),
        (["check", "--network_dmi=4"], 1),
    ],
    ids=str,
)
def test_what_needs_no_heavy_package_imports_none(lora, argv, status):
    argv = [word.replace("{lora}", str(lora)) for word in argv]
    command = [sys.executable, "-c", IMPORTED.replace("{heavy}", repr(HEAVY)), *argv]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == repr([status])


def test_check_loads_no_model_library_and_no_compiler(workshop):
    """torch and the tokenizers it needs; building modules would take most of its time."""
    script = IMPORTED.replace("{heavy}", repr(("diffusers", "peft", "accelerate", "tensorboard", "torch._dynamo")))
    command = [sys.executable, "-c", script, "check", *workshop.argv("light")]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[0]"


def test_what_is_not_foreseen_is_not_hidden(monkeypatch):
    """A problem of ours shows its trace; it is not dressed up as one of the user's."""
    monkeypatch.setattr("trainer.cli.info.run", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["info", "x"])


@pytest.mark.parametrize("argv", [["--help"], ["train", "--help"], ["info", "{lora}"]], ids=str)
def test_a_reader_that_closes_the_pipe_ends_the_program_quietly(lora, argv):
    """As `... --help | head -1` does; here it is closed from the start."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "trainer", *(word.replace("{lora}", str(lora)) for word in argv)]
    done = subprocess.run(command, env=environment(), stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('network_args = ["train_blocks=dubble"]', "network_args: train_blocks"),
        ('optimizer_args = ["beta=0.9"]', "optimizer_args: beta"),
        ('output_name = "a/b"', "output_name: "),
    ],
)
def test_problems_found_after_parsing_name_the_line_of_the_config_file(workshop, tmp_path, capsys, line, problem):
    file = tmp_path / "train.toml"
    file.write_text(f"# mine\n{line}\n")
    argv = workshop.argv("check", **{line.split()[0]: None})
    assert main(["check", f"--config_file={file}", *argv]) == 1
    assert f"{file}:2: {problem}" in capsys.readouterr().err


def test_an_unknown_alpha_is_reported(workshop, tmp_path, capsys):
    layer, plain = "transformer.single_transformer_blocks.0.attn.to_k", tmp_path / "plain.safetensors"
    shapes = {"lora_A": (4, 256), "lora_B": (256, 4)}
    save_file({f"{layer}.{half}.weight": torch.ones(shape) for half, shape in shapes.items()}, plain)
    assert main(["check", *workshop.argv("check"), f"--network_weights={plain}", "--dim_from_weights"]) == 0
    assert f"--network_weights={plain}: the file has no alpha" in capsys.readouterr().out
    _, _, notices = sample.parse(["--prompt=a toy", f"--lora={plain}:0.5"])
    assert [notice.partition(" to be")[0] for notice in notices] == [
        f"--lora={plain}: the file has no alpha: it is taken"
    ]
