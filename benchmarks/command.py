"""`python -m trainer bench`: measure what training costs on this machine, with real runs of `trainer train`.

The bench makes model files, images and captions itself and keeps them in --work; --model measures your own model. Each
setting is a preset, or a name with flags of train; further flags apply to all settings.

    python -m trainer bench --preset rank16 playbook --output before.json
    python -m trainer bench --size small --setting "r8=--network_dim=8" --optimizer_type=Prodigy
    python -m trainer bench --report
    python -m trainer bench --compare before.json after.json
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import page, report
from benchmarks.measure import Length, Prepared, Result, again, measure, prepare
from benchmarks.settings import PRESETS, Setting, by_name, read_settings
from benchmarks.workspace import DEFAULTS, GB, Model, choose_model, disk_problems
from trainer.common.disk import output_problems, write_problems
from trainer.common.files import write_text
from trainer.common.problems import Problem, Problems, raise_if_any
from trainer.common.process import announce, ended_by_sigterm
from trainer.config import parse_config

REPORT = Path("bench_report.md")
MODEL_FLAGS = ("pretrained_model_name_or_path", "ae", "clip_l", "t5xxl")


def run(argv: Sequence[str]) -> int:
    """Measure and print, or compare. Returns 1 if a run failed, or became slower than --tolerance allows."""
    given, flags = _parser().parse_known_args(argv)
    if given.compare:
        raise_if_any(Problem(flag, "has no effect with --compare", "leave it out") for flag in by_name(flags))
        before, after = given.compare
        return _compare(before, after, given.tolerance)
    on_gpu = torch.cuda.is_available()
    model = choose_model(given.size, given.model, given.work, on_gpu)
    outputs = [(flag, path) for flag, path in (("--output", given.output), ("--report", given.report)) if path]
    own = [*write_problems([("--work", given.work)]), *output_problems(outputs, given.overwrite)]
    raise_if_any([*_problems(given), *own])
    named = by_name(flags)
    brings_own = all(flag in named for flag in MODEL_FLAGS)
    files = [] if brings_own else model.flags()
    defaults = [*files, *DEFAULTS.get(model.name, [])]
    own, refused = given.setting, []
    if given.report and not (given.preset or own):
        own, refused = page.usual_settings()
    settings = read_settings(given.preset, own, flags, defaults, on_gpu)
    for setting in settings:
        parse_config(setting.flags)  # problems with flags are reported before anything is written
    made = model if model.random and not brings_own else None
    raise_if_any(disk_problems(made, given.work) if made else [])
    announce(_plan(given, model.name if not brings_own else "of the flags", made, settings))
    if given.dry_run:
        return 0
    given.work.mkdir(parents=True, exist_ok=True)
    if made:
        _write_models(made)
    length = Length(given.warm_up, given.pictures, given.profile)
    images = "concepts" if given.concepts else "mixed" if given.mixed else "plain"
    ready = [prepare(setting, given.work, length, images, given.num_processes) for setting in settings]
    described = _describe(given.peak_seconds)
    name = "of the flags" if brings_own else _model_name(model)
    results: list[Result] = []
    with ended_by_sigterm("stopped, together with the training that was being measured."):
        for result in _measure_all(ready, given.repeat, described["peaks"]):
            results.append(result)
            found = report.as_json(described, name, results)
            if given.output:  # results so far are kept even if the next run fails
                report.save(given.output, found)
    print(report.render(found))
    if given.report:
        private = {given.work: "WORK", Path.home(): "~", Path.cwd(): "."}
        write_text(given.report, page.as_page(found, refused, private))
        announce(f"{given.report} is the page to send. Read it first: it should name no person and no folder.")
    return int(any(result.figures is None for result in results))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m trainer bench",
        description=__doc__,
        epilog=_presets(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    what, how, where, then = (parser.add_argument_group(name) for name in ("what", "how", "where", "comparing"))
    add = what.add_argument
    add(
        "--size",
        choices=DEFAULTS,
        help="random weights of this size, or mini, the embedded model (full on a GPU, otherwise tiny)",
    )
    add("--model", type=Path, metavar="FOLDER", help="a folder with your own four model files, instead of --size")
    add("--preset", nargs="+", default=[], choices=PRESETS, metavar="NAME", help="see below (rank16)")
    own = "flags of train, optionally after the name of a preset; may be repeated"
    add("--setting", action="append", default=[], metavar="NAME=FLAGS", help=own)
    images = what.add_mutually_exclusive_group()
    images.add_argument("--mixed", action="store_true", help="images of four aspect ratios, in buckets")
    about = "two concepts with masks, their composites, and images that keep what the base model generates"
    images.add_argument("--concepts", action="store_true", help=f"{about}; with the time of each kind of batch")
    add = how.add_argument
    add("--pictures", type=int, default=40, help="minimum number of timed images (%(default)s)")
    add("--warm_up", type=int, default=4, help="steps before the timed ones (%(default)s)")
    add("--profile", type=int, default=2, help="profiled steps after the timed ones; 0 for none (%(default)s)")
    add(
        "--repeat",
        type=int,
        default=1,
        help="runs of each setting; from the second on, caches are filled (%(default)s)",
    )
    add("--num_processes", type=int, default=1, help="number of GPUs, with one process each (%(default)s)")
    add(
        "--peak_seconds",
        type=float,
        default=2.0,
        help="time for measuring large products, in each precision (%(default)s)",
    )
    add = where.add_argument
    default_work = Path(tempfile.gettempdir()) / "flux_bench"
    add("--work", type=Path, default=default_work, help="folder for the bench's files (%(default)s)")
    add("--output", type=Path, metavar="FILE.json", help="write all figures to this file")
    about_report = "write one Markdown page to send; measures rank 16 in bf16, fp8 and int8 if no setting is named"
    add("--report", type=Path, nargs="?", const=REPORT, metavar="FILE.md", help=f"{about_report} ({REPORT})")
    add("--overwrite", action="store_true", help="replace the files of --output and --report if they exist")
    add("--dry_run", action="store_true", help="print what would be run and written, and stop")
    add = then.add_argument
    add(
        "--compare",
        nargs=2,
        type=Path,
        metavar=("BEFORE.json", "AFTER.json"),
        help="compare two files instead of measuring",
    )
    add("--tolerance", type=float, default=0.05, help="share by which a setting may be slower (%(default)s)")
    return parser


def _presets() -> str:
    width = max(map(len, PRESETS))
    return "\n".join(["presets:", *(f"  {name:<{width}}  {about}" for name, (about, _) in PRESETS.items())])


def _problems(given: argparse.Namespace) -> list[Problem]:
    least = {"pictures": 1, "warm_up": 1, "profile": 0, "repeat": 1, "num_processes": 1}
    problems = [
        Problem(f"--{name}", f"{getattr(given, name)} is below {bound}", f"{bound} or more")
        for name, bound in least.items()
        if getattr(given, name) < bound
    ]
    if given.size and given.model:
        problems.append(Problem("--size", "conflicts with --model", "give one of the two"))
    return problems


def _compare(before: Path, after: Path, tolerance: float) -> int:
    text, slower = report.compare(report.load(before), report.load(after), tolerance)
    print(text)
    for name in slower:
        announce(f"{name} is slower by more than {tolerance:.0%}.")
    return int(bool(slower))


def _plan(given: argparse.Namespace, model: str, made: Model | None, settings: Sequence[Setting]) -> str:
    lines = [f"model {model}, files in {given.work}"]
    if made:
        missing = made.missing_bytes
        lines.append(
            f"  {missing / GB:.2f} GB of random weights to write"
            if missing
            else "  its random weights are already there"
        )
    for setting in settings:
        lines.append(f"{setting.name}: python -m trainer train {' '.join(setting.flags)}")
    times = f", {given.repeat} times each" if given.repeat > 1 else ""
    lines.append(
        f"{given.pictures} images timed after {given.warm_up} steps of warm-up{times}; {given.profile} profiled steps"
    )
    return "\n".join(lines)


def _model_name(model: Model) -> str:
    return str(model.folder) if model.name == "model" else model.name


def _write_models(model: Model) -> None:
    if not model.missing_bytes:
        return
    start = time.perf_counter()
    finished = subprocess.run(model.command, stdout=subprocess.DEVNULL, check=False)
    if finished.returncode:
        raise Problems([Problem(str(model.folder), "could not write the random model files", "see above")])
    announce(f"model files: {time.perf_counter() - start:.0f} s")


def _describe(peak_seconds: float) -> dict[str, Any]:
    """Describe the machine in a separate process, so that this one holds no memory on the device."""
    command = [sys.executable, "-m", "benchmarks.machine", f"--seconds={peak_seconds}"]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def _measure_all(ready: Sequence[Prepared], repeat: int, peaks: dict[str, dict[str, Any]]) -> Iterator[Result]:
    for prepared in ready:
        for number in range(1, repeat + 1):
            one = prepared if number == 1 else again(prepared, number)
            announce(f"{one.setting.name}: {one.job.steps} steps, output in {one.job.folder / 'output.txt'}")
            result = measure(one, peaks)
            found = result.figures
            announce(f"  {found.seconds_per_picture:.3f} s per image" if found else f"  {result.failure}")
            yield result
