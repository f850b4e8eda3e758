"""Masks: found, checked, fitted as their images are, and what they do to a batch and to its loss."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image, ImageOps

from benchmarks.random_flux import ModelFiles
from tests.dataset_files import draw, draw_folder, write_toml
from tests.recipe_files import Workshop, make_workshop
from tests.unit.test_step import CONFIG, make_batch, make_model, velocity
from trainer.common.problems import Problems
from trainer.config import TrainConfig
from trainer.data.batches import BatchMaker, BatchSettings
from trainer.data.cache import CacheKeys, Encoded, TensorCache
from trainer.data.dataset import Draw, TrainingData, load_dataset
from trainer.data.encoding import encode_mask, encode_picture, fill_cache
from trainer.data.masks import latent_mask
from trainer.data.samples import Sample
from trainer.engine.cuda_graphs import kind_of, kinds_of
from trainer.images.resize import fit
from trainer.models.load import load_autoencoder
from trainer.models.text import load_tokenizers

SIZES = [(64, 64), (96, 48), (130, 70)]
MASKED = """
[[datasets]]
resolution = 64
[[datasets.subsets]]
image_dir = "{folder}/toy"
class_tokens = "tjtoy toy"
MORE
"""


def draw_mask(path: Path, size: tuple[int, int], box: tuple[int, int, int, int], value: int = 255) -> Path:
    mask = Image.new("L", size, 0)
    mask.paste(value, box)
    path.parent.mkdir(parents=True, exist_ok=True)
    mask.save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images 00.png to 02.png and a mask next to each."""
    draw_folder(tmp_path / "toy", SIZES)
    for number, (width, height) in enumerate(SIZES):
        draw_mask(tmp_path / "toy" / f"{number:02}.mask.png", (width, height), (8, 8, width // 2, height - 8))
    return tmp_path


def dataset(folder: Path, more: str = "masked_loss = true", **flags) -> TrainConfig:
    return replace(write_toml(folder, MASKED.replace("MORE", more)), **flags)


def load(folder: Path, more: str = "masked_loss = true", **flags) -> TrainingData:
    return load_dataset(dataset(folder, more, **flags))[0]


def problems(folder: Path, more: str = "masked_loss = true") -> list[str]:
    with pytest.raises(Problems) as found:
        load(folder, more)
    return [str(problem) for problem in found.value.problems]


def warnings(folder: Path, more: str = "masked_loss = true") -> list[str]:
    return [str(warning) for warning in load_dataset(dataset(folder, more))[1]]


def test_a_mask_is_not_an_image_and_belongs_to_the_image_of_its_name(folder):
    samples = load(folder).samples
    assert [sample.picture.path.name for sample in samples] == ["00.png", "01.png", "02.png"]
    assert [sample.mask and sample.mask.path.name for sample in samples] == [f"0{n}.mask.png" for n in range(3)]
    assert all(sample.masks_loss and sample.weighs_places and not sample.preserves_some for sample in samples)


def test_flags_stand_in_for_keys_and_a_key_wins_over_its_flag(folder):
    by_flag = load(folder, "", masked_loss=True, mask_background="preserve").samples[0]
    assert by_flag.masks_loss and by_flag.preserves_some and not by_flag.weighs_places
    by_key = load(folder, "mask_background = 0.25", masked_loss=True, mask_background="preserve").samples[0]
    assert by_key.subset.background_weight == 0.25
    assert load(folder, "", masked_loss=True, mask_background="0.5").samples[0].subset.background_weight == 0.5


def test_a_folder_of_masks_takes_any_ending_and_the_red_channel(folder):
    for number, size in enumerate(SIZES):
        mask = Image.merge("RGB", [Image.new("L", size, value) for value in (200, 0, 90)])
        mask.putpixel((0, 0), (0, 0, 0))
        path = folder / "masks" / f"{number:02}.webp"
        path.parent.mkdir(exist_ok=True)
        mask.save(path, lossless=True)
    samples = load(folder, 'masked_loss = true\nconditioning_data_dir = "{folder}/masks"').samples
    assert [sample.mask and sample.mask.path.name for sample in samples] == ["00.webp", "01.webp", "02.webp"]
    assert samples[1].mask and samples[1].mask.read().getextrema() == (0, 200)


def test_alpha_is_the_mask_and_the_colours_below_it_are_kept(folder):
    for number, size in enumerate(SIZES):
        (folder / "toy" / f"{number:02}.mask.png").unlink()
        image = Image.new("RGB", size, (10, 200, 30)).convert("RGBA")
        image.putalpha(Image.open(draw_mask(folder / "alpha.png", size, (0, 0, 8, size[1]))))
        image.save(folder / "toy" / f"{number:02}.png")
    sample = load(folder, "alpha_mask = true").samples[0]
    assert sample.mask and sample.mask.from_alpha and sample.masks_loss
    assert encode_mask(sample, False)["mask"][0].tolist() == [1.0] + [0.0] * 7
    flattened = load(folder, "").samples[0]
    assert CacheKeys("a", "c", "t", 8, False).latents(sample, False) != CacheKeys("a", "c", "t", 8, False).latents(
        flattened, False
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda toy: draw_mask(toy / "01.mask.png", (48, 96), (0, 0, 9, 9)), "the mask is 48x96, but 01.png is 96x48"),
        (lambda toy: draw_mask(toy / "01.mask.png", (96, 48), (0, 0, 0, 0)), "the mask is empty"),
        (lambda toy: (toy / "01.mask.png").write_bytes(b"PNG"), "not an image"),
        (lambda toy: (toy / "01.mask.png").unlink(), "images have no mask next to them: 01.png"),
    ],
)
def test_a_mask_that_cannot_be_used_is_named_with_the_way_out(folder, change, words):
    change(folder / "toy")
    (problem,) = problems(folder)
    assert words in problem and ("01" in problem)


