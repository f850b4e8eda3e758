"""The models that measure images: read strictly from their folders, and the same as in transformers' own hands."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import PreTrainedModel

from benchmarks.random_judges import FULL, PATCH, TINY, write_dinov2, write_siglip2
from trainer.common.problems import Problems
from trainer.comparison import judges
from trainer.comparison.check import judge_problems
from trainer.comparison.features import DINO_SIDE, Dinov2, Siglip2
from trainer.config import TrainConfig

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    place = tmp_path_factory.mktemp("judge_models")
    return write_dinov2(place / "dinov2"), write_siglip2(place / "siglip2")


def noise(size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8))


def test_patches_are_those_of_transformers_own_preparation(folders):
    """An image that already has DINOv2's size, so that its processor only scales the numbers."""
    from transformers import Dinov2Model

    image = noise((DINO_SIDE, DINO_SIDE))
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = (pixels - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
    model = Dinov2Model.from_pretrained(str(folders[0]), local_files_only=True).eval()
    with torch.no_grad():
        expected = model(pixel_values=pixels).last_hidden_state[0, 1:]
    found = Dinov2(folders[0], CPU)(image)
    side = DINO_SIDE // PATCH
    assert found.shape == (side, side, 16)
    expected = expected / expected.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(found.flatten(0, 1), expected, atol=1e-5, rtol=1e-4)


def test_an_image_keeps_its_proportions(folders):
    rows, columns, _ = Dinov2(folders[0], CPU)(noise((200, 100))).shape
    assert columns == pytest.approx(2 * rows, abs=1) and rows * columns == pytest.approx(1024, rel=0.05)


def test_agreement_is_the_cosine_of_both_embeddings(folders):
    from transformers import SiglipModel

    judge, image = Siglip2(folders[1], CPU), noise((TINY.siglip_side, TINY.siglip_side))
    model = SiglipModel.from_pretrained(str(folders[1]), local_files_only=True).eval()
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1
    for text, ids in (("A tjtoy TOY", [6, 5, 4, 1]), ("toy", [4, 1])):
        tokens = torch.tensor([[*ids, *[0] * (64 - len(ids))]])
        assert judge.token_ids(text) == tokens[0].tolist()
        with torch.no_grad():
            output = model(pixel_values=pixels, input_ids=tokens)
        expected = torch.cosine_similarity(output.image_embeds, output.text_embeds)
        assert judge([image], [text]) == [pytest.approx(float(expected), abs=1e-5)]
    assert judge.token_ids("toy " * 100)[-1] == 1 and len(judge.token_ids("toy " * 100)) == 64


def test_what_is_missing_or_of_another_kind_is_named(folders, tmp_path):
    assert judge_problems(*folders) == []
    (problem,) = judge_problems(tmp_path, None)
    assert "DINOv2" in problem.what and "sh download.sh --judges" in problem.hint
    other = write_dinov2(tmp_path / "other")
    (other / "config.json").write_text(json.dumps({"model_type": "vit"}))
    assert ["'vit'" in each.what for each in judge_problems(other, folders[1])] == [True]


def test_a_file_that_lacks_a_tensor_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = write_dinov2(tmp_path / "dinov2")
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("encoder.layer.1.norm1.weight")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(Problems, match="lacks 1 of the model's tensors"):
        Dinov2(folder, CPU)


def test_random_judges_have_the_published_sizes(monkeypatch, tmp_path):
    """The numbers of weights are those of dinov2-base and siglip2-base-patch16-224 on the Hub."""
    counted = []
    count = lambda model, _folder: counted.append(sum(each.numel() for each in model.parameters()))  # noqa: E731
    monkeypatch.setattr(PreTrainedModel, "save_pretrained", count)
    with torch.device("meta"):
        write_dinov2(tmp_path, FULL)
        write_siglip2(tmp_path, FULL)
    assert counted == [86_580_480, 375_187_970]


def test_weaker_measures_are_chosen_only_where_dinov2_is_not_there_at_all(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(judges, "is_tiny", lambda _config: False)
    none, config = tmp_path / "none", TrainConfig()
    without = judges.load_judges(config, CPU, dinov2=none, siglip2=folders[1])
    assert not without.uses_features and without.note == judges.NO_DINO and "losses" in without.source
    assert judges.load_judges(config, CPU, dinov2=folders[0], siglip2=none).note == judges.NO_SIGLIP
    complete = judges.load_judges(config, CPU, dinov2=folders[0], siglip2=folders[1])
    assert complete.siglip2 and complete.source == "DINOv2" and not complete.note
    cut = write_dinov2(tmp_path / "cut")
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:-1])
    for damaged in (cut, tmp_path):
        with pytest.raises(Problems, match=r"sh download\.sh --judges"):
            judges.load_judges(config, CPU, dinov2=damaged, siglip2=none)
