"""Sample pictures and compilation: neither may change what is trained."""

import pytest
import torch
from PIL import Image

from tests.recipe_files import Finished, Workshop, largest_difference
from trainer.engine.log import RunLog

PROMPTS = """# a comment
tjtoy toy in snow --w 64 --h 48 --s 2 --d 7
tjtoy toy at sea --w 64 --h 64 --s 2 --g 2 --l 3 --n blurry
"""
PLAIN = {"max_train_steps": 4, "save_precision": "float"}


@pytest.fixture(scope="module")
def plain(workshop: Workshop) -> Finished:
    return workshop.train("plain", **PLAIN)


@pytest.fixture(scope="module")
def sampled(workshop: Workshop) -> Finished:
    """Four steps with pictures before the first and after every second."""
    prompts = workshop.folder / "prompts.txt"
    prompts.write_text(PROMPTS)
    return workshop.train("sampled", **PLAIN, sample_prompts=prompts, sample_at_first=True, sample_every_n_steps=2)


def test_pictures_are_drawn_at_the_stated_steps_and_say_how(sampled):
    names = [f"tj-step{step:08d}-{index:02d}.png" for step in (0, 2, 4) for index in (0, 1)]
    assert sorted(path.name for path in (sampled.folder / "samples").iterdir()) == names
    for step in (0, 2, 4):
        with Image.open(sampled.folder / "samples" / f"tj-step{step:08d}-00.png") as picture:
            assert picture.size == (64, 48)
            facts = picture.text  # type: ignore[attr-defined]
        assert (facts["prompt"], facts["seed"], facts["step"]) == ("tjtoy toy in snow", "7", str(step))
    with Image.open(sampled.folder / "samples" / "tj-step00000004-01.png") as picture:
        assert picture.text["seed"] == str(sampled.config.seed + 1)  # type: ignore[attr-defined]
    assert [(line["step"], line["prompt"]) for line in sampled.log("sample")][:2] == [
        (0, "tjtoy toy in snow"),
        (0, "tjtoy toy at sea"),
    ]


def test_the_pictures_follow_the_training(sampled):
    contents = [(sampled.folder / "samples" / f"tj-step{step:08d}-00.png").read_bytes() for step in (0, 2, 4)]
    assert len(set(contents)) == 3


def test_sampling_moves_no_weight(sampled, plain):
    assert largest_difference(sampled.tensors(), plain.tensors()) == 0


@pytest.mark.parametrize("backend", ["eager", pytest.param("aot_eager", marks=pytest.mark.slow)])
def test_compiled_blocks_train_the_same(workshop, plain, backend, monkeypatch):
    graphs = []
    log_step = RunLog.step

    def counted(self: RunLog, *facts) -> None:
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
        log_step(self, *facts)

    monkeypatch.setattr(RunLog, "step", counted)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    settings = {**PLAIN, "torch_compile": True, "dynamo_backend": backend, "validate_every_n_steps": 2}
    compiled = workshop.train(backend, **settings)
    torch._dynamo.reset()
    assert compiled.log("step")[0]["loss"] == pytest.approx(plain.log("step")[0]["loss"], rel=1e-5)
    assert largest_difference(compiled.tensors(), plain.tensors()) < 1e-3
    assert graphs[0] > 0 and graphs == graphs[:1] * 4, "something was compiled anew, after a validation perhaps"
