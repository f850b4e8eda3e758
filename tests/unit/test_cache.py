"""Latents and text: encoded once, found by content, told and made anew when damaged."""

import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from diffusers.image_processor import VaeImageProcessor
from PIL import Image, ImageOps
from safetensors.torch import load_file, save_file

import trainer.data.encoding
import trainer.images.inspection
from benchmarks.random_flux import ModelFiles
from tests.dataset_files import draw
from tests.recipe_files import Workshop, make_workshop
from trainer.common.problems import Problems
from trainer.config import TrainConfig
from trainer.data.batches import BatchMaker, BatchSettings
from trainer.data.cache import CacheKeys, Encoded, TensorCache
from trainer.data.dataset import TrainingData, load_dataset
from trainer.data.encoding import encode_picture, fill_cache
from trainer.models.load import load_autoencoder, load_clip, load_t5
from trainer.models.text import encode_clip, encode_t5, load_tokenizers

LENGTH = 24
CAPTIONS = ["tjtoy toy", "another", "tjtoy toy"]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory, tiny_flux: ModelFiles) -> Workshop:
    return make_workshop(tmp_path_factory.mktemp("cache"), tiny_flux, pictures=2)


@pytest.fixture(scope="module")
def config(workshop: Workshop) -> TrainConfig:
    return workshop.config("run")


@pytest.fixture(scope="module")
def data(config: TrainConfig) -> TrainingData:
    return load_dataset(config)[0]


@pytest.fixture(scope="module")
def tokenizers(workshop: Workshop):
    return load_tokenizers(workshop.models.tokenizer_dir)


@pytest.fixture(scope="module")
def keys(config: TrainConfig, tokenizers) -> CacheKeys:
    return CacheKeys.of(config, tokenizers, LENGTH)


