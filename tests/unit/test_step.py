"""A group's gradient is the mean over its pictures, however they are split into batches and processes."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from diffusers import FluxTransformer2DModel
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import trainer.engine.step
from tests.parity.test_transformer import make_transformer
from trainer.config import TrainConfig
from trainer.data.batches import Batch
from trainer.engine.step import AdaptedModel, accumulate_gradients, sum_over_processes
from trainer.lora.adapter import Dropouts, add_lora, disabled_adapter, linear_modules
from trainer.models.transformer import Conditioning, predict_velocity, rotary_table
from trainer.optim.foreach import chunks

CONFIG = TrainConfig(guidance_scale=1.0, loss_type="l2")
PRESERVES_FIRST = {  # of two images
    "preserve": torch.tensor([1.0, 0.0]).view(2, 1, 1, 1).expand(2, 1, 4, 6),
    "preserved_rows": torch.tensor([0]),
}


def make_model(config: TrainConfig = CONFIG, dropouts: Dropouts = Dropouts()) -> AdaptedModel:  # noqa: B008
    transformer = make_transformer()
    add_lora(transformer, dict.fromkeys(linear_modules(transformer), 2), None, seed=0, dropouts=dropouts)
    model = AdaptedModel(config, transformer)
    generator = torch.Generator().manual_seed(4)
    for parameter in model.parameters.values():
        nn.init.normal_(parameter, 0, 0.1, generator=generator)
    model.train()
    return model


def make_batch(size: int, seed: int = 0, **changes) -> Batch:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(size, *shape, generator=generator)

    batch = Batch(
        latents=draw(4, 4, 6),
        noise=draw(4, 4, 6),
        sigmas=draw().sigmoid(),
        weights=torch.ones(size),
        txt=draw(5, 24),
        pooled=draw(20),
        txt_mask=None,
        clip_ids=None,
        preserve=None,
        preserved_rows=None,
        loss_mask=None,
        draws=(),
    )
    return replace(batch, **changes)


def one(batch: Batch, index: int) -> Batch:
    """A single picture of a batch."""
    parts = {name: value[index : index + 1] for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
    return replace(batch, **parts)


def gradient(model: AdaptedModel, batches: list[Batch], num_pictures: int | None = None) -> tuple[torch.Tensor, float]:
    """All gradients as one vector, and the loss."""
    count = num_pictures or sum(len(batch.sigmas) for batch in batches)
    for parameter in model.parameters.values():
        parameter.grad = None
    loss = accumulate_gradients(model, batches, len(batches), count, step=1)
    return torch.cat([p.grad.flatten() for p in model.parameters.values() if p.grad is not None]), float(loss)


def velocity(transformer, batch: Batch) -> torch.Tensor:
    sigmas = batch.sigmas[:, None, None, None]
    noisy = (1 - sigmas) * batch.latents + sigmas * batch.noise
    rotary = rotary_table(transformer, 4, 6, 5, torch.device("cpu"))
    text = Conditioning(batch.txt, batch.pooled, batch.txt_mask)
    return predict_velocity(transformer, noisy, batch.sigmas, text, CONFIG.guidance_scale, rotary)


def loss_in_plain_words(model: AdaptedModel, batch: Batch) -> torch.Tensor:
    """Mean squared error of noise - x_0 at x_sigma, per picture."""
    return (velocity(model.transformer, batch) - (batch.noise - batch.latents)).square().mean(dim=(1, 2, 3))


@pytest.mark.parametrize("sizes", [(3,), (2, 2), (2, 1), (3, 1, 2)], ids=str)
def test_every_picture_weighs_the_same(sizes):
    """Unequal batches and a partial group: the gradient is the plain mean over pictures."""
    model = make_model()
    batches = [make_batch(size, seed) for seed, size in enumerate(sizes)]
    found, loss = gradient(model, batches)
    pictures = [one(batch, index) for batch in batches for index in range(len(batch.sigmas))]
    losses = torch.cat([loss_in_plain_words(model, picture) for picture in pictures])
    expected = torch.autograd.grad(losses.mean(), list(model.parameters.values()))
    torch.testing.assert_close(found, torch.cat([g.flatten() for g in expected]), rtol=1e-4, atol=1e-7)
    assert loss == pytest.approx(float(losses.mean()), rel=1e-5)


def test_two_processes_add_up_to_one():
    """Each runs its share with the whole group's number of pictures; the sum is the group's gradient."""
    model = make_model()
    batches = [make_batch(2, 0), make_batch(1, 1), make_batch(2, 2)]
    whole, loss = gradient(model, batches)
    shares = [gradient(model, batches[process::2], num_pictures=5) for process in range(2)]
    torch.testing.assert_close(shares[0][0] + shares[1][0], whole, rtol=1e-4, atol=1e-7)
    assert shares[0][1] + shares[1][1] == pytest.approx(loss, rel=1e-5)


def test_only_the_groups_own_batches_are_taken():
    batches = iter([make_batch(1, seed) for seed in range(3)])
    accumulate_gradients(make_model(), batches, 2, 2, step=1)
    assert len(list(batches)) == 1


def test_prior_loss_weight_scales_a_picture_within_the_mean():
    model = make_model()
    batch = make_batch(3)
    parts = [gradient(model, [one(batch, index)])[0] for index in range(3)]
    weighted = replace(batch, weights=torch.tensor([1.0, 0.25, 1.0]))
    expected = (parts[0] + 0.25 * parts[1] + parts[2]) / 3
    torch.testing.assert_close(gradient(model, [weighted])[0], expected, rtol=1e-4, atol=1e-7)


def test_weighting_scheme_weighs_each_picture_by_its_sigma():
    batch = make_batch(2)
    plain = make_model()
    weighted = make_model(replace(CONFIG, weighting_scheme="sigma_sqrt"))
    parts = [gradient(plain, [one(batch, i)])[0] * float(batch.sigmas[i]) ** -2 for i in range(2)]
    torch.testing.assert_close(gradient(weighted, [batch])[0], sum(parts) / 2, rtol=1e-4, atol=1e-7)


def test_preserved_pictures_learn_the_base_models_own_prediction():
    model, batch = make_model(), make_batch(2, **PRESERVES_FIRST)
    change = velocity(model.transformer, batch) - velocity(make_transformer(), batch)
    expected = torch.stack([change[0].square().mean(), loss_in_plain_words(model, batch)[1]])
    torch.testing.assert_close(model.losses(batch), expected, rtol=1e-4, atol=1e-7)


def test_only_images_that_preserve_something_are_predicted_a_second_time(monkeypatch):
    model, sizes = make_model(), []
    predict = trainer.engine.step.predict_velocity

    def counted(transformer, noisy, *others):
        sizes.append(len(noisy))
        return predict(transformer, noisy, *others)

    monkeypatch.setattr(trainer.engine.step, "predict_velocity", counted)
    gradient(model, [make_batch(2), make_batch(2, **PRESERVES_FIRST)])
    assert sizes == [2, 1, 2]


def test_checkpointing_and_mask_reach_the_transformer():
    batch = make_batch(2)
    plain = gradient(make_model(), [batch])[0]
    again = gradient(make_model(replace(CONFIG, gradient_checkpointing=True)), [batch])[0]
    assert torch.equal(plain, again)
    mask = torch.tensor([[True, True, False, False, False]] * 2)
    masked = make_batch(2, txt_mask=mask)
    assert not torch.allclose(make_model().losses(masked), make_model().losses(batch))


@pytest.mark.parametrize("dropouts", [Dropouts(network=0.5), Dropouts(rank=0.5), Dropouts(module=0.5)])
def test_dropout_is_drawn_from_the_step_and_batch_alone(dropouts):
    model = make_model(dropouts=dropouts)
    batches = [make_batch(1, 0), make_batch(1, 0)]
    torch.manual_seed(1)
    first = gradient(model, batches)[0]
    torch.manual_seed(2)
    assert torch.equal(gradient(model, batches)[0], first)
    assert not torch.allclose(gradient(model, batches[:1])[0], first), "each batch has its own"
    other_step = accumulate_gradients(model, batches, 2, 2, step=2)
    assert float(other_step) != gradient(model, batches)[1]
    model.train(False)
    torch.testing.assert_close(gradient(model, batches)[0], gradient(make_model(), batches)[0])


def test_a_model_in_bfloat16_has_losses_in_float32_and_gradients_of_the_adapter_alone():
    model = make_model()
    low = model.transformer
    for module in low.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                setattr(module, name, nn.Parameter(parameter.bfloat16(), requires_grad=False))
    model = AdaptedModel(CONFIG, low)
    assert model.dtype == torch.bfloat16 and isinstance(low, FluxTransformer2DModel)
    assert model.losses(make_batch(2)).dtype == torch.float32
    found, _ = gradient(model, [make_batch(2)])
    reference = gradient(make_model(), [make_batch(2)])[0]
    assert found.dtype == torch.float32 and (found - reference).norm() < 0.1 * reference.norm()
    assert all(parameter.grad is None for parameter in low.parameters() if not parameter.requires_grad)


def test_one_process_has_nothing_to_sum():
    parameter = nn.Parameter(torch.ones(2))
    loss = torch.tensor(3.0)
    sum_over_processes([parameter], loss, Accelerator(cpu=True))
    assert parameter.grad is None and float(loss) == 3


def test_gradients_travel_in_pieces_that_lose_nothing():
    gradients = [torch.ones(size) for size in (4, 6, 1, 25, 3, 3)]
    pieces = list(chunks(gradients, lambda gradient: gradient.dtype, limit=10))
    assert [[len(g) for g in piece] for piece in pieces] == [[4, 6], [1], [25], [3, 3]]


class Counted(TorchDispatchMode):
    """What is computed within it, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[override]
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_summing_launches_as_much_for_many_parameters_as_for_few(monkeypatch):
    """One copy for each gradient fills a GPU's queue, and two GPUs then wait for their hosts."""
    monkeypatch.setattr(trainer.engine.step.dist, "all_reduce", lambda tensor: tensor.mul_(2))
    for dtype in (torch.float32, torch.bfloat16):
        names = []
        for count in (3, 30):
            parameters = [nn.Parameter(torch.ones(2, size + 1, dtype=dtype)) for size in range(count)]
            for number, parameter in enumerate(parameters[:-1]):
                parameter.grad = torch.full_like(parameter, number)
            with Counted() as counted:
                sum_over_processes(parameters, torch.zeros(()), SimpleNamespace(num_processes=2))  # type: ignore[arg-type]
            sums = [float(parameter.grad.flatten()[0]) for parameter in parameters if parameter.grad is not None]
            assert sums == [*(2.0 * number for number in range(count - 1)), 0.0]
            names.append(counted.names)
        assert "copy_" not in names[1] and "_foreach_copy_" in names[1]
        views = {"view", "split", "split_with_sizes", "flatten", "_unsafe_view"}
        assert [name for name in names[0] if name not in views] == [name for name in names[1] if name not in views]


