"""The sweep from plan to advice: what is still missing is measured, each rate is reported and recorded at once."""

import logging
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing

import torch
from accelerate import Accelerator

from trainer.checkpoint.naming import run_dir
from trainer.common.problems import Problem, raise_if_any
from trainer.common.text import duration
from trainer.config import TrainConfig
from trainer.optim.schedule import ScheduleSettings, build_lr_scheduler
from trainer.preflight.check import make_plan
from trainer.preflight.plan import RunPlan
from trainer.rates.advice import STANDARD_ERRORS, Advice, Gain, advise, gain_of
from trainer.rates.record import FILE, Record, open_record
from trainer.rates.sweep import Sweep, sweep_config
from trainer.train import own_run_dir, with_generated_images

log = logging.getLogger(__name__)
WORSE_IN_A_ROW = 2  # rates that are worse than no training, after which higher ones are not tried


def find_rate(
    config: TrainConfig, accelerator: Accelerator, rates: Sequence[float], steps: int
) -> tuple[Advice, list[Gain]]:
    """Try rates for a run and say which suit it. config: of the run; rates: rising; steps: at each rate.

    Returns also the gain at each rate that was tried. Raises `Problems`.
    """
    own = sweep_config(config)
    plan = make_plan(own, accelerator.num_processes, accelerator.device)
    raise_if_any(_data_problems(plan))
    log.info("%s", plan.summary())
    record, differences = open_record(run_dir(own) / FILE, own, steps, plan.models)
    for line in differences:
        log.info("not continuing %s: %s", record.path, line)
    if record.rates:
        log.info("continuing %s: %s are done", record.path, ", ".join(f"{rate:g}" for rate in record.rates))
    left = [rate for rate in rates if rate not in record.rates]
    log.info("%d rates and the adapter as it starts, %d steps each; no LoRA file is written", len(rates), steps)
    if left and not _is_hopeless(_gains(record, rates)):
        with ExitStack() as stack:
            if accelerator.is_main_process:
                stack.enter_context(own_run_dir(own))
            plan = with_generated_images(plan, accelerator)
            sweep = stack.enter_context(closing(Sweep(own, accelerator, plan, steps)))
            _try_rates(sweep, record, rates)
    gains = _gains(record, rates)
    return advise(gains, steps, steps_at_full_rate(config, plan.schedule.total_steps)), gains


def _data_problems(plan: RunPlan) -> list[Problem]:
    if not all(sample.preserves_output for sample in plan.data.samples):
        return []
    what = "only preserves the base model: the loss is 0 without training, and no learning rate can lower it"
    return [Problem(str(plan.config.dataset_config), what, "add images of a concept")]


def _try_rates(sweep: Sweep, record: Record, rates: Sequence[float]) -> None:
    started, steps_done = time.perf_counter(), 0
    count = (1 + len(rates)) * record.steps

    def on_step(step: int) -> None:
        nonlocal steps_done
        steps_done += 1
        if step == record.steps:
            total = count - len(record.rates) * record.steps
            left = (time.perf_counter() - started) / steps_done * max(0, total - steps_done)
            log.info("%d of at most %d steps, at most %s left", steps_done, total, duration(left))

    base = sweep.base(on_step)
    record.base = base
    log.info("without training: loss %.4f", sum(base) / len(base))
    for rate in rates:
        if rate in record.rates:
            continue
        found = sweep.losses(rate, base, on_step)
        record.rates[rate] = found
        if sweep.run.accelerator.is_main_process:
            record.save()
        log.info("%s", line_of(gain_of(found, base)))
        if _is_hopeless(_gains(record, rates)):
            log.info("higher rates are not tried: the last %d made the loss worse", WORSE_IN_A_ROW)
            return


def line_of(gain: Gain) -> str:
    """One rate's result in words."""
    if gain.diverged:
        return f"rate {gain.rate:g}: the loss exploded"
    word = "lower" if gain.mean >= 0 else "higher"
    return f"rate {gain.rate:g}: loss {abs(gain.mean):.2%} {word} than without training (± {gain.error:.2%})"


def _gains(record: Record, rates: Sequence[float]) -> list[Gain]:
    return [gain_of(record.rates[rate], record.base) for rate in rates if rate in record.rates]


def _is_hopeless(gains: Sequence[Gain]) -> bool:
    last = gains[-WORSE_IN_A_ROW:]
    return len(last) == WORSE_IN_A_ROW and all(gain.mean < -STANDARD_ERRORS * gain.error for gain in last)


def steps_at_full_rate(config: TrainConfig, total_steps: int) -> float:
    """A run's steps, each counted by the share of the full learning rate that its schedule gives it."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = build_lr_scheduler(config.select(ScheduleSettings), optimizer, total_steps)
    shares = []
    for _ in range(total_steps):
        shares.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return sum(shares)
