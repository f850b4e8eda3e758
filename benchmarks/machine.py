"""Describe the machine of a measurement: device, versions, and the speed of its large products.

python -m benchmarks.machine [--seconds 2]
"""

import argparse
import json
import os
import platform
from dataclasses import asdict
from importlib import metadata
from typing import Any

import torch

from benchmarks.peak import measure_peaks
from trainer import __version__
from trainer.models.weights import shares_host_memory

PACKAGES = ("torch", "diffusers", "transformers", "peft", "accelerate", "triton", "torchao", "bitsandbytes")


def describe(seconds: float) -> dict[str, Any]:
    """The machine, the versions and the measured peaks, ready for JSON."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    peaks = measure_peaks(device, seconds)
    return {
        "machine": _device(device) | {"cpus": len(os.sched_getaffinity(0)), "host_gib": _host_gib()},
        "versions": _versions(),
        "peaks": {name: asdict(peak) for name, peak in peaks.items()},
    }


def _device(device: torch.device) -> dict[str, Any]:
    if device.type != "cuda":
        return {"device": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
    properties = torch.cuda.get_device_properties(device)
    return {
        "device": properties.name,
        "device_gib": properties.total_memory / 2**30,
        "capability": f"{properties.major}.{properties.minor}",
        "devices": torch.cuda.device_count(),
        "unified": shares_host_memory(device),
    }


def _host_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def _versions() -> dict[str, str]:
    found = {"trainer": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Describe this machine and time large products on it.")
    parser.add_argument(
        "--seconds", type=float, default=2.0, help="seconds of products in each precision (%(default)s)"
    )
    print(json.dumps(describe(parser.parse_args().seconds), indent=2))
