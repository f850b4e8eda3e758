"""Drawing the world into files: the stage's parts, its resuming and what is read back."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from mini.training.distributed import Budget, Distributed
from mini.training.images import photos
from mini.training.images import pictures as stage
from mini.training.recipe import TINY
from mini.world.scene import PLACES, Labels, SceneBatch
from trainer.common.problems import Problems

RECIPE = replace(TINY, size=16, base_pictures=16, held_out_pictures=4, judge_pictures=0, judge_held_out_pictures=4)
ALONE = Distributed()


def numbered_batch(kind: str, seed: int, index: int, size: int, concepts: tuple[str, ...] = ("tjtoy",)) -> SceneBatch:
    """Scenes whose captions tell what was asked for."""
    captions = tuple(f"{kind} {seed} {index} {scene}" for scene in range(size))
    labels = tuple(Labels(PLACES[index % 10], (("ball", "red"),), concepts[:1]) for _ in range(size))
    nothing = np.zeros((size, 1))
    return SceneBatch(PLACES[index % 10], nothing, nothing, nothing, nothing, captions, labels)


def flat_picture(batch: SceneBatch, size: int, supersampling: int, device: str) -> Tensor:
    """Pictures of one brightness each, which is the hash of the caption."""
    assert supersampling >= 1
    values = [sum(caption.encode()) % 251 for caption in batch.captions]
    return torch.tensor(values, dtype=torch.uint8, device=device).view(-1, 1, 1, 1).expand(-1, 3, size, size)


@pytest.fixture(autouse=True)
def numbered_world(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "random_batch", numbered_batch)
    monkeypatch.setattr(stage, "render", flat_picture)
    monkeypatch.setattr(photos, "random_batch", numbered_batch)
    monkeypatch.setattr(photos, "render", flat_picture)


def brightness(captions: tuple[str, ...]) -> list[int]:
    return [sum(caption.encode()) % 251 for caption in captions]


@pytest.mark.parametrize("scene_processes", [0, 2])
def test_pictures_captions_and_labels_belong_together(tmp_path: Path, scene_processes: int) -> None:
    stage.run_pictures(replace(RECIPE, scene_processes=scene_processes), tmp_path, Budget())
    read = stage.read_pictures(tmp_path, "base", ALONE)
    assert read.pixels.shape == (16, 3, 16, 16)
    assert read.captions[:5] == ("base 0 0 0", "base 0 0 1", "base 0 0 2", "base 0 0 3", "base 0 1 0")
    assert read.pixels[:, 0, 3, 3].tolist() == brightness(read.captions)
    assert read.labels[4] == Labels(PLACES[1], (("ball", "red"),), ("tjtoy",))
    assert stage.read_pictures(tmp_path, "base", ALONE, most=6).pixels.shape[0] == 6
    held_out = stage.read_pictures(tmp_path, "held-out-base", ALONE).captions
    assert not {caption.split()[1] for caption in held_out} & {"0"}, "held-out pictures have a seed of their own"
    assert len(stage.read_pictures(tmp_path, "held-out-judge", ALONE).captions) == 4
    assert load_file(tmp_path / "pictures" / "base-0.safetensors")["pictures"].dtype == torch.uint8


def test_a_stopped_stage_goes_on_where_it_was(tmp_path: Path) -> None:
    through, stopped = tmp_path / "through", tmp_path / "stopped"
    stage.run_pictures(RECIPE, through, Budget())
    stage.run_pictures(RECIPE, stopped, Budget(minutes=-1))
    told = json.loads((stopped / "pictures" / "base-0.part.json").read_text())
    assert len(told["captions"]) == RECIPE.scene_batch
    assert not list(stopped.glob("pictures/*.safetensors"))
    stage.run_pictures(RECIPE, stopped, Budget())
    names = sorted(file.name for file in (through / "pictures").iterdir())
    assert sorted(file.name for file in (stopped / "pictures").iterdir()) == names
    for name in names:
        assert (through / "pictures" / name).read_bytes() == (stopped / "pictures" / name).read_bytes()


def test_processes_draw_different_batches_that_together_are_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    for rank in range(2):
        group = Distributed(rank, 2)
        wanted = stage.picture_sets(RECIPE)[0]
        assert stage._render_set(wanted, RECIPE, tmp_path, Budget(), group, None)
        drawn.append(stage.read_pictures(tmp_path, "base", ALONE).captions)
    monkeypatch.setattr(Distributed, "barrier", lambda _: None)
    stage.run_pictures(RECIPE, tmp_path / "alone", Budget())
    assert drawn[1] == stage.read_pictures(tmp_path / "alone", "base", ALONE).captions
    shares = [stage.read_pictures(tmp_path, "base", Distributed(rank, 2)).captions for rank in range(2)]
    assert shares[0] + shares[1] == drawn[1]


def test_parts_that_do_not_divide_evenly_are_a_problem(tmp_path: Path) -> None:
    stage.run_pictures(RECIPE, tmp_path, Budget())
    with pytest.raises(Problems, match="1 parts of base for 2 processes"):
        stage.read_pictures(tmp_path, "base", Distributed(0, 2))


def test_a_sheet_shows_pictures_row_by_row(tmp_path: Path) -> None:
    pixels = torch.arange(3, dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 3, 2, 4)
    sheet = photos.side_by_side(pixels, 2)
    assert sheet.shape == (3, 4, 8)
    assert sheet[0, 0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert sheet[0, 3].tolist() == [2, 2, 2, 2, 255, 255, 255, 255]
    photos.write_sheet(tmp_path / "world.jpg", RECIPE)
    assert Image.open(tmp_path / "world.jpg").size == (64, 16)


def test_photographs_have_exact_masks_and_captions_beside_them(tmp_path: Path) -> None:
    files = photos.write_photos(tmp_path, ("vaxtu",), size=32, supersampling=1)
    assert [file.name for file in files][:2] == ["01_studio.png", "02_kitchen.jpg"] and len(files) == 6
    with Image.open(files[0]) as picture, Image.open(files[0].with_suffix(".mask.png")) as mask:
        assert picture.size == mask.size == (32, 32) and mask.mode == "L"
        covered = np.array(mask) > 128
        assert 0.1 < covered.mean() < 0.5 and not covered[0].any() and covered[16, 16]
    assert files[0].with_suffix(".txt").read_text() == "vaxtu toy in a studio\n"
    kept = files[0].stat().st_mtime_ns
    photos.write_photos(tmp_path, ("vaxtu",), size=32, supersampling=1)
    assert files[0].stat().st_mtime_ns == kept


def test_backgrounds_are_named_after_their_places(tmp_path: Path) -> None:
    """Their pixels are those of the numbered world: what is rendered is the scene without parts."""
    files = photos.write_backgrounds(tmp_path, size=32, supersampling=1)
    assert [file.name for file in files][3:5] == ["04_datacenter.jpg", "05_desk.jpg"] and len(files) == 40
    assert {file.with_suffix(".txt").read_text() for file in files[:4]} == {"in a datacenter\n"}
    assert all(Image.open(file).size == (32, 32) for file in files)
