"""The stage that renders the world: images as uint8, with their captions and labels."""

import json
import multiprocessing
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from mini.render.pictures import render
from mini.training.distributed import Budget, Distributed
from mini.training.recipe import Recipe
from mini.world.scene import CONCEPTS, Labels, SceneBatch
from mini.world.scenes import random_batch
from trainer.common.files import write_text
from trainer.common.problems import Problem, Problems
from trainer.common.rng import derive_seed

READ_AT_ONCE = 1024  # images
LOOK_AHEAD = 4  # batches of scenes queued for the renderer, per process that makes them


@dataclass(frozen=True)
class PictureSet:
    """One set of images: its name, the kind of its scenes, its seed, its total number of images, and the concepts of
    the judge's scenes."""

    name: str
    kind: str
    seed: int
    count: int
    concepts: tuple[str, ...] = CONCEPTS


@dataclass(frozen=True)
class Pictures:
    """n images in memory. pixels: uint8 [n, 3, size, size]; captions and labels: n of each."""

    pixels: Tensor
    captions: tuple[str, ...]
    labels: tuple[Labels, ...]


def picture_sets(recipe: Recipe) -> tuple[PictureSet, ...]:
    """The sets that the stage renders; held-out sets have their own seeds."""
    return (
        PictureSet("base", "base", recipe.seed, recipe.base_pictures),
        PictureSet("held-out-base", "base", derive_seed(recipe.seed, "held out", "base"), recipe.held_out_pictures),
        *judge_sets(recipe, CONCEPTS),
    )


def judge_sets(recipe: Recipe, concepts: tuple[str, ...]) -> tuple[PictureSet, ...]:
    """The sets for a judge of these concepts."""
    seed, held_out_seed = derive_seed(recipe.seed, "judge"), derive_seed(recipe.seed, "held out", "judge")
    return (
        PictureSet("judge", "judge", seed, recipe.judge_pictures, concepts),
        PictureSet("held-out-judge", "judge", held_out_seed, recipe.judge_held_out_pictures, concepts),
    )


def run_pictures(recipe: Recipe, folder: Path, budget: Budget) -> None:
    """Render every set of `picture_sets` that is missing in `folder`/pictures."""
    render_sets(picture_sets(recipe), recipe, folder, budget)


def render_sets(sets: Sequence[PictureSet], recipe: Recipe, folder: Path, budget: Budget) -> None:
    """Render the sets that are missing in `folder`/pictures, each process its own part, in batches of one place."""
    pool = _scene_pool(recipe)  # before the first use of CUDA
    distributed = Distributed.from_environment()
    try:
        for wanted in sets:
            if wanted.count and not _render_set(wanted, recipe, folder, budget, distributed, pool):
                break
    finally:
        if pool:
            pool.shutdown(cancel_futures=True)
    distributed.barrier()


def read_pictures(folder: Path, name: str, distributed: Distributed, most: int | None = None) -> Pictures:
    """Read this process's share of a set to its device; at most `most` images.

    Raises `Problems` if the set is missing, or if the number of its parts is not a multiple of the number of processes.
    """
    files = own_files(folder / "pictures", name, distributed)
    shapes = [_shape(file) for file in files]
    counts = [shape[0] for shape in shapes]
    total = min(sum(counts), most or sum(counts))
    pixels = torch.empty((total, *shapes[0][1:]), dtype=torch.uint8, device=distributed.device)
    captions: list[str] = []
    labels: list[Labels] = []
    for file, count in zip(files, counts, strict=True):
        start = len(captions)
        taken = min(count, total - start)
        _read_pixels(file, pixels[start : start + taken])
        texts = json.loads(file.with_suffix(".json").read_text())
        captions += texts["captions"][:taken]
        labels += [labels_from_json(value) for value in texts["labels"][:taken]]
    return Pictures(pixels, tuple(captions), tuple(labels))


def own_files(folder: Path, name: str, distributed: Distributed) -> list[Path]:
    """This process's share of the files NAME-*.safetensors, equally many for each process. Raises `Problems`."""
    files = sorted(folder.glob(f"{name}-[0-9]*.safetensors"))
    if not files or len(files) % distributed.world:
        what = f"{len(files)} parts of {name} for {distributed.world} processes"
        raise Problems([Problem(str(folder), what, "run the earlier stage with the same number of processes")])
    return files[distributed.rank :: distributed.world]


def labels_to_json(labels: Labels) -> dict:
    """Labels as JSON; `labels_from_json` is the inverse."""
    return {
        "place": labels.place,
        "objects": [list(pair) for pair in labels.objects],
        "concepts": list(labels.concepts),
    }


def labels_from_json(value: dict) -> Labels:
    """The inverse of `labels_to_json`."""
    objects = tuple((kind, colour) for kind, colour in value["objects"])
    return Labels(value["place"], objects, tuple(value["concepts"]))


