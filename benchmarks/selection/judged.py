"""What the tiny FLUX's judge, which knows the answers, sees in the images of a checkpoint, prompt by prompt."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.selection.results import JUDGED
from trainer.cli.evaluate import MODELS, load_evaluation
from trainer.common.files import write_json
from trainer.comparison.pictures import Candidate, Generator
from trainer.data.cache import TensorCache
from trainer.sampling.evaluation import USUAL, draw_prompts, score_base
from trainer.sampling.judge import Classes, Verdicts, judge_pictures
from trainer.sampling.prompt_sets import BASE

TUNING, SCORING = "base-tuning", "base-scoring"
BASES = (TUNING, SCORING)  # the base model's images of either list of prompts
PROMPT_FILES = {TUNING: MODELS / "tuning_prompts.json", SCORING: MODELS / "prompts.json"}
SEEDS = {TUNING: 90000, SCORING: 0}
PARTS = 8  # each list is judged in parts, so that a run that is cut short has all its checkpoints judged on the same


class JudgedImages:
    """Generates and judges images of a list of prompts."""

    def __init__(self, prompts: str, cache: Path, parts: int = PARTS, limit: int | None = None):
        """prompts: TUNING or SCORING. cache: a folder; parts: of the list; limit: prompts of each set (None: all)."""
        self.evaluation = load_evaluation(prompt_file=PROMPT_FILES[prompts], seed=SEEDS[prompts], limit=limit)
        config, device, dtype = self.evaluation.config, self.evaluation.device, self.evaluation.dtype
        tokenizers = self.evaluation.tokenizers
        self.generator = Generator(config, tokenizers, device, dtype, USUAL, TensorCache(cache), {})
        self.parts, self.batch = parts, 8 if device.type == "cpu" else 64

    def part(self, candidate: Candidate | None, part: int) -> list[dict[str, Any]]:
        """What the judge sees in the images of one part of the prompts. candidate: None for the base model.

        Every entry has the prompt's "set" and "index" in it, and "shown": the probability of each concept. In the base
        set also "prior", the mean percentage of the prompt's objects, colours and place that were recognised, and
        "seen": the names of everything recognised.
        """
        found, judge = [], self.evaluation.judge
        for name, scenes in self.evaluation.prompts.sets().items():
            mine = range(part, len(scenes), self.parts)
            if not mine:
                continue
            verdicts = judge_pictures(judge, self._images(candidate, [scenes[index].prompt for index in mine], part))
            for row, index in enumerate(mine):
                one = Verdicts(*(each[row : row + 1] for each in verdicts))
                shown = zip(judge.classes.concepts, one.concepts[0].tolist(), strict=True)
                entry: dict[str, Any] = {"set": name, "index": index, "shown": {who: round(p, 4) for who, p in shown}}
                if name == BASE:
                    base = score_base(one, scenes[index : index + 1], judge.classes)
                    entry["prior"] = (base.objects + base.colours + base.places) / 3
                    entry["seen"] = seen(one, judge.classes)
                found.append(entry)
        return found

    def _images(self, candidate: Candidate | None, prompts: Sequence[str], part: int) -> torch.Tensor:
        texts = self.generator.texts(prompts, candidate)
        seed = self.evaluation.seed + 1000 * part
        with self.generator.applied(candidate) as transformer:
            encoded = [texts[prompt] for prompt in prompts]
            return draw_prompts(transformer, self.generator.vae, encoded, USUAL, seed, self.batch, "judged")


def seen(verdicts: Verdicts, classes: Classes) -> list[str]:
    """What is recognised in one image: its objects with their most probable colours, and its place.

    verdicts: of that image, the first dimension of each is 1.
    """
    kinds = [index for index, probability in enumerate(verdicts.kinds[0]) if probability > 0.5]
    objects = [f"{classes.colours[int(verdicts.colours[0, kind].argmax())]} {classes.kinds[kind]}" for kind in kinds]
    return [*objects, classes.places[int(verdicts.places[0].argmax())]]


def judge_in_parts(
    images: JudgedImages, candidates: Sequence[Candidate | None], folder: Path, until: float | None = None
) -> None:
    """Judge all candidates part by part; after each part, judged.json in the folder is rewritten.

    Parts that are there already are kept. until: the time at which no further part is started, except the first.
    """
    file = folder / JUDGED
    done = json.loads(file.read_text()) if file.is_file() else {"parts": 0, "seconds": 0.0, "rows": {}}
    for part in range(done["parts"], images.parts):
        if part and until and time.time() > until:
            return
        start = time.perf_counter()
        for candidate in candidates:
            name = candidate.name if candidate else "base"
            done["rows"].setdefault(name, []).extend(images.part(candidate, part))
        done["parts"], done["seconds"] = part + 1, done["seconds"] + time.perf_counter() - start
        done["complete"] = done["parts"] == images.parts
        write_json(file, done)
