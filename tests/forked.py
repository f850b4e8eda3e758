"""Processes that start at once: forks of a process that has imported the trainer, which takes seven seconds.

Each is a process of its own all the same, with its own id, session, signals, environment and standard streams.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Mapping
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Thread
from unittest.mock import patch

IMPORTED = ["trainer.train", "trainer.cli.train", "torch.distributed", "tests.held_run"]
CONTEXT = multiprocessing.get_context("forkserver")


class Forked:
    """`python -m MODULE …` or `python SCRIPT …`, with what the tests use of `subprocess.Popen`.

    command: begins with `sys.executable`. stdout: all that the process writes, its errors too.
    """

    def __init__(self, command: list[str], environment: Mapping[str, str], folder: Path | None = None):
        assert command[0] == sys.executable
        CONTEXT.set_forkserver_preload(IMPORTED)
        with patch.dict(os.environ, environment):
            forkserver.ensure_running()
        read, write = CONTEXT.Pipe(duplex=False)
        words = [*map(str, command[1:])]
        self._process = CONTEXT.Process(target=_run, args=(words, dict(environment), folder or Path.cwd(), write))
        self._process.start()
        write.close()
        self.pid = self._process.pid or 0
        self.stdout = os.fdopen(os.dup(read.fileno()), encoding="utf-8")
        read.close()

    @property
    def returncode(self) -> int | None:
        """The exit status, negative for a signal; None while the process runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Returns the exit status. Raises `subprocess.TimeoutExpired` after so many seconds."""
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout or 0)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """Returns the rest of the output once the process has ended. Raises `subprocess.TimeoutExpired`."""
        said: list[str] = []
        reader = Thread(target=lambda: said.append(self.stdout.read()), daemon=True)
        reader.start()
        reader.join(timeout)
        if not said:
            raise subprocess.TimeoutExpired(self._process.name, timeout or 0)
        self.wait(timeout)
        return said[0], None

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()


def _run(words: list[str], environment: dict[str, str], folder: Path, output: Connection) -> None:
    """The process: as if this interpreter had been started with these words."""
    os.setsid()
    for stream in (1, 2):
        os.dup2(output.fileno(), stream)
    output.close()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")
