"""Are the verdicts of the guard, and the range of `find_rate`, right? The tiny FLUX's judge knows the answers.

    python -m benchmarks.rates run --folder work --output results [--processes 16] [--budget 270] [--only NAME ...]
    python -m benchmarks.rates table --output results

The first makes the trainings of `benchmarks.rates.runs` and the sweeps, several at once, and lets the judge score them.
What is complete is skipped, and after --budget seconds nothing new is started, so that the same command continues. It
writes results.json (flags, scores, sweeps), logs.jsonl.gz (each run's log.jsonl), and sheet.jpg (images of each run).
The second tabulates verdicts against truth from these files.
"""

import argparse
import gzip
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from benchmarks.rates.job import RESULT, SHOWN_SIDE, fill_cache, one

RESULTS, LOGS, SHEET = "results.json", "logs.jsonl.gz", "sheet.jpg"
NOT_LOGGED = ("time", "seconds_per_picture", "peak_gib", "epoch")


def main(argv: Sequence[str]) -> int:
    """Run or tabulate. argv: the command line. Returns the exit status: 1 if a run failed or is left."""
    given = _parser().parse_args(argv)
    given.output.mkdir(parents=True, exist_ok=True)
    if given.what == "table":
        from benchmarks.rates.table import tabulate

        print(tabulate(json.loads((given.output / RESULTS).read_text()), read_logs(given.output / LOGS)))
        return 0
    return _run(given)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("--folder", type=Path, default=Path("output/rates"))
    parser.add_argument("--output", type=Path, default=Path("output/rates/results"))
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--budget", type=float, default=float("inf"), metavar="SECONDS")
    parser.add_argument("--judged", type=int, default=8, help="prompts of each of the judge's lists (%(default)s)")
    parser.add_argument("--max_steps", type=int, help="shorten every run, to see that all of it works")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="names, or beginnings of names")
    return parser


def _names(only: Sequence[str] | None) -> list[str]:
    from benchmarks.rates.runs import RUNS, SWEEPS

    names = [*RUNS, *SWEEPS]
    return [name for name in names if any(name.startswith(part) for part in only)] if only else names


def _run(given: argparse.Namespace) -> int:
    start = time.perf_counter()
    names = _names(given.only)
    due = [name for name in names if not (given.folder / name / RESULT).is_file()]
    given.folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // given.processes)))
    arguments = {"folder": given.folder, "judged": given.judged, "max_steps": given.max_steps}
    deadline = time.time() + given.budget
    failed = []
    with ProcessPoolExecutor(given.processes, multiprocessing.get_context("spawn")) as pool:
        if due:  # fills the cache with every image and caption, which all the others read
            pool.submit(fill_cache, given.folder).result()
            print(f"cache filled after {time.perf_counter() - start:.0f} s", flush=True)
        tasks = {pool.submit(one, name, deadline=deadline, **arguments): name for name in due}
        for task in as_completed(tasks):
            try:
                said = task.result()
            except BrokenProcessPool as error:  # what is complete is collected nevertheless
                said = f"failed: {error}"
            print(f"{time.perf_counter() - start:6.1f} s  {tasks[task]}: {said}", flush=True)
            failed += [tasks[task]] if said.startswith("failed") else []
    collect(given.folder, given.output, names)
    left = [name for name in names if not (given.folder / name / RESULT).is_file()]
    print(f"{len(names) - len(left)} of {len(names)} complete, {len(failed)} failed: {given.output}")
    return int(bool(left))


def collect(folder: Path, output: Path, names: Sequence[str]) -> None:
    """Put the results of all complete runs into three files."""
    from PIL import Image

    from trainer.common.files import atomic_write, write_json
    from trainer.sampling.contact_sheet import Row, contact_sheet

    complete = [name for name in names if (folder / name / RESULT).is_file()]
    write_json(output / RESULTS, [json.loads((folder / name / RESULT).read_text()) for name in complete])
    rows = []
    with gzip.open(output / LOGS, "wt", encoding="utf-8") as file:
        for name in complete:
            log = folder / name / "runs/run/log.jsonl"
            for line in log.read_text().splitlines() if log.is_file() else ():
                event = {key: value for key, value in json.loads(line).items() if key not in NOT_LOGGED}
                file.write(json.dumps({"run": name, **event}) + "\n")
            for strip in sorted((folder / name).glob("images-*.png"), key=lambda path: int(path.stem[7:])):
                if strip.stem != "images-0" or name == complete[-1]:
                    with Image.open(strip) as image:
                        rows.append(Row(f"{name} {strip.stem[7:]}", _cut(image)))
    if rows:
        sheet = contact_sheet(rows, ["concept", "concept", "both", "other"], "After each training", size=SHOWN_SIDE)
        atomic_write(output / SHEET, lambda path: sheet.save(path, "JPEG", quality=80))


def _cut(strip: Any) -> list[Any]:
    side = strip.height
    return [strip.crop((index * side, 0, (index + 1) * side, side)) for index in range(strip.width // side)]


def read_logs(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The lines of each run's log, by the name of the run."""
    logs: dict[str, list[dict[str, Any]]] = {}
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            event = json.loads(line)
            logs.setdefault(event.pop("run"), []).append(event)
    return logs


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
