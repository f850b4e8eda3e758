"""Composites: who is in them, where, what they are called, when they are drawn; and what is refused."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from tests.dataset_files import draw_folder, write_toml
from tests.unit.test_masks import draw_mask
from trainer.common.problems import Problems
from trainer.config import TrainConfig
from trainer.data.cache import CacheKeys
from trainer.data.compose import Composite, Recipe, solid_corners
from trainer.data.compositions import fill_template
from trainer.data.dataset import TrainingData, load_dataset
from trainer.data.encoding import encode_mask
from trainer.data.layout import arrange
from trainer.data.relations import RELATIONS, Relation
from trainer.data.samples import Sample

SIDE = 128
DATA = """
[[datasets]]
resolution = 128
batch_size = 2
[[datasets.subsets]]
image_dir = "{folder}/toy"
class_tokens = "tjtoy toy"
num_repeats = 3
flip_aug = true
[[datasets.subsets]]
image_dir = "{folder}/gpu"
class_tokens = "sparkgpu gpu"
[[datasets.compositions]]
MORE
"""
RED, BLUE = (220, 20, 20), (20, 20, 220)


def draw_subject(folder: Path, name: str, color: tuple[int, int, int], box: tuple[int, int, int, int], side: int = 160):
    """A photograph of a box of one colour, and its mask."""
    folder.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (side, side), (90, 200, 90))
    image.paste(color, box)
    image.putpixel((0, 0), (len(name) + sum(map(ord, name)) % 200, 0, 0))
    image.save(folder / f"{name}.png")
    draw_mask(folder / f"{name}.mask.png", (side, side), box)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two photographs of a tall red concept and two of a wide blue one."""
    for number in range(2):
        draw_subject(tmp_path / "toy", f"{number:02}", RED, (40, 20, 110, 150 - number))
        draw_subject(tmp_path / "gpu", f"{number:02}", BLUE, (20, 50, 140 - number, 110))
    return tmp_path


def config(folder: Path, more: str = "", **flags) -> TrainConfig:
    return replace(write_toml(folder, DATA.replace("MORE", more)), **flags)


def load(folder: Path, more: str = "", **flags) -> TrainingData:
    return load_dataset(config(folder, more, **flags))[0]


def composites(data: TrainingData) -> list[Sample]:
    return [sample for sample in data.samples if sample.composition is not None]


def recipe(sample: Sample) -> Recipe:
    assert isinstance(sample.picture, Composite)
    return sample.picture.recipe


def problems(folder: Path, more: str) -> list[str]:
    with pytest.raises(Problems) as found:
        load(folder, more)
    return [str(problem) for problem in found.value.problems]


def test_nothing_in_the_table_serves_two_concepts(folder):
    found = composites(load(folder))
    assert len(found) == 160 and {sample.bucket for sample in found} == {(SIDE, SIDE)}
    captions = Counter(sample.lines[0].removesuffix(" on a plain background") for sample in found)
    pair = ("tjtoy toy", "sparkgpu gpu")
    assert captions.keys() == {f"{a} {r} {b}" for a, b in (pair, pair[::-1]) for r in ("next to", "in front of")}
    assert sum(count for text, count in captions.items() if "next to" in text) == 120  # by weight, 3 to 1
    assert all(sample.weighs_places and sample.subset.background_weight == 0.3 for sample in found)
    kept = composites(load(folder, 'mask_background = "preserve"\nnum_images = 2'))
    assert all(sample.preserves_some and not sample.weighs_places for sample in kept)


def test_a_composite_shows_both_concepts_and_its_mask_shows_nothing_else(folder):
    for sample in composites(load(folder, "num_images = 12")):
        image, mask = (np.asarray(each).astype(int) for each in (recipe(sample).image(), recipe(sample).mask()))
        red = (image[..., 0] > 180) & (image[..., 2] < 60)
        blue = (image[..., 2] > 180) & (image[..., 0] < 60)
        assert red.sum() > 200 and blue.sum() > 200, sample.lines
        assert (mask[red | blue] > 100).all()
        assert abs((red | blue).mean() - (mask > 128).mean()) < 0.02
        assert torch.equal(encode_mask(sample, False)["mask"], encode_mask(sample, False)["mask"])


