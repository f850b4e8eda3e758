"""How long one image takes: the sampler as it is, compiled, recorded as CUDA graphs, with a cache of steps, in fp8.

    python -m benchmarks.sampling --work DIR [--size full] [--resolution 1024] [--steps 20 50] [--output FILE.json]

It uses the random weights that `python -m trainer bench` writes to --work. Text encoders and autoencoder are left out.
Each line of the table is one image of each length, after one of a few steps. `off` is how far one velocity is from that
of the sampler as it is in bf16: norm of the difference over norm; images of random weights say nothing more. How many
steps a cache skips depends on the weights too.
"""

import argparse
import gc
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel

from benchmarks.random_flux import SIZES, write_model_files
from benchmarks.report import table
from trainer.common.files import write_json
from trainer.engine.compilation import compile_blocks, use_cache
from trainer.lora.blocks import layers_on_one_input, use_training_blocks
from trainer.models.attention import choose_attention
from trainer.models.load import load_transformer
from trainer.models.quantized import WeightFormat
from trainer.models.transformer import Conditioning, predict_velocity
from trainer.sampling.prompts import SamplePrompt
from trainer.sampling.recorded import RecordedVelocity
from trainer.sampling.sampler import denoising_steps, start_noise
from trainer.sampling.step_cache import StepCache

WARM_UP = 5  # steps: two before recording, one that records, two replayed
TXT_TOKENS = {"tiny": 32, "small": 64, "full": 512}
GIB = 2**30


@dataclass(frozen=True)
class Timed:
    """One way to sample: seconds by number of steps, steps evaluated, memory, and how far off a velocity is."""

    way: str
    precision: str
    start: float
    seconds: dict[int, float]
    evaluated: dict[int, int]
    off: float
    peak_gib: float | None


class Bench:
    """Random weights on one device, and the velocity that others are compared with."""

    def __init__(self, given: argparse.Namespace):
        self.given = given
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.files = write_model_files(given.work / "models" / given.size, given.size, device=self.device, keep=True)
        self.results: list[Timed] = []
        self.reference: torch.Tensor | None = None

    def measure_all(self) -> None:
        for precision in self.given.precisions:
            start = time.perf_counter()
            transformer = self.load(precision)
            loaded = time.perf_counter() - start
            if precision == "bf16":
                self.measure("as it is", precision, transformer, predict_velocity, loaded)
            use_training_blocks(transformer)
            tokens = (self.given.resolution // 16) ** 2
            choose_attention(transformer, TXT_TOKENS[self.given.size], {(1, tokens): 1})
            self.measure("blocks of training", precision, transformer, predict_velocity, loaded, self.given.steps[:1])
            if self.device.type == "cuda":
                use_cache(self.given.work / "cache" / "compiled")
                compile_blocks(transformer, "inductor", "auto", 1)
                self.measure("compiled", precision, transformer, predict_velocity, loaded)
                recorded = RecordedVelocity()
                self.measure("compiled, recorded", precision, transformer, recorded, loaded)
                way = "compiled, recorded, cache 0.1"
                self.measure(way, precision, transformer, recorded, loaded, tolerance=0.1)
                del recorded
            else:
                self.measure("cache 0.1", precision, transformer, predict_velocity, loaded, tolerance=0.1)
            del transformer
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def load(self, precision: str) -> FluxTransformer2DModel:
        weight_format = WeightFormat(precision)  # type: ignore[arg-type]
        joined = layers_on_one_input if precision == "fp8" else None
        return load_transformer(self.files.transformer, self.device, self.dtype, weight_format, joined=joined)

    def measure(
        self,
        way: str,
        precision: str,
        transformer: FluxTransformer2DModel,
        predict: Callable[..., torch.Tensor],
        loaded: float,
        lengths: Sequence[int] | None = None,
        tolerance: float | None = None,
    ) -> None:
        """Time one way and print its line. lengths: numbers of steps, None for all."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        first = self.image(transformer, predict, WARM_UP, None)
        started = time.perf_counter() - start
        self.reference = first if self.reference is None else self.reference
        off = float((first - self.reference).norm() / self.reference.norm())
        seconds, evaluated = {}, {}
        for steps in lengths or self.given.steps:
            cache = StepCache(tolerance, steps) if tolerance else None
            start = time.perf_counter()
            self.image(transformer, predict, steps, cache)
            seconds[steps] = time.perf_counter() - start
            evaluated[steps] = cache.evaluated if cache else steps
        peak = torch.cuda.max_memory_allocated() / GIB if self.device.type == "cuda" else None
        self.results.append(Timed(way, precision, loaded + started, seconds, evaluated, off, peak))
        print(self.line(self.results[-1]), flush=True)
        if self.given.output:
            write_json(self.given.output, {"results": [asdict(each) for each in self.results]})

    def image(
        self,
        transformer: FluxTransformer2DModel,
        predict: Callable[..., torch.Tensor],
        steps: int,
        cache: StepCache | None,
    ) -> torch.Tensor:
        """Sample one image; returns its first velocity, from the first two latents."""
        side = self.given.resolution
        prompt = SamplePrompt("", width=side, height=side, steps=steps)
        generator = torch.Generator().manual_seed(1)
        widths = SIZES[self.given.size]
        txt = torch.randn(1, TXT_TOKENS[self.given.size], widths.t5_width, generator=generator)
        text = Conditioning(txt, torch.randn(1, widths.clip_width, generator=generator)).to(self.device, self.dtype)
        noise = start_noise(transformer, prompt, [0])
        latents = [*denoising_steps(transformer, noise, prompt, text, None, predict, cache)]
        return (latents[0] - noise.to(self.device)).float().cpu()  # waits for the last step too

    def line(self, timed: Timed) -> str:
        times = ", ".join(f"{n} steps {s:.3f} s ({timed.evaluated[n]} evaluated)" for n, s in timed.seconds.items())
        return f"{timed.precision} {timed.way}: {times}, first {timed.start:.1f} s, off {timed.off:.4f}"

    def table(self) -> str:
        headings = ["base", "way", *(f"{n} steps, s" for n in self.given.steps), "ready after, s", "off", "GiB"]
        rows = []
        for each in self.results:
            peak = "" if each.peak_gib is None else f"{each.peak_gib:.1f}"
            times = [f"{each.seconds[n]:.2f}" if n in each.seconds else "" for n in self.given.steps]
            rows.append([each.precision, each.way, *times, f"{each.start:.1f}", f"{each.off:.3f}", peak])
        return "\n".join(table(headings, rows))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "flux_bench")
    parser.add_argument("--resolution", type=int, default=1024)
    parser.add_argument("--steps", type=int, nargs="+", default=[20, 50])
    parser.add_argument("--precisions", nargs="+", default=["bf16", "fp8"], choices=["bf16", "fp8"])
    parser.add_argument("--output", type=Path)
    given = parser.parse_args(argv)
    bench = Bench(given)
    bench.measure_all()
    print(bench.table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
