"""`python -m trainer mask`: the complete command, with small random models and with ones whose answer is known."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.mask_models import write_detector, write_segmenter
from trainer.__main__ import main
from trainer.masking.create import Detection

pytestmark = pytest.mark.usefixtures("dataset")
DATASET = """
[[datasets]]
resolution = 64
[[datasets.subsets]]
image_dir = "toy"
class_tokens = "tjtoy toy"
masked_loss = true
[[datasets.subsets]]
image_dir = "gpu"
class_tokens = "sparkgpu gpu"
[[datasets.subsets]]
image_dir = "reg"
class_tokens = "toy"
is_reg = true
"""


@pytest.fixture(scope="module")
def model_flags(tmp_path_factory) -> list[str]:
    place = tmp_path_factory.mktemp("mask_models")
    detector, segmenter = write_detector(place / "detector"), write_segmenter(place / "segmenter")
    return [f"--detector={detector}", f"--segmenter={segmenter}"]


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two concepts of three images each, and a folder of class images, in the current folder."""
    monkeypatch.chdir(tmp_path)
    Path("data.toml").write_text(DATASET)
    random = np.random.default_rng(0)
    for folder in ("toy", "gpu", "reg"):
        Path(folder).mkdir()
        for name in ("a.png", "b.png", "c.jpg"):
            Image.fromarray(random.integers(0, 256, (70, 90, 3), np.uint8)).save(Path(folder, name))


def fill(image: Image.Image, boxes: Sequence[Sequence[float]]) -> Image.Image:
    mask = Image.new("L", image.size)
    for box in boxes:
        mask.paste(255, tuple(map(round, box)))
    return mask


class Known:
    """Stands in for both models: finds what it was told for each image in turn, and fills boxes."""

    def __init__(self, *answers: Sequence[Detection]):
        self.answers, self.phrases = list(answers), []

    def detector(self, _folder, _device):
        def detect(_image, phrase):
            self.phrases.append(phrase)
            return self.answers.pop(0)

        return detect

    def segmenter(self, _folder, _device):
        return fill


def put_in(known: Known, monkeypatch: pytest.MonkeyPatch) -> Known:
    monkeypatch.setattr("trainer.masking.load.GroundingDino", known.detector)
    monkeypatch.setattr("trainer.masking.load.Sam2", known.segmenter)
    return known


def masks() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(Path().glob("*/*.mask.png"))}


GOOD = (Detection((10, 10, 50, 50), 0.8),)


def test_the_complete_command_with_random_models(model_flags, capsys):
    """With a threshold below every score each image gets a mask, unless the random outline is empty."""
    argv = ["mask", "--dataset_config", "data.toml", "--box_threshold", "0.0001", *model_flags]
    assert main(argv) == 0
    text = capsys.readouterr().out
    assert "reg: left out" in text and "s per image" in text and "(6 of 6)" in text and "left)" in text
    for name in ("toy", "gpu"):
        with Image.open(f"output/masks/{name}.jpg") as sheet:
            assert sheet.format == "JPEG" and sheet.width > 3 * 256
    assert masks() and not list(Path("reg").glob("*.mask.png"))
    for path in masks():
        with Image.open(path) as mask:
            assert mask.size == (90, 70) and mask.mode == "L"
    before = masks()
    assert main([*argv, "--redo"]) == 0
    assert masks() == before, "the same models create the same files"


def test_masks_that_it_creates_are_read_by_training(model_flags, monkeypatch):
    from trainer.data.dataset_config import SubsetConfig
    from trainer.data.masks import scan_masks
    from trainer.images.folder import read_folder

    put_in(Known(*[GOOD] * 3), monkeypatch)
    assert main(["mask", "toy", "--class_word", "toy", *model_flags]) == 0
    subset = SubsetConfig(image_dir=Path("toy"), masked_loss=True)
    folder = read_folder(subset.image_dir)
    scan = scan_masks(subset, folder, dict.fromkeys(folder.images, (90, 70)))
    assert len(scan.masks) == 3 and not scan.problems and not scan.warnings


def test_it_resumes_and_leaves_every_mask_alone(model_flags, monkeypatch, capsys):
    fill(Image.new("RGB", (90, 70)), [(0, 0, 9, 9)]).save("toy/b.mask.png")
    known = put_in(Known(GOOD, GOOD), monkeypatch)
    argv = ["mask", "toy", "--class_word", "Plush toy", *model_flags]
    own = Path("toy/b.mask.png").read_bytes()
    assert main(argv) == 0 and known.phrases == ["Plush toy"] * 2
    assert "toy/b.png: left alone, it has a mask (b.mask.png, made or edited by hand)" in capsys.readouterr().out
    before = masks()
    Path("toy/a.mask.png").unlink()
    put_in(Known(GOOD), monkeypatch)
    assert main(argv) == 0 and masks() == before, "only what was missing is created"
    put_in(Known(), monkeypatch)
    capsys.readouterr()
    assert main(argv) == 0 and masks() == before
    assert "Every image has a mask" in capsys.readouterr().out
    put_in(Known(*[(Detection((0, 0, 30, 30), 0.9),)] * 2), monkeypatch)
    assert main([*argv, "--redo"]) == 0
    after = masks()
    assert after["toy/b.mask.png"] == own and all(after[each] != before[each] for each in after if "b.mask" not in each)


