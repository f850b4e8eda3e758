"""`python -m trainer find_rate`: takes the flags of train; tries learning rates for a few steps each.

    python -m trainer find_rate --config_file flux_data/train.toml
    python -m trainer find_rate --config_file my.toml --rates 1e-4 3e-4 1e-3 --steps 60

Every rate starts from the same adapter and sees the same images, timesteps and noise, so that the losses differ by the
rate alone. No LoRA file is written. What was measured is kept in RUN_DIR/OUTPUT_NAME_find_rate/rates.json; the same
command continues a sweep that was stopped.
"""

import argparse
import logging
import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from trainer.common.problems import Problem, raise_if_any
from trainer.common.process import ended_by_sigterm, set_up_logging
from trainer.common.text import counted, duration
from trainer.config import TrainConfig, parse_config, placed_problems

if TYPE_CHECKING:  # imported late, so that a mistake in a flag is reported at once
    from trainer.rates.advice import Advice, Gain

log = logging.getLogger(__name__)
RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
STEPS, MIN_STEPS = 30, 10
STOPPED = "stopped. Rates that are finished are kept; repeat the command for the others."


def run(argv: Sequence[str]) -> int:
    """Try the rates, print a table and the range. argv: the flags after `find_rate`.

    Returns the exit status: 0, or 1 if no rate lowered the loss. Raises `Problems` with everything that is wrong.
    """
    given, rest = _parser().parse_known_args(argv)
    config, notices = parse_config(rest)
    raise_if_any(_problems(given))
    # imported late, so that a mistake in a flag is reported at once
    from accelerate import Accelerator

    from trainer.rates.find import find_rate

    accelerator = Accelerator(mixed_precision="no")
    set_up_logging(accelerator.is_main_process)
    for notice in notices:
        log.info("%s", notice)
    start = time.perf_counter()
    with placed_problems(rest), ended_by_sigterm(STOPPED):
        advice, gains = find_rate(config, accelerator, sorted(set(given.rates)), given.steps)
    if accelerator.is_main_process:
        print(f"\n{table(gains, advice)}\n\n{in_words(advice, config)}")
        print(f"took {duration(time.perf_counter() - start)}")
    return int(advice.best is None)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m trainer find_rate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    rates = ", ".join(f"{rate:g}" for rate in RATES)
    add("--rates", type=float, nargs="+", default=RATES, metavar="RATE", help=f"learning rates to try ({rates})")
    add("--steps", type=int, default=STEPS, help="optimizer steps at each rate (%(default)s)")
    return parser


def _problems(given: argparse.Namespace) -> list[Problem]:
    problems = [
        Problem("--rates", f"{rate:g} is not a learning rate", "give numbers above 0")
        for rate in given.rates
        if not 0 < rate < float("inf")
    ]
    if given.steps < MIN_STEPS:
        hint = f"give {MIN_STEPS} or more"
        few = counted(given.steps, "step is", "steps are")
        problems.append(Problem("--steps", f"{few} too few to tell rates apart", hint))
    return problems


def table(gains: Sequence["Gain"], advice: "Advice") -> str:
    """A line for each rate: how much lower the loss is than without training; the range is marked."""
    lines = [f"{'rate':>8}  {'loss':>9}  {'+-':>7}"]
    for gain in gains:
        loss = "exploded" if gain.diverged else f"{-gain.mean:+.2%}"
        error = f"{gain.error:.2%}" if math.isfinite(gain.error) and not gain.diverged else ""
        mark = "  most in few steps" if gain.rate == advice.best else ""
        lines.append(f"{gain.rate:>8g}  {loss:>9}  {error:>7}{mark}")
    return "\n".join(lines)


def in_words(advice: "Advice", config: TrainConfig) -> str:
    """The range, what to set, and what the sweep cannot know."""
    if advice.usual is None:
        return f"No range: {advice.reason}"
    bounds = f"{advice.low:.1g} to {advice.high:.1g}" + (f" ({advice.reason})" if advice.reason else "")
    if config.optimizer_type.lower() == "prodigy":
        return (
            f"Step sizes that suit this run: {bounds}. Prodigy finds its own: keep --learning_rate=1, and compare"
            " prodigy_d in log.jsonl; if it settles outside, --optimizer_args d_coef=… scales it."
        )
    return (
        f"Range for this run: {bounds}. Begin with --{config.transformer_lr_setting}={advice.usual:.1g}.\n"
        "A sweep sees few steps: it finds rates that are too high for certain, and what a run's length asks for. Which"
        " rate within the range gives the best images, only images tell: python -m trainer compare."
    )
