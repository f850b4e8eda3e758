"""Frozen layers in 8 and 4 bits: what they store, right outputs and gradients, adapters on them as on others."""

import logging
from collections import Counter

import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from benchmarks.random_flux import ModelFiles
from tests.compilers import needs_inductor
from tests.quantized_layers import EIGHT_BITS, PRECISIONS, Adapted, cosine, draw, layer_of
from trainer.config import TrainConfig, config_differences, to_dict
from trainer.kernels.quantize import FP8, INT8, quantize_rows
from trainer.lora.adapter import disabled_adapter, linear_modules
from trainer.lora.blocks import layers_on_one_input
from trainer.models import quantized
from trainer.models.load import load_transformer
from trainer.models.products import dequantized
from trainer.models.quantized import (
    QuantizedLinear,
    WeightFormat,
    allocate,
    alternative,
    make_quantized,
    precision_problems,
    product_error,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize(("dtype", "error"), [(FP8, 2**-4), (INT8, 1 / 127)])
def test_a_row_is_rounded_by_its_own_largest_number(dtype, error):
    x = draw(5, 64) * torch.tensor([1e-6, 1e-2, 1, 1e2, 1e6])[:, None]
    values, scale = quantize_rows(x, dtype)
    found, largest = values.float() * scale, x.abs().amax(1, keepdim=True)
    assert values.dtype == dtype
    assert ((found - x).abs() <= error * largest).all()
    torch.testing.assert_close(found.abs().amax(1, keepdim=True), largest, rtol=1e-3, atol=0)


@pytest.mark.parametrize("dtype", [FP8, INT8])
def test_zeros_stay_zeros_and_what_is_not_finite_is_not_hidden(dtype):
    x = torch.zeros(3, 16)
    x[1, 3], x[2, 3] = torch.inf, torch.nan
    values, scale = quantize_rows(x, dtype)
    found = values.float() * scale
    assert not found[0].any()
    assert not found[1].isfinite().all()
    assert not found[2].isfinite().all()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_gradient_is_that_of_the_weights_that_forward_used(precision):
    """Exact in a product that rounds neither input nor gradient: each has one number a row that is not zero."""
    layer = layer_of(draw(48, 64), precision)
    wide = dequantized(layer.weight, layer.scale, torch.float32, 48)
    x, dy = torch.zeros(1, 64, 64), torch.zeros(1, 64, 48)
    x[0].fill_diagonal_(3.0)
    dy[0, :48].fill_diagonal_(0.7)
    x.requires_grad_()
    y = layer(x)
    torch.testing.assert_close(y[0], 3.0 * wide.t())
    (dx,) = torch.autograd.grad(y, x, dy)
    torch.testing.assert_close(dx[0, :48], 0.7 * wide)
    assert not dx[0, 48:].any()


@pytest.mark.parametrize(("precision", "error"), [("fp8", 0.04), ("int8", 0.015)])
def test_output_and_gradient_are_close_to_float32(precision, error):
    weight, dy = draw(96, 256, seed=1), draw(2, 40, 96, seed=2)
    layer, x = layer_of(weight, precision), draw(2, 40, 256, seed=3).requires_grad_()
    layer.bias = nn.Parameter(draw(96, seed=4), requires_grad=False)
    y = layer(x)
    expected = nn.functional.linear(x, weight, layer.bias)
    (dx,) = torch.autograd.grad(y, x, dy)
    assert (y - expected).norm() < error * expected.norm()
    assert (dx - dy @ weight).norm() < error * (dy @ weight).norm()
    layer.bias.data = layer.bias.bfloat16()
    assert y.dtype == torch.float32
    assert layer(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("precision", EIGHT_BITS)
def test_both_layouts_give_the_same_bits_for_twice_the_bytes(precision):
    weight, dy = draw(96, 256), draw(2, 40, 96, seed=1)
    gradients = []
    for both in (False, True):
        layer, x = layer_of(weight, precision, both), draw(2, 40, 256, seed=2).requires_grad_()
        gradients += torch.autograd.grad(layer(x), x, dy)
        stored = sum(parameter.nbytes for name, parameter in layer.named_parameters() if name != "scale")
        assert stored == weight.numel() * layer.weight_format.bytes_per_weight()
    assert torch.equal(*gradients)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_vector_per_picture_is_multiplied_in_its_own_precision(precision):
    layer, vector = layer_of(draw(96, 256), precision), draw(2, 256, seed=1).requires_grad_()
    wide = dequantized(layer.weight, layer.scale, torch.float32, 96)
    y = layer(vector)
    torch.testing.assert_close(y, vector @ wide.t())
    (gradient,) = torch.autograd.grad(y.sum(), vector)
    torch.testing.assert_close(gradient, wide.sum(0).expand(2, -1))


def test_few_rows_are_multiplied_in_int8_too():
    weight, x = draw(64, 64), draw(1, 3, 64, seed=1)
    assert cosine(layer_of(weight, "int8")(x), x @ weight.t()) > 0.999


@pytest.fixture(scope="module")
def exact(tiny_flux: ModelFiles) -> Adapted:
    return Adapted(tiny_flux.transformer)


@pytest.mark.parametrize(("base", "least"), [("fp8", 0.99), ("int8", 0.999)])
def test_the_adapters_gradient_points_where_float32s_does(tiny_flux, exact, base, least):
    found, expected = Adapted(tiny_flux.transformer, base).gradient(), exact.gradient()
    assert cosine(found, expected) > least
    assert float(found.norm() / expected.norm()) == pytest.approx(1, abs=0.05)


def test_every_linear_layer_of_the_blocks_is_stored_so_and_no_other(tiny_flux):
    transformer = load_transformer(tiny_flux.transformer, "cpu", torch.bfloat16)
    names = linear_modules(transformer)
    others = {name for name, module in transformer.named_modules() if isinstance(module, nn.Linear)} - {*names}
    stored = load_transformer(tiny_flux.transformer, "cpu", torch.bfloat16, "fp8")
    assert linear_modules(stored) == names
    for name in names:
        layer, plain = stored.get_submodule(name), transformer.get_submodule(name)
        assert isinstance(layer, QuantizedLinear)
        assert isinstance(plain, nn.Linear)
        assert (layer.weight.dtype, layer.weight.shape, layer.transposed) == (FP8, plain.weight.shape, None)
        assert torch.equal(layer.bias, plain.bias)
        assert cosine(dequantized(layer.weight, layer.scale, torch.float32, 0), plain.weight) > 0.999
    for name in others:
        assert type(stored.get_submodule(name)) is nn.Linear
        assert torch.equal(stored.get_parameter(f"{name}.weight"), transformer.get_parameter(f"{name}.weight"))
    assert not any(parameter.requires_grad for parameter in stored.parameters())
    assert all(parameter.device == CPU for parameter in stored.parameters())


def test_weights_are_quantised_as_they_arrive(tiny_flux, monkeypatch):
    """Never more than one of a file's tensors is there beside what is stored."""
    alive: Counter[str] = Counter()
    right = QuantizedLinear.store

    def store(self, weight):
        right(self, weight)
        alive[weight.untyped_storage().data_ptr()] += 1  # type: ignore
        assert self.weight.untyped_storage().data_ptr() != weight.untyped_storage().data_ptr()
        assert self.weight.untyped_storage().nbytes() == self.weight.nbytes  # a copy of its own, no view of the file's

    monkeypatch.setattr(QuantizedLinear, "store", store)
    transformer = load_transformer(tiny_flux.transformer, "cpu", torch.bfloat16, "int8")
    assert sum(alive.values()) == len(linear_modules(transformer))


@pytest.mark.parametrize("joined", [None, layers_on_one_input])
@pytest.mark.parametrize(
    "weight_format", [WeightFormat("fp8"), WeightFormat("fp8", both_layouts=True), WeightFormat("int8")]
)
def test_all_that_stays_has_its_memory_before_a_weight_comes(tiny_flux, monkeypatch, weight_format, joined):
    """Taken in between what comes and goes, it would be scattered over a device's memory."""
    first: list[dict[str, int]] = []
    right = QuantizedLinear.store

    def places() -> dict[str, int]:
        return {name: layer.data_ptr() for name, layer in made[0].named_parameters() if not layer.is_meta}

    def store(self, weight):
        first.append(places()) if not first else None
        right(self, weight)

    made: list[nn.Module] = []
    monkeypatch.setattr("trainer.models.load.allocate", lambda *all: made.append(all[0]) or allocate(*all))
    monkeypatch.setattr(QuantizedLinear, "store", store)
    transformer = load_transformer(tiny_flux.transformer, "cpu", torch.bfloat16, weight_format, joined=joined)
    layers = [name for name, layer in transformer.named_modules() if isinstance(layer, QuantizedLinear)]
    assert {f"{name}.weight" for name in layers} <= first[0].keys()
    later = places()
    assert all(later[name] == place for name, place in first[0].items())


@pytest.mark.parametrize("weight_format", [WeightFormat("fp8"), WeightFormat("fp8", both_layouts=True)])
def test_joined_or_not_the_same_numbers_are_stored(tiny_flux, weight_format):
    one, other = (
        load_transformer(tiny_flux.transformer, "cpu", torch.bfloat16, weight_format, joined=joined).state_dict()
        for joined in (None, layers_on_one_input)
    )
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name].float(), other[name].float()) for name in one)