def test_captions_say_who_is_left_of_nobody_but_what_is_in_front(folder):
    """In "A in front of B", A covers B: it is pasted last."""
    for sample in composites(load(folder, 'relations = ["in front of", "behind"]\nnum_images = 8')):
        front = sample.lines[0].split(" in front of ")[0]
        first_is_front = " in front of " in sample.lines[0]
        color = {"tjtoy toy": "toy", "sparkgpu gpu": "gpu"}[
            sample.lines[0].split(" behind ")[0] if not first_is_front else front
        ]
        top = recipe(sample).pieces[-1].source.picture.path.parent.name
        assert (top == color) == first_is_front


def test_a_held_subject_is_small_and_inside_the_one_that_holds_it(folder):
    for sample in composites(load(folder, 'relations = ["holding"]\nnum_images = 6')):
        holder, held = recipe(sample).pieces
        assert (holder.source.picture.path.parent.name, held.source.picture.path.parent.name) == ("toy", "gpu")
        assert sample.lines == ("tjtoy toy holding sparkgpu gpu on a plain background",)
        assert held.size[0] <= holder.size[0] and held.size[1] < holder.size[1] / 2
        assert holder.top < held.top and held.top + held.size[1] <= holder.top + holder.size[1]


def test_a_relation_of_the_users_own(folder):
    more = 'relations = [{ name = "wearing as a hat", at = [0.5, 0.1], size = 0.3 }]\nnum_images = 4'
    for sample in composites(load(folder, more)):
        wearer, hat = recipe(sample).pieces
        assert "tjtoy toy wearing as a hat sparkgpu gpu" in sample.lines[0]
        assert abs(hat.top + hat.size[1] - (wearer.top + 0.1 * wearer.size[1])) <= 2
        assert abs(hat.left + hat.size[0] / 2 - (wearer.left + wearer.size[0] / 2)) <= 2


def test_the_concepts_that_are_named_stand_in_that_order(folder):
    more = 'concepts = ["sparkgpu gpu", "tjtoy toy"]\nrelations = ["on top of"]\nnum_images = 3'
    assert {s.lines[0] for s in composites(load(folder, more))} == {
        "sparkgpu gpu on top of tjtoy toy on a plain background"
    }


def test_only_concepts_that_may_be_mirrored_are(folder):
    pieces = [piece for sample in composites(load(folder)) for piece in recipe(sample).pieces]
    flips = Counter((piece.source.picture.path.parent.name, piece.flip) for piece in pieces)
    assert flips["toy", True] > 40 and flips["toy", False] > 40 and flips["gpu", True] == 0


