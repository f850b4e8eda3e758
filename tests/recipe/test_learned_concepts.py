"""Does the training teach what the captions say? With the embedded base model, scored by its judge."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.learned import CONCEPT, taught
from tests.recipe_files import ROOT
from trainer.cli import evaluate
from trainer.cli.evaluate import Adapter, draw_column, load_evaluation
from trainer.lora.file import load_lora
from trainer.sampling.evaluation import score_pictures
from trainer.sampling.prompt_sets import PromptSets

PROMPTS, SAMPLING_STEPS = 6, 10
MINI = ROOT / "models" / "mini"
OTHERS = ("a red ball", "a blue box", "a green duck", "a white cup", "a yellow car", "a pink house")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2000)]


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half the sampling steps of an evaluation: the judge is as sure of what it sees."""
    monkeypatch.setattr(evaluate, "USUAL", replace(evaluate.USUAL, steps=SAMPLING_STEPS))


def score(lora: Path | None = None) -> float:
    """How surely the judge sees tjtoy in pictures of unseen prompts, in percent."""
    evaluation = load_evaluation(MINI, only="concepts", device=torch.device("cpu"))
    prompts = PromptSets(base=(), concepts={CONCEPT: evaluation.prompts.concepts[CONCEPT][:PROMPTS]}, both=())
    evaluation = replace(evaluation, prompts=prompts)
    pictures = draw_column(evaluation, Adapter("", load_lora(lora) if lora else None))
    return score_pictures(evaluation.judge, prompts, pictures).percentages[CONCEPT]


def test_a_concept_is_learned_from_its_pictures_and_name(tmp_path):
    assert score() < 10
    assert score(taught(tmp_path)) > 60


def test_pictures_under_other_names_do_not_teach_it(tmp_path):
    assert score(taught(tmp_path, OTHERS)) < 20
