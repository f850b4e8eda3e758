"""Several training processes under `accelerate launch`, stopped without a noise and with one exit status.

usage: several.py OPTION… -m trainer ARGUMENT…       the options are those of `accelerate launch`

A training that was stopped has saved and ends with 128 + the signal. accelerate's launcher takes that for a failure:
it ends the others at once, even one that is still writing, and prints a trace. So each process runs in here, says
that all is well, and leaves its status in a folder, from where it becomes this program's own.
"""

import logging
import os
import runpy
import sys
import tempfile
from pathlib import Path

from accelerate.commands.launch import launch_command, launch_command_parser
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

FOLDER = "FLUX_STATUS_FOLDER"  # where a stopped process leaves its status
STOPPED = (129, 130, 143)  # SIGHUP, SIGINT, SIGTERM


def train(folder: Path) -> int:
    """One process: `python -m trainer`, in whose place this runs. A stop is written down and is 0."""
    sys.argv = sys.argv[2:]
    sys.path[0] = str(Path.cwd())
    try:
        runpy.run_module("trainer", run_name="__main__", alter_sys=True)
    except KeyboardInterrupt:
        status = 130
    except SystemExit as end:
        if end.code not in STOPPED:
            raise
        status = end.code
    (folder / os.environ["RANK"]).write_text(str(status))
    return 0


def launch(words: list[str]) -> int:
    """All processes of this machine: their exit status. What fails says why itself; here it is one line."""
    options, rest = words[: words.index("-m")], words[words.index("-m") :]
    # the launcher's own account of every process that ends
    logging.disable(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        os.environ[FOLDER] = folder
        try:
            launch_command(launch_command_parser().parse_args([*options, __file__, *rest]))
        except ChildFailedError as error:
            return said(*error.get_first_failure())
        return max((int(file.read_text()) for file in Path(folder).iterdir()), default=0)


def said(rank: int, failure: ProcessFailure) -> int:
    """The status of the process that failed first; one line about it, unless a stop ended it before it could save."""
    by_signal = failure.exitcode < 0
    status = 128 - failure.exitcode if by_signal else failure.exitcode
    if status not in STOPPED:
        end = f"was ended by {failure.signal_name()}" if by_signal else f"ended with status {status}"
        print(f"Training process {rank} {end}. What it said stands above.", file=sys.stderr)
    return status


def main() -> int:
    if folder := os.environ.get(FOLDER):
        return train(Path(folder))
    if "-m" not in sys.argv:
        sys.exit(__doc__)
    return launch(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
