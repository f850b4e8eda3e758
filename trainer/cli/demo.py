"""`python -m trainer demo`: train both concepts on the tiny FLUX; generate and score images before and after.

The training is that of `python -m trainer train --config_file flux_data/demo.toml`; flags of train override the file.
It computes in bf16 on a GPU, and on a CPU with instructions for it. The demo can be repeated: it replaces the files of
an earlier demo.
"""

import argparse
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import Accelerator

from trainer.checkpoint.naming import lora_path, position_after
from trainer.cli.evaluate import Adapter, Evaluation, Pictures, draw_column, load_evaluation, make_table
from trainer.common.devices import computes_bf16
from trainer.common.disk import write_problems
from trainer.common.files import atomic_write, write_json
from trainer.common.problems import Problem, raise_if_any
from trainer.common.process import set_up_logging
from trainer.config import TrainConfig, parse_config
from trainer.config.paths import path_flag
from trainer.engine.log import accelerator_arguments
from trainer.lora.file import load_lora
from trainer.models.weights import read_header
from trainer.preflight.check import make_plan
from trainer.preflight.disk import save_steps
from trainer.preflight.plan import RunPlan
from trainer.sampling.contact_sheet import Row, contact_sheet
from trainer.sampling.evaluation import USUAL
from trainer.sampling.prompt_sets import PromptSets, ScenePrompt
from trainer.sampling.sampler import as_image, save_picture
from trainer.sampling.score_table import Table
from trainer.train import train

log = logging.getLogger(__name__)
CONFIG, OUTPUT = Path("flux_data/demo.toml"), Path("output/demo")
PROMPTS = ("tjtoy toy", "sparkgpu gpu", "tjtoy toy holding sparkgpu gpu in a datacenter")
SHOWN = "shown"  # the name of the set of PROMPTS
SCORED = BASE, FINAL = "base", "final"
SHEET_QUALITY = 90


@dataclass(frozen=True)
class Checkpoint:
    """A LoRA file that the demo writes; name: of its column on the contact sheet, "epoch 1" or "final"."""

    name: str
    path: Path


def run(argv: Sequence[str]) -> int:
    """Run the demo: check, train, generate images, score them; print the scores, all paths and the time.

    argv: the flags after `demo`. Returns the exit status, that of `train` if it was stopped. Raises `Problems`.
    """
    start = time.perf_counter()
    given, rest = _parser().parse_known_args(argv)
    config, notices = parse_config([f"--config_file={given.config_file}", *rest])
    accelerator = Accelerator(mixed_precision="no", **accelerator_arguments(config))
    set_up_logging(accelerator.is_main_process)
    for notice in notices:
        log.info("%s", notice)
    if computes_bf16(accelerator.device) and not any(word.startswith("--mixed_precision") for word in rest):
        config = replace(config, mixed_precision="bf16")
    config = replace(config, overwrite=True)  # `planned_checkpoints` refuses files that are not from a demo
    plan = make_plan(config, accelerator.num_processes, accelerator.device)
    checkpoints = planned_checkpoints(plan)
    raise_if_any([*_prompts_problems(given.prompts), *write_problems([("--output", given.output)])])
    evaluation = evaluation_of(config, given.prompts, accelerator.device)
    announce_replaced(checkpoints)
    status = train(config, accelerator, plan)
    if status or not accelerator.is_main_process:
        return status
    trained = time.perf_counter()
    columns = draw(evaluation, checkpoints)
    pictures = save_shown(columns, given.output, evaluation.seed)
    table = score(evaluation, columns)
    seconds = {"training": trained - start, "all": time.perf_counter() - start}
    write_json(given.output / "scores.json", table.as_json() | {"seconds": seconds})
    paths = [*(checkpoint.path for checkpoint in checkpoints), *pictures, given.output / "scores.json"]
    print("\n".join(["", table.text(), "", *map(str, paths), "", _times(seconds)]))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m trainer demo", description=__doc__, allow_abbrev=False)
    parser.add_argument("--config_file", type=Path, default=CONFIG, help="settings of the training (%(default)s)")
    parser.add_argument("--output", type=path_flag, default=OUTPUT, help="folder for images and scores (%(default)s)")
    parser.add_argument(
        "--prompts", type=int, default=8, metavar="N", help="score N prompts of each concept and of both (%(default)s)"
    )
    return parser


def _prompts_problems(count: int) -> list[Problem]:
    return [] if count > 0 else [Problem("--prompts", f"{count} prompts give no score", "give 1 or more")]


