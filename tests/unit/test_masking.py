"""Which images get a mask, what is never overwritten, and which masks are named as doubtful."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from trainer.common.problems import Problems
from trainer.data.class_words import class_word_of
from trainer.data.dataset_config import SubsetConfig
from trainer.masking.create import Box, Detection, Models, create_mask, distinct, shape_doubts
from trainer.masking.files import read_mark, write_mask
from trainer.masking.plan import Concept, ConceptPlan, concepts_of, make_plan

SIZE = (80, 60)
MIDDLE = (20.0, 10.0, 60.0, 50.0)


def save_image(path: Path, alpha: int | None = None) -> Path:
    """A grey image; alpha: of its left half, the right half is opaque."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", SIZE, "gray")
    if alpha is not None:
        image.putalpha(Image.fromarray(np.tile(np.array([alpha] * 40 + [255] * 40, np.uint8), (60, 1))))
    image.save(path)
    return path


def filled(box: Sequence[float]) -> Image.Image:
    mask = Image.new("L", SIZE)
    mask.paste(255, tuple(map(round, box)))
    return mask


def models(*found: Detection, all_objects: bool = False) -> Models:
    """A detector that finds these, and a segmenter that fills the boxes."""

    def segment(image: Image.Image, boxes: Sequence[Box]) -> Image.Image:
        masks = np.maximum.reduce([np.asarray(filled(box)) for box in boxes])
        assert image.size == SIZE and image.mode == "RGB"
        return Image.fromarray(masks)

    return Models(lambda _image, _phrase: found, segment, threshold=0.3, all_objects=all_objects)


def plan_of(folder: Path, word: str = "toy", redo: bool = False, **keys) -> ConceptPlan:
    subset = SubsetConfig(image_dir=folder, **keys)
    return make_plan([Concept(subset, word)], folder.parent / "out", redo)[0]


def problems_of(concepts: Sequence[Concept], output: Path) -> str:
    with pytest.raises(Problems) as found:
        make_plan(concepts, output)
    return str(found.value)


@pytest.mark.parametrize(
    ("tokens", "word"),
    [("tjtoy toy", "toy"), ("sks, plush toy.", "plush toy"), ("tjtoy", ""), (" ", ""), (None, "")],
)
def test_the_class_word_follows_the_trigger(tokens, word):
    assert class_word_of(tokens) == word


def test_every_image_without_a_mask_is_due(tmp_path):
    for name in ("a.png", "b.jpg"):
        save_image(tmp_path / "toy" / name)
    plan = plan_of(tmp_path / "toy")
    assert [(each.image.name, each.target.name) for each in plan.due] == [
        ("a.png", "a.mask.png"),
        ("b.jpg", "b.mask.png"),
    ]
    assert not plan.kept and plan.name == "toy"


def test_masks_of_every_source_are_left_alone(tmp_path):
    folder, elsewhere = tmp_path / "toy", tmp_path / "masks"
    for name in ("file.png", "kohya.png", "opaque.png", "none.png"):
        save_image(folder / name)
    save_image(folder / "edited.png", alpha=0)
    save_image(folder / "opaque.png", alpha=255)
    save_image(folder / "file_mask.jpg")
    save_image(elsewhere / "kohya.webp")
    plan = plan_of(folder, conditioning_data_dir=elsewhere)
    kept = {each.image.name: each.mask.name if each.mask else "alpha" for each in plan.kept}
    assert kept == {"file.png": "file_mask.jpg", "kohya.png": "kohya.webp", "edited.png": "alpha"}
    assert [each.target for each in plan.due] == [elsewhere / "none.png", elsewhere / "opaque.png"]
    hints = {each.image.name: each.hint for each in plan.kept}
    assert "masks only: move it there" in hints["file.png"] and not hints["kohya.png"]
    assert "leave out conditioning_data_dir" in hints["edited.png"]
    assert [each.hint for each in plan_of(folder, alpha_mask=True).kept] == ["", ""]


