"""8-bit and 4-bit layers on a real GPU: its kernels are right in both directions, eager and compiled."""

import pytest
import torch

from benchmarks.random_flux import ModelFiles
from tests.quantized_layers import EIGHT_BITS, PRECISIONS, Adapted, cosine, draw, keep_transposed, layer_of
from trainer.models.load import load_transformer
from trainer.models.quantized import WeightFormat, precision_problems, product_error

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: run `make test` on one"),
]
CUDA = torch.device("cuda")


@pytest.fixture(autouse=True)
def skipped_where_the_gpu_cannot(request):
    precision = request.getfixturevalue("precision")
    if problems := precision_problems(precision, CUDA):
        pytest.skip(f"not on this GPU: {problems[0]}")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_product_is_right_in_both_layouts(precision):
    assert product_error(precision, CUDA) < 0.04


@pytest.mark.parametrize("rows", [3, 17, 32, 512, 4608])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_gpu_gives_the_cpus_numbers(precision, rows):
    """Up to bfloat16's rounding, the order of sums, and the accumulators of the tensor cores."""
    weight, x, dy = draw(768, 1024), draw(1, rows, 1024, seed=1), draw(1, rows, 768, seed=2)
    found = []
    for device in ("cpu", CUDA):
        layer = layer_of(weight.to(device, torch.bfloat16), precision)
        given = x.to(device, torch.bfloat16).requires_grad_()
        y = layer(given)
        (dx,) = torch.autograd.grad(y, given, dy.to(device, torch.bfloat16))
        found.append((y.detach().float().cpu(), dx.float().cpu()))
    for one, other in zip(*found, strict=True):
        assert (one - other).norm() < 0.01 * one.norm()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_neither_direction_waits_for_the_device(precision):
    layer, x = layer_of(draw(256, 256).to(CUDA, torch.bfloat16), precision), draw(1, 64, 256).to(CUDA, torch.bfloat16)
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode("error")
        layer(x.requires_grad_()).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def adapter_gradient(files: ModelFiles, base, compiled: bool = False, transposed: bool = False) -> torch.Tensor:
    adapted = Adapted(files.transformer, base, torch.bfloat16, CUDA)
    if transposed:
        keep_transposed(adapted.transformer)
    if compiled:
        adapted.transformer.compile_repeated_blocks(fullgraph=True)
    return adapted.gradient()


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_adapters_gradient_points_where_bf16s_does(tiny_flux, precision, compiled):
    found, expected = adapter_gradient(tiny_flux, precision, compiled), adapter_gradient(tiny_flux, "bf16")
    assert cosine(found, expected) > (0.97 if precision == "nf4" else 0.99)


@pytest.mark.parametrize("precision", EIGHT_BITS)
def test_both_layouts_give_the_same_gradient_compiled(tiny_flux, precision):
    """Where only one layout is kept, the compiler's own kernels transpose it.

    The same layers are in 8 bits in both: a storage of both layouts would leave those of modulation out.
    """
    one = adapter_gradient(tiny_flux, WeightFormat(precision), compiled=True)
    both = adapter_gradient(tiny_flux, WeightFormat(precision), compiled=True, transposed=True)
    assert cosine(one, both) > 0.999


@pytest.mark.parametrize("precision", EIGHT_BITS)
def test_a_base_of_8_bits_takes_about_half_the_memory(tiny_flux, precision):
    taken = []
    for base in ("bf16", WeightFormat(precision)):
        before = torch.cuda.memory_allocated()
        transformer = load_transformer(tiny_flux.transformer, CUDA, torch.bfloat16, base)
        taken.append(torch.cuda.memory_allocated() - before)
        del transformer
    assert taken[1] < 0.65 * taken[0]  # embedders and the final layer stay as they are
