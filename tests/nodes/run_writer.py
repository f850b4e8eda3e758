"""A training run's folder as trainer/engine/{log,tasks}.py write it, line by line, without a training."""

import json
import math
import random
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file

CONCEPTS = [
    {"concept": "tjtoy", "trigger": "tjtoy toy", "is_reg": False, "pictures": 6, "num_repeats": 1},
    {"concept": "sparkgpu", "trigger": "sparkgpu gpu (small)", "is_reg": False, "pictures": 5, "num_repeats": 1},
    {"concept": "toys", "trigger": "toy", "is_reg": True, "pictures": 20, "num_repeats": 1},
]


def write_lora(path: Path, concepts: list[dict[str, Any]] | None = None, **metadata: str) -> Path:
    """A LoRA file of one small layer whose metadata names concepts, as our trainer does."""
    ours = {"flux_dreambooth": json.dumps({"version": "1", "concepts": CONCEPTS if concepts is None else concepts})}
    name = "lora_unet_double_blocks_0_img_attn_proj"
    tensors = {f"{name}.lora_down.weight": torch.zeros(2, 4), f"{name}.lora_up.weight": torch.zeros(4, 2)}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors | {f"{name}.alpha": torch.tensor(2.0)}, path, ours | metadata)
    return path


class RunWriter:
    """runs/NAME of a run of `total` steps with `per_epoch` in an epoch; every call appends what a trainer would."""

    def __init__(self, runs: Path, name: str = "tj", total: int = 400, per_epoch: int = 40, seconds: float = 1.5):
        self.folder, self.name, self.total, self.per_epoch, self.seconds = runs / name, name, total, per_epoch, seconds
        self.folder.mkdir(parents=True)
        (self.folder / "config.toml").write_text(
            f'[output]\noutput_name = "{name}"\n[training]\nmax_train_steps = {total}\n'
        )
        self.log = self.folder / "log.jsonl"
        self.random = random.Random(name)
        self.step = 0
        self.average = 0.62

    def line(self, kind: str, **values: Any) -> None:
        record = {"kind": kind, "time": round(time.time(), 3), "step": self.step, **values}
        with self.log.open("a") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")

    def start(self, step: int = 0) -> None:
        """All is prepared; step: of the state that the run goes on from."""
        self.step = step
        self.line("start", total_steps=self.total, epochs=-(-self.total // self.per_epoch))

    def steps(self, count: int) -> None:
        """So many optimizer steps: a noisy loss that falls, a warm-up and a cosine."""
        if not self.log.exists():
            self.start()
        for _ in range(count):
            self.step += 1
            level = 0.36 + 0.26 * math.exp(-4 * self.step / self.total)
            loss = level * math.exp(self.random.gauss(0, 0.16))
            self.average += (loss - self.average) * 0.06
            warm = min(1.0, self.step / (0.1 * self.total))
            self.line(
                "step",
                loss=loss,
                gradient_norm=0.4,
                learning_rate=1e-4 * warm * (0.5 + 0.5 * math.cos(math.pi * self.step / self.total)),
                seconds=self.seconds,
                seconds_per_picture=self.seconds,
                epoch=-(-self.step // self.per_epoch),
                peak_gib=23.4,
                loss_average=self.average,
            )

    def validation(self) -> None:
        self.line("validation", loss=self.average * 0.97, loss_q125=0.3, loss_q375=0.4, loss_q625=0.5, loss_q875=0.6)

    def checkpoint(self, loras: Path | None = None, with_state: bool = False) -> str:
        """A LoRA that landed, named as trainer/checkpoint/naming.py does; the file too if `loras` is given."""
        epoch, rest = divmod(self.step, self.per_epoch)
        suffix = f"-{epoch:06d}" if not rest else f"-step{self.step:08d}"
        file = f"{self.name}{'' if self.step == self.total else suffix}.safetensors"
        if loras:
            write_lora(loras / file)
        state = {"state": str(self.folder / f"state-step{self.step:08d}")} if with_state else {}
        self.line("checkpoint", file=file, seconds=0.2, **state)
        return file

    def samples(self, *prompts: str, pictures: list[Path] | None = None) -> None:
        """The pictures of --sample_prompts; drawn as plain shapes unless there are some to copy."""
        (self.folder / "samples").mkdir(exist_ok=True)
        for index, prompt in enumerate(prompts):
            path = self.folder / "samples" / f"{self.name}-step{self.step:08d}-{index:02d}.png"
            if pictures:
                path.write_bytes(pictures[index].read_bytes())
            else:
                _shape(index, self.step / self.total).save(path)
            self.line("sample", file=str(path), prompt=prompt)


def _shape(index: int, done: float) -> Image.Image:
    picture = Image.new("RGB", (128, 128), (40 + 30 * index, 60, 90))
    size = 20 + int(40 * done)
    ImageDraw.Draw(picture).ellipse((64 - size, 64 - size, 64 + size, 64 + size), fill=(230, 150 - 40 * index, 60))
    return picture
