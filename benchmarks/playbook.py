"""Measure the NVIDIA playbook's command line at FLUX.1-dev's full size: speed, memory, kill and resume.

    python -m benchmarks.playbook [--size full] [--work DIR] [--epochs 5] [--kill_at 12] [--output FILE.json]

It writes random model files in the true layout (34 GB), then runs `python -m trainer train` with the playbook's flags:
rank 256, accumulation 4, Prodigy, gradient checkpointing, torch.compile. The run is stopped once with SIGTERM and
resumed. A second run, with rank 16, shows the speed without checkpointing. All figures come from the runs' logs, from
the operating system (host memory) and from nvidia-smi.

Runs are separate processes, observed only from outside, so that they can be killed and resumed. `python -m trainer
bench` measures speed in more detail (timed images, kernels, several settings) and kills nothing.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks.random_flux import ModelFiles, write_model_files
from benchmarks.settings import PLAYBOOK, RANK_16

RANK_16_STEPS = "--max_train_steps=40"
WARM_UP = 4  # optimizer steps left out of the median


@dataclass(frozen=True)
class Figures:
    """The figures of one process. Times are in seconds, memory in GiB; steps are optimizer steps."""

    name: str
    exit_status: int
    steps: int
    first_step: float
    seconds_per_picture: float
    seconds_in_all: float
    device_gib: float
    torch_gib: float
    host_gib: float
    checkpoint_seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="full", help="tiny, small or full")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "flux_benchmark")
    parser.add_argument("--run_dir", type=Path, help="folder for states, instead of --work (a state is 25 GB)")
    parser.add_argument("--dataset_config", type=Path, default=Path("flux_data/data.toml"))
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--kill_at", type=int, default=12, help="optimizer step at which SIGTERM is sent")
    parser.add_argument("--skip", nargs="*", default=[], choices=["playbook", "rank16"])
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    start = time.perf_counter()
    files = write_model_files(arguments.work / "models", arguments.size, device=device)
    print(f"model files: {time.perf_counter() - start:.0f} s", flush=True)
    if device == "cuda":
        torch.cuda.empty_cache()
    figures = list(_measure(arguments, files))
    print(table(figures))
    if arguments.output:
        arguments.output.write_text(json.dumps([asdict(one) for one in figures], indent=2) + "\n")
    if any(one.exit_status not in (0, 143) for one in figures):
        sys.exit(1)


def _measure(arguments: argparse.Namespace, files: ModelFiles) -> Iterator[Figures]:
    run_dir = arguments.run_dir or arguments.work / "runs"
    shared = [
        f"--pretrained_model_name_or_path={files.transformer}", f"--ae={files.ae}", f"--clip_l={files.clip_l}",
        f"--t5xxl={files.t5xxl}", f"--dataset_config={arguments.dataset_config}",
        f"--output_dir={arguments.work / 'loras'}", f"--run_dir={run_dir}", f"--cache_dir={arguments.work / 'cache'}",
        "--overwrite",
    ]  # fmt: skip
    if "playbook" not in arguments.skip:
        name = "playbook"
        flags = [*shared, *PLAYBOOK, f"--output_name={name}", f"--max_train_epochs={arguments.epochs}"]
        yield run_training(f"{name}, until SIGTERM", flags, run_dir / name, kill_at=arguments.kill_at)
        yield run_training(f"{name}, resumed", [*flags, f"--resume={run_dir / name}"], run_dir / name)
    if "rank16" not in arguments.skip:
        yield run_training("rank 16", [*shared, *RANK_16, RANK_16_STEPS, "--output_name=rank16"], run_dir / "rank16")


def run_training(name: str, flags: Sequence[str], run: Path, kill_at: int | None = None) -> Figures:
    """Train in a separate process and observe it; send SIGTERM after step `kill_at`."""
    already = len(_read_log(run))
    print(f"\n== {name}\npython -m trainer train {' '.join(flags)}", flush=True)
    start = time.time()
    process = subprocess.Popen([sys.executable, "-m", "trainer", "train", *flags])
    memory = MemoryWatch(process.pid)
    while process.poll() is None:
        time.sleep(0.2)
        if kill_at and _last_step(_read_log(run)[already:]) >= kill_at:
            process.send_signal(signal.SIGTERM)
            kill_at = None
    memory.stop()
    lines = _read_log(run)[already:]
    steps = [line for line in lines if line["kind"] == "step"]
    saved = [line["seconds"] for line in lines if line["kind"] == "checkpoint"]
    speeds = [line["seconds_per_picture"] for line in steps[WARM_UP:]]
    return Figures(
        name=name,
        exit_status=process.returncode,
        steps=len(steps),
        first_step=steps[0]["time"] - start if steps else float("nan"),
        seconds_per_picture=statistics.median(speeds) if speeds else float("nan"),
        seconds_in_all=time.time() - start,
        device_gib=memory.device_gib,
        torch_gib=max((line.get("peak_gib", 0.0) for line in steps), default=0.0),
        host_gib=memory.host_gib,
        checkpoint_seconds=max(saved, default=float("nan")),
    )


def _read_log(run: Path) -> list[dict]:
    file = run / "log.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _last_step(lines: Sequence[dict]) -> int:
    return max((line["step"] for line in lines if line["kind"] == "step"), default=0)


class MemoryWatch:
    """Peak memory: the process's own on the host (anonymous pages), and all of the device's."""

    def __init__(self, pid: int) -> None:
        self.status = Path(f"/proc/{pid}/status")
        self.host_gib = self.device_gib = 0.0
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def stop(self) -> None:
        self.done.set()
        self.thread.join()

    def _watch(self) -> None:
        while not self.done.wait(0.5):
            self.host_gib = max(self.host_gib, self._host())
            self.device_gib = max(self.device_gib, self._device())

    def _host(self) -> float:
        try:
            fields = dict(line.split(":", 1) for line in self.status.read_text().splitlines())
            return int(fields["RssAnon"].split()[0]) / 2**20
        except (OSError, KeyError):  # the process has just ended
            return 0.0

    def _device(self) -> float:
        query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        try:
            found = subprocess.run(query, capture_output=True, text=True, check=True, env=os.environ)
            return float(found.stdout.split()[0]) / 1024
        except (
            OSError,
            subprocess.CalledProcessError,
            ValueError,
        ):  # no NVIDIA device, or one that does not report its memory
            return 0.0


def table(figures: Sequence[Figures]) -> str:
    """The figures in Markdown."""
    lines = [
        "| run | steps | s per image | first step, s | device GiB (torch) | host GiB | save, s | total, s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for f in figures:
        lines.append(
            f"| {f.name} | {f.steps} | {f.seconds_per_picture:.3f} | {f.first_step:.0f} |"
            f" {f.device_gib:.1f} ({f.torch_gib:.1f}) | {f.host_gib:.1f} | {f.checkpoint_seconds:.1f} |"
            f" {f.seconds_in_all:.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
