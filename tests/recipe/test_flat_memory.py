"""A long run keeps nothing of a step: as many tensors after many steps as after few, and as much memory."""

import gc

import psutil
import torch
from accelerate import Accelerator
from torch.optim.optimizer import register_optimizer_step_post_hook

from tests.recipe_files import Workshop
from trainer.engine.log import accelerator_arguments
from trainer.train import train

EARLY, LATE = 30, 90
MIB = 2**20


def live_tensors() -> tuple[int, int]:
    """How many tensors there are, and how many numbers they have, each storage counted once."""
    gc.collect()
    # type: proxies of lazily imported modules pretend to be other classes, and importing them takes long
    found = [each for each in gc.get_objects() if issubclass(type(each), torch.Tensor)]
    sizes = {each.untyped_storage()._cdata: each.untyped_storage().nbytes() for each in found if not each.is_meta}
    return len(found), sum(sizes.values())


def test_a_long_run_keeps_nothing_of_a_step(workshop: Workshop):
    memory, seen = psutil.Process(), {}
    steps = iter(range(1, LATE + 10))

    def look(*_) -> None:
        if (step := next(steps)) in (EARLY, LATE):
            seen[step] = (*live_tensors(), memory.memory_info().rss)

    config = workshop.config(
        "long", max_train_steps=LATE, save_every_n_steps=20, validate_every_n_steps=20, ema_decay=0.9
    )
    accelerator = Accelerator(cpu=True, mixed_precision="no", **accelerator_arguments(config))
    handle = register_optimizer_step_post_hook(look)
    try:
        assert train(config, accelerator) == 0
    finally:
        handle.remove()
    (count, size, resident), (late_count, late_size, late_resident) = seen[EARLY], seen[LATE]
    # the prefetching thread may be one batch further; a kept tensor of each step would be 60 more
    assert abs(late_count - count) < 30 and abs(late_size - size) < MIB
    assert late_resident - resident < 16 * MIB