def test_three_concepts_give_pairs_or_all_three(folder):
    draw_subject(folder / "cat", "00", (230, 230, 20), (30, 30, 130, 120))
    subset = '[[datasets.subsets]]\nimage_dir = "{folder}/cat"\nclass_tokens = "my cat"\n[[datasets.compositions]]\n'
    text = DATA.replace("[[datasets.compositions]]\n", subset).replace("= 128", "= 256")
    for together, groups in ((2, 3), ([2, 3], 4), (3, 1)):
        file = write_toml(folder, text.replace("MORE", f"together = {together}\nnum_images = 24"))
        found = composites(load_dataset(file)[0])
        shown = Counter(frozenset(p.source.picture.path.parent.name for p in recipe(s).pieces) for s in found)
        assert len(shown) == groups and set(shown.values()) == {24 // groups}
        captions = [sample.lines[0] for sample in found if len(recipe(sample).pieces) == 3]
        assert all(text.count(",") == 1 and " and " in text for text in captions)


def test_templates_and_backgrounds_of_the_users_own(folder):
    draw_folder(folder / "rooms", [(200, 100), (100, 200)], shade=9)
    (folder / "rooms" / "00.txt").write_text("in a hall")
    more = (
        'captions = ["a photo of {concepts} {place}", "{first} beside {second}, {relation}"]\n'
        'backgrounds = ["rooms", "plain"]\nnum_images = 40'
    )
    found = composites(load(folder, more))
    captions = Counter(sample.lines[0] for sample in found)
    assert any(text.startswith("a photo of ") and text.endswith("in a hall") for text in captions)
    assert any(" beside " in text and text.endswith(", next to") for text in captions)
    photographs = [s for s in found if not hasattr(recipe(s).backdrop, "horizon")]
    assert 15 < len(photographs) < 35
    sample = next(s for s in photographs if recipe(s).backdrop.picture.path.stem == "00")
    image, mask = recipe(sample).image(), recipe(sample).mask()
    behind = ImageOps.fit(
        Image.open(folder / "rooms" / "00.png").convert("RGB"), (SIDE, SIDE), Image.Resampling.LANCZOS
    )
    outside = np.asarray(mask) == 0
    assert np.array_equal(np.asarray(image)[outside], np.asarray(behind)[outside])


def test_composites_are_a_pure_function_of_seed_and_files(folder):
    def digests(**flags) -> list[str]:
        return [sample.picture.sha256 for sample in composites(load(folder, "num_images = 10", **flags))]

    first = digests()
    assert digests() == first and len(set(first)) == 10
    assert not set(digests(seed=7)) & set(first)
    draw_subject(folder / "gpu", "00", (0, 120, 250), (20, 50, 140, 110))
    changed = [a != b for a, b in zip(first, digests(), strict=True)]
    assert any(changed) and not all(changed)
    names = [
        piece.source.picture.path for s in composites(load(folder, "num_images = 10")) for piece in recipe(s).pieces
    ]
    assert {path.parent.name for path in names} == {"toy", "gpu"}


def test_the_cache_finds_a_composite_by_its_recipe(folder):
    keys = CacheKeys("a", "c", "t", 8, False)
    found = composites(load(folder, "num_images = 10"))
    assert len({keys.latents(sample, False) for sample in found}) == len({keys.mask(s, False) for s in found}) == 10
    moved = replace(found[0], key="elsewhere", picture=replace(found[0].picture, path=Path("x")))
    assert keys.latents(moved, False) == keys.latents(found[0], False)


def test_an_epoch_draws_as_many_composites_as_images_and_goes_on_where_it_ended(folder):
    data = load(folder, "num_images = 10")
    drawn = [
        Counter(draw.sample.key for batch in data.batches(epoch) for draw in batch if draw.sample.composition == 0)
        for epoch in range(5)
    ]
    assert [sum(counts.values()) for counts in drawn] == [8] * 5  # 2 x 3 + 2 x 1 images an epoch
    assert sum(drawn, Counter()) == {sample.key: 4 for sample in composites(data)}
    more = load(folder, "num_images = 10\nimages_per_epoch = 3")
    assert sum(draw.sample.composition == 0 for batch in more.batches(0) for draw in batch) == 3
    assert not any(draw.sample.composition == 0 for draw in data.validation_draws())


def test_no_composite_is_made_of_a_held_out_image(folder):
    for number in range(2, 6):
        draw_subject(folder / "toy", f"{number:02}", RED, (40, 20, 110, 150 - number))
        draw_subject(folder / "gpu", f"{number:02}", BLUE, (20, 50, 140 - number, 110))
    data = load(folder, validation_split=0.5)
    held = {sample.picture.sha256 for sample in data.validation}
    assert len(held) == 6
    used = {piece.source.picture.sha256 for sample in composites(data) for piece in recipe(sample).pieces}
    assert len(used) == 6 and not used & held


def test_the_manifest_has_the_composition_and_each_composite(folder):
    before = load(folder, "num_images = 4").manifest()
    assert load(folder, "num_images = 4").manifest() == before
    after = load(folder, "num_images = 4\nmask_dilation = 8").manifest()
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"dataset 0 composition 0", *(f"mask 0.composition 0/00{n}" for n in range(4))}


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ('concepts = ["tjtoy"]', "no subset has class_tokens = 'tjtoy'"),
        ("together = 3", "2 of the 3 concepts"),
        ("together = 0", "a number from 1 to 6"),
        ('relations = ["holdin"]', "did you mean holding?"),
        ('relations = ["hugging"]', "known are next to"),
        ('relations = [{ name = "hugging" }]', "says nothing of where"),
        ('relations = [{ name = "hugging", at = [0.5] }]', "[x, y]"),
        ('relations = [{ name = "hugging", at = [0.5, 0.5], sise = 1 }]', "did you mean size?"),
        ('relations = ["holding", "holding"]', "twice"),
        ('captions = "a photo of {concept}"', "{concepts}"),
        ('captions = "a photo"', "does not name the concepts"),
        ('captions = "{"', "{ as {{"),
        ('backgrounds = "nowhere"', "cannot be read"),
        ("backgrounds = 'D:\\places'", "a path of Windows"),
        ("num_image = 3", "did you mean num_images?"),
        ("count = 3", "use num_images"),
        ("num_images = 0", "at least 1"),
        ('relations = [{ name = "holding", size = 0.05 }]', "raise resolution"),
    ],
)
def test_what_cannot_be_meant_is_named_with_its_line(folder, more, words):
    (problem,) = problems(folder, more)
    assert words in problem and "data.toml:" in problem


