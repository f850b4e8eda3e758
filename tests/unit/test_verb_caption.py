"""`trainer caption`: what becomes of a model's words, which captions are written, and the model from its folder."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.caption_models import IMAGE_TOKEN, SIDE, write_captioner
from tests.dataset_files import draw
from tests.kept_logging import logging_kept  # noqa: F401 (a fixture)
from trainer.captioning.create import create_captions
from trainer.captioning.load import Florence2, model_problems
from trainer.captioning.plan import Concept, make_plan
from trainer.captioning.words import caption_for
from trainer.cli import caption
from trainer.common.problems import Problems
from trainer.exchange import files
from trainer.exchange.caption_record import read_record

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("said", "written"),
    [
        ("The image shows a small red plush toy with button eyes sitting on a wooden desk next to a computer.",
         "tjtoy toy sitting on a wooden desk next to a computer"),
        ("In this image we can see a toy on the table. In the background there is a wall.",
         "tjtoy toy on the table. In the background there is a wall"),
        ("A red toy bear is standing in the snow. The toy is made of plastic. It is surrounded by trees.",
         "tjtoy toy standing in the snow. It is surrounded by trees"),
        ("A woman holding a small, soft and fluffy toy in a park.", "a woman holding tjtoy toy in a park"),
        ("The image is of a plush toy. It has big eyes. The toy is on a chair.", "tjtoy toy. The toy is on a chair"),
        ("Two toys on a shelf", "tjtoy toy on a shelf"),
        ("a close-up of a toy that is blue, at night", "tjtoy toy at night"),
        ("TOY", "tjtoy toy"),
    ],
)  # fmt: skip
def test_the_concept_is_left_to_its_trigger(said: str, written: str):
    found = caption_for(said, "tjtoy  toy")
    assert found.text == written and found.doubt == ""


def test_a_class_word_of_several_words_counts_by_its_last_one_too():
    assert (
        caption_for("There is a black card with fans on a desk.", "tj graphics card").text
        == "tj graphics card on a desk"
    )
    assert caption_for("A graphics card.", "tj graphics card").text == "tj graphics card"


def test_what_the_model_did_not_mention_is_put_in_front_and_named():
    found = caption_for("There is a stuffed animal on a chair.", "tjtoy toy")
    assert found.text == "tjtoy toy, a stuffed animal on a chair" and "did not mention 'toy'" in found.doubt
    assert "said nothing" in caption_for(" ", "tjtoy toy").doubt


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "flux_data/toy"
    for number, name in enumerate("abcd"):
        draw(place / f"{name}.png", shade=40 * number)
    (place / "b.txt").write_text("mine\n")
    (place / "c.txt").write_text(" \n")
    return place


def see(_: Image.Image) -> str:
    return "The image shows a toy on a sofa."


def written(folder: Path, redo: bool = False, captioner=see) -> list[str]:
    """The names of the images that got a caption."""
    (plan,) = make_plan([Concept(folder, "tjtoy toy", str(folder))], redo)
    names: list[str] = []
    create_captions(captioner, plan, lambda due, outcome: names.append(due.image.name if outcome.text else "-"))
    return names


def test_only_what_lacks_a_caption_gets_one_and_a_repeated_run_does_the_rest(folder: Path):
    seen = []

    def stop_at_third(image: Image.Image) -> str:
        seen.append(image)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return see(image)

    with pytest.raises(KeyboardInterrupt):
        written(folder, captioner=stop_at_third)
    assert written(folder) == ["d.png"] and written(folder) == []
    assert {path.name: path.read_text() for path in folder.glob("*.txt")} == {
        "a.txt": "tjtoy toy on a sofa\n", "b.txt": "mine\n", "c.txt": "tjtoy toy on a sofa\n",
        "d.txt": "tjtoy toy on a sofa\n",
    }  # fmt: skip
    assert sorted(path.name for path in folder.iterdir() if path.suffix not in (".png", ".txt")) == []


def test_redo_leaves_alone_what_a_person_wrote_or_edited(folder: Path):
    written(folder)
    (folder / "a.txt").write_text("tjtoy toy on a sofa, asleep\n")
    assert written(folder, redo=True, captioner=lambda _: "a toy on a chair") == ["c.png", "d.png"]
    assert (folder / "a.txt").read_text() == "tjtoy toy on a sofa, asleep\n"
    assert (folder / "b.txt").read_text() == "mine\n" and (folder / "d.txt").read_text() == "tjtoy toy on a chair\n"
    assert read_record(folder).keys() == {"a.txt", "c.txt", "d.txt"}


def test_a_caption_that_somebody_writes_meanwhile_stays(folder: Path):
    def slow(_: Image.Image) -> str:
        for name in ("a.txt", "c.txt", "d.txt"):
            (folder / name).write_text("by hand")
        return "a toy"

    assert written(folder, captioner=slow) == ["-", "-", "-"]
    assert {(folder / f"{name}.txt").read_text() for name in "acd"} == {"by hand"}


def test_a_full_disk_ends_it_with_nothing_half_written(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        written(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["a.png", "b.png", "b.txt", "c.png", "c.txt", "d.png"]


def test_problems_are_found_before_a_model_is_loaded(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder.parents[1])
    draw(folder / "a.jpg")
    with pytest.raises(Problems) as found:
        caption.run([str(folder), "--class_tokens", "tjtoy"])
    text = str(found.value)
    assert "no class word" in text and "would share the caption a.txt" in text and "download.sh --captions" in text
    for argv in ([], [str(folder)], [str(folder), "--dataset_config=x", "--class_tokens=tj toy"]):
        with pytest.raises(Problems):
            caption.run(argv)


def test_a_dataset_file_s_folders_are_captioned_by_a_small_model(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.chdir(folder.parents[1])
    monkeypatch.setattr(caption, "_load", lambda folder: Florence2(folder, CPU, SIDE))
    Path("data.toml").write_text(
        '[[datasets]]\n[[datasets.subsets]]\nimage_dir = "flux_data/toy"\nclass_tokens = "tjtoy toy"\n'
        '[[datasets.subsets]]\nimage_dir = "flux_data"\nis_reg = true\n'
    )
    model = write_captioner(Path("models/captions/Florence-2-large"))
    assert model_problems(model) == []
    assert caption.run(["--dataset_config", "data.toml"]) == 0
    told = capsys.readouterr().out
    assert "3 of 3 captions written" in told and "flux_data: left out" in told
    assert all("tjtoy toy" in (folder / f"{name}.txt").read_text() for name in "acd")
    assert (folder / "b.txt").read_text() == "mine\n"
    assert caption.run(["--dataset_config", "data.toml"]) == 0
    assert "Every image has a caption" in capsys.readouterr().out


def test_the_model_sees_what_transformers_own_generation_sees(tmp_path: Path):
    """The same image and words through the library; the image is noise of the model's own size."""
    from transformers import Florence2ForConditionalGeneration

    folder = write_captioner(tmp_path / "model")
    ours = Florence2(folder, CPU, SIDE)
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    said = ours(Image.fromarray(pixels))
    assert said == ours(Image.fromarray(pixels)) and ours.image_tokens == 5
    model = Florence2ForConditionalGeneration.from_pretrained(str(folder), local_files_only=True).eval()
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    values = ((torch.from_numpy(pixels).float() / 255 - mean) / std).permute(2, 0, 1)[None]
    ids = torch.tensor([[IMAGE_TOKEN] * 5 + [0, *ours.prompt, 2]])
    with torch.no_grad():
        found = model.generate(
            input_ids=ids, pixel_values=values, attention_mask=torch.ones_like(ids), num_beams=3, max_new_tokens=128,
            no_repeat_ngram_size=3, do_sample=False, early_stopping=True, forced_bos_token_id=0,
        )  # fmt: skip
    assert ours.tokenizer.decode(found[0].tolist(), skip_special_tokens=True).split() == said.split()


def test_a_file_that_lacks_a_tensor_is_refused(tmp_path: Path):
    from safetensors.torch import load_file, save_file

    folder = write_captioner(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    del tensors[next(name for name in tensors if "vision_tower" in name)]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Problems, match="lacks 1 of the model's tensors"):
        Florence2(folder, CPU, SIDE)
