"""`python -m trainer train`, also under `accelerate launch -m trainer train`."""

import logging
from collections.abc import Sequence

from trainer.common.process import set_up_logging
from trainer.config import parse_config, placed_problems

log = logging.getLogger(__name__)


def run(argv: Sequence[str]) -> int:
    """Train a LoRA with the settings of the command line.

    argv: the flags after `train`. Returns the exit status: 0, or 130 or 143 if SIGINT or SIGTERM stopped the run.
    Raises `Problems` for mistakes of the user and for a loss or gradient that is not finite.
    """
    config, notices = parse_config(argv)
    # imported late, so that a mistake in a flag is reported at once
    from accelerate import Accelerator

    from trainer.engine.log import accelerator_arguments
    from trainer.train import train

    accelerator = Accelerator(mixed_precision="no", **accelerator_arguments(config))
    set_up_logging(accelerator.is_main_process)
    for notice in notices:
        log.info("%s", notice)
    with placed_problems(argv):
        return train(config, accelerator)
