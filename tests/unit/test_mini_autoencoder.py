"""The autoencoder's training: exact resuming, the folded latent scale, several processes."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as processes
from safetensors.torch import load_file, save_file
from torch import Tensor

from mini.training.autoencoder import state as autoencoder_state
from mini.training.autoencoder import train as stage
from mini.training.autoencoder.latents import encode_pictures, latent_encoder, read_latents, run_latents
from mini.training.autoencoder.model import (
    SCALE,
    SHIFT,
    build_autoencoder,
    decode_latents,
    fold_latent_scale,
    latent_distribution,
    load_autoencoder,
    signal_to_noise,
    to_pixels,
    to_unit_range,
)
from mini.training.distributed import Budget, Distributed
from mini.training.recipe import TINY
from trainer.common.problems import Problems

ALONE = Distributed()
RECIPE = replace(TINY, size=32, autoencoder_crop=16, autoencoder_steps=10)
SPENT = Budget(minutes=-1)


def pictures(count: int, seed: int = 0) -> Tensor:
    """Smooth pictures: blurred noise, as the world is smooth too."""
    noise = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    grown = torch.nn.functional.interpolate(noise, size=RECIPE.size, mode="bicubic", antialias=True)
    return (grown.clamp(0, 1) * 255).to(torch.uint8)


def write_pictures(folder: Path, parts: int = 1) -> None:
    (folder / "pictures").mkdir()
    for name, count, seed in (("base", 8, 0), ("held-out-base", 4, 1)):
        for part in range(parts):
            file = folder / "pictures" / f"{name}-{part}.safetensors"
            save_file({"pictures": pictures(count, seed + 10 * part)}, file)
            labels = [{"place": "desk", "objects": [["ball", "red"]], "concepts": []}] * count
            captions = [f"{name} {part} {index}" for index in range(count)]
            file.with_suffix(".json").write_text(json.dumps({"captions": captions, "labels": labels}))


def moments(autoencoder, pixels: Tensor) -> tuple[float, float]:
    return stage.latent_moments(autoencoder, pixels, ALONE)


@pytest.fixture(scope="module")
def through(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the stage has run without a stop."""
    folder = tmp_path_factory.mktemp("through")
    write_pictures(folder)
    stage.run_autoencoder(RECIPE, folder, Budget())
    return folder