def test_compositions_that_are_no_tables(folder):
    path = folder / "data.toml"
    text = DATA.replace("[[datasets.compositions]]\nMORE", "").replace("batch_size = 2", "compositions = 3")
    path.write_text(text.replace("{folder}", str(folder)))
    with pytest.raises(Problems, match="compositions is not a list of tables"):
        load_dataset(TrainConfig(dataset_config=path))


def test_cut_outs_that_are_not_worth_training_are_left_out_and_named(folder):
    draw_subject(folder / "toy", "small", RED, (60, 60, 100, 100))
    draw_subject(folder / "toy", "cut", RED, (60, 60, 160, 150))
    data, warnings = load_dataset(config(folder))
    told = "\n".join(map(str, warnings))
    assert "small.mask.png: its cut-out is only 40x40 pixels" in told
    assert "cut.mask.png: the concept is cut off by the image's edge (right)" in told
    used = {piece.source.picture.path.name for sample in composites(data) for piece in recipe(sample).pieces}
    assert used == {"00.png", "01.png"}


def test_a_concept_without_masks_says_what_it_needs(folder):
    for path in (folder / "gpu").glob("*.mask.png"):
        path.unlink()
    (problem,) = problems(folder, "")
    assert "1 of the 2 concepts" in problem and "NAME.mask.png" in problem
    named = problems(folder, 'concepts = ["tjtoy toy", "sparkgpu gpu"]')
    assert any("no image of 'sparkgpu gpu' can be cut out" in problem for problem in named)


def test_a_single_concept_is_told_about_companions(folder):
    start = DATA.index('[[datasets.subsets]]\nimage_dir = "{folder}/gpu"')
    only_toy = DATA[:start] + DATA[DATA.index("[[datasets.compositions]]") :]
    with pytest.raises(Problems, match="together = 1 and companions"):
        load_dataset(write_toml(folder, only_toy.replace("MORE", "")))


@pytest.mark.parametrize("relation", RELATIONS.values(), ids=str)
@pytest.mark.parametrize("image_aspect", [1.0, 1.6, 0.6])
def test_every_arrangement_stays_inside_the_image(relation: Relation, image_aspect: float) -> None:
    rng = Random(0)
    for _ in range(200):
        count = rng.choice([2, 2, 3, 4])
        aspects = [rng.uniform(0.3, 3) for _ in range(count)]
        boxes = arrange(rng, relation, aspects, image_aspect)
        assert len(boxes) == count
        for box, aspect in zip(boxes, aspects, strict=True):
            assert box.width == pytest.approx(box.height * aspect)
            assert (
                box.left >= -1e-6 and box.top >= -1e-6 and box.right <= image_aspect + 1e-6 and box.bottom <= 1 + 1e-6
            )
            assert min(box.width, box.height) > 0


def test_side_by_side_nobody_covers_anybody() -> None:
    rng = Random(1)
    for _ in range(200):
        boxes = arrange(rng, RELATIONS["next to"], [rng.uniform(0.4, 2.5) for _ in range(rng.choice([2, 3, 4]))], 1.0)
        assert all(a.right <= b.left for a, b in pairwise(boxes))


def test_templates_leave_no_gaps() -> None:
    names = ["a cat", "my toy", "a gpu"]
    assert fill_template("{concepts} {place}", names[:2], "holding", "") == "a cat holding my toy"
    assert fill_template("a photo of {concepts}, {place}", names, "next to", "at sea") == (
        "a photo of a cat, my toy and a gpu, at sea"
    )


def test_corners_are_those_of_what_is_solid() -> None:
    mask = Image.new("L", (50, 40), 0)
    mask.paste(100, (0, 0, 50, 40))
    mask.paste(200, (10, 5, 30, 20))
    assert solid_corners(mask) == (10, 5, 30, 20)
    assert solid_corners(Image.new("L", (9, 9), 100)) is None
