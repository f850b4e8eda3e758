"""Checkpoint grid: which pictures, on which sheet, and each the very picture that one sampling node draws."""

import json

import pytest
from PIL import Image, ImageChops

from custom_nodes.flux_dreambooth import grid
from custom_nodes.flux_dreambooth.sheet import EMPTY, PAPER, Sheet
from tests.nodes.model_files import write_lora
from tests.nodes.run_writer import RunWriter
from tests.nodes.server import ComfyServer

FILES = [
    "run-000010.safetensors",
    "run.safetensors",
    "run-000002.safetensors",
    "b/run.safetensors",
    "run-step00000500.safetensors",
]
ALL = ["epoch 2", "epoch 10", "step 500", "final"]
PROMPTS = ["a red bear toy on a desk", "a gpu in the snow"]


def test_runs_are_in_the_order_of_training():
    found = grid.runs(FILES)
    assert list(found) == ["b/run", "run"]
    assert [each.label for each in found["run"]] == ALL


@pytest.mark.parametrize(
    ("wanted", "labels"),
    [("all", ALL), ("", ALL), ("10, final", ["epoch 10", "final"]), ("step500 000002 2", ["step 500", "epoch 2"])],
)
def test_checkpoints_are_chosen_by_name(wanted: str, labels: list[str]):
    assert [each.label for each in grid.choose(grid.runs(FILES)["run"], wanted)] == labels


def test_what_is_not_there_is_said_with_what_is():
    with pytest.raises(ValueError, match="no checkpoint 3, x; there are 2, 10, step500, final"):
        grid.choose(grid.runs(FILES)["run"], "3, 2, x")


@pytest.mark.parametrize("text", ["", "one", "1, nan", "1e9", ","])
def test_strengths_are_numbers(text: str):
    with pytest.raises(ValueError, match="strengths are numbers"):
        grid.read_strengths(text)


def test_plan():
    first, second = (grid.Checkpoint(file) for file in FILES[:2])
    rows = grid.plan(PROMPTS, [first, second], [0.0, 0.5, 1.0])
    assert len(rows) == 4 and {len(row) for row in rows} == {3}
    assert rows[1] == [
        grid.Cell(PROMPTS[0], None, 0.0),
        *(grid.Cell(PROMPTS[0], each, 1.0) for each in (first, second)),
    ]
    assert len({cell for row in rows for cell in row}) == 2 + 8  # the base model's picture of a prompt is drawn once
    assert grid.row_label(rows[0], 2) == f"{PROMPTS[0]}\nstrength 0.5"
    assert grid.plan(["x"], [first], [0.0]) == [[grid.Cell("x", None, 0.0)]]
    with pytest.raises(ValueError, match="too many"):
        grid.plan([str(number) for number in range(300)], [first, second], [1.0])
    with pytest.raises(ValueError, match="no prompt"):
        grid.read_prompts(" \n ")


def test_a_sheet_shows_each_picture_in_its_place_and_grey_where_none_is_yet():
    sheet = Sheet("run", "a note", ["base model", "epoch 2"], ["a long prompt " * 30, "b"], (64, 48))
    drawn = sheet.draw({(0, 0): Image.new("RGB", (128, 96), "red"), (1, 1): Image.new("RGB", (64, 48), "blue")})
    colours = {colour: count for count, colour in drawn.getcolors(1 << 24)}
    assert colours[(255, 0, 0)] == colours[(0, 0, 255)] == 64 * 48
    assert colours[EMPTY] >= 2 * 64 * 48 and colours[PAPER] > 0
    assert drawn.getpixel((drawn.width - 40, drawn.height - 20)) == (0, 0, 255)


def grid_prompt(**changed) -> dict:
    numbers = {"width": 64, "height": 64, "seed": 3, "steps": 2, "guidance": 3.5, "t5_length": 0, "cell_size": 64}
    words = {"run": "grid", "checkpoints": "all", "strengths": "0, 1", "prompts": "\n".join(PROMPTS)}
    rest = {"sampler": "euler", "schedule": "as trained", "model": ["1", 0], "clip": ["1", 1], "vae": ["1", 2]}
    return {
        "1": {"class_type": "LoadMiniFlux", "inputs": {"folder": "mini"}},
        "2": {"class_type": "CheckpointGrid", "inputs": numbers | words | rest | changed},
        "3": {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}},
        "4": {"class_type": "PreviewImage", "inputs": {"images": ["2", 1]}},
    }


