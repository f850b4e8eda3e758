"""The models that create masks: read strictly from their folders, and the same as in transformers' own hands."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.mask_models import write_detector, write_segmenter
from trainer.common.problems import Problems
from trainer.masking.load import GroundingDino, Sam2, model_problems

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    place = tmp_path_factory.mktemp("mask_models")
    return write_detector(place / "detector"), write_segmenter(place / "segmenter")


def noise(size: tuple[int, int]) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels)


def test_the_detector_finds_what_transformers_own_processor_finds(folders):
    """The same model with the library's preparation and boxes; the image is enlarged, so that its bilinear is ours."""
    from transformers import BertTokenizerFast, GroundingDinoForObjectDetection

    pil = pytest.importorskip("transformers.models.grounding_dino.image_processing_pil_grounding_dino")
    image = noise((90, 60))
    processor = pil.GroundingDinoImageProcessorPil(size={"shortest_edge": 96, "longest_edge": 192})
    model = GroundingDinoForObjectDetection.from_pretrained(str(folders[0]), local_files_only=True).eval()
    tokenizer = BertTokenizerFast(tokenizer_file=str(folders[0] / "tokenizer.json"))
    inputs = processor(images=image, return_tensors="pt") | tokenizer(["plush toy."], return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs)
    result = processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=[(60, 90)])[0]
    found = GroundingDino(folders[0], CPU)(image, "Plush toy.")
    scores = torch.tensor([each.score for each in found])
    assert len(found) == 12 and scores.max() > 0
    torch.testing.assert_close(scores, result["scores"], atol=1e-5, rtol=1e-4)
    clamped = result["boxes"].clamp(torch.zeros(4), torch.tensor([90.0, 60.0, 90.0, 60.0]))
    torch.testing.assert_close(torch.tensor([each.box for each in found]), clamped, atol=1e-3, rtol=1e-4)


def test_the_segmenter_takes_the_image_part_of_the_published_video_model(folders):
    model = Sam2(folders[1], CPU)
    held = load_file(folders[1] / "model.safetensors")
    for name, weight in model.model.state_dict().items():
        if name in held:
            assert torch.equal(weight, held[name]), name
    assert sum(name in held for name in model.model.state_dict()) > 100
    image = noise((100, 70))
    mask = model(image, [(10, 10, 60, 60)])
    assert mask.size == (100, 70) and mask.mode == "L" and set(np.unique(mask)) <= {0, 255}
    other = model(image, [(70, 5, 95, 30)])
    both = np.maximum(np.asarray(mask), np.asarray(other))
    union = np.asarray(model(image, [(10, 10, 60, 60), (70, 5, 95, 30)]))
    assert (union == both).mean() > 0.999 and (np.asarray(mask) != np.asarray(other)).any()


def test_what_a_folder_lacks_is_said_before_it_is_loaded(folders, tmp_path):
    assert model_problems(*folders) == []
    empty, swapped = tmp_path / "empty", folders[0]
    empty.mkdir()
    first, second = model_problems(empty, swapped)
    assert "the detector (GroundingDINO) lacks config.json, model.safetensors" in first.what
    assert "sh download.sh --masks" in first.hint
    assert "'grounding-dino', not SAM 2" in second.what


def test_a_torn_file_and_a_missing_tensor_are_refused(folders, tmp_path):
    torn, poor = tmp_path / "torn", tmp_path / "poor"
    for place in (torn, poor):
        place.mkdir()
        (place / "config.json").write_bytes((folders[1] / "config.json").read_bytes())
    data = (folders[1] / "model.safetensors").read_bytes()
    (torn / "model.safetensors").write_bytes(data[:-100])
    assert "truncated" in model_problems(folders[0], torn)[0].what
    tensors = load_file(folders[1] / "model.safetensors")
    del tensors["no_memory_embedding"]
    save_file(tensors, poor / "model.safetensors", {"format": "pt"})
    assert model_problems(folders[0], poor) == []
    with pytest.raises(Problems, match="lacks 1 of the model's tensors, no_memory_embedding"):
        Sam2(poor, CPU)


def test_positions_that_a_file_has_under_one_name_serve_for_both(folders, tmp_path):
    """transformers 4 leaves the second name out, and transformers 5 would make up random numbers for it."""
    tensors = load_file(folders[1] / "model.safetensors")
    del tensors["prompt_encoder.shared_embedding.positional_embedding"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_bytes((folders[1] / "config.json").read_bytes())
    image, boxes = noise((100, 70)), [(10.0, 10.0, 60.0, 60.0)]
    assert Sam2(tmp_path, CPU)(image, boxes).tobytes() == Sam2(folders[1], CPU)(image, boxes).tobytes()


def test_a_configuration_never_brings_code(folders, tmp_path):
    for name in ("model.safetensors", "tokenizer.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((folders[0] / name).read_bytes())
    config = json.loads((folders[0] / "config.json").read_text())
    config["auto_map"] = {"AutoModelForZeroShotObjectDetection": "evil.Model"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text("raise SystemExit('it ran')")
    assert GroundingDino(tmp_path, CPU)(noise((60, 60)), "toy")
