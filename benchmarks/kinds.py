"""What kinds of batches a run has, and what each costs: plain images, masked ones, images that preserve something."""

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from trainer.data.dataset import Draw, Sample
from trainer.preflight.plan import RunPlan

ClassCaption = Callable[[Draw], str | None]
PLAIN = "plain"


def kind_of(sample: Sample) -> str:
    """The kind of an image in words: "plain", or what is computed or composed for it."""
    parts = [
        "composite" if sample.composition is not None else "",
        "preserved" if sample.preserves_output else "",
        "weighted by place" if sample.weighs_places else "",
        "background preserved" if sample.preserves_some and not sample.preserves_output else "",
    ]
    return ", ".join(filter(None, parts)) or PLAIN


def kind_of_step(batches: Iterable[tuple[Draw, ...]], class_caption: ClassCaption | None) -> str:
    """The kinds of a step's images, each once; with "class words" where their preservation is computed too."""
    draws = [draw for batch in batches for draw in batch]
    kinds = dict.fromkeys(kind_of(draw.sample) for draw in draws)
    named = any(class_caption(draw) is not None for draw in draws) if class_caption else False
    return " + ".join(kinds) + (", class words" if named else "")


def kinds_of_steps(plan: RunPlan, num_steps: int) -> list[str]:
    """The kind of each of a run's first optimizer steps, over all processes."""
    return [kind_of_step(plan.group(step), plan.class_caption) for step in range(1, num_steps + 1)]


def seconds_by_kind(steps: Sequence[Mapping[str, Any]], kinds: Sequence[str]) -> dict[str, list[float]]:
    """For each kind the median, lowest and highest seconds per image, and how many steps these are from.

    steps: lines of log.jsonl; kinds: the kind of each. Empty if all steps are of one kind.
    """
    found: dict[str, list[float]] = defaultdict(list)
    for step, kind in zip(steps, kinds, strict=True):
        found[kind].append(step["seconds_per_picture"])
    if len(found) < 2:
        return {}
    return {kind: [statistics.median(each), min(each), max(each), len(each)] for kind, each in found.items()}