def test_redo_takes_only_unchanged_masks_of_its_own(tmp_path):
    folder = tmp_path / "toy"
    for name in "abcd":
        save_image(folder / f"{name}.png")
        write_mask(folder / f"{name}.mask.png", filled(MIDDLE), "toy", ["is odd"])
    filled((0, 0, 5, 5)).save(folder / "b.mask.png")
    with Image.open(folder / "c.mask.png") as edited:  # an editor that keeps the text chunk
        edited.load()
        edited.putpixel((0, 0), 255)
        info = PngInfo()
        for key, value in edited.text.items():
            info.add_itxt(key, value)
        edited.save(folder / "c.mask.png", pnginfo=info)
    save_image(folder / "d_mask.png")  # a second mask: which one is meant is not known
    assert [each.image.name for each in plan_of(folder, redo=True).due] == ["a.png"]
    assert not plan_of(folder).due
    sources = [each.source for each in plan_of(folder).kept]
    assert sources[:3] == ["created for 'toy'", "made or edited by hand", "made or edited by hand"]


def test_the_mark_survives_and_belongs_to_the_pixels(tmp_path):
    path = tmp_path / "a.mask.png"
    write_mask(path, filled(MIDDLE), "plüsch toy", ["is tiny"])
    mark = read_mark(path)
    assert mark and mark.class_word == "plüsch toy" and mark.doubts == ("is tiny",)
    with Image.open(path) as image:
        assert image.mode == "L" and np.array_equal(np.asarray(image), np.asarray(filled(MIDDLE)))
        Image.merge("RGB", [image] * 3).save(tmp_path / "rgb.png")
    assert read_mark(tmp_path / "rgb.png") is None
    (tmp_path / "torn.png").write_bytes(path.read_bytes()[:60])
    assert read_mark(tmp_path / "torn.png") is None and read_mark(tmp_path / "absent.png") is None


