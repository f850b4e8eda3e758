"""The page that a bench writes to be sent: what it says, what it leaves out, and how GPUs are read meanwhile."""

import time
from pathlib import Path

import pytest

from benchmarks import page
from benchmarks.conditions import Reading, Readings, driver_version, parse, watching
from tests.unit.test_bench import measured
from trainer.common.problems import Problem


def test_a_line_of_nvidia_smi_is_a_reading():
    assert parse("98, 71, 1830, 2619, 690.12") == Reading(98.0, 71.0, 1830.0, 2619.0, 690.12)
    assert parse("97, 84, 2405, [N/A], [Not Supported]") == Reading(97.0, 84.0, 2405.0, None, None)
    assert parse("No devices were found") is None


def test_only_busy_seconds_count():
    rows = (3, 40, 345, 3201, 120), (99, 70, 1800, 2600, 650), (98, 74, 1500, 2600, 690)
    readings = Readings([Reading(*row) for row in rows])
    assert readings.summary() == {
        "degrees": 74, "core_mhz": 1650, "core_mhz_lowest": 1500, "memory_mhz": 2600, "watts": 690
    }  # fmt: skip
    assert Readings([Reading(99, 70, None, None, None)]).summary() == {"degrees": 70}
    assert Readings([Reading(3, 40, 345, 3201, 120)]).summary() is None and Readings().summary() is None


@pytest.fixture
def fake_smi(tmp_path: Path) -> str:
    """An nvidia-smi that reports one busy GPU, again and again."""
    program = tmp_path / "nvidia-smi"
    program.write_text(
        '#!/bin/sh\ncase "$1" in *driver_version) echo 580.95.05; exit;; esac\n'
        "while :; do echo '99, 71, 2405, [N/A], [N/A]'; sleep 0.05; done\n"
    )
    program.chmod(0o755)
    return str(program)


def test_gpus_are_read_while_the_block_runs(fake_smi):
    with watching(fake_smi) as readings:
        deadline = time.monotonic() + 20
        while not readings.seen and time.monotonic() < deadline:
            time.sleep(0.02)
    assert readings.summary() == {"degrees": 71, "core_mhz": 2405, "core_mhz_lowest": 2405}
    count = len(readings.seen)
    time.sleep(0.2)
    assert len(readings.seen) == count
    assert driver_version(fake_smi) == "580.95.05"


def test_without_nvidia_smi_nothing_is_read():
    with watching("no-such-program") as readings:
        pass
    assert readings.summary() is None and driver_version("no-such-program") is None


def test_the_page_has_the_figures_and_names_no_folder(monkeypatch):
    monkeypatch.setattr(page, "driver_version", lambda: "580.95.05")
    found = measured("fp8", 3.21, device_gib=15.4)
    found["written"] = "2026-12-01T10:00:00+01:00"
    found["machine"] |= {"device": "GeForce", "capability": "12.0", "unified": False, "cpus": 8, "host_gib": 31.2}
    found["settings"][0] |= {
        "flags": ["--network_dim=16", "--ae=/home/ann/w/ae.safetensors", "--base_precision=fp8"],
        "conditions": {"degrees": 84.0, "core_mhz": 2405.0},
        "said": ["memory: expected 14.9 GiB", "falling back to PyTorch for /home/ann/x"],
        "failure": "",
    }
    failed = dict(found["settings"][0], name="int8", figures=None, failure="  File /home/ann/w/runs/output.txt")
    found["settings"].append(failed)
    text = page.as_page(found, ["nf4: no bitsandbytes"], {Path("/home/ann"): "~", Path("/home/ann/w"): "WORK"})
    assert "ann" not in text and "File WORK/runs/output.txt" in text and "for ~/x" in text
    assert "| fp8 | 3.210 (3.210-3.210) |" in text and "15.40" in text
    assert "| fp8 | 84 | 2405 | not reported | not reported | not reported |" in text
    assert "`--network_dim=16 --base_precision=fp8`" in text
    assert "- memory: expected 14.9 GiB" in text and "- not run: nf4: no bitsandbytes" in text
    assert "| driver | 580.95.05 |" in text and "| torch | 2.11 |" in text and "| compute capability | 12.0 |" in text


def test_a_report_measures_what_the_machine_does_not_refuse(monkeypatch):
    monkeypatch.setattr(page.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        page, "precision_problems", lambda name: [Problem("x", "half rate only")] if name == "fp8" else []
    )
    settings, refused = page.usual_settings()
    assert settings == ["rank16=rank16", "int8=rank16 --base_precision=int8"] and refused == ["fp8: half rate only"]
    monkeypatch.setattr(page.torch.cuda, "is_available", lambda: False)
    assert page.usual_settings() == (["rank16=rank16"], ["fp8, int8: no CUDA device"])