@pytest.fixture(scope="module")
def full_folder(config, data, tokenizers, keys, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("full")
    fill_cache(config, data, CAPTIONS, tokenizers, keys, TensorCache(folder), Accelerator(cpu=True))
    return folder


@pytest.fixture
def full(full_folder: Path, tmp_path: Path) -> TensorCache:
    """A full cache that the test may damage."""
    shutil.copytree(full_folder, tmp_path / "cache")
    return TensorCache(tmp_path / "cache")


@pytest.fixture
def loads(monkeypatch) -> list[str]:
    """The encoders that are loaded, as they are."""
    loaded: list[str] = []
    for name in ("load_autoencoder", "load_clip", "load_t5"):
        load = getattr(trainer.data.encoding, name)

        def noted(*arguments, load=load, name=name):
            loaded.append(name)
            return load(*arguments)

        monkeypatch.setattr(trainer.data.encoding, name, noted)
    return loaded


@pytest.fixture
def fill(config, data, tokenizers, keys, full):
    """Fill the cache again; returns what reads its entries."""

    def run(captions=CAPTIONS, keys=keys, data=data) -> Encoded:
        return fill_cache(config, data, captions, tokenizers, keys, full, Accelerator(cpu=True))

    return run


@pytest.fixture
def refill(fill, loads):
    """Fill the cache again; returns which encoders were loaded for it."""

    def run(**changes) -> list[str]:
        loads.clear()
        fill(**changes)
        return list(loads)

    return run


def entries(cache: TensorCache) -> list[Path]:
    return sorted(cache.folder.rglob("*.safetensors"))


def test_equal_captions_are_stored_once(full, keys, data):
    pictures = [keys.latents(sample, False) for sample in data.samples]
    texts = [key(caption) for caption in set(CAPTIONS) for key in (keys.clip_text, keys.t5_text)]
    assert entries(full) == sorted(full.path(key) for key in pictures + texts)
    assert not [path for path in full.folder.rglob("*") if path.is_file() and path.suffix != ".safetensors"]


def test_a_full_cache_loads_no_model(refill, full, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in entries(full)}
    for name in ("load_autoencoder", "load_clip", "load_t5"):
        monkeypatch.setattr(trainer.data.encoding, name, lambda *_: pytest.fail("a model was loaded"))
    assert refill() == []
    assert {path: path.stat().st_mtime_ns for path in entries(full)} == before


def test_an_edited_caption_encodes_that_text_alone(refill, full):
    before = entries(full)
    assert refill(captions=["tjtoy toy", "another, edited"]) == ["load_clip", "load_t5"]
    assert len(entries(full)) == len(before) + 2 and set(before) < set(entries(full))


def test_another_length_encodes_t5_alone(refill, keys):
    assert refill(keys=replace(keys, t5_length=LENGTH + 1)) == ["load_t5"]
    assert refill(keys=replace(keys, masked=True)) == ["load_t5"]


def test_another_autoencoder_or_text_encoder_has_other_keys(config, data, tokenizers, keys, tmp_path):
    def altered(path: Path) -> Path:
        tensors = load_file(path)
        name = next(name for name, tensor in tensors.items() if tensor.ndim > 1)
        tensors[name] = tensors[name] * 2
        save_file(tensors, tmp_path / path.name)
        return tmp_path / path.name

    sample = data.samples[0]
    for flag, key in (
        ("ae", lambda k: k.latents(sample, False)),
        ("clip_l", lambda k: k.clip_text("a")),
        ("t5xxl", lambda k: k.t5_text("a")),
    ):
        other = CacheKeys.of(replace(config, **{flag: altered(getattr(config, flag))}), tokenizers, LENGTH)
        changed = {
            "latents": other.latents(sample, False) != keys.latents(sample, False),
            "clip": other.clip_text("a") != keys.clip_text("a"),
            "t5": other.t5_text("a") != keys.t5_text("a"),
        }
        assert sum(changed.values()) == 1 and key(other) != key(keys)
    others = CacheKeys.of(config, replace(tokenizers, fingerprint="other"), LENGTH)
    assert others.t5_text("a") != keys.t5_text("a") and others.clip_text("a") != keys.clip_text("a")


def test_all_that_decides_the_latents_is_in_their_key(data, keys):
    sample = data.samples[0]
    variants = [
        sample,
        replace(sample, picture=replace(sample.picture, sha256="0" * 64)),
        replace(sample, bucket=(48, 64)),
        replace(sample, resized=(80, 64)),
        replace(sample, crop=(1, 0)),
        replace(sample, interpolation="nearest"),
    ]
    assert len({keys.latents(variant, flip) for variant in variants for flip in (False, True)}) == 2 * len(variants)
    elsewhere = replace(sample, key="9.9/x.png", picture=replace(sample.picture, path=Path("moved.png")), num_repeats=7)
    assert keys.latents(elsewhere, False) == keys.latents(sample, False)


def test_a_replaced_picture_has_another_key(workshop, keys, tmp_path):
    folder = shutil.copytree(workshop.folder / "toy", tmp_path / "toy")
    path = tmp_path / "data.toml"
    path.write_text((workshop.folder / "data.toml").read_text().replace(str(workshop.folder), str(tmp_path)))
    config = workshop.config("run", dataset_config=path)

    def found() -> list[str]:
        return [keys.latents(sample, False) for sample in load_dataset(config)[0].samples]

    before = found()
    draw(folder / "01.png", shade=99)
    after = found()
    assert before[0] == after[0] and before[1] != after[1]


def test_what_is_missing_is_learned_from_names_alone(full, keys, monkeypatch):
    """Whatever entries hold: none is opened."""
    for path in entries(full):
        path.write_bytes(b"")
    monkeypatch.setattr("trainer.data.cache.safe_open", lambda *_: pytest.fail("an entry was opened"))
    assert full.missing([keys.t5_text("absent"), keys.t5_text("another")]) == [keys.t5_text("absent")]


DAMAGE = [lambda b: b[:-7], lambda b: b[:4], lambda _: b"", lambda _: b"<html>" * 9]


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_entries_are_told_and_made_again(fill, loads, full, data, keys, caplog, damage):
    path = full.path(keys.latents(data.samples[0], False))
    whole, mean = path.read_bytes(), Encoded(full, keys).latents(data.samples[0], False)[0]
    path.write_bytes(damage(whole))
    encoded = fill()
    assert loads == [], "what is there is not opened before it is read"
    with caplog.at_level(logging.WARNING):
        assert torch.equal(encoded.latents(data.samples[0], False)[0], mean)
    assert loads == ["load_autoencoder"]
    assert str(path) in caplog.text and "is damaged" in caplog.text and "encoded again" in caplog.text
    assert path.read_bytes() == whole


def test_damaged_text_is_made_again(fill, loads, full, keys):
    texts = [full.path(key("another")) for key in (keys.t5_text, keys.clip_text)]
    whole = [path.read_bytes() for path in texts]
    for path in texts:
        path.write_bytes(path.read_bytes()[:-1])
    fill().text("another")
    assert sorted(loads) == ["load_clip", "load_t5"] and [path.read_bytes() for path in texts] == whole


def test_a_single_flipped_bit_is_found(fill, loads, full, data, keys):
    path = full.path(keys.latents(data.samples[0], False))
    whole = path.read_bytes()
    path.write_bytes(whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:])
    fill().latents(data.samples[0], False)
    assert loads == ["load_autoencoder"] and path.read_bytes() == whole


