"""Batches: a pure function of the seed and the draws, in order, also from the thread that makes them ahead."""

import subprocess
import sys
import threading
import time
from dataclasses import fields, replace
from itertools import count, islice

import pytest
import torch

from benchmarks.random_flux import ModelFiles
from tests.dataset_files import draw_folder
from tests.recipe_files import PATIENCE, ROOT, Workshop, environment, make_workshop
from trainer.data.batches import (
    Batch,
    BatchMaker,
    BatchSettings,
    prefetch,
    scale_latents,
    shift_tokens,
    unscale_latents,
)
from trainer.data.dataset import Draw, TrainingData, load_dataset
from trainer.flow import sigma_at_quantile
from trainer.models.text import load_tokenizers

TWO_SHAPES = """
[[datasets]]
resolution = 64
batch_size = 2
enable_bucket = true
min_bucket_reso = 32
max_bucket_reso = 96
bucket_reso_steps = 16
[[datasets.subsets]]
image_dir = "{folder}/toy"
class_tokens = "tjtoy toy"
num_repeats = 2
flip_aug = true
[[datasets.subsets]]
image_dir = "{folder}/wide"
class_tokens = "wide"
is_reg = true
"""


class Encoded:
    """Stands in for the cache: latents and text that depend on their names alone."""

    def latents(self, sample, flip: bool) -> tuple[torch.Tensor, torch.Tensor]:
        width, height = sample.bucket
        mean = torch.full((16, height // 8, width // 8), sum(map(ord, sample.key)) / 1000 + flip)
        return mean, torch.full_like(mean, 0.5)

    def text(self, caption: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        mask = torch.arange(8) < len(caption)
        return torch.full((8, 4), float(len(caption))), mask, torch.full((6,), float(len(caption)))


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory, tiny_flux: ModelFiles) -> Workshop:
    made = make_workshop(tmp_path_factory.mktemp("batches"), tiny_flux, pictures=3)
    draw_folder(made.folder / "wide", [(96, 48)] * 3, shade=40)
    made.dataset(TWO_SHAPES)
    return made


@pytest.fixture(scope="module")
def data(workshop: Workshop) -> TrainingData:
    return load_dataset(workshop.config("run", prior_loss_weight=0.25))[0]


def make_maker(workshop: Workshop, **settings) -> BatchMaker:
    tokenizers = load_tokenizers(workshop.models.tokenizer_dir)
    chosen = workshop.config("run", **settings).select(BatchSettings)
    return BatchMaker(chosen, Encoded(), tokenizers)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def maker(workshop: Workshop) -> BatchMaker:
    return make_maker(workshop)


def same(a: Batch, b: Batch) -> bool:
    pairs = [(getattr(a, field.name), getattr(b, field.name)) for field in fields(Batch)]
    return all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in pairs)


def test_shapes_and_contents(maker, data):
    for draws in data.batches(0):
        batch = maker(draws)
        width, height = draws[0].sample.bucket
        assert batch.latents.shape == batch.noise.shape == (len(draws), 16, height // 8, width // 8)
        assert batch.sigmas.shape == batch.weights.shape == (len(draws),) and batch.sigmas.dtype == torch.float32
        assert batch.txt.shape == (len(draws), 8, 4) and batch.pooled.shape == (len(draws), 6)
        assert batch.draws == draws and batch.txt_mask is batch.clip_ids is batch.preserve is None
        assert batch.weights.tolist() == [0.25 if draw.sample.is_reg else 1.0 for draw in draws]
        assert batch.txt[:, 0, 0].tolist() == [len(draw.caption) for draw in draws]


def test_options_add_mask_ids_and_targets(workshop, data):
    draws = data.batches(0)[0]
    batch = make_maker(workshop, apply_t5_attn_mask=True, text_encoder_lr=1e-4)(draws)
    assert batch.txt_mask is not None and batch.txt_mask.shape == (len(draws), 8)
    assert batch.clip_ids is not None and batch.clip_ids.shape == (len(draws), 77)
    kept = tuple(
        replace(draw, sample=replace(draw.sample, preserves_output=index == 0)) for index, draw in enumerate(draws)
    )
    preserve = make_maker(workshop)(kept).preserve
    assert preserve is not None and torch.equal(preserve[0], torch.ones_like(preserve[0]))
    assert preserve.shape == (len(draws), 1, *batch.latents.shape[-2:]) and not preserve[1:].any()


def test_same_draws_same_numbers_in_any_order(workshop, maker, data):
    order = [draws for epoch in range(2) for draws in data.batches(epoch)]
    forwards = [maker(draws) for draws in order]
    torch.manual_seed(99)
    backwards = [make_maker(workshop)(draws) for draws in reversed(order)]
    assert all(same(a, b) for a, b in zip(forwards, reversed(backwards), strict=True))


def test_a_picture_has_the_same_numbers_in_any_company(maker, data):
    draws = next(batch for batch in data.batches(0) if len(batch) == 2)
    together, alone = maker(draws), maker(draws[1:])
    for name in ("latents", "noise", "sigmas", "txt"):
        assert torch.equal(getattr(together, name)[1:], getattr(alone, name))


PRINT_NUMBERS = """
import sys
from pathlib import Path
import pytest
from benchmarks.random_flux import ModelFiles
from tests.recipe_files import Workshop
from tests.unit.test_batches import make_maker
from trainer.data.dataset import load_dataset
workshop = Workshop(Path(sys.argv[1]), ModelFiles(*map(Path, sys.argv[2:])))
data = load_dataset(workshop.config("run", prior_loss_weight=0.25))[0]
batch = make_maker(workshop)(data.batches(3)[1])
print(batch.noise.double().sum().item(), batch.latents.double().sum().item(), end=" ")
print(batch.sigmas.tolist(), batch.draws[0].sample.key)
"""


def test_same_numbers_in_another_process(workshop, maker, data):
    models = workshop.models
    paths = [workshop.folder, models.transformer, models.ae, models.clip_l, models.t5xxl, models.tokenizer_dir]
    command = [sys.executable, "-c", PRINT_NUMBERS, *map(str, paths)]
    other = environment() | {"PYTHONHASHSEED": "5"}
    done = subprocess.run(command, env=other, cwd=ROOT, capture_output=True, text=True)
    batch = maker(data.batches(3)[1])
    sums = f"{batch.noise.double().sum().item()} {batch.latents.double().sum().item()}"
    assert done.stdout.strip() == f"{sums} {batch.sigmas.tolist()} {batch.draws[0].sample.key}", done.stderr


def one_draw(data: TrainingData) -> Draw:
    return data.batches(0)[0][0]


def test_epochs_repeats_pictures_and_seeds_differ(workshop, maker, data):
    draw = one_draw(data)
    other = next(d for batch in data.batches(0) for d in batch if d.sample.key != draw.sample.key)
    other = replace(other, sample=replace(other.sample, bucket=draw.sample.bucket), epoch=0, repeat=draw.repeat)
    variants = [draw, replace(draw, epoch=1), replace(draw, repeat=draw.repeat + 1), other]
    batches = [maker((variant,)) for variant in variants] + [make_maker(workshop, seed=1)((draw,))]
    for name in ("noise", "sigmas"):
        assert len({getattr(batch, name).sum().item() for batch in batches}) == len(batches)
    first = batches[0]
    assert not torch.equal(first.latents - first.latents.mean(), first.noise - first.noise.mean())
    reworded = maker((replace(draw, caption="other"),))
    assert torch.equal(reworded.noise, first.noise) and not torch.equal(reworded.txt, first.txt)


def test_noise_is_normal_and_sigmas_follow_the_setting(workshop, data):
    draw = one_draw(data)
    maker = make_maker(workshop, timestep_sampling="uniform", min_timestep=500)
    batches = [maker((replace(draw, epoch=epoch),)) for epoch in range(500)]
    noise, sigmas = torch.cat([b.noise for b in batches]), torch.cat([b.sigmas for b in batches])
    assert abs(float(noise.mean())) < 0.01 and abs(float(noise.std()) - 1) < 0.01
    assert float(sigmas.min()) >= 0.5 and abs(float(sigmas.mean()) - 0.75) < 0.02
    drawn = torch.cat([b.latents for b in batches])
    (mean, std), scale = Encoded().latents(draw.sample, draw.flip), 0.3611
    assert float(drawn.mean()) == pytest.approx(float((mean.mean() - 0.1159) * scale), abs=0.005)
    assert float(drawn.std()) == pytest.approx(float(std.mean()) * scale, rel=0.02)
    assert abs(float((drawn * noise).mean() - drawn.mean() * noise.mean())) < 0.005, "they are drawn independently"


def test_validation_batches_never_change(workshop, maker, data):
    quantiles = torch.tensor([0.1, 0.6, 0.9], dtype=torch.float64)
    draw = one_draw(data)
    batch = maker.at_quantiles(draw, quantiles)
    assert same(batch, make_maker(workshop).at_quantiles(draw, quantiles))
    mean = scale_latents(Encoded().latents(draw.sample, draw.flip)[0])
    assert all(torch.equal(row, mean) for row in batch.latents), "the posterior's mean, not a draw from it"
    assert torch.equal(batch.sigmas, sigma_at_quantile(quantiles, maker.settings, shift_tokens(draw.sample)))
    assert len({row.sum().item() for row in batch.noise}) == 3


def test_scaling_of_latents_is_flux_ones_own():
    z = torch.tensor([0.1159, 1.1159])
    torch.testing.assert_close(scale_latents(z), torch.tensor([0.0, 0.3611]))
    torch.testing.assert_close(unscale_latents(scale_latents(z)), z)


def test_prefetch_keeps_the_order_and_stays_ahead():
    made: list[int] = []

    def make(number: int) -> int:
        time.sleep(0.002 * (number % 3))
        made.append(number)
        return number * 10

    found = []
    for batch in prefetch(make, range(20), ahead=3):  # type: ignore[arg-type, type-var]
        found.append(batch)
        assert len(made) <= len(found) + 3
    assert found == [number * 10 for number in range(20)] and made == list(range(20))


def test_prefetch_works_while_the_consumer_does():
    ready = threading.Event()

    def make(number: int) -> int:
        if number == 1:
            ready.set()
        return number

    batches = prefetch(make, range(5))  # type: ignore[arg-type, type-var]
    assert next(batches) == 0
    assert ready.wait(PATIENCE)


def batch_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("batches")]


def test_prefetch_stops_with_its_consumer():
    batches = prefetch(lambda number: number, count())  # type: ignore[arg-type, type-var]
    assert list(islice(batches, 3)) == [0, 1, 2] and batch_threads()
    batches.close()
    assert batch_threads() == []
    assert list(prefetch(lambda n: n, [])) == []  # type: ignore[arg-type, type-var]


def test_what_fails_on_the_thread_fails_where_the_batch_is_wanted():
    def make(number: int) -> int:
        if number == 2:
            raise ValueError("picture 2")
        return number

    batches = prefetch(make, range(5))  # type: ignore[arg-type, type-var]
    assert [next(batches), next(batches)] == [0, 1]
    with pytest.raises(ValueError, match="picture 2"):
        next(batches)
    assert batch_threads() == []


def test_captions_with_class_words_are_of_the_rows_that_have_a_trigger(workshop, data):
    draws = next(batch for batch in data.batches(0) if len(batch) == 2)
    words = {draws[1].caption: "toy"}
    maker = make_maker(workshop, apply_t5_attn_mask=True, text_encoder_lr=1e-4)
    asked = replace(maker, class_caption=lambda draw: words.get(draw.caption) if draw is draws[1] else None)(draws)
    assert asked.class_rows is not None and asked.class_rows.tolist() == [1]
    assert asked.class_txt is not None and asked.class_txt[:, 0, 0].tolist() == [len("toy")]
    assert asked.class_mask is not None and asked.class_mask.shape == (1, 8)
    assert asked.class_clip_ids is not None and asked.class_clip_ids.shape == (1, 77)
    none = replace(maker, class_caption=lambda _: None)(draws)
    assert not [name for name in none.tensors() if name.startswith("class_")]
    assert torch.equal(asked.noise, none.noise) and torch.equal(asked.txt, none.txt)
