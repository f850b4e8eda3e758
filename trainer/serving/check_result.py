"""What a check has found about a run and its images, as JSON for the page."""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.common.problems import Problem
    from trainer.preflight.plan import RunPlan


def check_result(plan: "RunPlan") -> bytes:
    """The plan's summary and warnings, and how each image of a folder is resized and cropped, with what was found.

    An image is resized to `resized`, then cropped to `bucket` at `crop` (left, top); all in pixels, width first.
    """
    images: dict[str, dict[str, Any]] = {}
    for sample in (*plan.data.samples, *plan.data.validation):
        if not sample.is_from_subset:
            continue
        picture = sample.picture
        path = str(getattr(picture, "path", ""))
        images.setdefault(
            path,
            {
                "path": path,
                "width": picture.width,
                "height": picture.height,
                "bucket": sample.bucket,
                "resized": sample.resized,
                "crop": sample.crop,
                "messages": _messages(path, plan.warnings),
            },
        )
    held = {"summary": plan.summary().strip(), **plan_result(plan), "images": list(images.values())}
    return json.dumps(held, ensure_ascii=False).encode(errors="replace")


def plan_result(plan: "RunPlan") -> dict[str, Any]:
    """What a run takes in numbers, and its warnings."""
    return {"plan": _numbers(plan), "warnings": [each.as_dict() for each in plan.warnings]}


def _numbers(plan: "RunPlan") -> dict[str, Any]:
    """What a run takes. Memory is None on a CPU, and time unless an earlier run like it was measured here."""
    schedule, memory = plan.schedule, plan.memory
    samples_per_epoch = sum(bucket.draws for bucket in plan.data.buckets())
    samples = samples_per_epoch * (schedule.total_steps - plan.start_step) / schedule.steps_per_epoch
    seconds = memory.measured.seconds_per_picture * samples if memory.measured else None
    on_gpu = memory.device is not None
    return {
        "steps": schedule.total_steps,
        "start_step": plan.start_step,
        "epochs": schedule.num_epochs,
        "samples_per_epoch": samples_per_epoch,
        "seconds": seconds,
        "device": memory.device.name if memory.device else None,
        "memory_bytes": memory.bytes.peak if on_gpu else None,
        "free_bytes": memory.device.free if memory.device else None,
        "disk_bytes": plan.lora_bytes_kept + plan.state_bytes_kept + plan.missing_cache_bytes,
        "checkpoints": plan.checkpoints,
        "images_to_generate": len(plan.images_to_generate),
    }


def _messages(path: str, warnings: "tuple[Problem, ...]") -> list[dict[str, str]]:
    """The warnings about one image: those whose place it is, and those that name its file."""
    name = Path(path).name
    found = [each for each in warnings if each.where.startswith(path) or _names(each.what, name)]
    return [{"level": "note", "text": f"{each.what}. {each.hint}".rstrip(". ")} for each in found]


def _names(text: str, name: str) -> bool:
    return bool(re.search(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", text))
