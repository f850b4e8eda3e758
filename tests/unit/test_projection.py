"""Layers that are multiplied together: peft's numbers, and when each layer works alone."""

from itertools import compress

import pytest
import torch
from torch import Tensor, nn

from tests.compilers import needs_inductor
from tests.unit.test_offload import deep_transformer
from trainer.kernels.quantize import gelu
from trainer.lora import projection
from trainer.lora.adapter import NO_DROPOUTS, Dropouts, adapter_parameters, add_lora, disabled_adapter, linear_modules
from trainer.lora.blocks import place_adapters_together, use_training_blocks
from trainer.lora.low_rank import in_precision_of_product, place_together
from trainer.lora.projection import adapters_of, are_alike, can_go_together, project

WIDTHS = {"to_q": 6, "to_k": 6, "to_v": 10}  # of what the layers give


class Block(nn.Module):
    """Three layers on one input of 8 numbers."""

    def __init__(self, dtype: torch.dtype = torch.float32):
        super().__init__()
        for name, width in WIDTHS.items():
            self.add_module(name, nn.Linear(8, width, dtype=dtype))

    @property
    def layers(self) -> list[nn.Module]:
        return [self.get_submodule(name) for name in WIDTHS]


def adapted(
    ranks: tuple[int, ...] = (4, 4, 4), dtype: torch.dtype = torch.float32, dropouts: Dropouts = NO_DROPOUTS
) -> tuple[nn.Module, Block]:
    """A model with one block, its adapters no longer without effect."""
    torch.manual_seed(0)
    model = nn.Module()
    block = Block(dtype)
    model.transformer_blocks = nn.ModuleList([block])  # type: ignore[assignment]
    names = [f"transformer_blocks.0.{name}" for name in WIDTHS]
    add_lora(model, dict(zip(names, ranks, strict=True)), 8.0, seed=0, dropouts=dropouts)
    for name, parameter in adapter_parameters(model).items():
        if ".lora_B." in name:
            nn.init.normal_(parameter)
    return model, block


def separately(inputs: list[Tensor], layers: list[nn.Module]) -> tuple[Tensor, ...]:
    x = torch.cat(inputs, dim=-1)
    return tuple(layer(x) for layer in layers)


def results(run, model: nn.Module, layers: list[nn.Module], inputs: list[Tensor]) -> list[Tensor]:
    """Outputs, gradients of the inputs that need one, gradients of the adapter."""
    parameters = list(adapter_parameters(model).values())
    outputs = run(inputs, layers)
    generator = torch.Generator().manual_seed(1)
    loss = torch.stack([(y * torch.randn(y.shape, generator=generator).to(y)).sum() for y in outputs]).sum()
    wanted = [x for x in inputs if x.requires_grad]
    return [*(y.detach() for y in outputs), *torch.autograd.grad(loss, [*wanted, *parameters])]


