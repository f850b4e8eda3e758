"""Shapes and crops against a formula of their own, and against kohya's code where SD_SCRIPTS_DIR has it."""

import ast
import logging
import math
import os
import random
import re
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from trainer.data.buckets import make_bucket_resolutions, place, section_buckets
from trainer.data.captions import caption_variant
from trainer.data.dataset_config import DatasetSection, SubsetConfig

SIZES = [(1024, 1024), (1152, 896), (896, 1152), (1216, 832), (640, 480), (4000, 3000), (333, 777), (1920, 1080)]
RANDOM = random.Random(0)
SIZES += [(RANDOM.randint(64, 4000), RANDOM.randint(64, 4000)) for _ in range(400)]
SIZES = [(width, height) for width, height in SIZES if max(width, height) / min(width, height) < 8]
SETTINGS = [
    {"resolution": (1024, 1024), "enable_bucket": False},
    {"resolution": (512, 768), "enable_bucket": False},
    {"resolution": (1024, 1024), "enable_bucket": True},
    {"resolution": (512, 512), "enable_bucket": True},
    {"resolution": (768, 1024), "enable_bucket": True, "max_bucket_reso": 2048, "min_bucket_reso": 320},
    {"resolution": (1024, 1024), "enable_bucket": True, "bucket_no_upscale": True},
    {"resolution": (512, 640), "enable_bucket": True, "bucket_no_upscale": True},
]


def section(settings: dict[str, Any]) -> DatasetSection:
    return DatasetSection(subsets=(), **settings)


