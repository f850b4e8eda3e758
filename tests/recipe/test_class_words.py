"""--class_preservation_weight: what the plan says of it, and that a resumed run goes on with it bit for bit."""

from dataclasses import replace

import torch

from tests.recipe_files import ONE_FOLDER
from trainer.preflight.check import make_plan

SETTINGS = {"max_train_steps": 4, "save_precision": "float", "gradient_accumulation_steps": 2}


def test_class_words_are_preserved_and_a_resumed_run_goes_on_with_them(workshop):
    kept = {**SETTINGS, "class_preservation_weight": 2.0}
    plain = workshop.train("without class words", **SETTINGS)
    whole = workshop.train("class words", **kept)
    changed = [not torch.equal(tensor, plain.tensors()[name]) for name, tensor in whole.tensors().items()]
    assert any(changed)
    plan = make_plan(replace(whole.config, overwrite=True))
    assert "class words (toy) preserved in 100% of the samples" in plan.summary() and "2.49 times" in plan.summary()
    assert "preserved in" not in make_plan(replace(plain.config, overwrite=True)).summary()
    assert {"toy", "tjtoy toy"} <= set(plan.captions) and plan.missing_texts == 0

    begun = workshop.train("begun", **kept, save_state=True, save_every_n_steps=2)
    resumed = workshop.train("resumed", **kept, resume=begun.state(2))
    for run in (begun, resumed):
        assert all(torch.equal(run.tensors()[name], tensor) for name, tensor in whole.tensors().items())


def test_the_plan_says_what_keeping_the_base_models_prediction_costs(workshop):
    text = ONE_FOLDER + "custom_attributes = { diff_output_preservation = true }\n"
    summary = make_plan(workshop.config("kept", dataset_config=workshop.dataset(text, "kept.toml"))).summary()
    assert "100% of the samples keep what the base model generates" in summary and "1.49 times" in summary
    assert "keep what the base model" not in make_plan(workshop.config("plain")).summary()
