"""Train many LoRAs of the tiny FLUX, compare their checkpoints, and ask its judge whether each recommendation was good.

    python -m benchmarks.selection run --folder work [--processes 8] [--minutes 6] [--only NAME ...]
    python -m benchmarks.selection table --folder work
    python -m benchmarks.selection pack --folder work --output archive

`run` starts a process for each run. What is complete is skipped, so the same command continues after an interruption.
`table` prints what is there. `pack` writes the numbers and the compared images into a few files.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.selection.archive import pack
from benchmarks.selection.judged import BASES
from benchmarks.selection.results import is_complete, read_results, tabulate
from benchmarks.selection.runs import RUNS
from trainer.common.process import set_up_logging


def main(argv: Sequence[str]) -> int:
    """Run, tabulate or pack. argv: the command line. Returns the exit status: 1 if a run failed."""
    given = _parser().parse_args(argv)
    if given.what == "one":
        return _run_one(given)
    if given.what == "run":
        return _run(given)
    if given.what == "pack":
        print("\n".join(map(str, pack(given.folder, given.output))))
    else:
        print(tabulate(read_results(given.folder)))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "one", "table", "pack"))
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path(), help="folder for the files of `pack`")
    parser.add_argument("--only", nargs="+", choices=[*BASES, *RUNS], metavar="NAME")
    parser.add_argument("--processes", type=int, default=1, help="runs at once (%(default)s)")
    parser.add_argument("--minutes", type=float, help="start judging no further images after so many minutes")
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)  # the same as a time, for the processes
    return parser


def _run(given: argparse.Namespace) -> int:
    given.folder.mkdir(parents=True, exist_ok=True)
    given.until = time.time() + 60 * given.minutes if given.minutes else None
    names = given.only or [*BASES, *RUNS]
    due = [name for name in names if not is_complete(given.folder / name)]
    with ThreadPoolExecutor(given.processes) as pool:
        failed = [name for name, status in zip(due, pool.map(lambda n: _start(n, given), due), strict=True) if status]
    print(tabulate(read_results(given.folder)))
    print("".join(f"failed: {name}, see {given.folder / name}.log\n" for name in failed), end="")
    return int(bool(failed))


def _start(name: str, given: argparse.Namespace) -> int:
    """Process a run, or the base model, in a process of its own with its share of the cores."""
    threads = str(max(1, (os.cpu_count() or 1) // given.processes))
    command = [sys.executable, "-m", "benchmarks.selection", "one", f"--folder={given.folder}", "--only", name]
    command += [f"--until={given.until}"] if given.until else []
    start = time.perf_counter()
    with (given.folder / f"{name}.log").open("a") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": threads}
        status = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment, check=False).returncode
    seconds = time.perf_counter() - start
    print(f"{name}: {'done' if status == 0 else f'exit status {status}'} after {seconds:.0f} s", flush=True)
    return status


def _run_one(given: argparse.Namespace) -> int:
    from benchmarks.selection.job import judge_base, process

    set_up_logging()
    (name,) = given.only
    if name in BASES:
        judge_base(given.folder / name, name, given.until)
    else:
        process(RUNS[name], given.folder / name, given.until)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