def test_adapters_are_placed_and_turned_off_as_on_plain_layers(tiny_flux):
    adapted = Adapted(tiny_flux.transformer, "fp8")
    plain = load_transformer(tiny_flux.transformer, "cpu", torch.float32, "fp8")
    layers = [module for module in adapted.transformer.modules() if isinstance(module, LoraLayer)]
    assert len(layers) == len(linear_modules(plain))
    assert all(parameter.dtype == torch.float32 for parameter in adapted.parameters.values())
    with torch.no_grad():
        changed = adapted.predict()
        with disabled_adapter(adapted.transformer):
            own = adapted.predict()
        adapted.transformer = plain
        assert torch.equal(own, adapted.predict())
    assert not torch.equal(own, changed)


def test_nothing_stored_is_lost_when_parameters_move():
    """As block swap moves them: every tensor of the layer is a parameter, and is read anew at each product."""
    layer, x = layer_of(draw(96, 256), "fp8", both_layouts=True), draw(1, 40, 256, seed=1)
    expected = layer(x)
    assert {name for name, _ in layer.named_parameters()} == {"weight", "scale", "transposed"}
    for parameter in layer.parameters():
        elsewhere = parameter.data.view(torch.uint8).clone()
        parameter.data.view(torch.uint8).zero_()
        parameter.data = elsewhere.view(parameter.dtype)
    assert torch.equal(layer(x), expected)


