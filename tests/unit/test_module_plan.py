"""Tensors of a module as they are computed from sizes, against the real modules of diffusers and transformers."""

import json
import subprocess
import sys

import pytest
import torch

from benchmarks.random_flux import ModelFiles
from tests.full_size import full_size
from tests.recipe_files import ROOT, environment
from trainer.lora.adapter import linear_modules
from trainer.memory.bytes import blocks_of
from trainer.models.module_plan import (
    ModulePlan,
    missing_or_unexpected,
    plan_autoencoder,
    plan_clip,
    plan_t5,
    plan_transformer,
)
from trainer.models.names import transformer_to_diffusers
from trainer.models.shapes import skeleton, transformer_shapes
from trainer.models.weights import read_header


def plans(files: ModelFiles) -> dict[str, ModulePlan]:
    return {
        "transformer": plan_transformer(read_header(files.transformer)),
        "autoencoder": plan_autoencoder(read_header(files.ae)),
        "clip": plan_clip(read_header(files.clip_l), eos_token_id=0),
        "t5": plan_t5(read_header(files.t5xxl)),
    }


@pytest.mark.parametrize("part", ["transformer", "autoencoder", "clip", "t5"])
def test_the_real_module_has_the_planned_tensors_and_the_file_fills_them(tiny_flux, part):
    plan = plans(tiny_flux)[part]
    assert not missing_or_unexpected(plan)
    found = {name: tuple(tensor.shape) for name, tensor in plan.module.state_dict().items()}
    found.pop("encoder.embed_tokens.weight", None)  # T5's second name of one tensor
    assert found == plan.tensors and type(plan.module).__name__ == plan.kind


def test_the_embedded_models_files_are_planned_like_their_modules():
    mini = ROOT / "models" / "mini"
    for plan, name in (
        (plan_transformer, "flux1-mini"),
        (plan_autoencoder, "ae-mini"),
        (lambda header: plan_clip(header, eos_token_id=0), "clip_l-mini"),
        (plan_t5, "t5-mini"),
    ):
        planned = plan(read_header(mini / f"{name}.safetensors"))
        assert planned.module is not None and not missing_or_unexpected(planned)  # building verifies the tensors


def test_the_transformer_at_full_size():
    real = {name: tuple(tensor.shape) for name, tensor in full_size().state_dict().items()}
    planned = {}
    for name, shape in transformer_shapes(64, 19, 38, 3072, 128, 4096, 768, guidance=True).items():
        made = transformer_to_diffusers(name, torch.empty(shape, device="meta"), 3072)
        planned |= {new: tuple(tensor.shape) for new, tensor in made.items()}
    assert planned == real


def test_a_skeleton_has_the_layers_and_blocks_of_the_module(tiny_flux):
    plan = plans(tiny_flux)["transformer"]
    empty = skeleton(plan.tensors)
    assert sorted(linear_modules(empty)) == sorted(linear_modules(plan.module))
    ranks = dict.fromkeys(linear_modules(plan.module), 4)
    assert blocks_of(empty, ranks) == blocks_of(plan.module, ranks)
    clip = plans(tiny_flux)["clip"]
    assert sorted(linear_modules(skeleton(clip.tensors))) == sorted(linear_modules(clip.module))


IMPORTED = """
import json, sys
from pathlib import Path
from trainer.models.identify import check_model_file
from trainer.models.description import FLUX1
paths = json.loads(sys.argv[1])
problems = [problem for file in FLUX1.files for problem in check_model_file(Path(paths[file.key]), file, file.key)]
heavy = ("diffusers", "transformers", "peft", "torch._dynamo")
print([len(problems), *(name for name in heavy if name in sys.modules)])
"""


def test_model_files_are_checked_without_their_libraries(tiny_flux: ModelFiles):
    paths = {"flux": tiny_flux.transformer, "ae": tiny_flux.ae, "clip_l": tiny_flux.clip_l, "t5xxl": tiny_flux.t5xxl}
    given = json.dumps({key: str(path) for key, path in paths.items()})
    done = subprocess.run([sys.executable, "-c", IMPORTED, given], env=environment(), capture_output=True, text=True)
    assert done.stdout.strip() == "[0]", done.stderr
