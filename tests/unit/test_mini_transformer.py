"""Training the small transformer and distilling guidance into it, at the smallest size, on made-up latents."""

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from mini.training.autoencoder.latents import read_latents
from mini.training.autoencoder.model import build_autoencoder, load_autoencoder
from mini.training.distributed import Budget, Distributed
from mini.training.recipe import TINY
from mini.training.transformer.corpus import draw_batch, fixed_batches, make_corpus, sample_sigmas
from mini.training.transformer.guidance import guided_velocity, run_guidance
from mini.training.transformer.models import GUIDED, TEXT, TOKENIZERS, TRANSFORMER, Models, build_models, load_models
from mini.training.transformer.progress import cosine_rate, linear_rate
from mini.training.transformer.sampling import SHEET_PROMPTS, generate
from mini.training.transformer.text import TextEncoders
from mini.training.transformer.train import begin, ready_tokenizers, run_transformer
from trainer.common.files import write_json, write_safetensors
from trainer.models.text import Tokenizers, clip_ids, encode_clip, encode_t5, load_tokenizers
from trainer.models.transformer import Conditioning, predict_velocity
from trainer.sampling.prompts import SamplePrompt
from trainer.sampling.sampler import sample_latents

CPU = torch.device("cpu")
CAPTIONS = ("a red bear toy on a beach", "a blue gpu on a desk", "zorvap toy in the snow", "a green duck")
RECIPE = replace(TINY, transformer_steps=6, guidance_steps=4)