def single_prompt(prompt: str, lora: str | None) -> dict:
    """The picture of one cell, by LoraLoader and FluxSampleAsTrained."""
    source = {"model": ["1", 0], "clip": ["1", 1]}
    numbers = {"width": 64, "height": 64, "seed": 3, "steps": 2, "guidance": 3.5, "t5_length": 0, "batch_size": 1}
    graph = {
        "1": {"class_type": "LoadMiniFlux", "inputs": {"folder": "mini"}},
        "3": {"class_type": "VAEDecode", "inputs": {"samples": ["2", 0], "vae": ["1", 2]}},
        "4": {"class_type": "PreviewImage", "inputs": {"images": ["3", 0]}},
    }
    if lora:
        strengths = {"lora_name": lora, "strength_model": 1.0, "strength_clip": 1.0}
        graph["5"] = {"class_type": "LoraLoader", "inputs": source | strengths}
        source = {"model": ["5", 0], "clip": ["5", 1]}
    rest = {"sampler": "euler", "schedule": "as trained", "prompt": prompt}
    graph["2"] = {"class_type": "FluxSampleAsTrained", "inputs": numbers | source | rest}
    return graph


@pytest.fixture(scope="module")
def server(comfyui: ComfyServer) -> ComfyServer:
    """The shared server with a run of two checkpoints."""
    for seed, name in enumerate(("grid-000003", "grid")):
        write_lora(comfyui.loras / f"{name}.safetensors", comfyui.folder / "models/mini", seed=seed)
    return comfyui


@pytest.mark.comfyui
def test_cells_are_single_pictures_and_progress_shows_the_sheet_as_it_grows(server: ComfyServer):
    result, heard = server.run_listening(grid_prompt())
    assert not result.error
    pictures = result.pictures(server, "4")
    assert len(pictures) == 6 and {picture.size for picture in pictures} == {(64, 64)}
    for row, prompt in enumerate(PROMPTS):
        for column, lora in enumerate((None, "grid-000003.safetensors", "grid.safetensors")):
            (alone,) = server.run(single_prompt(prompt, lora)).pictures(server)
            assert ImageChops.difference(pictures[3 * row + column], alone).getbbox() is None, (row, column)
    assert ImageChops.difference(pictures[0], pictures[1]).getbbox() is not None
    (sheet,) = result.pictures(server, "3")
    assert sheet.width > 3 * 64 and sheet.height > 2 * 64
    values = [each["data"] for each in heard if isinstance(each, dict) and each["type"] == "progress"]
    steps = [each["value"] for each in values if each["node"] == "2"]
    assert steps == sorted(steps) and steps[-1] == values[-1]["max"] == 6 * 2
    previews = [each for each in heard if isinstance(each, bytes) and b"\xff\xd8\xff" in each[:400]]
    assert len(previews) == 6


@pytest.mark.comfyui
def test_an_interrupt_ends_it_and_the_models_are_as_before(server: ComfyServer):
    (before,) = server.run(single_prompt(PROMPTS[0], None)).pictures(server)
    with server.listen("grid") as messages:
        prompt_id = server.queue(grid_prompt(steps=40, seed=5), "grid")
        while True:
            message = messages.receive()
            if isinstance(message, dict) and message["type"] == "progress" and message["data"]["value"] > 100:
                break
        server.interrupt()
        assert server.wait(prompt_id, 30).interrupted
    prompt = single_prompt(PROMPTS[0], None)
    prompt["2"]["inputs"]["sampler"] = "dpmpp_2m"
    server.run(prompt)  # else the picture would come from the cache
    (after,) = server.run(single_prompt(PROMPTS[0], None)).pictures(server)
    assert ImageChops.difference(before, after).getbbox() is None


@pytest.mark.comfyui
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"checkpoints": "77"}, "no checkpoint 77"),
        ({"strengths": "much"}, "strengths are numbers"),
        ({"prompts": " "}, "no prompt"),
    ],
)
def test_mistakes_are_told(server: ComfyServer, changed: dict, message: str):
    assert message in server.run(grid_prompt(**changed)).error


@pytest.mark.comfyui
def test_a_new_checkpoint_is_drawn(server: ComfyServer):
    write_lora(server.loras / "grown-000001.safetensors", server.folder / "models/mini", {"x": json.dumps(1)}, seed=4)
    prompt = grid_prompt(run="grown", strengths="1", prompts=PROMPTS[0])
    assert len(server.run(prompt).pictures(server, "4")) == 1
    assert {"2", "4"} <= {*server.run(prompt).cached}
    write_lora(server.loras / "grown.safetensors", server.folder / "models/mini", seed=5)
    assert len(server.run(prompt).pictures(server, "4")) == 2


@pytest.mark.comfyui
def test_figures_that_are_known_are_written_below_the_columns(server: ComfyServer):
    one = {"strengths": "1", "prompts": PROMPTS[0]}
    (plain,) = server.run(grid_prompt(seed=6, **one)).pictures(server, "3")
    run = RunWriter(server.folder / "runs", "grid", total=8, per_epoch=2)
    for steps, score in ((6, 50.0), (2, 40.0)):
        run.steps(steps)
        run.checkpoint()
        run.line("evaluation", score=score, error=1.0, likeness=score, bleed=0.0, drift=0.0)
    (known,) = server.run(grid_prompt(seed=7, **one)).pictures(server, "3")
    assert known.width == plain.width and known.height > plain.height