def planned_checkpoints(plan: RunPlan) -> list[Checkpoint]:
    """The LoRA files that the run will write, the final one last.

    Raises `Problems` if there is a file with one of these names that no run with this output_name has written.
    """
    config, schedule = plan.config, plan.schedule
    positions = [position_after(schedule, step) for step in save_steps(config, schedule, start_step=0)]
    checkpoints = [
        Checkpoint(FINAL if position.ends_run else f"epoch {position.epoch}", lora_path(config, position))
        for position in positions
    ]
    hint = "move it away, or choose another --output_name"
    raise_if_any(
        Problem(str(checkpoint.path), "is in the way, and is not from an earlier demo", hint)
        for checkpoint in checkpoints
        if checkpoint.path.exists() and not _is_of_run(checkpoint.path, config.output_name)
    )
    return checkpoints


def _is_of_run(path: Path, output_name: str) -> bool:
    try:
        return read_header(path).metadata.get("ss_output_name") == output_name
    except (ValueError, OSError):
        return False


def announce_replaced(checkpoints: Sequence[Checkpoint]) -> None:
    """Log which existing LoRA files, of an earlier demo, the run will replace."""
    earlier = [checkpoint.path for checkpoint in checkpoints if checkpoint.path.exists()]
    if earlier:
        names = ", ".join(path.name for path in earlier)
        log.info("replacing %s in %s, from an earlier demo", names, earlier[0].parent)


def evaluation_of(config: TrainConfig, prompts: int, device: torch.device) -> Evaluation:
    """Load what the demo's LoRA files are scored with: the judge and the prompts, from the base model's folder.

    prompts: how many for each concept. Raises `Problems` if a file is missing or invalid.
    """
    assert config.pretrained_model_name_or_path
    return load_evaluation(config.pretrained_model_name_or_path.parent, config.seed, prompts, "concepts", device)


def draw(evaluation: Evaluation, checkpoints: Sequence[Checkpoint]) -> dict[str, Pictures]:
    """Generate the demo's images without and with each LoRA, from the same noise, by column name.

    Each column has the images of PROMPTS under SHOWN; "base" and "final" also have those of the prompts to score.
    """
    shown = PromptSets(base=(), concepts={SHOWN: tuple(map(ScenePrompt, PROMPTS))}, both=())
    scored = replace(evaluation.prompts, concepts={**shown.concepts, **evaluation.prompts.concepts})
    adapters = [Adapter(BASE), *map(_adapter, checkpoints)]
    return {
        adapter.name: draw_column(replace(evaluation, prompts=scored if adapter.name in SCORED else shown), adapter)
        for adapter in adapters
    }


def save_shown(columns: Mapping[str, Pictures], output: Path, seed: int) -> list[Path]:
    """Write the images of PROMPTS into the folder `output`, separately and on one sheet; returns their paths.

    columns: the images by column and set, as `draw` returns them; seed: of the first prompt, stored with the images.
    """
    shown = {name: pictures[SHOWN] for name, pictures in columns.items()}
    sheet = output / "contact_sheet.jpg"
    _save_sheet(sheet, shown)
    return [sheet, *_save_pictures(output, shown, seed)]


def score(evaluation: Evaluation, columns: Mapping[str, Pictures]) -> Table:
    """A table of the concepts' scores with the base model and with the final LoRA.

    columns: the images by column and set, as `draw` returns them.
    """
    sets = evaluation.prompts.texts()
    return make_table(evaluation, {name: {each: columns[name][each] for each in sets} for name in SCORED})


def _adapter(checkpoint: Checkpoint) -> Adapter:
    return Adapter(checkpoint.name, load_lora(checkpoint.path))


def _save_sheet(path: Path, columns: Mapping[str, torch.Tensor]) -> None:
    rows = [
        Row(prompt, [as_image(pictures[index]) for pictures in columns.values()])
        for index, prompt in enumerate(PROMPTS)
    ]
    note = f"{USUAL.steps} steps, guidance {USUAL.guidance:g}, the same noise across a row"
    sheet = contact_sheet(rows, list(columns), "Before, during and after training", note)
    atomic_write(path, lambda target: sheet.save(target, format="JPEG", quality=SHEET_QUALITY))


def _save_pictures(output: Path, columns: Mapping[str, torch.Tensor], seed: int) -> list[Path]:
    paths = []
    for index, prompt in enumerate(PROMPTS):
        for name, pictures in columns.items():
            path = output / f"{index + 1}-{name.replace(' ', '-')}.png"
            facts = {"prompt": prompt, "seed": seed + index, "steps": USUAL.steps, "guidance": USUAL.guidance}
            save_picture(path, as_image(pictures[index]), facts | {"lora": name})
            paths.append(path)
    return paths


def _times(seconds: Mapping[str, float]) -> str:
    return f"training took {seconds['training']:.0f} s, everything {seconds['all']:.0f} s"
