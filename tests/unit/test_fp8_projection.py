"""Layers in fp8 that read one input, stored and multiplied as one."""

from collections.abc import Iterable

import pytest
import torch
from torch import Tensor, nn

from tests.compilers import needs_inductor
from tests.quantized_layers import Adapted, cosine, draw
from trainer.kernels.quantize import FP8, gelu, quantize_rows
from trainer.lora import fp8_projection, projection
from trainer.lora.adapter import NO_DROPOUTS, Dropouts, adapter_parameters, add_lora, disabled_adapter
from trainer.lora.projection import are_alike, can_go_together, project
from trainer.models.quantized import QuantizedLinear, WeightFormat, fill, join

WIDTHS = {"to_q": 32, "to_k": 32, "to_v": 48}  # of what the layers give, for an input of 64 numbers
LAYOUTS = pytest.mark.parametrize(
    "weight_format", [WeightFormat("fp8"), WeightFormat("fp8", both_layouts=True)], ids=["one", "both"]
)


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch):
    """What comes from GELU is made again in backward."""
    monkeypatch.setattr(projection, "_recomputes_gelu", lambda _x: True)


def stored(
    weight_format: WeightFormat, joined: bool = True, dropouts: Dropouts = NO_DROPOUTS, names: Iterable[str] = WIDTHS
) -> tuple[nn.Module, list[nn.Module]]:
    """A model of one block with three layers, of which those with these names are adapted, and the layers."""
    model, block = nn.Module(), nn.Module()
    model.transformer_blocks = nn.ModuleList([block])  # type: ignore[assignment]
    layers = {name: QuantizedLinear(64, width, weight_format) for name, width in WIDTHS.items()}
    if joined:
        join([*layers.values()], "cpu", torch.float32)
    for seed, (name, layer) in enumerate(layers.items()):
        layer.store(draw(layer.out_features, 64, seed=seed) / 8)
        fill(layer, "bias", draw(layer.out_features, seed=seed + 10))
        block.add_module(name, layer)
    add_lora(model, {f"transformer_blocks.0.{name}": 4 for name in names}, 8.0, seed=0, dropouts=dropouts)
    for seed, parameter in enumerate(adapter_parameters(model).values()):
        parameter.data.copy_(draw(*parameter.shape, seed=seed) / 4)
    return model, [block.get_submodule(name) for name in WIDTHS]


PARTS = pytest.mark.parametrize(
    "parts, activated", [((64,), (False,)), ((24, 40), (False, True))], ids=["whole", "parts"]
)


def results(model: nn.Module, layers: list[nn.Module], parts=(64,), activated=(False,), run=project) -> list[Tensor]:
    """Outputs, gradients of the parts of the input, gradients of the adapter."""
    inputs = [x.contiguous().requires_grad_() for x in draw(2, 20, 64, seed=30).split(parts, dim=-1)]
    outputs = run(inputs, layers, activated)
    loss = torch.stack([(y * draw(*y.shape, seed=seed)).sum() for seed, y in enumerate(outputs)]).sum()
    return [*outputs, *torch.autograd.grad(loss, [*inputs, *adapter_parameters(model).values()])]


def layer_by_layer(inputs: list[Tensor], layers: list[nn.Module], activated: tuple[bool, ...]) -> list[Tensor]:
    """In float32, frozen layers and adapters on the same quantised input, whose rounding has no gradient."""
    x = torch.cat([gelu(part) if on else part for part, on in zip(inputs, activated, strict=True)], dim=-1)
    values, scale = quantize_rows(x.detach().flatten(0, 1), FP8)
    x = x + ((values.float() * scale).view(x.shape) - x).detach()
    outputs = []
    for layer in layers:
        base = getattr(layer, "base_layer", layer)
        weight = base.weight.float() * base.scale[:, None]  # type: ignore[operator, union-attr]
        if base is layer:
            outputs.append(x @ weight.t() + base.bias)  # type: ignore[operator]
            continue
        up, down = layer.lora_B["default"].weight, layer.lora_A["default"].weight  # type: ignore[index, union-attr]
        outputs.append(x @ weight.t() + base.bias + 2.0 * (x @ down.t()) @ up.t())  # type: ignore[operator, union-attr]
    return outputs


@LAYOUTS
@PARTS
def test_joined_layers_give_what_each_gives(weight_format, parts, activated):
    model, layers = stored(weight_format)
    found = results(model, layers, parts, activated)
    expected = results(model, layers, parts, activated, run=layer_by_layer)
    for index, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert one.shape == other.shape
        # of the input alone the gradient is another: all layers' gradients are quantised as one row
        error = 0.04 if len(WIDTHS) <= index < len(WIDTHS) + len(parts) else 2e-6
        assert (one - other).norm() <= error * other.norm(), index


