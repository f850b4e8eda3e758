"""One training or sweep, and what the judge sees afterwards. Heavy packages are imported where they are used."""

import json
import os
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RESULT = "result.json"
SHOWN = 4  # images of each run on the sheet
SHOWN_SIDE = 96


def fill_cache(folder: Path) -> None:
    """Encode the images and captions that the runs share."""
    from benchmarks.rates.runs import RUNS

    place = folder / "cache-run"
    with OutputTo(folder / "cache.log"):
        for name in ("demo-42", "preserved-adamw-1e-3", "long-bare-1e-3"):
            _train([*RUNS[name].flags(place, folder / "cache"), "--max_train_steps=1"])


def one(name: str, folder: Path, judged: int, max_steps: int | None, deadline: float) -> str:
    """Make one run or sweep in this process; returns what became of it in words. Its output goes to NAME.log."""
    from benchmarks.rates.runs import SWEEPS

    if time.time() > deadline:
        return "left, no time"
    start = time.perf_counter()
    with OutputTo(folder / f"{name}.log"):
        try:
            if name in SWEEPS:
                _sweep(name, folder, max_steps)
            else:
                _train_and_judge(name, folder, judged, max_steps)
        except Exception as error:  # the others go on
            traceback.print_exc()
            return f"failed: {error!r}"[:300]
    return f"done in {time.perf_counter() - start:.0f} s"


class OutputTo:
    """While the block runs, this process's stdout and stderr go to a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        self.kept = [os.dup(number) for number in (1, 2)]
        with self.path.open("w") as file:
            for number in (1, 2):
                os.dup2(file.fileno(), number)

    def __exit__(self, *_error: object) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, kept in zip((1, 2), self.kept, strict=True):
            os.dup2(kept, number)
            os.close(kept)


def _train(flags: Sequence[str]) -> str:
    """Train; returns how it ended: "" or the problem that stopped it."""
    from trainer.cli.train import run
    from trainer.common.problems import Problems

    try:
        run([*flags, *_precision()])
    except Problems as found:
        print(found)
        return str(found)
    return ""


def _precision() -> list[str]:
    import torch

    from trainer.common.devices import computes_bf16

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return [f"--mixed_precision={'bf16' if computes_bf16(device) else 'no'}"]


def _train_and_judge(name: str, folder: Path, judged: int, max_steps: int | None) -> None:
    from benchmarks.rates.runs import RUNS
    from trainer.common.files import write_json

    run, place, start = RUNS[name], folder / name, time.perf_counter()
    short = [f"--max_train_steps={max_steps}"] if max_steps else []
    flags = run.flags(place, folder / "cache")
    problem = _train([*(word for word in flags if not (short and word.startswith("--max_train_steps"))), *short])
    trained = time.perf_counter()
    log = [json.loads(line) for line in (place / "runs/run/log.jsonl").read_text().splitlines()]
    scores = _judge(place, run.concepts, judged, log)
    settings = {key: str(value) for key, value in run.settings.items()}
    seconds = {"train": trained - start, "judge": time.perf_counter() - trained}
    facts = {"name": name, "data": run.data, "shipped": run.shipped, "settings": settings, "problem": problem}
    write_json(place / RESULT, {**facts, "scores": scores, "seconds": seconds})


def _judge(place: Path, concepts: Sequence[str], judged: int, log: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the judge sees without a LoRA and after each checkpoint, by step ("0" is the base model)."""
    from trainer.cli.evaluate import Adapter, draw_column, load_evaluation
    from trainer.lora.file import load_lora

    evaluation = load_evaluation(limit=judged)
    files = {event["step"]: place / "loras" / event["file"] for event in log if event["kind"] == "checkpoint"}
    scores = {}
    for step, file in {0: None, **files}.items():
        drawn = draw_column(evaluation, Adapter("lora", load_lora(file)) if file else Adapter("base"))
        scores[str(step)] = _scores(evaluation, drawn, concepts)
        _strip(drawn, concepts).save(place / f"images-{step}.png")
    return scores


def _scores(evaluation: Any, drawn: Mapping[str, Any], concepts: Sequence[str]) -> dict[str, float]:
    """In percent: likeness, how much of each concept is seen where the prompt names it; bleed, where it does not;
    prior, how much of what the prompts without a trigger name is recognised."""
    import torch

    from trainer.sampling.evaluation import score_base
    from trainer.sampling.judge import judge_pictures

    classes = evaluation.judge.classes
    seen = {name: judge_pictures(evaluation.judge, pictures) for name, pictures in drawn.items()}
    at = {name: classes.concepts.index(name) for name in concepts}
    shown = [seen[name].concepts[:, index] for name, index in at.items()]
    absent = [seen[other].concepts[:, at[name]] for name in at for other in seen if other not in (name, "both")]
    base = score_base(seen["base"], evaluation.prompts.base, classes)
    return {
        "likeness": 100 * float(torch.cat(shown).mean()),
        "bleed": 100 * float(torch.cat(absent).mean()),
        "prior": (base.objects + base.colours + base.places) / 3,
    }


def _strip(drawn: Mapping[str, Any], concepts: Sequence[str]) -> Any:
    """The first images of a concept, of both, and of prompts without a trigger, side by side."""
    import torch
    from PIL import Image

    from trainer.sampling.sampler import as_image

    sets = [concepts[0], concepts[-1], "both", "base"]
    images = [as_image(torch.as_tensor(drawn[name][0])).resize((SHOWN_SIDE, SHOWN_SIDE)) for name in sets]
    strip = Image.new("RGB", (SHOWN_SIDE * SHOWN, SHOWN_SIDE))
    for index, image in enumerate(images):
        strip.paste(image, (index * SHOWN_SIDE, 0))
    return strip


def _sweep(name: str, folder: Path, max_steps: int | None) -> None:
    from dataclasses import asdict

    from accelerate import Accelerator

    from benchmarks.rates.runs import RUNS, SWEEPS
    from trainer.cli.find_rate import RATES, STEPS
    from trainer.common.files import write_json
    from trainer.common.process import set_up_logging
    from trainer.config import parse_config
    from trainer.rates.find import find_rate

    data, optimizer = SWEEPS[name]
    run, place, start = RUNS[f"{data}-adamw-1e-3"], folder / name, time.perf_counter()
    flags = [word for word in run.flags(place, folder / "cache") if not word.startswith("--optimizer_type")]
    config, _ = parse_config([*flags, f"--optimizer_type={optimizer}", *_precision()])
    set_up_logging()
    rates = RATES[3:5] if max_steps else RATES
    advice, gains = find_rate(config, Accelerator(mixed_precision="no"), rates, max_steps or STEPS)
    recorded = json.loads((place / "runs/run_find_rate/rates.json").read_text())
    losses = {"base": recorded["base"], "rates": recorded["rates"]}
    seconds = time.perf_counter() - start
    found = {"advice": asdict(advice), "gains": [asdict(gain) for gain in gains], "seconds": seconds, **losses}
    write_json(place / RESULT, {"name": name, "data": data, "optimizer": optimizer, "sweep": found})
