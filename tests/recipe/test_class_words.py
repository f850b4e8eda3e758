"""--class_preservation_weight: what the plan says of it, and that a resumed run goes on with it bit for bit."""

from dataclasses import replace

import torch

from trainer.preflight.check import make_plan

SETTINGS = {"max_train_steps": 4, "save_precision": "float", "gradient_accumulation_steps": 2}


def test_class_words_are_preserved_and_a_resumed_run_goes_on_with_them(workshop):
    kept = {**SETTINGS, "class_preservation_weight": 2.0}
    plain = workshop.train("without class words", **SETTINGS)
    whole = workshop.train("class words", **kept)
    changed = [not torch.equal(tensor, plain.tensors()[name]) for name, tensor in whole.tensors().items()]
    assert any(changed)
    plan = make_plan(replace(whole.config, overwrite=True))
    assert "class words (toy) preserved in 100% of the samples" in plan.summary() and "2.50 times" in plan.summary()
    assert "preserved in" not in make_plan(replace(plain.config, overwrite=True)).summary()
    assert {"toy", "tjtoy toy"} <= set(plan.captions) and plan.missing_texts == 0

    begun = workshop.train("begun", **kept, save_state=True, save_every_n_steps=2)
    resumed = workshop.train("resumed", **kept, resume=begun.state(2))
    for run in (begun, resumed):
        assert all(torch.equal(run.tensors()[name], tensor) for name, tensor in whole.tensors().items())