class Block(nn.Module):
    def __init__(self, precision: str):
        super().__init__()
        names = ("modulation", "to_q", "to_k", "out")
        self.transformer_blocks = nn.ModuleList([nn.ModuleDict({name: nn.Linear(64, 64) for name in names})])
        weights = {name: draw(64, 64, seed=seed) / 8 for seed, name in enumerate(names)}
        make_quantized(self, WeightFormat(precision))  # type: ignore
        for name, weight in weights.items():
            self.transformer_blocks[0][name].store(weight)  # type: ignore

    def forward(self, x: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
        layers = self.transformer_blocks[0]
        x = x * layers["modulation"](vector)[:, None]  # type: ignore
        return x + layers["out"](layers["to_q"](x) * layers["to_k"](x))  # type: ignore


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=[pytest.mark.slow, needs_inductor])])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_compiled_block_is_one_graph_with_the_eager_gradient_and_keeps_no_dequantized_weight(precision, backend):
    x, vector = draw(2, 20, 64).requires_grad_(), draw(2, 64, seed=9).requires_grad_()
    eager, compiled = Block(precision), Block(precision)
    compiled.compile(fullgraph=True, backend=backend)
    expected = torch.autograd.grad(eager(x, vector).square().sum(), (x, vector))
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        y = compiled(x, vector)
    found = torch.autograd.grad(y.square().sum(), (x, vector))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
    own = {parameter.data_ptr() for parameter in compiled.parameters()}
    assert not [tensor.shape for tensor in kept if tensor.shape == (64, 64) and tensor.data_ptr() not in own]
    torch.compiler.reset()