@pytest.mark.parametrize("tensors", [{}, {"other": torch.ones(2)}, {"mean": torch.ones(16, 8, 8)}])
def test_an_entry_that_holds_other_tensors_is_made_again(fill, loads, full, data, keys, tensors):
    path = full.path(keys.latents(data.samples[0], False))
    whole = path.read_bytes()
    save_file(tensors, path)
    fill().latents(data.samples[0], False)
    assert loads == ["load_autoencoder"] and path.read_bytes() == whole


def test_an_entry_that_vanishes_in_mid_run_is_made_again(fill, full, keys):
    encoded, path = fill(), full.path(keys.t5_text("another"))
    whole = path.read_bytes()
    path.unlink()
    encoded.text("another")
    assert path.read_bytes() == whole


def test_a_damaged_entry_that_cannot_be_made_again_is_named(full, keys):
    path = full.path(keys.t5_text("another"))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(Problems, match="start again") as found:
        Encoded(full, keys).text("another")
    assert found.value.problems[0].where == str(path)


def test_an_image_that_is_replaced_after_the_check_is_not_encoded(workshop, tmp_path, tokenizers, keys):
    """Its latents would be kept under the digest of the image that was checked."""
    folder = shutil.copytree(workshop.folder / "toy", tmp_path / "toy")
    path = tmp_path / "data.toml"
    path.write_text((workshop.folder / "data.toml").read_text().replace(str(workshop.folder), str(tmp_path)))
    config = workshop.config("run", dataset_config=path)
    data = load_dataset(config)[0]
    draw(folder / "01.png", shade=77)
    cache = TensorCache(tmp_path / "cache")
    with pytest.raises(Problems, match="was replaced") as found:
        fill_cache(config, data, [], tokenizers, keys, cache, Accelerator(cpu=True))
    assert found.value.problems[0].where == str(folder / "01.png")
    replaced = next(sample for sample in data.samples if sample.picture.path.name == "01.png")
    assert not cache.has(keys.latents(replaced, False))


