"""`python -m trainer check`: the same flags as train; nothing is written and no weight is read."""

from collections.abc import Sequence

import torch

from trainer.common.process import set_up_logging
from trainer.config import parse_config
from trainer.preflight.check import make_plan


def run(argv: Sequence[str]) -> int:
    """Print the plan; raises `Problems` with all that is wrong."""
    config, notices = parse_config(argv)
    set_up_logging()
    for notice in notices:
        print(notice)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    summary = make_plan(config, device=device).summary()
    print(summary if notices else summary.lstrip("\n"))
    print("\nAll is in order.")
    return 0
