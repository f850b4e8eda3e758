"""Run one program so that a stop reaches it cleanly; also good as a container's first process.

usage: init.py [--as SIGINT] PROGRAM ARGUMENT…

The program gets a process group of its own, so that Ctrl-C comes here alone and is handed on once. Under `accelerate
launch` it goes to the training processes: the launcher would kill them after 30 seconds, in the middle of a save.
--as: the signal that stops this program well, whichever one comes. As process 1, orphans are reaped.
"""

import itertools
import os
import signal
import sys
from pathlib import Path
from types import FrameType

HANDED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def children(parent: int) -> list[int]:
    """The processes whose parent it is."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended meanwhile
        if int(fields[1]) == parent:
            found.append(int(status.parent.name))
    return found


def runs_training(process: int) -> bool:
    """Whether its command line is `python … -m trainer …`."""
    try:
        words = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return any(pair == (b"-m", b"trainer") for pair in itertools.pairwise(words))


def listeners(program: int) -> list[int]:
    """Who is to hear of a stop: the training processes under a launcher, else the program itself."""
    return [child for child in children(program) if runs_training(child)] or [program]


def start(command: list[str]) -> int:
    """The process id of the program, in a group of its own."""
    process = os.fork()
    if process:
        return process
    os.setpgid(0, 0)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)
        os._exit(127)


def wait_for(program: int) -> int:
    """The exit status of the program as a shell says it. Other children that end meanwhile are reaped."""
    while True:
        ended, status = os.wait()
        if ended == program:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def main(arguments: list[str]) -> int:
    stop_as = None
    if arguments[:1] == ["--as"]:
        stop_as, arguments = signal.Signals[arguments[1]], arguments[2:]
    if not arguments:
        sys.exit(__doc__)
    early: list[int] = []
    program = 0

    def hand_on(number: int, _frame: FrameType | None) -> None:
        if not program:
            early.append(number)
            return
        for listener in listeners(program):
            os.kill(listener, stop_as or number)

    for number in HANDED_ON:
        signal.signal(number, hand_on)
    program = start(arguments)
    for number in early:
        hand_on(number, None)
    return wait_for(program)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
