"""`python -m trainer check`: takes the flags of train; nothing is written and no weights are read."""

from collections.abc import Sequence

from trainer.common.process import set_up_logging
from trainer.config import parse_config


def run(argv: Sequence[str]) -> int:
    """Print the plan. Raises `Problems` with everything that is wrong."""
    config, notices = parse_config(argv)
    set_up_logging()
    for notice in notices:
        print(notice)
    # imported late, so that a mistake in a flag is reported at once
    import torch

    from trainer.preflight.check import make_plan

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    summary = make_plan(config, device=device).summary()
    print(summary if notices else summary.lstrip("\n"))
    print("\nNo problems found.")
    return 0