def drawn(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def assert_close(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        assert (one - other).norm() <= tolerance * other.norm()


@pytest.mark.parametrize("shapes", [((2, 5, 8),), ((2, 5, 3), (2, 5, 5)), ((2, 8),)], ids=["tokens", "parts", "vector"])
def test_together_is_what_each_gives(shapes):
    model, block = adapted()
    assert are_alike(block.layers)
    expected = results(separately, model, block.layers, drawn(*shapes))
    assert_close(results(project, model, block.layers, drawn(*shapes)), expected, 2e-6)


@pytest.mark.parametrize("ranks", [(4, 0, 4), (0, 4, 0)], ids=str)
@pytest.mark.parametrize("shapes", [((2, 5, 8),), ((2, 5, 3), (2, 5, 5))], ids=["tokens", "parts"])
def test_layers_without_an_adapter_take_part(shapes, ranks):
    model, block = adapted(ranks)
    assert can_go_together(block.layers) and not are_alike(block.layers)
    assert len(adapters_of(block.layers)[0]) == sum(rank > 0 for rank in ranks)
    expected = results(separately, model, block.layers, drawn(*shapes))
    assert_close(results(project, model, block.layers, drawn(*shapes)), expected, 2e-6)
    with disabled_adapter(model):
        assert not can_go_together(block.layers)


def test_layers_of_different_ranks_with_one_scale_go_together():
    model, block = adapted((2, 2, 4))
    for layer in block.layers:
        layer.scaling["default"] = 0.5  # type: ignore[index]
    assert are_alike(block.layers)
    expected = results(separately, model, block.layers, drawn((1, 5, 8)))
    assert_close(results(project, model, block.layers, drawn((1, 5, 8))), expected, 2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapters_in_one_memory_give_the_same_bits(dtype):
    found = []
    for together in (False, True):
        model, block = adapted(dtype=dtype)
        downs, ups = adapters_of(block.layers)
        if together:
            place_together(downs, ups)
            assert len({parameter.untyped_storage().data_ptr() for parameter in (*downs, *ups)}) == 1
        stack, casts = in_precision_of_product(downs, ups, torch.float32)
        assert (stack.data_ptr() == downs[0].data_ptr()) == together  # read where they are, not copied
        assert all(torch.equal(*pair) for pair in zip([*stack.split(4), *casts], [*downs, *ups], strict=True))
        found.append(results(project, model, block.layers, drawn((2, 5, 8), dtype=dtype)))
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


def test_adapters_that_only_look_like_one_memory_are_copied():
    parts = list(torch.arange(40.0).view(10, 4).split([4, 6]))
    assert in_precision_of_product(parts[:1], parts[1:], torch.float32)[0].data_ptr() == parts[0].data_ptr()
    for downs, ups in ((parts[1:], parts[:1]), ([parts[0].t()], parts[1:]), (parts[:1], [parts[1].bfloat16()])):
        stack, casts = in_precision_of_product(downs, ups, torch.float32)
        assert torch.equal(stack, downs[0]) and torch.equal(casts[0], ups[0].float())


def test_all_adapters_of_a_transformer_are_placed_by_the_input_that_they_read():
    transformer = deep_transformer(num_double=2, num_single=3)
    use_training_blocks(transformer)
    add_lora(transformer, dict.fromkeys(linear_modules(transformer), 2), None, seed=0)
    before = {name: parameter.clone() for name, parameter in adapter_parameters(transformer).items()}
    place_adapters_together(transformer)
    parameters = adapter_parameters(transformer)
    assert all(torch.equal(parameter, before[name]) for name, parameter in parameters.items())
    memories = {parameter.untyped_storage().data_ptr() for parameter in parameters.values()}
    assert len(memories) == 2 * 9 + 3 * 3


def test_an_input_that_needs_no_gradient_gets_none():
    model, block = adapted()
    shapes = (2, 5, 3), (2, 5, 5)
    expected = results(separately, model, block.layers, drawn(*shapes))
    inputs = drawn(*shapes)
    inputs[0].requires_grad_(False)
    found = results(project, model, block.layers, inputs)
    del expected[3]  # after three outputs
    assert_close(found, expected, 2e-6)


def test_in_bfloat16_it_is_as_near_to_the_truth_as_peft():
    exact_model, exact = adapted()
    model, block = adapted(dtype=torch.bfloat16)  # weights of the adapter stay in float32
    for one, other in zip(exact.layers, block.layers, strict=True):
        one.base_layer.load_state_dict(other.base_layer.state_dict())  # type: ignore[operator, union-attr]
    shape = ((1, 64, 8),)
    truth = results(
        separately, exact_model, exact.layers, [x.detach().bfloat16().float().requires_grad_() for x in drawn(*shape)]
    )
    low = drawn(*shape, dtype=torch.bfloat16)
    errors = [
        sum(float((one.float() - other).norm() / other.norm()) for one, other in zip(found, truth, strict=True))
        for found in (results(project, model, block.layers, low), results(separately, model, block.layers, low))
    ]
    assert errors[0] < 1.1 * errors[1] < 0.2


@needs_inductor
@pytest.mark.slow
def test_compiled_it_is_the_same():
    model, block = adapted()

    def body(x: Tensor) -> tuple[Tensor, ...]:
        return tuple(y.sin() for y in project((x.cos(),), block.layers))

    compiled = torch.compile(body, fullgraph=True)
    run = [lambda inputs, _layers, each=each: each(inputs[0]) for each in (compiled, body)]
    found, expected = (results(each, model, block.layers, drawn((2, 5, 8))) for each in run)
    assert_close(found, expected, 2e-6)


def test_the_operators_tell_the_compiler_the_truth():
    _, block = adapted()
    with torch.no_grad():
        x, y = (tensor.detach() for tensor in drawn((2, 5, 3), (2, 5, 5)))
        weights, biases = (
            [getattr(layer.base_layer, name).detach() for layer in block.layers] for name in ("weight", "bias")
        )
        downs, ups = (
            [getattr(layer, name)["default"].weight.detach() for layer in block.layers] for name in ("lora_A", "lora_B")
        )
        for own in [True, True, True], [False, True, False]:
            adapters = [*compress(downs, own)], [*compress(ups, own)]
            torch.library.opcheck(projection._forward, ([x, y], weights, biases, *adapters, 2.0, own))
            *outputs, hidden = projection._forward([x, y], weights, biases, *adapters, 2.0, own)
            for wanted, activated in ([True, False], [False, True]), ([True, True], [False, False]):
                arguments = (outputs, hidden, [x, y], weights, *adapters, 2.0, wanted, activated, own)
                torch.library.opcheck(projection._backward, arguments)


@pytest.mark.parametrize("recomputed", [True, False], ids=["as on a GPU", "as on a CPU"])
def test_a_part_that_goes_through_gelu_is_kept_as_it_was_before(monkeypatch, recomputed):
    monkeypatch.setattr(projection, "_recomputes_gelu", lambda _x: recomputed)
    model, block = adapted()

    def plainly(inputs: list[Tensor], layers: list[nn.Module]) -> tuple[Tensor, ...]:
        return separately([inputs[0], gelu(inputs[1])], layers)

    def together(inputs: list[Tensor], layers: list[nn.Module]) -> tuple[Tensor, ...]:
        return project(inputs, layers, activated=(False, True))

    shapes = (2, 5, 3), (2, 5, 5)
    expected = results(plainly, model, block.layers, drawn(*shapes))
    assert_close(results(together, model, block.layers, drawn(*shapes)), expected, 2e-6)
    inputs, kept = drawn(*shapes), []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        together(inputs, block.layers)
    of_input = {tensor.data_ptr() for tensor in kept if tensor.shape[:2] == (2, 5)}
    assert (of_input == {x.data_ptr() for x in inputs}) == recomputed
    with disabled_adapter(model):
        apart = together(drawn(*shapes), block.layers)
        assert_close(list(apart), list(plainly(drawn(*shapes), block.layers)), 2e-6)


def test_what_is_not_plain_works_alone():
    model, block = adapted()
    bare = nn.Linear(8, 6)
    assert not are_alike([*block.layers, bare]) and not are_alike([bare])
    with disabled_adapter(model):
        assert not are_alike(block.layers)
    assert not are_alike(adapted((2, 4, 4))[1].layers)  # one alpha and two ranks: two scales
    block.layers[0].base_layer.bias = None  # type: ignore[union-attr, assignment]
    assert not are_alike(block.layers)


@pytest.mark.parametrize("dropouts", [Dropouts(network=0.5), Dropouts(rank=0.5), Dropouts(module=0.5)])
def test_dropouts_apply_where_they_did(dropouts):
    model, block = adapted(dropouts=dropouts)
    x = drawn((2, 5, 8))
    torch.manual_seed(3)
    expected = separately(x, block.layers)
    torch.manual_seed(3)
    assert all(torch.equal(one, other) for one, other in zip(project(x, block.layers), expected, strict=True))
    model.eval()
    assert are_alike(block.layers)
