"""What keeps the host busy while CUDA graphs replay: processor time per replay, for several ways of waiting.

    python -m benchmarks.waits [--ways plain blocking ...]

A graph of large products and small kernels is replayed. As in training, the host launches each replay while the one
before it runs, and then waits for that one. Each way is a separate process, since a device's flags are set before it is
used.
"""

import argparse
import ctypes
import json
import subprocess
import sys
import time
from collections.abc import Sequence

import torch

WAYS = {
    "plain": "events as torch makes them",
    "blocking": "events whose waits sleep",
    "flag": "the device's flag for waits that sleep (CU_CTX_SCHED_BLOCKING_SYNC)",
    "flag-blocking": "both",
    "before": "events whose waits sleep, and a replay is launched only after the one before has ended",
    "two": "events whose waits sleep, and two graphs in turns",
}
SIDE, PRODUCTS, SMALL, REPLAYS = 8192, 150, 20, 12
BLOCKING_SYNC = 4  # CU_CTX_SCHED_BLOCKING_SYNC


def measure(way: str) -> dict[str, float | str]:
    """Seconds per replay: by the clock, of the processor, in the launch, and in the wait."""
    if way.startswith("flag"):
        driver = ctypes.CDLL("libcuda.so.1")
        assert driver.cuInit(0) == 0 and driver.cuDevicePrimaryCtxSetFlags_v2(0, BLOCKING_SYNC) == 0
    graphs = [_record() for _ in range(2 if way == "two" else 1)]
    for graph, *_ in graphs:
        graph.replay()
    host, blocking = torch.randn(1024, 1024).pin_memory(), way not in ("plain", "flag")
    launching = waiting = 0.0
    last: torch.cuda.Event | None = None
    torch.cuda.synchronize()
    start, processor = time.perf_counter(), time.process_time()
    for index in range(REPLAYS):
        graph, own, _ = graphs[index % len(graphs)]
        before, last = last, None
        if way == "before":
            waiting += _wait(before)
        own.copy_(host.to("cuda", non_blocking=True))
        begin = time.perf_counter()
        graph.replay()
        launching += time.perf_counter() - begin
        last = torch.cuda.Event(blocking=blocking)
        last.record()
        if way != "before":
            waiting += _wait(before)
    waiting += _wait(last)
    seconds, used = time.perf_counter() - start, time.process_time() - processor
    found = {"seconds": seconds, "processor": used, "launching": launching, "waiting": waiting}
    return {"way": way, **{name: value / REPLAYS for name, value in found.items()}}


def _record() -> tuple[torch.cuda.CUDAGraph, torch.Tensor, tuple[torch.Tensor, ...]]:
    """A graph, a tensor that it adds to, and the others that it uses, which have to stay alive."""
    large = torch.randn(SIDE, SIDE, device="cuda", dtype=torch.bfloat16)
    out, own = torch.empty_like(large), torch.zeros(1024, 1024, device="cuda")
    torch.mm(large, large, out=out)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(PRODUCTS):
            torch.mm(large, large, out=out)
            for _ in range(SMALL):
                own.add_(1.0)
    return graph, own, (large, out)


def _wait(event: torch.cuda.Event | None) -> float:
    begin = time.perf_counter()
    if event is not None:
        event.synchronize()
    return time.perf_counter() - begin


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--one", choices=WAYS, help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.one:
        print(json.dumps(measure(given.one)), flush=True)
        return 0
    status = 0
    for way in given.ways:
        print(f"{way}: {WAYS[way]}", flush=True)
        status |= subprocess.run([sys.executable, "-m", "benchmarks.waits", "--one", way], check=False).returncode
    return status


if __name__ == "__main__":
    sys.exit(main())