def class_text(*rows: int) -> dict[str, torch.Tensor]:
    """Captions with class words for some rows of a batch."""
    other = make_batch(len(rows), seed=50)
    return {"class_rows": torch.tensor(rows), "class_txt": other.txt, "class_pooled": other.pooled}


def test_class_words_are_kept_as_the_base_model_predicts_them():
    """Row 2 of 3 has a trigger: its loss is what the adapter changes for the caption with the class word."""
    model = make_model(replace(CONFIG, class_preservation_weight=0.5))
    batch = make_batch(3, weights=torch.tensor([1.0, 1.0, 0.25]), **class_text(2))
    plain, plain_loss = gradient(model, [replace(batch, class_rows=None)])
    found, loss = gradient(model, [batch])

    assert batch.class_txt is not None and batch.class_pooled is not None
    asked = replace(one(batch, 2), txt=batch.class_txt, pooled=batch.class_pooled)
    with torch.no_grad(), disabled_adapter(model.transformer):
        kept = velocity(model.transformer, asked)
    change = (velocity(model.transformer, asked) - kept).square().mean() * 0.25 / 3 * 0.5
    expected = torch.autograd.grad(change, list(model.parameters.values()), allow_unused=True)
    added = torch.cat([g.flatten() for g in expected if g is not None])
    assert added.abs().max() > 1e-5
    torch.testing.assert_close(found, plain + added, rtol=1e-4, atol=1e-7)
    assert loss == pytest.approx(plain_loss + float(change.detach()), rel=1e-5)


def test_what_the_base_model_predicts_for_class_words_needs_nothing_at_the_start():
    """An adapter that changes nothing yet has nothing to answer for."""
    model = make_model(replace(CONFIG, class_preservation_weight=1.0))
    for name, parameter in model.parameters.items():
        if ".lora_B." in name:
            nn.init.zeros_(parameter)
    assert model.class_losses(make_batch(2, **class_text(0, 1))).abs().max() == 0
