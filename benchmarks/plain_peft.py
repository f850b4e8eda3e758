"""Compare `trainer train` with a training written by hand with plain diffusers and peft: the ratio, in one run.

    python -m benchmarks.plain_peft --size mini|tiny|small [--model FOLDER] [--repeats 3] [--output FILE.json]

Both train a LoRA of the same rank on every linear layer of every block, with AdamW, on the same model files and the
same cached latents and text. The plain one is what a reader of diffusers' and peft's documentation would write: no
compilation, no precomputation, nothing left out. The two alternate, in a process each, so that other load on the
machine affects both. CPU time is reported next to wall time, because it hardly depends on such load.
"""

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import FluxTransformer2DModel
from peft import LoraConfig

from benchmarks.measure import Length, Prepared, measure, prepare, run_to_end
from benchmarks.settings import Setting, merge_flags
from benchmarks.worker import Job
from benchmarks.workspace import DEFAULTS, choose_model
from trainer.common.files import write_json
from trainer.config import TrainConfig, parse_config
from trainer.data.batches import scale_latents
from trainer.data.cache import Encoded, TensorCache
from trainer.engine.metrics import Timestamp
from trainer.lora.adapter import linear_modules
from trainer.models.load import load_transformer
from trainer.models.transformer import pack_latents, unpack_latents
from trainer.preflight.check import make_plan
from trainer.preflight.plan import RunPlan

Sample = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Times = tuple[float, float]  # seconds per image: wall time and CPU time
NAMES = ("clock", "processor")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=DEFAULTS, default="tiny", help="size of the model (%(default)s)")
    parser.add_argument("--model", type=Path, help="the folder of its files, if the bench should not make them")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3, help="turns of each (%(default)s)")
    parser.add_argument("--pictures", type=int, default=20, help="timed images in each turn (%(default)s)")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "flux_bench")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)  # run one turn of the plain training
    given = parser.parse_args()
    if given.job:
        train_plainly(Job.read(given.job))
        return
    prepared = _prepare(given)
    ours: list[Times] = []
    plain: list[Times] = []
    for turn in range(given.repeats):
        first, second = (_ours, _plain) if turn % 2 == 0 else (_plain, _ours)
        for one in (first, second):
            (ours if one is _ours else plain).append(one(prepared))
        print(f"turn {turn + 1}: trainer {ours[-1]}, plain {plain[-1]}", flush=True)
    figures = {name: summary([t[index] for t in ours], [t[index] for t in plain]) for index, name in enumerate(NAMES)}
    print(json.dumps(figures, indent=2))
    if given.output:
        write_json(given.output, figures)


def summary(ours: list[float], plain: list[float]) -> dict[str, object]:
    """Medians, and the median of the turns' ratios; below 1, the trainer is faster."""
    ratios = [one / other for one, other in zip(ours, plain, strict=True)]
    return {
        "trainer": statistics.median(ours),
        "plain": statistics.median(plain),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
    }


def _prepare(given: argparse.Namespace) -> Prepared:
    model = choose_model(given.size, None, given.work, on_gpu=False)
    model = replace(model, folder=given.model, random=False) if given.model else model
    if model.missing_bytes and run_to_end(model.command, None):
        sys.exit(1)
    precision = "bf16" if torch.cuda.is_available() else "no"
    same = [f"--network_dim={given.rank}", "--optimizer_type=AdamW", f"--mixed_precision={precision}"]
    setting = Setting("trainer", tuple(merge_flags(model.flags(), DEFAULTS[given.size], same)))
    return prepare(setting, given.work, Length(pictures=given.pictures, profiled=0), "plain")


def _ours(prepared: Prepared) -> Times:
    result = measure(prepared, {})
    if result.figures is None:
        sys.exit(result.failure)
    return result.figures.seconds_per_picture, result.figures.processor


def _plain(prepared: Prepared) -> Times:
    job = replace(prepared.job, folder=prepared.job.folder.with_name("plain"))
    if run_to_end([sys.executable, "-m", "benchmarks.plain_peft", f"--job={job.write()}"], None):
        sys.exit(1)
    found = json.loads(job.result.read_text(encoding="utf-8"))
    return statistics.median(found["seconds"]), found["processor"]


def train_plainly(job: Job) -> None:
    """The plain training; writes the wall time of each timed step, and the mean CPU time of one."""
    config, _ = parse_config(job.flags)
    plan = make_plan(config)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    transformer = load_plainly(config, device)
    trained = [parameter for parameter in transformer.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=0.01)
    samples = draw_samples(plan)
    seconds = []
    processor = 0.0
    for step in range(job.warm_up + job.measured):
        if step == job.warm_up:
            processor = time.process_time()
        start = Timestamp(device)
        loss = loss_of(transformer, config, next(samples), device)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        end = Timestamp(device)
        value = loss.item()
        assert math.isfinite(value), f"step {step}: loss {value}"
        end.wait()
        seconds.append(end.seconds_since(start))
    processor = (time.process_time() - processor) / job.measured
    write_json(job.result, {"seconds": seconds[job.warm_up :], "processor": processor})


def load_plainly(config: TrainConfig, device: torch.device) -> FluxTransformer2DModel:
    """The frozen base model with peft's adapters in float32."""
    assert config.pretrained_model_name_or_path
    dtype = torch.bfloat16 if config.mixed_precision == "bf16" else torch.float32
    transformer = load_transformer(config.pretrained_model_name_or_path, device, dtype)
    layers = linear_modules(transformer)
    transformer.add_adapter(LoraConfig(r=config.network_dim, lora_alpha=config.network_dim, target_modules=layers))
    for parameter in transformer.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return transformer.train()


def draw_samples(plan: RunPlan) -> Iterator[Sample]:
    """Yield latents, T5's text and CLIP's vector of each image, with a batch dimension of 1."""
    encoded = Encoded(TensorCache(plan.cache_dir), plan.keys)
    epoch = 0
    while True:
        for draws in plan.data.batches(epoch):
            mean, std = encoded.latents(draws[0].sample, draws[0].flip)
            txt, _, pooled = encoded.text(draws[0].caption)
            latents = mean + std * torch.randn_like(mean)
            yield scale_latents(latents[None]), txt[None], pooled[None]
        epoch += 1


def loss_of(
    transformer: FluxTransformer2DModel, config: TrainConfig, sample: Sample, device: torch.device
) -> torch.Tensor:
    """The flow-matching loss of one image, through the model's own forward."""
    dtype = transformer.x_embedder.weight.dtype
    latents, txt, pooled = (tensor.to(device) for tensor in sample)
    noise = torch.randn_like(latents)
    sigmas = torch.sigmoid(torch.randn(1, device=device))
    noisy = ((1 - sigmas) * latents + sigmas * noise).to(dtype)
    batch, _, height, width = noisy.shape
    img_ids = torch.zeros(height // 2, width // 2, 3, device=device)
    img_ids[..., 1] = torch.arange(height // 2, device=device)[:, None]
    img_ids[..., 2] = torch.arange(width // 2, device=device)[None]
    with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
        prediction = transformer(
            hidden_states=pack_latents(noisy),
            timestep=sigmas,
            guidance=torch.full((batch,), config.guidance_scale, device=device),
            pooled_projections=pooled.to(dtype),
            encoder_hidden_states=txt.to(dtype),
            txt_ids=torch.zeros(txt.shape[1], 3, device=device),
            img_ids=img_ids.flatten(0, 1),
            return_dict=False,
        )[0]
    return F.mse_loss(unpack_latents(prediction, height, width).float(), noise - latents)


if __name__ == "__main__":
    main()