@pytest.mark.parametrize(("precision", "error"), [("fp8", 0.04), ("int8", 0.01)])
def test_a_right_product_is_found_right(precision, error):
    assert product_error(precision, CPU) < error


def test_the_cpu_says_that_it_stands_in(tiny_flux, caplog):
    with caplog.at_level(logging.INFO):
        load_transformer(tiny_flux.transformer, "cpu", torch.float32, "fp8")
    assert "stored in fp8" in caplog.text
    assert "fp8 is emulated on the CPU: a GPU's numbers, not its speed" in caplog.text


class TestFaults:
    """What a GPU cannot do is said before anything is loaded."""

    CUDA = torch.device("cuda")

    @pytest.fixture
    def gpu(self, monkeypatch):
        def has(capability: tuple[int, int], error: float | Exception = 0.01) -> None:
            def measure(*_):
                if isinstance(error, Exception):
                    raise error
                return error

            monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "the GPU")
            monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
            monkeypatch.setattr(quantized, "product_error", measure)

        return has

    def told(self, precision) -> str:
        return "\n".join(map(str, precision_problems(precision, self.CUDA)))

    def test_nothing_is_wrong_with_bf16_and_on_the_cpu(self):
        assert not precision_problems("bf16", self.CUDA)
        assert not precision_problems("fp8", CPU) + precision_problems("int8", CPU)

    @pytest.mark.parametrize("capability", [(8, 9), (9, 0), (10, 0)])
    def test_fp8_where_it_is_fast(self, gpu, capability):
        gpu(capability)
        assert not self.told("fp8")

    def test_fp8_where_it_is_missing(self, gpu):
        gpu((8, 6))
        assert "the GPU has no fp8 matrix products" in self.told("fp8")
        assert "use --base_precision int8" in self.told("fp8")
        assert not self.told("int8")

    def test_int8_where_it_is_missing(self, gpu):
        gpu((7, 5))
        assert "--base_precision=int8: the GPU has no int8 matrix products" in self.told("int8")
        assert "use --base_precision bf16, or nf4" in self.told("int8")

    def test_fp8_at_half_rate(self, gpu):
        gpu((12, 1))
        assert "at half rate only" in self.told("fp8")
        assert "use --base_precision int8" in self.told("fp8")
        assert not self.told("int8")

    def test_what_torch_itself_refuses(self, gpu):
        gpu((9, 0), RuntimeError("rowwise scaling is not supported\nmore"))
        assert "rowwise scaling is not supported" in self.told("fp8")
        assert "more" not in self.told("fp8")

    @pytest.mark.parametrize("error", [1.2, float("inf"), float("nan")])
    def test_a_wrong_product(self, gpu, error):
        gpu((9, 0), error)
        assert "computes it wrongly" in self.told("int8")

    def test_nf4_without_bitsandbytes(self, monkeypatch):
        monkeypatch.setattr(quantized, "find_spec", lambda _: None)
        assert "needs bitsandbytes" in str(precision_problems("nf4", CPU)[0])
        assert "pip install" in precision_problems("nf4", CPU)[0].hint

    def test_the_alternative_is_one_that_the_gpu_has(self):
        assert "int8" in alternative("fp8", (8, 0))
        assert "int8" not in alternative("fp8", (7, 5))


def test_a_resumed_run_is_told_that_the_base_is_kept_otherwise():
    before, now = (to_dict(TrainConfig(base_precision=precision)) for precision in ("bf16", "fp8"))
    assert config_differences(before, now) == ["base_precision: bf16 before, fp8 now"]