def test_problems_are_found_together(tmp_path):
    folder = tmp_path / "toy"
    save_image(folder / "a.png")
    save_image(folder / "a.jpg")
    (folder / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    (folder / "c.png").write_text("<html>")
    save_image(tmp_path / "gpu" / "d.png")
    (tmp_path / "gpu" / "d.mask.png").mkdir()
    (tmp_path / "empty").mkdir()
    blocked = tmp_path / "file"
    blocked.touch()
    given = [
        Concept(SubsetConfig(image_dir=folder, class_tokens="tjtoy", where="data.toml:3"), ""),
        Concept(SubsetConfig(image_dir=tmp_path / "gpu"), "gpu"),
        Concept(SubsetConfig(image_dir=tmp_path / "empty"), "gpu"),
        Concept(SubsetConfig(image_dir=tmp_path / "absent"), "gpu"),
    ]
    text = problems_of(given, blocked)
    for part in (
        "data.toml:3: class_tokens 'tjtoy' has no class word",
        "b.png: cannot be decoded",
        "c.png: is an HTML page",
        "a.jpg and a.png would share the mask a.mask.png",
        "d.mask.png: is in the way of the mask of d.png",
        "empty has no images",
        "absent cannot be opened: No such file",
        f"--output={blocked}",
    ):
        assert part in text, part


def test_a_dataset_file_gives_its_concepts_once_and_names_the_rest(tmp_path):
    subsets = [
        SubsetConfig(image_dir=tmp_path / "toy", class_tokens="tjtoy toy"),
        SubsetConfig(image_dir=tmp_path / "toy", class_tokens="tjtoy toy"),
        SubsetConfig(image_dir=tmp_path / "reg", class_tokens="toy", is_reg=True),
        SubsetConfig(image_dir=tmp_path / "base", diff_output_preservation=True),
    ]
    subsets.append(SubsetConfig(image_dir=tmp_path / "toy", class_tokens="tjtoy robot", where="data.toml:9"))
    concepts, notes = concepts_of(subsets)
    assert [concept.class_word for concept in concepts] == ["toy"]
    assert "data.toml:9: not looked for: 'robot', but 'toy'" in notes.pop()
    assert len(notes) == 2 and "reg: left out" in notes[0] and "base: left out" in notes[1]


def test_folders_of_one_name_have_their_own_sheets(tmp_path):
    concepts = []
    for parent in "abc":
        save_image(tmp_path / parent / "toy" / "1.png")
        concepts.append(Concept(SubsetConfig(image_dir=tmp_path / parent / "toy"), "toy"))
    assert [plan.name for plan in make_plan(concepts, tmp_path)] == ["toy", "toy-2", "toy-3"]


def doubts_of(tmp_path: Path, *found: Detection, **keys) -> tuple[str, ...]:
    save_image(tmp_path / "toy" / "a.png")
    (tmp_path / "toy" / "a.mask.png").unlink(missing_ok=True)
    return create_mask(models(*found, **keys), plan_of(tmp_path / "toy").due[0], "toy").doubts


def test_what_looks_wrong_is_said(tmp_path):
    assert doubts_of(tmp_path, Detection(MIDDLE, 0.8)) == ()
    assert doubts_of(tmp_path) == ("nothing found that looks like 'toy'",)
    assert doubts_of(tmp_path, Detection(MIDDLE, 0.2)) == ("nothing found that looks like 'toy'",)
    assert not (tmp_path / "toy" / "a.mask.png").exists()
    assert doubts_of(tmp_path, Detection((0, 0, 80, 56), 0.8)) == ("covers almost all of the image (93%)",)
    assert doubts_of(tmp_path, Detection((1, 1, 5, 5), 0.8)) == ("is tiny (0.33% of the image)",)
    everywhere = doubts_of(tmp_path, Detection((0, 0, 80, 60), 0.8))
    assert everywhere == ("covers almost all of the image (100%)", "touches all four borders")
    assert doubts_of(tmp_path, Detection((3, 3, 3, 3), 0.8)) == (
        "something looks like 'toy', but no outline was found",
    )


def test_a_cross_touches_all_borders_without_filling_the_image():
    mask = filled((38, 0, 42, 60))
    mask.paste(255, (0, 28, 80, 32))
    assert shape_doubts(mask) == ["touches all four borders"]


def test_several_objects_are_said_and_the_surest_is_masked(tmp_path):
    left, right, faint = (
        Detection((0, 0, 20, 20), 0.5),
        Detection((50, 10, 70, 50), 0.9),
        Detection((30, 0, 40, 9), 0.31),
    )
    found = doubts_of(tmp_path, left, right, faint)
    assert found == ("2 objects look like 'toy' (scores 0.90, 0.50): the surest is masked",)
    with Image.open(tmp_path / "toy" / "a.mask.png") as mask:
        assert mask.getbbox() == (50, 10, 70, 50)
    assert "all are masked" in doubts_of(tmp_path, left, right, all_objects=True)[0]
    with Image.open(tmp_path / "toy" / "a.mask.png") as mask:
        assert mask.getbbox() == (0, 0, 70, 50)


def test_boxes_of_one_object_and_of_its_parts_count_once():
    whole, shifted, part = (10, 10, 50, 50), (12, 10, 52, 50), (15, 12, 25, 20)
    objects = distinct([Detection(shifted, 0.6), Detection(whole, 0.7), Detection(part, 0.5)])
    assert objects == [Detection(whole, 0.7)]
    assert len(distinct([Detection(whole, 0.7), Detection((45, 10, 85, 50), 0.6)])) == 2
    assert distinct([]) == []


def test_a_mask_that_appears_meanwhile_is_not_replaced(tmp_path):
    image = save_image(tmp_path / "toy" / "a.png")
    due = plan_of(tmp_path / "toy").due[0]
    filled((0, 0, 9, 9)).save(due.target)
    before = due.target.read_bytes()
    outcome = create_mask(models(Detection(MIDDLE, 0.8)), due, "toy")
    assert "left as it is" in outcome.doubts[0] and outcome.share is None and due.target.read_bytes() == before
    due.target.unlink()
    due.target.symlink_to(tmp_path / "nowhere")
    assert create_mask(models(Detection(MIDDLE, 0.8)), due, "toy").share is None and due.target.is_symlink()
    due.target.unlink()
    image.write_bytes(b"gone")
    assert "the image is" in create_mask(models(Detection(MIDDLE, 0.8)), due, "toy").doubts[0]


def test_a_mask_edited_between_plan_and_redo_is_not_replaced(tmp_path):
    save_image(tmp_path / "toy" / "a.png")
    target = tmp_path / "toy" / "a.mask.png"
    write_mask(target, filled(MIDDLE), "toy", [])
    due = plan_of(tmp_path / "toy", redo=True).due[0]
    assert create_mask(models(Detection((0, 0, 30, 30), 0.8)), due, "toy").share == 900 / 4800
    due = plan_of(tmp_path / "toy", redo=True).due[0]
    filled((0, 0, 9, 9)).save(target)
    before = target.read_bytes()
    assert create_mask(models(Detection(MIDDLE, 0.8)), due, "toy").share is None and target.read_bytes() == before