def test_each_image_is_read_once_for_both_of_its_views(workshop, data, tokenizers, keys, tmp_path, monkeypatch):
    mirrored = [replace(s, subset=replace(s.subset, flip_aug=True)) for s in data.samples]
    decoded = []
    decode = trainer.images.inspection.decode
    monkeypatch.setattr(trainer.images.inspection, "decode", lambda *a: decoded.append(a) or decode(*a))
    cache = TensorCache(tmp_path / "cache")
    both = replace(data, samples=tuple(mirrored))
    fill_cache(workshop.config("run"), both, [], tokenizers, keys, cache, Accelerator(cpu=True))
    assert len(entries(cache)) == 2 * len(mirrored) and len(decoded) == len(mirrored)


def test_latents_that_are_not_finite_name_the_picture(config, data, tmp_path):
    tensors = load_file(config.ae)
    tensors["encoder.conv_out.bias"][0] = torch.nan
    save_file(tensors, tmp_path / "ae.safetensors")
    vae = load_autoencoder(tmp_path / "ae.safetensors", "cpu", torch.float32)
    with pytest.raises(Problems, match="not finite") as found:
        encode_picture(vae, data.samples[1], flip=False)
    assert found.value.problems[0].where == str(data.samples[1].picture.path)


def test_latents_are_those_of_diffusers_own_path(config, data, full, keys):
    """Pillow and diffusers' image processor instead of our reader; the autoencoder's own posterior."""
    vae = load_autoencoder(config.ae, "cpu", torch.float32)
    sample = data.samples[0]
    picture = Image.open(sample.picture.path).convert("RGB")
    assert picture.size == sample.bucket
    for flip in (False, True):
        pixels = VaeImageProcessor().preprocess(ImageOps.mirror(picture) if flip else picture)
        with torch.no_grad():
            posterior = vae.encode(pixels).latent_dist
        entry = encode_picture(vae, sample, flip)
        torch.testing.assert_close(entry["mean"], posterior.mean[0], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(entry["std"], posterior.std[0], rtol=1e-3, atol=1e-3)
    mean, std = Encoded(full, keys).latents(sample, False)
    assert mean.shape == std.shape == (16, 8, 8) and mean.dtype == torch.float32 and bool((std > 0).all())


def test_text_is_that_of_the_encoders(config, tokenizers, full, keys):
    txt, mask, pooled = Encoded(full, keys).text("another")
    clip = load_clip(config.clip_l, "cpu", torch.float32, tokenizers.clip.eos_token_id)
    t5 = load_t5(config.t5xxl, "cpu", torch.float32)
    expected, real = encode_t5(t5, tokenizers.t5, ["another"], LENGTH, masked=False)
    assert torch.equal(txt, expected[0]) and torch.equal(mask, real[0])
    assert torch.equal(pooled, encode_clip(clip, tokenizers.clip, ["another"])[0])
    assert txt.shape == (LENGTH, 64) and mask.dtype == torch.bool and 0 < int(mask.sum()) < LENGTH


def test_latents_are_drawn_afresh_from_their_posterior(config, data, tokenizers, full, keys):
    """One picture over many epochs has the posterior's own mean and spread, scaled for the transformer."""
    encoded = Encoded(full, keys)
    maker = BatchMaker(config.select(BatchSettings), encoded, tokenizers)
    draw = replace(data.batches(0)[0][0], caption="another")
    drawn = torch.stack([maker((replace(draw, epoch=epoch),)).latents[0] for epoch in range(400)])
    assert not torch.equal(drawn[0], drawn[1])
    mean, std = encoded.latents(draw.sample, draw.flip)
    scores = (drawn / 0.3611 + 0.1159 - mean) / std
    assert abs(float(scores.mean())) < 0.01 and abs(float(scores.std()) - 1) < 0.01


def test_what_was_read_is_held_within_the_budget(full, keys, data):
    encoded = Encoded(full, keys)
    first = encoded.latents(data.samples[0], False)
    assert encoded.latents(data.samples[0], False)[0] is first[0]
    frugal = Encoded(full, keys, budget_bytes=0)
    assert frugal.latents(data.samples[0], False)[0] is not frugal.latents(data.samples[0], False)[0]