def test_masks_that_are_probably_not_meant_are_warnings(folder):
    toy = folder / "toy"
    draw_mask(toy / "00.mask.png", SIZES[0], (0, 0, *SIZES[0]))
    draw_mask(toy / "01.mask.png", SIZES[1], (0, 0, 9, 9), value=1)
    draw_mask(toy / "lonely.mask.png", SIZES[1], (0, 0, 9, 9))
    told = "\n".join(warnings(folder))
    assert "masks without an image: lonely.mask.png" in told
    assert "white everywhere" in told and "its brightest pixel is 1 of 255" in told


def test_masks_that_nothing_uses_and_keys_that_change_nothing_are_told(folder):
    told = "\n".join(warnings(folder, "mask_background = 0.5"))
    assert "files not trained, being named as masks of images: 00.mask.png, 01.mask.png" in told
    assert "mask_background has no effect without masked_loss or alpha_mask" in told
    assert all(not sample.masks_loss for sample in load(folder, "").samples)


def test_alpha_masks_need_no_transparency_but_say_where_it_lacks(folder):
    for path in (folder / "toy").glob("*.mask.png"):
        path.unlink()
    assert "images without transparency: 00.png, 01.png, 02.png" in "\n".join(warnings(folder, "alpha_mask = true"))
    assert not any(sample.mask for sample in load(folder, "alpha_mask = true").samples)


def test_regularisation_images_need_no_masks(folder):
    draw_folder(folder / "reg", [(64, 64)] * 2, shade=90)
    more = 'masked_loss = true\n[[datasets.subsets]]\nimage_dir = "{folder}/reg"\nclass_tokens = "toy"\nis_reg = true'
    data = load(folder, more, masked_loss=True)
    assert [sample.mask is None for sample in data.samples] == [False] * 3 + [True] * 2


def test_folders_of_masks_that_cannot_be_read(folder):
    (message,) = problems(folder, 'masked_loss = true\nconditioning_data_dir = "{folder}/nowhere"')
    assert "is not a folder" in message
    (message,) = problems(folder, 'masked_loss = true\nconditioning_data_dir = "{folder}/toy"')
    assert "is image_dir itself" in message


@pytest.mark.parametrize("value", ['"blur"', "2", "-0.1", "true", '"nan"'])
def test_a_background_that_is_not_known(folder, value):
    (message,) = problems(folder, f"masked_loss = true\nmask_background = {value}")
    assert 'a weight from 0 to 1, "ignore" or "preserve"' in message