class BudgetOfSteps:
    """Is spent at the n-th look at the clock."""

    def __init__(self, looks: int):
        self.looks = looks

    def spent(self) -> bool:
        self.looks -= 1
        return self.looks < 0


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the stages before leave it."""
    folder = tmp_path_factory.mktemp("inputs")
    generator = torch.Generator().manual_seed(0)
    for name, captions in (("latents", CAPTIONS * 2), ("held-out-latents", CAPTIONS)):
        latents = torch.randn(len(captions), 16, RECIPE.latent_size, RECIPE.latent_size, generator=generator)
        write_safetensors(folder / f"{name}-0.safetensors", {"latents": latents.bfloat16()})
        write_json(folder / f"{name}-0.json", {"captions": captions})
    write_safetensors(folder / "autoencoder.safetensors", build_autoencoder(RECIPE).state_dict())
    return folder


def _folder(inputs: Path, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for path in inputs.iterdir():
        (folder / path.name).symlink_to(path)
    return folder


@pytest.fixture(scope="module")
def trained(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = _folder(inputs, tmp_path_factory.mktemp("trained"))
    run_transformer(RECIPE, folder, Budget())
    run_guidance(RECIPE, folder, Budget())
    return folder


@pytest.fixture(scope="module")
def tokenizers(trained: Path) -> Tokenizers:
    return load_tokenizers(trained / "tokenizers")


@pytest.fixture(scope="module")
def models(tokenizers: Tokenizers) -> Models:
    return build_models(RECIPE, tokenizers, CPU)


def _lines(file: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def _same(first: Path, second: Path) -> bool:
    one, two = load_file(first), load_file(second)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_the_stage_leaves_weights_losses_and_pictures(trained: Path):
    lines = _lines(trained / "transformer.jsonl")
    assert [line["step"] for line in lines if "loss" in line] == [3, 6]
    assert [line["step"] for line in lines if "held_out_loss" in line] == [3, 6]
    assert [line["processes"] for line in lines if "processes" in line] == [1]
    assert all(math.isfinite(value) for line in lines for value in line.values() if not isinstance(value, str))
    sheet = Image.open(trained / "transformer-000006.png")
    assert sheet.size == (len(SHEET_PROMPTS) * RECIPE.size, 2 * RECIPE.size)
    assert (trained / "transformer.safetensors").exists() and (trained / "text.safetensors").exists()


def test_training_learns_a_batch(tokenizers: Tokenizers, trained: Path):
    models = build_models(RECIPE, tokenizers, CPU)
    batch = draw_batch(make_corpus(read_latents(trained, "latents", Distributed()), models.text), RECIPE, 2, "", 0, 0)
    optimizer = begin(models, RECIPE).optimizer
    for group in optimizer.param_groups:
        group["lr"] = 3e-3
    losses = []
    for _ in range(15):
        loss = (models.velocity(batch) - batch.target).square().mean()
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("stage", ["transformer", "guidance"])
def test_a_stage_that_stopped_goes_on_bit_for_bit(
    stage: str, inputs: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("mini.training.transformer.progress.FIRST_READING", 2)
    run = run_transformer if stage == "transformer" else run_guidance
    outputs = [f"{name}.safetensors" for name in (("transformer", "text") if stage == "transformer" else ("guided",))]
    recipe = replace(RECIPE, transformer_steps=4, transformer_validations=1)
    stopped, straight = (_folder(inputs, tmp_path / name) for name in ("stopped", "straight"))
    if stage == "guidance":
        for folder in (stopped, straight):
            for name in (TRANSFORMER, TEXT, TOKENIZERS):
                (folder / name).symlink_to(trained / name)
    run(recipe, stopped, BudgetOfSteps(0))  # type: ignore[arg-type]
    assert [line["step"] for line in _lines(stopped / f"{stage}.jsonl")] == [2]
    assert not (stopped / outputs[0]).exists()
    run(recipe, stopped, Budget())
    run(recipe, straight, Budget())
    for name in (*outputs, f"{stage}.state.safetensors"):
        assert _same(stopped / name, straight / name), name


def test_the_number_of_steps_may_change_on_the_way(trained: Path, tmp_path: Path):
    folder = _folder(trained, tmp_path / "longer")
    before = load_file(trained / TRANSFORMER)
    (folder / "transformer.jsonl").unlink()
    run_transformer(replace(RECIPE, transformer_steps=8, transformer_validations=1), folder, Budget())
    assert load_file(folder / TRANSFORMER).keys() == before.keys() and not _same(
        folder / TRANSFORMER, trained / TRANSFORMER
    )
    assert [line["step"] for line in _lines(folder / "transformer.jsonl")] == [8, 8]


def test_a_fresh_transformer_predicts_zero_and_still_learns(models: Models, trained: Path):
    corpus = make_corpus(read_latents(trained, "latents", Distributed()), models.text)
    batch = draw_batch(corpus, RECIPE, 4, "transformer", 0, 0)
    velocity = models.velocity(batch)
    assert velocity.shape == batch.latents.shape and velocity.dtype == torch.float32 and not velocity.any()
    (velocity - batch.target).square().mean().backward()
    assert models.transformer.proj_out.weight.grad is not None and models.transformer.proj_out.weight.grad.any()
    for parameter in models.parameters().values():
        assert parameter.grad is not None
        parameter.grad = None


def test_fresh_models_are_the_same_in_every_process_and_leave_the_generator_alone(
    tokenizers: Tokenizers, models: Models
):
    state = torch.get_rng_state()
    again = build_models(RECIPE, tokenizers, CPU).parameters()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, again[name]) for name, value in models.parameters().items())


def test_draws_depend_on_seed_stage_step_and_rank(models: Models, trained: Path):
    corpus = make_corpus(read_latents(trained, "latents", Distributed()), models.text)
    first = draw_batch(corpus, RECIPE, 4, "transformer", 3, 0)
    assert torch.equal(first.noise, draw_batch(corpus, RECIPE, 4, "transformer", 3, 0).noise)
    others = [(RECIPE, "guidance", 3, 0), (RECIPE, "transformer", 4, 0), (RECIPE, "transformer", 3, 1)]
    others.append((replace(RECIPE, seed=1), "transformer", 3, 0))
    for recipe, stage, step, rank in others:
        assert not torch.equal(first.noise, draw_batch(corpus, recipe, 4, stage, step, rank).noise)
    sigma = first.sigmas.view(-1, 1, 1, 1)
    assert torch.allclose(first.noisy, (1 - sigma) * first.latents + sigma * first.noise)
    assert torch.equal(first.target, first.noise - first.latents) and first.latents.dtype == torch.float32


def test_a_batch_has_each_pictures_own_caption_or_none(models: Models, trained: Path):
    latents = read_latents(trained, "latents", Distributed())
    corpus = make_corpus(latents, models.text)
    assert len(corpus.t5_ids) == len(CAPTIONS)
    batch = draw_batch(corpus, replace(RECIPE, caption_dropout=0.3), 400, "transformer", 0, 0)
    expected_t5, expected_clip = models.text.tokenize(latents.captions)
    empty_t5, empty_clip = models.text.tokenize([""])
    dropped = 0
    for picture, t5_ids, clip in zip(batch.latents, batch.t5_ids, batch.clip_ids, strict=True):
        row = int((latents.values.float() == picture).flatten(1).all(1).nonzero()[0, 0])
        empty = torch.equal(t5_ids, empty_t5[0])
        assert empty or torch.equal(t5_ids, expected_t5[row])
        assert torch.equal(clip, empty_clip[0] if empty else expected_clip[row])
        dropped += empty
    assert 80 < dropped < 160
    assert batch.guidance.min() >= 1 and batch.guidance.max() <= 6


def test_sigmas_are_logit_normal_with_a_share_of_uniform_ones():
    generator = torch.Generator().manual_seed(0)
    sigmas = sample_sigmas(20_000, replace(RECIPE, uniform_sigmas=0.0), generator)
    logits = torch.logit(sigmas.double())
    assert abs(logits.mean() - 0.5) < 0.03 and abs(logits.std() - 1) < 0.03
    uniform = sample_sigmas(20_000, replace(RECIPE, uniform_sigmas=1.0), generator)
    assert abs((uniform < 0.1).float().mean() - 0.1) < 0.01


def test_validation_draws_cover_all_sigmas_and_never_change(models: Models, trained: Path):
    corpus = make_corpus(read_latents(trained, "held-out-latents", Distributed()), models.text)
    one, two = fixed_batches(corpus, RECIPE, 1.0), fixed_batches(corpus, RECIPE, 1.0)
    assert sorted(torch.cat([batch.sigmas for batch in one]).tolist()) == [0.125, 0.375, 0.625, 0.875]
    assert torch.equal(one[0].noise, two[0].noise) and one[0].guidance.tolist() == [1.0] * 4


def test_rates_rise_stay_and_fall():
    rate = [cosine_rate(step, 1000, 100, 0.4, 0.02) for step in range(1000)]
    assert rate[0] == 0.01 and rate[99:401] == [1.0] * 302 and 0.02 <= rate[-1] < 0.021
    assert all(a >= b for a, b in pairwise(rate[400:])) and abs(rate[700] - 0.51) < 1e-9
    line = [linear_rate(step, 100, 10) for step in range(100)]
    assert line[0] == 0.1 and line[50] == 0.5 and 0 < line[-1] < 0.02


def test_text_encoders_compute_what_the_trainer_computes(models: Models):
    text = models.text
    with torch.no_grad():  # as the trainer, which has another attention kernel then
        conditioning = text.encode(CAPTIONS)
    assert conditioning.txt.shape == (4, RECIPE.text_length, RECIPE.t5_width)
    hidden, _ = encode_t5(text.t5, text.tokenizers.t5, CAPTIONS, RECIPE.text_length, masked=False)
    assert torch.equal(conditioning.txt, hidden)
    assert torch.equal(conditioning.pooled, encode_clip(text.clip, text.tokenizers.clip, CAPTIONS))


def test_clip_pools_at_the_end_of_the_text(tokenizers: Tokenizers):
    text = TextEncoders(RECIPE, tokenizers)
    t5_ids, ids = text.tokenize(["a red bear toy"])
    assert torch.equal(ids, clip_ids(tokenizers.clip, ["a red bear toy"]))
    changed = ids.clone()
    changed[0, 20] = 5  # behind the end
    earlier = ids.clone()
    earlier[0, 2] = 5
    pooled = [text(t5_ids, each)[1] for each in (ids, changed, earlier)]
    assert torch.equal(pooled[0], pooled[1]) and not torch.allclose(pooled[0], pooled[2])


def test_the_guided_target_is_classifier_free_guidance(trained: Path):
    teacher = load_models(RECIPE, trained, CPU, TRANSFORMER)
    corpus = make_corpus(read_latents(trained, "latents", Distributed()), teacher.text)
    batch = draw_batch(corpus, replace(RECIPE, caption_dropout=0.0), 3, "guidance", 0, 0)
    told, target = guided_velocity(teacher, batch, corpus.empty)
    captioned = teacher.velocity(batch)
    empty = teacher.velocity(
        batch, Conditioning(*(part.expand(3, *part.shape[1:]) for part in teacher.text(*corpus.empty)))
    )
    scale = batch.guidance.view(-1, 1, 1, 1)
    assert torch.allclose(target, empty + scale * (captioned - empty), atol=1e-5) and not target.requires_grad
    assert torch.allclose(teacher.velocity(batch, told), captioned, atol=1e-6)


def test_distillation_changes_the_transformer_alone(trained: Path):
    assert not _same(trained / GUIDED, trained / TRANSFORMER)
    (line,) = [line for line in _lines(trained / "guidance.jsonl") if "held_out_loss" in line]
    assert line["step"] == 4 and line["held_out_loss"] >= 0
    assert Image.open(trained / "guidance.png").size == (len(SHEET_PROMPTS) * RECIPE.size, 3 * RECIPE.size)
    guided, base = load_models(RECIPE, trained, CPU), load_models(RECIPE, trained, CPU, TRANSFORMER)
    texts = [dict(models.text.named_parameters()) for models in (guided, base)]
    assert all(torch.equal(value, texts[1][name]) for name, value in texts[0].items())
    assert not any(parameter.requires_grad for parameter in guided.parameters().values())


def test_draw_starts_from_the_noise_of_trainer_sample(trained: Path):
    models = load_models(RECIPE, trained, CPU)
    options = {"guidance": 3.5, "cfg": 2.0, "steps": 2, "seed": 7, "size": RECIPE.size}
    autoencoder = load_autoencoder(RECIPE, trained, CPU)
    pictures = generate(models.transformer, models.text, autoencoder, CAPTIONS[:3], **options)
    assert pictures.shape == (3, 3, RECIPE.size, RECIPE.size) and pictures.dtype == torch.uint8
    alone = generate(models.transformer, models.text, autoencoder, CAPTIONS[2:3], **{**options, "seed": 9})
    assert (pictures[2].int() - alone[0].int()).abs().max() <= 1
    prompt = SamplePrompt(CAPTIONS[2], width=RECIPE.size, height=RECIPE.size, steps=2, cfg=2.0)
    positive, negative = models.text.encode([CAPTIONS[2]]), models.text.encode([""])
    latents = sample_latents(models.transformer, prompt, 9, positive, negative)
    decoded = autoencoder.decode(latents / 0.3611 + 0.1159).sample[0]
    expected = ((decoded.clamp(-1, 1) + 1) * 127.5).round()
    assert (expected - alone[0]).abs().max() <= 1


def test_guidance_may_be_one_value_for_all_or_one_each(models: Models, trained: Path):
    corpus = make_corpus(read_latents(trained, "latents", Distributed()), models.text)
    batch = draw_batch(corpus, RECIPE, 3, "transformer", 0, 0)
    transformer = load_models(RECIPE, trained, CPU).transformer
    told = Conditioning(*models.text(batch.t5_ids, batch.clip_ids))

    def velocity(guidance: float | torch.Tensor) -> torch.Tensor:
        return predict_velocity(transformer, batch.noisy, batch.sigmas, told, guidance, models.rotary)

    each = velocity(torch.tensor([1.0, 3.5, 6.0]))
    for row, value in enumerate((1.0, 3.5, 6.0)):
        assert torch.allclose(each[row], velocity(value)[row], atol=1e-6)
    assert not torch.equal(velocity(1.0)[1], velocity(3.5)[1])


def test_tokenizers_are_made_once(trained: Path):
    file = trained / "tokenizers" / "tokenizer_2" / "tokenizer.json"
    written = file.stat().st_mtime_ns
    ready_tokenizers(trained, Distributed())
    assert file.stat().st_mtime_ns == written
