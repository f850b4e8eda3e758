"""A concept that the trainer taught is in the pictures that the server draws, as the demo's judge sees them."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.learned import CONCEPT, taught
from tests.nodes.server import COMFYUI, NO_COMFYUI, ComfyServer
from tests.nodes.workflows import WORKFLOWS
from tests.recipe_files import ROOT
from trainer.sampling.judge import judge_pictures, load_judge

PICTURES, PROMPT, LORA = 3, "tjtoy toy on the beach", "concept-seen.safetensors"

pytestmark = [
    pytest.mark.comfyui,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not COMFYUI, reason=NO_COMFYUI),
]


def seen(comfyui: ComfyServer, graph: dict[str, Any]) -> float:
    """How surely the judge sees the concept in a graph's pictures, in percent."""
    result = comfyui.run(graph)
    assert not result.error
    pictures = [torch.from_numpy(np.array(picture)).permute(2, 0, 1) for picture in result.pictures(comfyui)]
    assert len(pictures) == PICTURES
    judge = load_judge(ROOT / "models/mini/judge.safetensors")
    concepts = judge_pictures(judge, torch.stack(pictures)).concepts
    return 100 * concepts[:, judge.classes.concepts.index(CONCEPT)].mean().item()


def workflow(name: str, changes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The workflow's form for scripts, with other inputs of some types of node."""
    graph = json.loads((WORKFLOWS / "api" / f"{name}.json").read_text())
    for kind, inputs in changes.items():
        (node,) = (node for node in graph.values() if node["class_type"] == kind)
        node["inputs"] |= inputs
    return graph


def test_the_concept_is_drawn_with_the_lora_and_not_without(comfyui: ComfyServer, tmp_path: Path):
    shutil.copy(taught(tmp_path), comfyui.loras / LORA)
    sampler = {"batch_size": PICTURES}
    without = workflow("mini_base", {"FluxSampleAsTrained": sampler | {"prompt": PROMPT}})
    taken = {"LoadFluxDreamBoothLoRA": {"lora_name": LORA}, "ConceptPrompt": {"text": PROMPT}}
    with_lora = workflow("mini_finetuned", taken | {"FluxSampleAsTrained": sampler})
    assert seen(comfyui, without) < 10
    assert seen(comfyui, with_lora) > 60
