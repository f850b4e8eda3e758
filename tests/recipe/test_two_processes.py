"""Two processes that share each step's batches learn what one learns with twice the accumulation, killed or not."""

import sys

import pytest

from tests.recipe.test_resume import WITH_COMPOSITES
from tests.recipe_files import PATIENCE, ROOT, Finished, finish, largest_difference, started, wait_for
from tests.unit.test_compositions import draw_subject

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "trainer")
FORKED = (sys.executable, str(ROOT / "tests" / "two_ranks.py"))
REPEATED = """
[[datasets]]
resolution = 64
[[datasets.subsets]]
image_dir = "{folder}/toy"
class_tokens = "tjtoy toy"
flip_aug = true
num_repeats = REPEATS
"""

EVERYTHING_MASKED = f"{WITH_COMPOSITES}\n[[datasets.preservation]]\nnum_images = 2\nsteps = 1\n"


@pytest.mark.parametrize(
    ("repeats", "batches", "launcher"), [(1, 5, FORKED), (2, 10, TORCHRUN)], ids=["odd", "even with torchrun"]
)
def test_two_processes_equal_one_with_twice_the_accumulation(workshop, repeats, batches, launcher):
    """Of five batches in steps of four, one process has no part in the last one."""
    data = workshop.dataset(REPEATED.replace("REPEATS", str(repeats)), f"repeats-{repeats}.toml")
    settings = {"max_train_epochs": 3, "save_precision": "float", "dataset_config": data, "ema_decay": 0.9}
    one = workshop.train(f"one {repeats}", **settings, gradient_accumulation_steps=4)
    assert one.metadata()["ss_num_batches_per_epoch"] == str(batches)

    place = f"two {repeats}"
    two = Finished(workshop.config(place, **settings))
    with started(workshop.command(place, *launcher, **settings, gradient_accumulation_steps=2)) as process:
        wait_for((two.folder / "config.toml").exists, process)  # before the models are loaded
        (two.folder / "save").touch()  # seen by the first process, agreed on by both
        output, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, output

    assert two.loras() == ["tj-step00000001.safetensors", "tj.safetensors"]
    assert largest_difference(two.tensors(), one.tensors()) < 1e-4
    for key in ("loss", "gradient_norm"):
        logged = [[line[key] for line in run.log("step")] for run in (two, one)]
        assert logged[0] == pytest.approx(logged[1], rel=1e-4)


def test_two_processes_share_the_images_to_generate_and_preserve_class_words_as_one_does(workshop):
    data = workshop.dataset(f"{REPEATED}[[datasets.preservation]]\nnum_images = 3\nsteps = 1\n", "shared.toml")
    data.write_text(data.read_text(encoding="utf-8").replace("REPEATS", "1"), encoding="utf-8")
    settings = {"max_train_steps": 2, "save_precision": "float", "dataset_config": data, "class_preservation_weight": 1}
    caches = [{"cache_dir": workshop.folder / f"{name}-cache"} for name in ("one", "two")]
    one = workshop.train("shared by one", **settings, **caches[0], gradient_accumulation_steps=2)
    two = Finished(workshop.config("shared by two", **settings, **caches[1]))
    finish(workshop.command("shared by two", *FORKED, **settings, **caches[1]))
    images = [{path.name: path.read_bytes() for path in each["cache_dir"].rglob("*.png")} for each in caches]
    assert len(images[0]) == 3 and images[0] == images[1]
    assert largest_difference(two.tensors(), one.tensors()) < 1e-4


def test_masks_composites_and_preserved_images_are_shared_and_resumed_after_a_kill(workshop):
    for name, box in (("red", (30, 20, 100, 130)), ("blue", (20, 40, 140, 110))):
        for number in range(2):
            draw_subject(workshop.folder / name, f"{number}", (200, 0, 0), box)
    data = workshop.dataset(EVERYTHING_MASKED, "everything-masked.toml")
    settings = {"max_train_steps": 5, "save_precision": "float", "dataset_config": data}
    one = workshop.train("masked by one", **settings, gradient_accumulation_steps=2)
    settings |= {"save_every_n_steps": 2, "save_state": True}
    two = Finished(workshop.config("masked by two", **settings))
    finish(workshop.command("masked by two", *FORKED, **settings))
    assert largest_difference(two.tensors(), one.tensors()) < 1e-4
    losses = [[line["loss"] for line in run.log("step")] for run in (one, two)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)

    killed = Finished(workshop.config("killed", **settings))
    with started(workshop.command("killed", *FORKED, **settings)) as process:
        wait_for(killed.state(2).is_dir, process)  # both are killed at the end of the block
    again = settings | {"resume": killed.state(2), "overwrite": True}  # what they saved until they were killed
    finish(workshop.command("killed", *FORKED, **again))
    assert largest_difference(killed.tensors(), two.tensors()) == 0
