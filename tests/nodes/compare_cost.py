"""What our nodes cost, against ComfyUI's own nodes that do the same: time, processor time and memory.

    COMFYUI_DIR=… python -m tests.nodes.compare_cost [--turns N] [--prompts N]

Both graphs generate the same images with the embedded model and a LoRA: our loader, Concept Prompt and FLUX Sample (as
trained) in one, LoraLoader and the nine nodes in the other, each in a server of its own. A turn starts both servers and
gives them the prompts in turns, once for the time and once, with other servers, for the memory. Ratios of time are of
the same prompt in both servers, one right after the other, and those of memory of the servers' peaks; the table has
their median, and the lowest and highest quarter.
"""

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import ImageChops

from tests.nodes.model_files import write_lora
from tests.nodes.server import ComfyServer, Result, prepare_base

SIZE, STEPS, LORA, T5_LENGTH = 256, 8, "cost.safetensors", 64
SAMPLER, SCHEDULE, GUIDANCE = "dpmpp_2m", "sgm_uniform", 3.5
PROMPTS = ("a red bear toy on a desk", "a blue gpu in a forest", "a green toy holding a gpu", "a lamp at night")
# Memory is measured while glibc gives each large block back when it is freed, which takes twice the time; otherwise the
# peaks of equal runs differ by 80 MiB.
EXACT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
TICKS = os.sysconf("SC_CLK_TCK")
MIB = 2**20
Graph = dict[str, dict[str, Any]]


def our_graph(prompt: str, seed: int) -> Graph:
    strengths = {"strength_model": 1.0, "strength_clip": 1.0}
    numbers = {"width": SIZE, "height": SIZE, "seed": seed, "steps": STEPS, "guidance": GUIDANCE, "batch_size": 1}
    how = {"sampler": SAMPLER, "schedule": SCHEDULE, "t5_length": T5_LENGTH}
    text = {"clip": ["2", 1], "lora_name": "(the loader's)", "text": prompt, "parentheses": "plain characters"}
    return _graph(
        {
            "2": ("LoadFluxDreamBoothLoRA", _MODELS | strengths | {"lora_name": LORA, "checkpoint": "this file"}),
            "3": ("ConceptPrompt", text),
            "11": ("FluxSampleAsTrained", numbers | how | {"model": ["2", 0], "clip": ["2", 1], "prompt": ["3", 1]}),
        }
    )


def core_graph(prompt: str, seed: int) -> Graph:
    size = {"width": SIZE, "height": SIZE}
    shift = {"max_shift": 1.15, "base_shift": 0.5}
    wires = {"noise": "9", "guider": "6", "sampler": "7", "sigmas": "8", "latent_image": "10"}
    return _graph(
        {
            "2": ("LoraLoader", _MODELS | {"lora_name": LORA, "strength_model": 1.0, "strength_clip": 1.0}),
            "3": ("ModelSamplingFlux", size | shift | {"model": ["2", 0]}),
            "4": ("CLIPTextEncode", {"clip": ["2", 1], "text": prompt}),
            "5": ("FluxGuidance", {"conditioning": ["4", 0], "guidance": GUIDANCE}),
            "6": ("BasicGuider", {"model": ["3", 0], "conditioning": ["5", 0]}),
            "7": ("KSamplerSelect", {"sampler_name": SAMPLER}),
            "8": ("BasicScheduler", {"model": ["3", 0], "scheduler": SCHEDULE, "steps": STEPS, "denoise": 1.0}),
            "9": ("RandomNoise", {"noise_seed": seed}),
            "10": ("EmptySD3LatentImage", size | {"batch_size": 1}),
            "11": ("SamplerCustomAdvanced", {name: [node, 0] for name, node in wires.items()}),
        }
    )


_MODELS = {"model": ["1", 0], "clip": ["1", 1]}