@LAYOUTS
@PARTS
@pytest.mark.parametrize("names", [("to_q", "to_v"), ("to_k",)], ids=str)
def test_joined_layers_without_an_adapter_take_part(weight_format, parts, activated, names):
    model, layers = stored(weight_format, names=names)
    assert can_go_together(layers) and not are_alike(layers)
    found = results(model, layers, parts, activated)
    expected = results(model, layers, parts, activated, run=layer_by_layer)
    for index, (one, other) in enumerate(zip(found, expected, strict=True)):
        error = 0.04 if len(WIDTHS) <= index < len(WIDTHS) + len(parts) else 2e-6
        assert (one - other).norm() <= error * other.norm(), index


@PARTS
def test_an_input_that_needs_no_gradient_costs_no_product(monkeypatch, parts, activated):
    """As in the first block of the backward pass: neither dy nor the weight is multiplied for it."""
    model, layers = stored(WeightFormat("fp8"))
    expected = results(model, layers, parts, activated)[len(WIDTHS) + len(parts) :]
    inputs = [x.contiguous() for x in draw(2, 20, 64, seed=30).split(parts, dim=-1)]
    outputs = project(inputs, layers, activated)
    monkeypatch.setattr(fp8_projection, "multiply_fp8", None)
    loss = torch.stack([(y * draw(*y.shape, seed=seed)).sum() for seed, y in enumerate(outputs)]).sum()
    found = torch.autograd.grad(loss, [*adapter_parameters(model).values()])
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@LAYOUTS
def test_what_was_joined_is_stored_once_and_each_layer_still_works_alone(weight_format):
    model, layers = stored(weight_format)
    bases = [layer.base_layer for layer in layers]  # type: ignore[union-attr]
    for name in ("weight", "scale", "bias", *(["transposed"] if weight_format.both_layouts else [])):
        assert len({getattr(base, name).untyped_storage().data_ptr() for base in bases}) == 1, name
    assert bases[0].joined.weight.dtype == FP8  # type: ignore[union-attr]
    _, apart = stored(weight_format, joined=False)
    with disabled_adapter(model):
        assert not are_alike(layers)
        for one, other in zip(layers, apart, strict=True):
            outputs = []
            for base in (one.base_layer, other.base_layer):  # type: ignore[union-attr]
                x = draw(2, 20, 64, seed=1).requires_grad_()
                y = base(x)  # type: ignore[operator]
                outputs.append((y, *torch.autograd.grad(y.square().sum(), x)))
            for a, b in zip(*outputs, strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_layers_go_together_only_where_they_are_joined_and_adapted_alike():
    weight_format = WeightFormat("fp8")
    model, layers = stored(weight_format)
    assert are_alike(layers)
    assert not are_alike(layers[:2])
    assert not are_alike(layers[1:])
    assert not are_alike(stored(weight_format, joined=False)[1])
    layers[1].scaling["default"] = 0.5  # type: ignore[index, union-attr]
    assert not are_alike(layers)
    model, layers = stored(weight_format, dropouts=Dropouts(network=0.5))
    assert not are_alike(layers)
    model.eval()
    assert are_alike(layers)


def test_the_gradient_of_a_part_is_dense():
    """Attention's backward takes it to be so."""
    found = results(*stored(WeightFormat("fp8")), (24, 40), (False, True))
    assert all(gradient.is_contiguous() for gradient in found[3:5])


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=[pytest.mark.slow, needs_inductor])])
@LAYOUTS
def test_compiled_blocks_are_one_graph_with_the_eager_gradient(tiny_flux, weight_format, backend):
    eager, compiled = Adapted(tiny_flux.transformer, weight_format), Adapted(tiny_flux.transformer, weight_format)
    compiled.transformer.compile_repeated_blocks(fullgraph=True, backend=backend)
    assert cosine(compiled.gradient(), eager.gradient()) > 0.9999
    torch.compiler.reset()


@LAYOUTS
def test_the_adapters_gradient_points_where_float32s_does(tiny_flux, weight_format):
    plain, apart = Adapted(tiny_flux.transformer), Adapted(tiny_flux.transformer, weight_format, trained=False)
    adapted = Adapted(tiny_flux.transformer, weight_format)
    block = adapted.transformer.single_transformer_blocks[0]
    assert are_alike((block.proj_mlp, block.attn.to_q, block.attn.to_k, block.attn.to_v))
    found, expected = adapted.gradient(), plain.gradient()
    assert cosine(found, expected) > 0.99
    assert cosine(found, expected) > cosine(apart.gradient(), expected) - 0.002
    assert float(found.norm() / expected.norm()) == pytest.approx(1, abs=0.05)


def test_modulation_is_kept_as_it_is_where_it_costs_nothing(tiny_flux):
    one = Adapted(tiny_flux.transformer, WeightFormat("fp8")).transformer
    both = Adapted(tiny_flux.transformer, WeightFormat("fp8", both_layouts=True)).transformer
    for name in ("transformer_blocks.0.norm1.linear", "single_transformer_blocks.0.norm.linear"):
        assert isinstance(one.get_submodule(name).base_layer, QuantizedLinear)
        assert type(both.get_submodule(name).base_layer) is nn.Linear
