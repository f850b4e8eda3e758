"""The report's text and picture, and the norms it shows."""

import math
from dataclasses import replace

import numpy
import pytest

from custom_nodes.flux_dreambooth.concepts import Concept
from custom_nodes.flux_dreambooth.lora_file.keys import survey
from custom_nodes.flux_dreambooth.report import (
    COLOURS,
    Report,
    as_picture,
    as_text,
    facts_of,
    norms_by_block,
    several,
    size_text,
)
from tests.nodes.lora_layouts import METADATA, make_clip_layers, make_layers, ours

REPORT = Report(
    file="toy.safetensors",
    num_bytes=150_000_000,
    layout="FLUX DreamBooth",
    dtypes=("bfloat16",),
    ranks=(16,),
    scales=(1.0,),
    kinds={"transformer": 494, "CLIP": 72},
    norms={f"double {n}": 1.0 + n for n in range(19)} | {f"single {n}": 2.0 for n in range(38)} | {"CLIP 0": 0.5},
    not_finite=(),
    unknown=(),
    notes=(),
    facts=facts_of(METADATA),
    concepts=(Concept("toy", "tjtoy toy", 6),),
    fit=("all 566 modules fit the connected model",),
)


def test_the_text_says_all_of_it():
    text = as_text(REPORT)
    for part in ("150.0 MB", "tjtoy toy  (6 images)", "494 transformer, 72 CLIP", "flux-1-dev/lora", "steps", "120"):
        assert part in text
    assert "learning_rate 0.0001" in text and "double 18" in text and "NOT FINITE" not in text
    bars = {line.split()[0] + line.split()[1]: line.count("█") for line in text.splitlines() if "█" in line}
    assert bars["double18"] == 24 and bars["single3"] == round(24 * 2 / 19)


def test_numbers_that_are_not_finite_are_shown_as_such():
    broken = replace(REPORT, norms=REPORT.norms | {"single 4": math.nan}, not_finite=("x",), unknown=("odd.key",))
    text = as_text(broken)
    assert "NOT FINITE    1 modules, first x" in text and "odd.key" in text
    red = (numpy.asarray(as_picture(broken)) == (190, 40, 40)).all(-1).sum()
    assert red > 500 > (numpy.asarray(as_picture(REPORT)) == (190, 40, 40)).all(-1).sum()


def test_the_bars_are_as_tall_as_the_norms():
    picture = numpy.asarray(as_picture(REPORT))
    assert picture.shape[1:] == (1024, 3)
    areas = {kind: (picture == colour).all(-1).sum() for kind, colour in COLOURS.items()}
    assert areas["double"] > 0 and areas["single"] > 0 and areas["CLIP"] > 0 and areas["T5"] == 0
    columns = (picture == COLOURS["double"]).all(-1).sum(0)
    heights = [int(height) for height in columns[columns > 0]]
    assert heights == sorted(heights)
    assert heights[0] / heights[-1] == pytest.approx(1 / 19, abs=0.02)


def test_a_very_long_name_and_no_blocks_still_make_a_picture():
    picture = as_picture(replace(REPORT, file="x" * 500, norms={"other": 1.0}, facts={}, concepts=(), fit=()))
    assert picture.size[0] == 1024


def test_norms_are_summed_by_block_in_the_models_order():
    tensors, metadata = ours(make_layers(hidden=8, double=1, single=11), make_clip_layers(layers=1))
    found = survey({key: tuple(tensor.shape) for key, tensor in tensors.items()}, metadata)
    norms = norms_by_block(found, dict.fromkeys(reversed(list(found.modules)), 2.0))
    assert list(norms) == ["double 0", *(f"single {number}" for number in range(11)), "CLIP 0"]
    assert norms["double 0"] == pytest.approx(2 * math.sqrt(14)) and norms["single 10"] == pytest.approx(
        2 * math.sqrt(6)
    )


def test_broken_metadata_is_left_out():
    assert facts_of({"flux_dreambooth": "{" * 9000, "ss_steps": "None", "modelspec.title": "t" * 9000}) == {
        "title": "t" * 500
    }
    assert (size_text(28_228), size_text(1_900_000)) == ("28.2 KB", "1.9 MB")
    assert several([1, 2]) == "1, 2" and several(range(1, 9)) == "1-8, 8 different ones" and several([]) == "-"