def _graph(nodes: dict[str, tuple[str, dict[str, Any]]]) -> Graph:
    shared = {
        "1": ("LoadMiniFlux", {"folder": "mini"}),
        "12": ("VAEDecode", {"samples": ["11", 0], "vae": ["1", 2]}),
        "13": ("SaveImage", {"images": ["12", 0], "filename_prefix": "cost"}),
    }
    return {key: {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in (shared | nodes).items()}


@dataclass
class Cost:
    """What each prompt took: seconds, seconds of the processor; bytes of memory at the server's peak, once a turn."""

    seconds: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    peak: list[int] = field(default_factory=list)


class Measured:
    """A server of one graph, and what its prompts have cost."""

    def __init__(self, server: ComfyServer, graph: Callable[[str, int], Graph]):
        self.server, self.graph, self.cost = server, graph, Cost()

    def warm_up(self) -> None:
        """Load model and LoRA, once."""
        self._run("warm up", 0)

    def measure(self, prompt: str, seed: int) -> Any:
        """The image of one more prompt, whose cost is added."""
        before = self._processor()
        result = self._run(prompt, seed)
        self.cost.processor.append(self._processor() - before)
        times = {kind: facts["timestamp"] for kind, facts in result.messages}
        self.cost.seconds.append((times["execution_success"] - times["execution_start"]) / 1000)
        return result.pictures(self.server)[0]

    def _run(self, prompt: str, seed: int) -> Result:
        result = self.server.run(self.graph(prompt, seed))
        assert not result.error, result.error
        return result

    def _proc(self, name: str) -> str:
        assert self.server.process is not None
        return Path(f"/proc/{self.server.process.pid}/{name}").read_text()

    def _processor(self) -> float:
        fields = self._proc("stat").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def peak(self) -> int:
        """Of the memory that was resident, in bytes."""
        (line,) = (line for line in self._proc("status").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024


def one_turn(folder: Path, prompts: int, environment: dict[str, str]) -> tuple[Cost, Cost]:
    """What so many prompts cost with our nodes, and with ComfyUI's."""
    both = []
    for name in ("ours", "core"):
        base = folder / name
        base.mkdir()
        write_lora((prepare_base(base) / "models/loras") / LORA, base / "models/mini", size=0.02)
        both.append(ComfyServer(base, environment=environment))
    with both[0], both[1]:
        ours, core = Measured(both[0], our_graph), Measured(both[1], core_graph)
        ours.warm_up()
        core.warm_up()
        for number in range(prompts):
            order = (ours, core) if number % 2 else (core, ours)  # neither always comes first
            prompt = f"{PROMPTS[number % len(PROMPTS)]}, {number}"
            first, second = (each.measure(prompt, number) for each in order)
            assert ImageChops.difference(first, second).getbbox() is None, "the images differ"
        for each in (ours, core):
            each.cost.peak.append(each.peak())
    return ours.cost, core.cost


def table(ours: Cost, core: Cost) -> str:
    """A Markdown table."""
    units = (("seconds", "s per prompt", 1), ("processor", "s of processor time per prompt", 1), ("peak", "MiB", MIB))
    lines = ["| | ours | ComfyUI's nodes | ours / ComfyUI's |", "|---|---|---|---|"]
    for name, unit, divisor in units:
        both = [[value / divisor for value in getattr(cost, name)] for cost in (ours, core)]
        ratios = [own / other for own, other in zip(*both, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
        own, other = map(statistics.median, both)
        lines.append(f"| {unit} | {own:.4g} | {other:.4g} | {middle:.3f} ({low:.3f} - {high:.3f}) |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description="What our nodes cost against ComfyUI's own.")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=10)
    args = parser.parse_args()
    ours, core = Cost(), Cost()
    for _ in range(args.turns):
        with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as other:
            timed, exact = one_turn(Path(folder), args.prompts, {}), one_turn(Path(other), args.prompts, EXACT)
        for total, cost, measured in zip((ours, core), timed, exact, strict=True):
            total.seconds += cost.seconds
            total.processor += cost.processor
            total.peak += measured.peak
        print(table(ours, core), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