def _render_set(
    wanted: PictureSet,
    recipe: Recipe,
    folder: Path,
    budget: Budget,
    distributed: Distributed,
    pool: ProcessPoolExecutor | None,
) -> bool:
    """Render this process's part of a set into its file; returns False if the time was used up first."""
    path = folder / "pictures" / f"{wanted.name}-{distributed.rank}.safetensors"
    if path.exists():
        return True
    batches = -(-wanted.count // (recipe.scene_batch * distributed.world))
    unfinished, progress = path.with_suffix(".part"), path.with_suffix(".part.json")
    texts = json.loads(progress.read_text()) if progress.exists() else {"captions": [], "labels": []}
    first = done = len(texts["captions"]) // recipe.scene_batch
    pixels = _mapped_pictures(unfinished, (batches * recipe.scene_batch, 3, recipe.size, recipe.size), new=not done)
    start = budget.seconds()
    scenes = _scene_batches(
        wanted, range(distributed.rank * batches + done, (distributed.rank + 1) * batches), recipe, pool
    )
    for batch, rendered in _rendered(scenes, recipe, distributed.device):
        pixels[done * recipe.scene_batch : (done + 1) * recipe.scene_batch] = rendered.numpy()
        texts["captions"] += batch.captions
        texts["labels"] += [labels_to_json(labels) for labels in batch.labels]
        done += 1
        if done in (first + 20, batches) or done % 400 == 0:
            rate = (done - first) * recipe.scene_batch / max(budget.seconds() - start, 1e-9)
            distributed.say(f"{wanted.name}: {done} of {batches} batches, {rate:.0f} pictures/s a process")
        if budget.spent() and done < batches:
            write_text(progress, json.dumps(texts, ensure_ascii=False))
            print(f"{wanted.name}: stopped at batch {done} of {batches}", flush=True)
            return False
    write_text(path.with_suffix(".json"), json.dumps(texts, ensure_ascii=False))
    unfinished.replace(path)
    progress.unlink(missing_ok=True)
    return True


def _scene_pool(recipe: Recipe) -> ProcessPoolExecutor | None:
    """Processes that make scenes; None if the recipe asks for none.

    CUDA does not survive a fork, so once it is initialized they are spawned, which is slower.
    """
    if not recipe.scene_processes:
        return None
    method = "spawn" if torch.cuda.is_initialized() else "fork"
    pool = ProcessPoolExecutor(recipe.scene_processes, multiprocessing.get_context(method))
    pool.submit(int).result()  # the first task starts them; a fork starts all of them at once
    return pool


def _scene_batches(
    wanted: PictureSet, indices: range, recipe: Recipe, pool: ProcessPoolExecutor | None
) -> Iterator[SceneBatch]:
    """Yield the batches of scenes at the indices, in order; a bounded number is made ahead."""
    make = partial(random_batch, wanted.kind, wanted.seed, size=recipe.scene_batch, concepts=wanted.concepts)
    if pool is None:
        yield from (make(index) for index in indices)
        return
    coming = deque(pool.submit(make, index) for index in indices[: LOOK_AHEAD * recipe.scene_processes])
    for index in indices[len(coming) :]:
        yield coming.popleft().result()
        coming.append(pool.submit(make, index))
    while coming:
        yield coming.popleft().result()


def _rendered(
    scenes: Iterator[SceneBatch], recipe: Recipe, device: torch.device
) -> Iterator[tuple[SceneBatch, Tensor]]:
    """Yield each batch and its images in host memory; the GPU renders the next batch while the last is written."""
    waiting = None
    for batch in scenes:
        pictures = render(batch, recipe.size, recipe.supersampling, device=str(device))
        if device.type != "cuda":
            yield batch, pictures
            continue
        on_host = torch.empty(pictures.shape, dtype=torch.uint8, pin_memory=True)
        on_host.copy_(pictures, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        if waiting:
            waiting[2].synchronize()
            yield waiting[:2]
        waiting = batch, on_host, copied
    if waiting:
        waiting[2].synchronize()
        yield waiting[:2]


def _mapped_pictures(path: Path, shape: tuple[int, ...], new: bool) -> np.ndarray:
    """A safetensors file with one uint8 tensor "pictures", memory-mapped for writing: it can hold tens of GB."""
    size = int(np.prod(shape))
    text = json.dumps({"pictures": {"dtype": "U8", "shape": list(shape), "data_offsets": [0, size]}})
    header = text.encode().ljust(-(-len(text) // 8) * 8)
    if new:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(8 + len(header) + size)
    return np.memmap(path, np.uint8, "r+", 8 + len(header), shape)


def _shape(file: Path) -> list[int]:
    with safe_open(file, framework="pt") as opened:
        return opened.get_slice("pictures").get_shape()


def _read_pixels(file: Path, target: Tensor) -> None:
    """Fill `target` with the file's first images, a part at a time: a file can hold tens of GB."""
    with safe_open(file, framework="pt") as opened:
        pictures = opened.get_slice("pictures")
        for start in range(0, len(target), READ_AT_ONCE):
            part = target[start : start + READ_AT_ONCE]
            part.copy_(pictures[start : start + len(part)])