@pytest.mark.parametrize("settings", SETTINGS)
def test_each_picture_covers_its_bucket_and_is_cut_in_the_middle(settings: dict[str, Any]) -> None:
    dataset = section(settings)
    buckets = section_buckets(dataset)
    for size in SIZES:
        bucket, resized, crop = place(size, dataset, buckets)
        spare = (resized[0] - bucket[0], resized[1] - bucket[1])
        assert crop == (spare[0] // 2, spare[1] // 2) and min(spare) >= 0
        assert bucket[0] % 16 == 0 and bucket[1] % 16 == 0
        assert abs(resized[0] / resized[1] / (size[0] / size[1]) - 1) < 0.05
        if dataset.bucket_no_upscale:
            assert resized[0] <= size[0] + 1 and resized[1] <= size[1] + 1
        else:
            assert 0 in spare


@pytest.mark.parametrize(
    ("resolution", "least", "most", "steps"),
    [((1024, 1024), 256, 1024, 64), ((640, 960), 320, 2048, 64), ((512, 512), 256, 768, 32)],
)
def test_buckets_against_a_search_through_all_shapes(
    resolution: tuple[int, int], least: int, most: int, steps: int
) -> None:
    """A shape belongs if it cannot grow in its second side without leaving the area or the limit."""
    area = resolution[0] * resolution[1]
    sides = range(least, most + 1, steps)
    tallest = {
        (width, max(height for height in sides if width * height <= area)) for width in sides if width * least <= area
    }
    square = max(side for side in range(0, 4096, steps) if side * side <= area)
    expected = tallest | {(height, width) for width, height in tallest} | {(square, square)}
    assert make_bucket_resolutions(resolution, least, most, steps) == sorted(expected)


def test_bucket_choice_against_exact_fractions() -> None:
    dataset = section({"resolution": (1024, 1024), "enable_bucket": True})
    buckets = section_buckets(dataset)
    for width, height in SIZES:
        bucket, resized, _ = place((width, height), dataset, buckets)
        errors = {shape: abs(Fraction(*shape) - Fraction(width, height)) for shape in buckets}
        assert (width, height) == bucket or errors[bucket] == min(errors.values())
        scale = max(Fraction(bucket[0], width), Fraction(bucket[1], height))
        assert abs(resized[0] - width * scale) <= Fraction(1, 2) + Fraction(1, 10**6)
        assert abs(resized[1] - height * scale) <= Fraction(1, 2) + Fraction(1, 10**6)


def test_a_picture_that_fits_no_bucket_is_refused() -> None:
    dataset = section({"resolution": (512, 512), "enable_bucket": True, "bucket_no_upscale": True})
    for size in [(63, 500), (40, 40), (9000, 64)]:
        with pytest.raises(ValueError, match="too"):
            place(size, dataset, [])


def kohya(*names: str) -> dict[str, Any]:
    """Functions and classes of kohya's library, compiled from its files without importing what they do not use."""
    folder = os.environ.get("SD_SCRIPTS_DIR")
    if not folder:
        pytest.skip("set SD_SCRIPTS_DIR to a checkout of kohya-ss/sd-scripts")
    found: dict[str, Any] = {}
    for name in ("model_util.py", "train_util.py"):
        tree = ast.parse((Path(folder) / "library" / name).read_text(encoding="utf-8"))
        nodes = [node for node in ast.walk(tree) if getattr(node, "name", None) in names]
        for node in nodes:
            if isinstance(node, ast.ClassDef):
                node.body = [item for item in node.body if isinstance(item, ast.FunctionDef)]
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                space = {"math": math, "np": np, "random": random, "re": re, "logger": logging.getLogger()}
                space |= {"Tuple": tuple, "BaseSubset": object, "model_util": SimpleNamespace(**found)}
                exec(compile(ast.Module([node], []), name, "exec"), space)
                found[node.name] = space[node.name]
    return found


@pytest.mark.parametrize("settings", SETTINGS)
def test_same_bucket_and_same_size_as_kohya(settings: dict[str, Any]) -> None:
    code = kohya("BucketManager", "make_bucket_resolutions")
    dataset = section(settings)
    if dataset.enable_bucket:
        limits = (dataset.min_bucket_reso, dataset.max_bucket_reso, dataset.bucket_reso_steps)
        manager = code["BucketManager"](dataset.bucket_no_upscale, dataset.resolution, *limits)
        if not dataset.bucket_no_upscale:
            manager.make_buckets()
            assert section_buckets(dataset) == manager.predefined_resos
    else:
        manager = code["BucketManager"](False, dataset.resolution, None, None, None)
        manager.set_predefined_resos([dataset.resolution])
    for size in SIZES:
        bucket, resized, _ = place(size, dataset, section_buckets(dataset))
        assert (bucket, resized) == manager.select_bucket(*size)[:2]


CAPTIONS = ["a, b,c , d", "x ||| y, z ||| w", "one;;two, three", "a,,b"]
CAPTION_SETTINGS: list[dict[str, Any]] = [
    {},
    {"caption_prefix": "pre", "caption_suffix": "suf"},
    {"token_warmup_step": 10, "keep_tokens": 1},
    {"token_warmup_step": 0.5, "keep_tokens_separator": "|||"},
    {"caption_tag_dropout_rate": 1.0, "keep_tokens": 2},
    {"secondary_separator": ";;"},
    {"enable_wildcard": True, "caption_suffix": "{{literal}}"},
    {"caption_dropout_every_n_epochs": 2},
]


@pytest.mark.parametrize("settings", CAPTION_SETTINGS)
def test_same_caption_as_kohya_where_nothing_is_left_to_chance(settings: dict[str, Any]) -> None:
    process = kohya("process_caption")["process_caption"]
    subset = SubsetConfig(image_dir=Path("folder"), **settings)
    for caption in CAPTIONS:
        for epoch, step in [(0, 0), (1, 4), (2, 30)]:
            dataset = SimpleNamespace(current_epoch=epoch + 1, current_step=step, max_train_steps=40, replacements={})
            theirs = process(dataset, SimpleNamespace(**vars(subset)), caption)
            ours = caption_variant(subset, (caption,), 0, epoch, "key", 0, step, 40)
            assert ours == theirs
