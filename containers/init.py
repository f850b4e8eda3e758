"""Run a program, or several training processes, so that a stop reaches each of them cleanly and once.

usage: init.py [--as SIGNAL] PROGRAM ARGUMENT...
       init.py --num_processes=N [--num_machines=N --machine_rank=N --main_process_ip=ADDRESS --main_process_port=N]
               PROGRAM ARGUMENT...

Every process gets a process group of its own, so that Ctrl-C comes here alone and is passed on once. It can be the
first process of a container: it then reaps orphans too.

--as: the signal that stops this program well, whichever one arrives.
--num_processes: the total over all machines. The processes find each other through RANK, WORLD_SIZE, MASTER_ADDR and
so on, as under torchrun. torchrun itself and `accelerate launch` are not used because they take a stopped training
for a failure, and then kill the others in the middle of a save. Here, when a process fails, one line says so, the
others are asked to stop, and after GRACE seconds they are killed: they may be waiting for the one that is gone.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from types import FrameType
from typing import NoReturn

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STOPPED = {128 + number for number in STOPS}  # exit statuses of a training that was stopped and has saved
GRACE = 30
OPTIONS = ("num_processes", "num_machines", "machine_rank", "main_process_ip", "main_process_port")
NO_P2P = 3
ASK_P2P = f"import sys; from accelerate.utils import check_cuda_p2p_ib_support as ok; sys.exit(0 if ok() else {NO_P2P})"


def read_options(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """The options in front, as name: value, and the program with its arguments."""
    options: dict[str, str] = {}
    rest = list(words)
    while rest and rest[0].startswith("--"):
        name, equals, value = rest.pop(0)[2:].partition("=")
        if name not in ("as", *OPTIONS) or not (equals or rest):
            sys.exit(__doc__)
        options[name] = value if equals else rest.pop(0)
    if not rest:
        sys.exit(__doc__)
    return options, rest


def environments(options: dict[str, str]) -> list[dict[str, str]]:
    """What each process of this machine finds in its environment, in addition to ours."""
    total = int(options.get("num_processes") or 1)
    machines = int(options.get("num_machines") or 1)
    if total == machines == 1:
        return [{}]
    if machines < 1 or total < 1 or total % machines:
        sys.exit(f"--num_processes={total} cannot be split evenly over --num_machines={machines}.")
    local, first = total // machines, int(options.get("machine_rank") or 0) * (total // machines)
    shared = {
        "WORLD_SIZE": str(total),
        "LOCAL_WORLD_SIZE": str(local),
        "MASTER_ADDR": options.get("main_process_ip") or "127.0.0.1",
        "MASTER_PORT": options.get("main_process_port") or ("29500" if machines > 1 else free_port()),
    }
    if local > 1:
        shared["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", "1")  # as under torchrun
    # some consumer cards cannot copy to each other, and accelerate refuses to start on them without these
    on_gpu = os.environ.get("ACCELERATE_USE_CPU") != "true"
    if on_gpu and subprocess.run([sys.executable, "-c", ASK_P2P]).returncode == NO_P2P:
        shared |= {name: os.environ.get(name, "1") for name in ("NCCL_P2P_DISABLE", "NCCL_IB_DISABLE")}
    return [shared | {"RANK": str(first + index), "LOCAL_RANK": str(index)} for index in range(local)]


def free_port() -> str:
    """A port of this machine that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return str(server.getsockname()[1])


def start(command: list[str], more: dict[str, str]) -> int:
    """Start a program in a process group of its own, with `more` in its environment. Returns its process id."""
    return os.fork() or become(command, more)


def become(command: list[str], more: dict[str, str]) -> NoReturn:
    """The new process: it ends with status 127 if there is no such program."""
    os.setpgid(0, 0)
    try:
        os.execvpe(command[0], command, os.environ | more)
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)
        os._exit(127)


def run(command: list[str], added: list[dict[str, str]], stop_as: signal.Signals | None = None) -> int:
    """Run the command once for each environment in `added` and wait for all of them. Returns the exit status.

    It is that of the first process that failed, as a shell reports it (128 + number after a signal); without a
    failure, the highest, so that a stopped training counts as stopped.
    """
    ranks: dict[int, str] = {}  # of the processes that run, by process id
    statuses: list[int] = []  # of those that have ended
    early: list[int] = []  # stops that came before all of them were started
    all_started = False

    def send(number: int) -> None:
        for process in list(ranks):
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(process, number)

    def pass_on(number: int, _frame: FrameType | None) -> None:
        if all_started:
            send(stop_as or number)
        else:
            early.append(number)

    failure = 0
    for number in STOPS:
        signal.signal(number, pass_on)
    signal.signal(signal.SIGALRM, lambda _number, _frame: send(signal.SIGKILL))
    for more in added:
        ranks[start(command, more)] = more.get("RANK", "")
    all_started = True
    for number in early:
        send(stop_as or number)
    while ranks:
        ended, status = os.wait()
        if ended not in ranks:
            continue  # an orphan that came to process 1
        rank, code = ranks.pop(ended), os.waitstatus_to_exitcode(status)
        statuses.append(code if code >= 0 else 128 - code)
        if rank and not failure and (code < 0 or code not in {0, *STOPPED}):
            failure = statuses[-1]
            report(rank, code)
            send(signal.SIGTERM)
            signal.alarm(GRACE)
    return failure or max(statuses)


def report(rank: str, code: int) -> None:
    """One line about a process that failed, unless a stop ended it before it could save."""
    if code < 0 and 128 - code not in STOPPED:
        print(f"Training process {rank} was killed by {signal.Signals(-code).name}.", file=sys.stderr)
    elif code > 0:
        print(f"Training process {rank} exited with status {code}. Its own message is above.", file=sys.stderr)


def main(arguments: list[str]) -> int:
    options, command = read_options(arguments)
    stop_as = signal.Signals[options.pop("as")] if "as" in options else None
    return run(command, environments(options), stop_as)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