def test_masks_follow_resize_crop_and_flip_as_their_image_does(tmp_path):
    """An image that is its own mask: what is encoded and the mask agree latent by latent."""
    rng = np.random.default_rng(0)
    for number, size in enumerate([(200, 90), (333, 410), (64, 64), (40, 61)]):
        blocks = Image.fromarray(rng.integers(0, 255, (7, 7), np.uint8)).resize(size, Image.Resampling.NEAREST)
        (tmp_path / "toy").mkdir(exist_ok=True)
        blocks.convert("RGB").save(tmp_path / "toy" / f"{number}.png")
        blocks.save(tmp_path / "toy" / f"{number}.mask.png")
    for settings in ("", "enable_bucket = true\nmin_bucket_reso = 32\nmax_bucket_reso = 128\nbucket_reso_steps = 16"):
        text = MASKED.replace("MORE", "masked_loss = true\nflip_aug = true")
        config = write_toml(tmp_path, text.replace("resolution = 64", f"resolution = 64\n{settings}"))
        for sample in load_dataset(config)[0].samples:
            for flip in (False, True):
                image = Image.open(sample.picture.path).convert("RGB")
                fitted = fit(image, sample.resized, sample.crop, sample.bucket, sample.interpolation)
                fitted = (ImageOps.mirror(fitted) if flip else fitted).getchannel("R")
                expected = torch.from_numpy(np.array(fitted, np.float32) / 255)
                height, width = expected.shape
                expected = expected.view(height // 8, 8, width // 8, 8).mean((1, 3))
                torch.testing.assert_close(encode_mask(sample, flip)["mask"], expected, rtol=0, atol=1e-5)


def test_dilation_grows_a_mask_in_pixels_before_it_is_averaged():
    mask = Image.new("L", (64, 32), 0)
    mask.paste(255, (24, 8, 32, 16))
    assert latent_mask(mask, False).sum() == 1
    grown = latent_mask(mask, False, dilation=8)
    assert grown[:3, 2:5].min() == 1 and grown.sum() == 9
    assert latent_mask(mask, False, dilation=4).sum() == 4
    assert torch.equal(latent_mask(mask, True, 8), grown.flip(1))


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory, tiny_flux: ModelFiles) -> Workshop:
    made = make_workshop(tmp_path_factory.mktemp("masks"), tiny_flux, pictures=2)
    draw_mask(made.folder / "toy" / "00.mask.png", (64, 64), (0, 0, 32, 64))
    draw_mask(made.folder / "toy" / "01.mask.png", (64, 64), (0, 0, 64, 16))
    return made


def make_maker(workshop: Workshop, data: TrainingData) -> BatchMaker:
    config = workshop.config("run")
    tokenizers = load_tokenizers(workshop.models.tokenizer_dir)
    keys, cache = CacheKeys.of(config, tokenizers, 16), TensorCache(workshop.folder / "cache")
    fill_cache(config, data, data.captions_used(1), tokenizers, keys, cache, Accelerator(cpu=True))
    return BatchMaker(config.select(BatchSettings), Encoded(cache, keys), tokenizers)


def all_draws(data: TrainingData) -> tuple[Draw, ...]:
    return tuple(Draw(sample, 0, 0, "tjtoy toy", index == 0) for index, sample in enumerate(data.samples))


@pytest.mark.parametrize(
    ("background", "preserve", "weight"),
    [('"ignore"', None, 0.0), ("0.25", None, 0.25), ('"preserve"', 1.0, None)],
)
def test_a_batch_has_maps_for_what_is_outside_of_its_masks(workshop, background, preserve, weight):
    text = f"masked_loss = true\nmask_background = {background}\nflip_aug = true"
    data = load_dataset(dataset(workshop.folder, text))[0]
    draws = all_draws(data)
    batch = make_maker(workshop, data)(draws)
    outside = torch.zeros(2, 1, 8, 8)
    outside[0, :, :, :4], outside[1, :, 2:] = 1, 1  # the first is mirrored
    given = [(batch.preserve, preserve, 0.0), (batch.loss_mask, weight, 1.0)]
    for found, value, inside in given:
        if value is None:
            assert found is None
        else:
            assert found is not None and torch.equal(found, torch.where(outside > 0, value, inside))
    alone = make_maker(workshop, data)((replace(draws[0], sample=without_mask(draws[0].sample)),))
    assert alone.preserve is None and alone.loss_mask is None
    assert kinds_of([draws, draws[:1], draws[1:], (replace(draws[0], sample=without_mask(draws[0].sample)),)]) == 3
    assert kind_of(alone) != kind_of(make_maker(workshop, data)(draws[:1]))


def without_mask(sample: Sample) -> Sample:
    return replace(sample, mask=None)


def test_preserved_samples_are_preserved_whole_whatever_their_masks(workshop):
    text = 'masked_loss = true\nmask_background = "preserve"\ncustom_attributes = { diff_output_preservation = true }'
    data = load_dataset(dataset(workshop.folder, text))[0]
    batch = make_maker(workshop, data)(all_draws(data))
    assert batch.preserve is not None and bool((batch.preserve == 1).all()) and batch.loss_mask is None


