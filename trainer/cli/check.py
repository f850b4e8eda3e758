"""`python -m trainer check`: takes the flags of train; reads no weights, writes only sheets of images."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trainer.common.process import set_up_logging
from trainer.config import parse_config, placed_problems

if TYPE_CHECKING:  # imported late, so that a mistake in a flag is reported at once
    from trainer.preflight.plan import RunPlan


def run(argv: Sequence[str]) -> int:
    """Check the run that the flags describe, print its plan, and write sheets of its composites and generated images.

    argv: the flags after `check`. Returns the exit status, 0. Raises `Problems` with everything that is wrong.
    """
    plan_and_report(argv)
    return 0


def plan_and_report(argv: Sequence[str]) -> "RunPlan":
    """As `run`; returns the plan."""
    config, notices = parse_config(argv)
    set_up_logging()
    for notice in notices:
        print(notice)
    # imported late, so that a mistake in a flag is reported at once
    import torch

    from trainer.preflight.check import make_plan
    from trainer.preflight.composites import write_composite_sheet, write_generated_sheet

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with placed_problems(argv):
        plan = make_plan(config, device=device)
    summary = plan.summary()
    print(summary if notices else summary.lstrip("\n"))
    if sheet := write_composite_sheet(plan.config, plan.data):
        print(f"look at the composites: {sheet}")
    if sheet := write_generated_sheet(plan.config, plan.data):
        print(f"look at what the base model generated: {sheet}")
    print("\nNo problems found.")
    return plan
