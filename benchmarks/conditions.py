"""Temperature, clocks and power of the GPUs while something runs, read from nvidia-smi once a second."""

import shutil
import statistics
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

BUSY = 50.0  # percent utilization; a second with less says nothing about clocks under load
QUERY = "utilization.gpu,temperature.gpu,clocks.sm,clocks.mem,power.draw"


@dataclass(frozen=True)
class Reading:
    """One GPU in one second: percent utilization, degrees Celsius, MHz of cores and memory, watts.

    None where the GPU does not report a figure.
    """

    utilization: float | None
    temperature: float | None
    core_mhz: float | None
    memory_mhz: float | None
    watts: float | None


@dataclass
class Readings:
    """What was read so far."""

    seen: list[Reading] = field(default_factory=list)

    def summary(self) -> dict[str, float] | None:
        """Figures of the seconds in which a GPU was busy; None if there was none.

        "degrees" and "watts" are the highest, "core_mhz_lowest" the lowest, "core_mhz" and "memory_mhz" the median. A
        figure that no GPU reported is left out.
        """
        busy = [each for each in self.seen if each.utilization is not None and each.utilization >= BUSY]
        found = {
            "degrees": _of(max, [each.temperature for each in busy]),
            "core_mhz": _of(statistics.median, [each.core_mhz for each in busy]),
            "core_mhz_lowest": _of(min, [each.core_mhz for each in busy]),
            "memory_mhz": _of(statistics.median, [each.memory_mhz for each in busy]),
            "watts": _of(max, [each.watts for each in busy]),
        }
        return {name: value for name, value in found.items() if value is not None} or None


def _of(figure, values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(figure(known)) if known else None


def parse(line: str) -> Reading | None:
    """A line of nvidia-smi's CSV without units as a reading; None for a line that is none."""
    cells = [cell.strip() for cell in line.split(",")]
    return Reading(*map(_number, cells)) if len(cells) == len(QUERY.split(",")) else None


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:  # "[N/A]", "[Not Supported]"
        return None


@contextmanager
def watching(program: str = "nvidia-smi") -> Iterator[Readings]:
    """Read all GPUs once a second while the block runs; nothing is read where there is no nvidia-smi."""
    readings, path = Readings(), shutil.which(program)
    if path is None:
        yield readings
        return
    command = [path, f"--query-gpu={QUERY}", "--format=csv,noheader,nounits", "--loop=1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        reader = threading.Thread(target=_read, args=(process, readings), name="nvidia-smi", daemon=True)
        reader.start()
        try:
            yield readings
        finally:
            process.terminate()
            reader.join()


def _read(process: subprocess.Popen[str], readings: Readings) -> None:
    assert process.stdout
    for line in process.stdout:
        if reading := parse(line):
            readings.seen.append(reading)


def driver_version(program: str = "nvidia-smi") -> str | None:
    """The version of the GPU's driver; None where there is no nvidia-smi that reports it."""
    path = shutil.which(program)
    if path is None:
        return None
    command = [path, "--query-gpu=driver_version", "--format=csv,noheader"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.partition("\n")[0].strip() or None if found.returncode == 0 else None