def test_a_mask_is_part_of_the_cache_key_and_of_the_manifest(folder):
    def found() -> tuple[list[str], dict[str, str]]:
        data = load(folder)
        keys = CacheKeys("a", "c", "t", 8, False)
        return [keys.mask(sample, False) for sample in data.samples], data.manifest()

    keys, manifest = found()
    draw_mask(folder / "toy" / "01.mask.png", SIZES[1], (0, 0, 9, 9))
    other_keys, other = found()
    assert [a == b for a, b in zip(keys, other_keys, strict=True)] == [True, False, True]
    assert {name for name in manifest if manifest[name] != other[name]} == {"mask 0.0/01.png"}
    grown = load(folder, "masked_loss = true\nmask_dilation = 8")
    assert {name for name in other if other[name] != grown.manifest()[name]} == {f"mask 0.0/0{n}.png" for n in range(3)}
    unmasked = load(folder, "").manifest()
    assert unmasked.keys() == {name for name in other if not name.startswith("mask ")}
    assert all(unmasked[name] == other[name] for name in unmasked)


def test_a_mask_that_changes_after_the_check_stops_the_run(folder):
    sample = load(folder).samples[0]
    draw_mask(folder / "toy" / "00.mask.png", SIZES[0], (0, 0, 9, 9))
    with pytest.raises(Problems, match="replaced since it was checked"):
        encode_mask(sample, False)


def test_transparent_colours_reach_the_autoencoder_only_with_alpha_mask(tmp_path, tiny_flux):
    image = Image.new("RGBA", (64, 64), (200, 0, 0, 0))
    image.paste((200, 0, 0, 255), (0, 0, 32, 64))
    draw(tmp_path / "toy" / "x.png")
    image.save(tmp_path / "toy" / "x.png")
    vae = load_autoencoder(tiny_flux.ae, torch.device("cpu"), torch.float32)
    kept = encode_picture(vae, load(tmp_path, "alpha_mask = true").samples[0], False)["mean"]
    Image.new("RGB", (64, 64), (200, 0, 0)).save(tmp_path / "toy" / "x.png")
    assert torch.equal(kept, encode_picture(vae, load(tmp_path, "").samples[0], False)["mean"])


def test_outside_the_mask_the_base_models_own_prediction_is_the_target():
    from tests.parity.test_transformer import make_transformer

    preserve = (torch.rand(2, 1, 4, 6, generator=torch.Generator().manual_seed(1)) * 2 - 0.5).clamp(0, 1)
    model, batch = make_model(), make_batch(2, preserve=preserve, preserved_rows=torch.arange(2))
    own, base = velocity(model.transformer, batch), velocity(make_transformer(), batch)
    target = preserve * base + (1 - preserve) * (batch.noise - batch.latents)
    torch.testing.assert_close(model.losses(batch), (own - target).square().flatten(1).mean(1), rtol=1e-4, atol=1e-7)


def test_the_mask_weighs_every_element_and_the_mean_is_over_all():
    weights = torch.rand(2, 1, 4, 6, generator=torch.Generator().manual_seed(2))
    model, batch = make_model(), make_batch(2, loss_mask=weights)
    error = velocity(model.transformer, batch) - (batch.noise - batch.latents)
    torch.testing.assert_close(model.losses(batch), (error.square() * weights).flatten(1).mean(1), rtol=1e-4, atol=1e-7)
    assert CONFIG.loss_type == "l2"


@pytest.mark.parametrize("name", ["{}.mask.png", "{}.PNG"])
def test_a_folder_of_masks_may_name_them_as_masks_next_to_images_are(folder, name):
    (folder / "masks").mkdir()
    for number in range(3):
        target = folder / "masks" / name.format(f"{number:02}")
        (folder / "toy" / f"{number:02}.mask.png").rename(target)
    data = load(folder, 'masked_loss = true\nconditioning_data_dir = "{folder}/masks"')
    assert all(sample.mask and sample.mask.path.parent.name == "masks" for sample in data.samples)
    (folder / "masks" / "00.webp").write_bytes((folder / "masks" / name.format("00")).read_bytes())
    if name == "{}.mask.png":  # a mask of exactly the image's name comes first, as in kohya's trainer
        again = load(folder, 'masked_loss = true\nconditioning_data_dir = "{folder}/masks"')
        assert again.samples[0].mask and again.samples[0].mask.path.name == "00.webp"


def test_a_mask_that_lies_on_its_side_is_told_to_be_turned(folder):
    draw_mask(folder / "toy" / "01.mask.png", (48, 96), (0, 0, 9, 9))
    (message,) = problems(folder)
    assert "turn the mask" in message


def test_a_mask_that_two_images_share_by_their_name_is_a_warning(folder):
    Image.open(folder / "toy" / "00.png").convert("RGB").rotate(90).save(folder / "toy" / "00.jpg")
    assert "00.mask.png is the mask of 00.jpg, 00.png" in "\n".join(warnings(folder, "masked_loss = true"))
