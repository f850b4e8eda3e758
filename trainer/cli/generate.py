"""`python -m trainer generate`: takes the flags of train; makes the images that a run needs from its base model, and
sheets of them, so that one sees them before training.
"""

from collections.abc import Sequence

from trainer.common.process import ended_by_sigterm, set_up_logging
from trainer.common.text import counted
from trainer.config import parse_config, placed_problems

STOPPED = "stopped. Images that were generated are complete; run it again for the others."


def run(argv: Sequence[str]) -> int:
    """Generate the images that are missing, and write sheets of them and of the composites.

    argv: the flags after `generate`. Returns the exit status, 0. Raises `Problems` with everything that is wrong.
    """
    config, notices = parse_config(argv)
    # imported late, so that a mistake in a flag is reported at once
    from accelerate import Accelerator

    from trainer.preflight.check import make_plan
    from trainer.preflight.composites import write_composite_sheet, write_generated_sheet
    from trainer.train import with_generated_images

    accelerator = Accelerator(mixed_precision="no")
    set_up_logging(accelerator.is_main_process)
    with placed_problems(argv), ended_by_sigterm(STOPPED):
        plan = make_plan(config, accelerator.num_processes, accelerator.device)
        missing = len(plan.images_to_generate)
        plan = with_generated_images(plan, accelerator)
    if not accelerator.is_main_process:
        return 0
    for notice in notices:
        print(notice)
    total = len(plan.data.generated_images())
    generated = f"{counted(missing, 'image')} generated, {total} in all"
    print(generated if total else "This dataset needs no generated images.")
    sheets = [write_composite_sheet(config, plan.data)]
    if not missing:  # otherwise it was written when they were made
        sheets.append(write_generated_sheet(config, plan.data))
    for sheet in filter(None, sheets):
        print(f"look at {sheet}")
    return 0