def test_an_interrupted_run_keeps_what_it_wrote(model_flags, monkeypatch):
    known = put_in(Known(GOOD), monkeypatch)

    def stop(_folder, _device):
        def detect(_image, _phrase):
            if not known.answers:
                raise KeyboardInterrupt
            return known.answers.pop(0)

        return detect

    monkeypatch.setattr("trainer.masking.load.GroundingDino", stop)
    argv = ["mask", "toy", "--class_word", "toy", *model_flags]
    assert main(argv) == 130 and list(masks()) == ["toy/a.mask.png"]
    put_in(Known(GOOD, GOOD), monkeypatch)
    assert main(argv) == 0 and len(masks()) == 3


def test_doubtful_masks_are_named_now_and_in_later_runs(model_flags, monkeypatch, capsys):
    two = (Detection((0, 0, 20, 20), 0.9), Detection((50, 40, 80, 60), 0.8))
    put_in(Known((), two, (Detection((0, 0, 90, 70), 0.7),)), monkeypatch)
    argv = ["mask", "toy", "--class_word", "toy", *model_flags]
    assert main(argv) == 0
    text = capsys.readouterr().out
    said = [line for line in text.splitlines() if "look at it" in line]
    assert [line.partition(": ")[2] for line in said] == [
        "nothing found that looks like 'toy'",
        "2 objects look like 'toy' (scores 0.90, 0.80): the surest is masked",
        "covers almost all of the image (100%)",
        "touches all four borders",
    ]
    assert "2 of 3 masks created" in text and "3 to look at" in text
    put_in(Known(()), monkeypatch)
    assert main(argv) == 0
    assert "2 objects look like 'toy'" in capsys.readouterr().out


def test_alpha_that_an_editor_wrote_is_its_own_mask(model_flags, monkeypatch, capsys):
    image = Image.open("toy/a.png").convert("RGBA")
    image.putalpha(fill(image.convert("RGB"), [(10, 10, 40, 40)]))
    image.save("toy/a.png")
    before = Path("toy/a.png").read_bytes()
    put_in(Known(GOOD, GOOD), monkeypatch)
    assert main(["mask", "toy", "--class_word", "toy", "--redo", *model_flags]) == 0
    text = capsys.readouterr().out
    assert "toy/a.png: left alone, it has a mask (its alpha channel)" in text and "alpha_mask = true" in text
    assert Path("toy/a.png").read_bytes() == before and "toy/a.mask.png" not in masks()


def test_the_sheet_shows_the_mask(model_flags, monkeypatch):
    """Bright inside, dark outside: three images in one row."""
    for name in ("a.png", "b.png", "c.jpg"):
        Image.new("RGB", (90, 90), (200, 200, 200)).save(Path("toy", name))
    put_in(Known(*[(Detection((0, 0, 45, 90), 0.9),)] * 3), monkeypatch)
    assert main(["mask", "toy", "--class_word", "toy", "--output", "sheets", *model_flags]) == 0
    with Image.open("sheets/toy.jpg") as sheet:
        row = np.asarray(sheet.convert("L")).astype(int)[200]
    assert ((row > 190) & (row < 210)).sum() > 200 and ((row > 50) & (row < 70)).sum() > 200


def test_all_problems_are_said_before_a_model_is_loaded(monkeypatch, capsys):
    monkeypatch.setattr("trainer.masking.load.GroundingDino", lambda *_: pytest.fail("it was loaded"))
    Path("data.toml").write_text(DATASET.replace('"sparkgpu gpu"', '"sparkgpu"').replace("64", '"x"'))
    Path("toy/b.png").write_bytes(b"")
    assert main(["mask", "--dataset_config", "data.toml"]) == 1
    text = capsys.readouterr().err
    for part in (
        "data.toml:3: resolution",
        "class_tokens 'sparkgpu' has no class word",
        "toy/b.png: is empty",
        "models/masks/grounding-dino-base: the detector (GroundingDINO) lacks config.json",
        "models/masks/sam2.1-hiera-large: the segmenter (SAM 2) lacks config.json, model.safetensors",
        "sh download.sh --masks",
    ):
        assert part in text, part
    assert not masks() and not Path("output").exists()


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        ([], "no images are named"),
        (["toy"], "--class_word: is missing"),
        (["toy", "--class_word", " . "], "--class_word: is missing"),
        (["toy", "--dataset_config", "data.toml"], "is given along with folders"),
        (["--dataset_config", "data.toml", "--class_word", "toy"], "has no effect"),
        (["toy", "--class_word", "toy", "--box_threshold", "1.5"], "1.5 is not between 0 and 1"),
        (["--dataset_config", "absent.toml"], "absent.toml"),
    ],
)
def test_mistakes_in_flags_are_problems(argv, part, capsys):
    assert main(["mask", *argv]) == 1
    assert part in capsys.readouterr().err


def test_a_folder_without_anything_due_needs_no_models():
    for name in "abc":
        fill(Image.new("RGB", (90, 70)), [(0, 0, 9, 9)]).save(f"toy/{name}.mask.png")
    assert main(["mask", "toy", "--class_word", "toy"]) == 0
    assert Path("output/masks/toy.jpg").is_file()