@pytest.mark.parametrize("stop", [3, 8, 9])  # on crops, right before the fold, after it
def test_a_stopped_training_goes_on_bit_for_bit(
    through: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    stopped = tmp_path
    write_pictures(stopped)
    monkeypatch.setattr(stage, "CHECK_TIME_EVERY", stop)
    stage.run_autoencoder(RECIPE, stopped, SPENT)
    assert (stopped / "autoencoder.state.safetensors").exists()
    assert not (stopped / "autoencoder.safetensors").exists()
    stage.run_autoencoder(RECIPE, stopped, Budget())

    first, second = (load_file(folder / "autoencoder.safetensors") for folder in (through, stopped))
    assert all(torch.equal(first[name], second[name]) for name in first | second)
    assert not (stopped / "autoencoder.state.safetensors").exists()
    lines = [json.loads(line) for line in (through / "autoencoder.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "psnr" in line] == [5, 10]
    assert any("folded_mean" in line for line in lines)


def test_training_makes_better_pictures() -> None:
    recipe = replace(RECIPE, autoencoder_steps=40, autoencoder_learning_rate=4e-3, decoder_learning_rate=2e-3)
    training, pixels = stage.begin(recipe, ALONE.device), pictures(8)
    before = stage.validate(training, pixels, ALONE)["psnr"]
    journal = stage.Journal(Path(os.devnull), ALONE)
    assert stage.train(training, pixels, pixels, recipe, ALONE, Budget(), journal, Path(os.devnull).parent / "unused")
    assert stage.validate(training, pixels, ALONE)["psnr"] > before + 1.2


def test_the_fold_sets_the_latents_scale_and_keeps_the_pictures() -> None:
    torch.manual_seed(0)
    autoencoder, pixels = build_autoencoder(RECIPE).eval(), pictures(8)
    with torch.no_grad():
        autoencoder.encoder.conv_out.bias += 0.3
        before = latent_distribution(autoencoder.encoder(to_unit_range(pixels)))
        mean, deviation = moments(autoencoder, pixels)
        first_features = autoencoder.decoder.conv_in(before[0])
        fold_latent_scale(autoencoder, mean, deviation)
        after = latent_distribution(autoencoder.encoder(to_unit_range(pixels)))
        features = autoencoder.decoder.conv_in(after[0])
    scaled = (after[0] - SHIFT) * SCALE
    assert scaled.mean().item() == pytest.approx(0, abs=1e-4)
    assert scaled.std(correction=0).item() == pytest.approx(1, abs=1e-4)
    inside = (..., slice(1, -1), slice(1, -1))  # the rim sees the padding, which the shift changes
    torch.testing.assert_close(features[inside], first_features[inside], atol=1e-4, rtol=0)
    gain = 1 / (deviation * SCALE)  # the noise grows with the latents
    torch.testing.assert_close(after[1].exp().sqrt(), gain * before[1].exp().sqrt())


def test_a_fold_without_shift_changes_no_picture() -> None:
    torch.manual_seed(0)
    autoencoder, unit = build_autoencoder(RECIPE).eval(), to_unit_range(pictures(4))
    deviation = 0.4
    with torch.no_grad():
        before = autoencoder.decoder(latent_distribution(autoencoder.encoder(unit))[0])
        fold_latent_scale(autoencoder, SHIFT * SCALE * deviation, deviation)
        after = autoencoder.decoder(latent_distribution(autoencoder.encoder(unit))[0])
    torch.testing.assert_close(after, before, atol=1e-4, rtol=0)


def test_after_the_fold_the_decoder_alone_learns() -> None:
    training, pixels = stage.begin(RECIPE, ALONE.device), pictures(8)
    training.step = stage.fold_step(RECIPE)
    stage.fold(training, pixels, RECIPE, ALONE)
    encoder, decoder = (
        {name: value.clone() for name, value in part.state_dict().items()}
        for part in (training.autoencoder.encoder, training.autoencoder.decoder)
    )
    stage.train_step(training, stage.Passes.of(training.autoencoder, RECIPE), pixels, RECIPE, ALONE)
    assert all(torch.equal(encoder[name], value) for name, value in training.autoencoder.encoder.state_dict().items())
    assert not torch.equal(decoder["conv_in.weight"], training.autoencoder.decoder.conv_in.weight)
    mean, deviation = moments(training.autoencoder, pixels)
    assert (mean, deviation) == pytest.approx((SHIFT, 1 / SCALE), abs=1e-3)


def test_two_processes_train_as_one_with_both_batches(tmp_path: Path) -> None:
    parts = [pictures(8, seed) for seed in (0, 1)]
    training = stage.begin(RECIPE, ALONE.device)
    passes = stage.Passes.of(training.autoencoder, RECIPE)
    stage.set_learning_rate(training, RECIPE)
    for rank, pixels in enumerate(parts):
        batch = stage.draw_batch(pixels, RECIPE, 0, rank)
        (stage.step_loss(training, passes, batch, RECIPE, rank) / 2).backward()
    torch.nn.utils.clip_grad_norm_(training.parameters(), 1.0)
    training.optimizer.step()

    processes.start_processes(step_in_group, (parts, tmp_path), nprocs=2, start_method="fork")
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in range(2))
    expected = training.autoencoder.state_dict()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
        torch.testing.assert_close(value, expected[name], atol=2e-5, rtol=0)


def step_in_group(rank: int, parts: list[Tensor], folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517"}
    group = Distributed.from_environment()
    training = stage.begin(RECIPE, group.device)
    stage.train_step(training, stage.Passes.of(training.autoencoder, RECIPE), parts[rank], RECIPE, group)
    weights = {name: value.contiguous() for name, value in training.autoencoder.state_dict().items()}
    save_file(weights, folder / f"{rank}.safetensors")
    torch.distributed.destroy_process_group()


def test_batches_are_crops_of_the_pictures_and_half_are_mirrored() -> None:
    recipe = replace(RECIPE, autoencoder_crop_batch=64)
    ramp = torch.arange(RECIPE.size).expand(2, 3, RECIPE.size, -1).to(torch.uint8)  # a column's value is its place
    crops = to_pixels(stage.draw_batch(ramp, recipe, 0, 0)).int()
    steps = crops.diff(dim=3)
    rising = (steps == 1).all(dim=(1, 2, 3))
    assert torch.equal(rising, ~(steps == -1).all(dim=(1, 2, 3)))
    assert 16 <= rising.sum() <= 48
    assert crops.shape == (64, 3, 16, 16)
    assert len(set(crops[:, 0, 0].amin(1).tolist())) > 8
    assert stage.draw_batch(ramp, recipe, 8, 0).shape == (2, 3, 32, 32)
    assert not torch.equal(stage.draw_batch(pictures(2), recipe, 0, 0), stage.draw_batch(pictures(2), recipe, 0, 1))


def test_latents_of_pictures_and_their_mirror_images(tmp_path: Path) -> None:
    write_pictures(tmp_path, parts=2)
    with pytest.raises(Problems, match="run the stage autoencoder first"):
        run_latents(RECIPE, tmp_path, Budget())
    stage.run_autoencoder(RECIPE, tmp_path, Budget())
    run_latents(RECIPE, tmp_path, Budget())

    latents, held_out = read_latents(tmp_path, "latents", ALONE), read_latents(tmp_path, "held-out-latents", ALONE)
    assert latents.values.shape == (32, 16, 4, 4)
    assert latents.values.dtype == torch.bfloat16
    assert latents.captions == tuple(f"base {part} {index}" for part in range(2) for index in range(8))
    assert held_out.values.shape == (8, 16, 4, 4)
    assert latents.values[:16].float().std().item() == pytest.approx(1, abs=0.1)

    pixels = torch.cat([pictures(8), pictures(8, 10)])
    encode = latent_encoder(RECIPE, tmp_path, ALONE.device)
    mirrored = encode_pictures(encode, pixels, 3, flip=True)  # batches of 3, the last one filled up
    torch.testing.assert_close(mirrored, latents.values[16:], atol=0.02, rtol=0.02)
    assert not torch.allclose(mirrored, latents.values[:16], atol=0.2)
    autoencoder = load_autoencoder(RECIPE, tmp_path, ALONE.device)
    decoded = decode_latents(autoencoder, latents.values[:2])
    assert decoded.dtype == torch.uint8
    assert decoded.shape == (2, 3, 32, 32)


def test_signal_to_noise_counts_from_the_whole_range() -> None:
    black, dark = torch.full((1, 3, 4, 4), -1.0), torch.full((1, 3, 4, 4), -0.8)
    assert signal_to_noise(dark, black).item() == pytest.approx(20)  # an error of a tenth of the range


def test_a_number_that_is_not_finite_stops_the_training(tmp_path: Path) -> None:
    training = stage.begin(RECIPE, ALONE.device)
    with torch.no_grad():
        training.autoencoder.decoder.conv_out.bias.fill_(float("nan"))
    journal = stage.Journal(tmp_path / "autoencoder.jsonl", ALONE)
    with pytest.raises(Problems, match="not finite"):
        stage.train(training, pictures(4), pictures(4), RECIPE, ALONE, Budget(), journal, tmp_path / "state")


def test_a_state_holds_no_more_than_it_needs(tmp_path: Path) -> None:
    training = stage.begin(RECIPE, ALONE.device)
    autoencoder_state.save(training, tmp_path / "state.safetensors")
    again = stage.begin(RECIPE, ALONE.device)
    autoencoder_state.load(again, RECIPE, tmp_path / "state.safetensors")
    assert again.step == 0
    assert not again.optimizer.state
