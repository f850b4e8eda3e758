"""`python -m trainer check`: the same flags as train; nothing is written and no weight is read."""

from collections.abc import Sequence

from trainer.check import make_plan
from trainer.config import config_help, parse_config
from trainer.runtime import set_up_logging


def run(argv: Sequence[str]) -> int:
    """Print the plan; raises `Faults` with all that is wrong."""
    if "--help" in argv or "-h" in argv:
        print(config_help())
        return 0
    config, notices = parse_config(argv)
    set_up_logging()
    print("\n".join(notices))
    print(make_plan(config).summary())
    print("\nAll is in order.")
    return 0
