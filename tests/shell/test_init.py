"""init.py: one program or several processes, stopped cleanly and once, in a container and without one."""

import os
import signal
import subprocess
import sys

import psutil
import pytest

from tests.recipe_files import PATIENCE
from tests.shell.parts import CONTAINERS, part

INIT = [sys.executable, str(CONTAINERS / "init.py")]
CPU = {**os.environ, "ACCELERATE_USE_CPU": "true"}

COUNTS_SIGNALS = r"""
import signal, sys, time
got = []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: got.append(signal.Signals(number).name))
print("ready\n", end="", flush=True)  # in one write
end = time.time() + float(sys.argv[1])
while time.time() < end and not got:
    time.sleep(0.02)
time.sleep(0.5)
print(" ".join(got) + "\n", end="", flush=True)
sys.exit(int(sys.argv[2]))
"""


def ready(command: list[str], **kinds) -> subprocess.Popen:
    running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=CPU, **kinds)
    assert running.stdout and running.stdout.readline() == "ready\n"
    return running


@pytest.mark.parametrize(("options", "heard"), [([], "SIGTERM"), (["--as", "SIGINT"], "SIGINT")], ids=["same", "as"])
def test_a_stop_is_handed_on_and_the_status_comes_back(options: list[str], heard: str):
    running = ready([*INIT, *options, sys.executable, "-c", COUNTS_SIGNALS, "1000", "3"])
    running.send_signal(signal.SIGTERM)
    out, _ = running.communicate(timeout=PATIENCE)
    assert (out.strip(), running.returncode) == (heard, 3)


def test_ctrl_c_in_a_terminal_is_heard_once():
    """It goes to everyone in the terminal's group; twice would mean "at once"."""
    running = ready([*INIT, sys.executable, "-c", COUNTS_SIGNALS, "1000", "3"], start_new_session=True)
    os.killpg(running.pid, signal.SIGINT)
    assert running.communicate(timeout=PATIENCE)[0].strip() == "SIGINT"


def test_a_stop_reaches_each_of_several_processes_once():
    running = ready([*INIT, "--num_processes=2", sys.executable, "-c", COUNTS_SIGNALS, "1000", "130"])
    assert running.stdout and running.stdout.readline() == "ready\n"
    running.send_signal(signal.SIGINT)
    out, _ = running.communicate(timeout=PATIENCE)
    assert out.split() == ["SIGINT", "SIGINT"] and running.returncode == 130


def test_a_process_that_waits_for_a_failed_one_is_killed():
    """It may wait for good in a collective operation, where no signal handler of Python's runs."""
    program = "import os, signal, time\nsignal.signal(15, signal.SIG_IGN)\nif os.environ['RANK'] == '1': os._exit(7)\n"
    start = f"""
import sys
sys.path.insert(0, {str(CONTAINERS)!r})
import init
init.GRACE = 1
sys.exit(init.main(["--num_processes=2", sys.executable, "-c", {program + "time.sleep(1000)"!r}]))
"""
    done = subprocess.run([sys.executable, "-c", start], stderr=subprocess.PIPE, text=True, timeout=PATIENCE, env=CPU)
    assert done.returncode == 7 and done.stderr.startswith("Training process 1 exited with status 7.")


def test_each_process_learns_its_place_among_machines(monkeypatch: pytest.MonkeyPatch):
    init = part("init")
    monkeypatch.setattr(os, "environ", CPU | {"OMP_NUM_THREADS": "3"})
    words = [
        "--num_processes=4",
        "--num_machines",
        "2",
        "--machine_rank=1",
        "--main_process_ip=10.0.0.5",
        "python",
        "-m",
    ]
    options, command = init.read_options(words)
    first, second = init.environments(options)
    assert command == ["python", "-m"]
    assert (first["RANK"], first["LOCAL_RANK"], second["RANK"], second["LOCAL_RANK"]) == ("2", "0", "3", "1")
    assert (first["WORLD_SIZE"], first["LOCAL_WORLD_SIZE"], first["OMP_NUM_THREADS"]) == ("4", "2", "3")
    assert (first["MASTER_ADDR"], first["MASTER_PORT"]) == ("10.0.0.5", "29500")
    assert init.environments({"num_processes": "1"}) == [{}] == init.environments({})
    with pytest.raises(SystemExit, match="split evenly"):
        init.environments({"num_processes": "3", "num_machines": "2"})


def test_cards_that_cannot_copy_to_each_other(monkeypatch: pytest.MonkeyPatch):
    """accelerate raises NotImplementedError on them unless both variables are set."""
    init = part("init")
    monkeypatch.setattr(os, "environ", {"PATH": os.environ["PATH"]})
    for program, expected in (("raise SystemExit(3)", "1"), ("", None), ("raise SystemExit(1)", None)):
        init.ASK_P2P = program
        for found in init.environments({"num_processes": "2"}):
            assert found.get("NCCL_P2P_DISABLE") == found.get("NCCL_IB_DISABLE") == expected


def test_a_program_that_a_signal_ended_and_one_that_is_not_there():
    died = [*INIT, sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]
    assert subprocess.run(died).returncode == 137
    assert subprocess.run([*INIT, "no-such-program"], stderr=subprocess.DEVNULL).returncode == 127


def test_as_the_first_process_it_ends_on_a_signal_and_leaves_no_zombies():
    """In a process namespace of its own, where a default action does nothing and orphans come to process 1."""
    unshare = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"]
    if subprocess.run([*unshare, "true"], capture_output=True).returncode:
        pytest.skip("needs `unshare --pid` for this user: run as root, or allow user namespaces")
    orphan = (
        "(sleep 0.2 &) ; sleep 0.6; grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null; echo ready; exec sleep 999"
    )
    running = subprocess.Popen([*unshare, *INIT, "sh", "-c", orphan], stdout=subprocess.PIPE, text=True)
    assert running.stdout and running.stdout.readline() == "ready\n"
    (first,) = psutil.Process(running.pid).children()
    first.send_signal(signal.SIGTERM)
    assert running.wait(timeout=PATIENCE) == 143
    running.stdout.close()
