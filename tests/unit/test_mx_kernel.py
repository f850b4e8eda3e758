"""fp8 products with block scales: the bits of plain fp8 products, and when they are used."""

import pytest
import torch
from torch import Tensor

from tests.quantized_layers import draw
from tests.triton_kernels import DEVICE, INTERPRETED, needs_triton
from trainer.kernels import mx, trial
from trainer.kernels.quantize import FP8, quantize_rows
from trainer.models import products, quantized


def interprets_block_scales() -> bool:
    """Whether this Triton's interpreter knows `tl.dot_scaled`."""
    import triton

    return not INTERPRETED or tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 8)


@pytest.fixture
def block_scales():
    if not interprets_block_scales():
        pytest.skip("needs an interpreter with tl.dot_scaled: pip install 'triton>=3.8'")


def factors(rows: int, columns: int, depth: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    a, scale_a = quantize_rows(draw(rows, depth).to(DEVICE), FP8)
    b, scale_b = quantize_rows(draw(columns, depth, seed=1).to(DEVICE), FP8)
    return a, scale_a, b, scale_b.flatten()


@needs_triton
@pytest.mark.usefixtures("block_scales")
@pytest.mark.parametrize("tile", range(3))
@pytest.mark.parametrize(("rows", "columns", "depth"), [(128, 128, 256), (100, 272, 160)])
def test_with_unit_scales_the_bits_are_those_of_plain_fp8(rows, columns, depth, tile):
    from trainer.kernels import triton_mx

    a, scale_a, b, scale_b = factors(rows, columns, depth)
    bias = draw(columns, seed=4).to(DEVICE)
    scaled, plain = (
        triton_mx.multiply(a, scale_a, b, scale_b, bias, triton_mx.TILES[tile], each) for each in (True, False)
    )
    assert torch.equal(scaled, plain)
    expected = (a.float() @ b.float().t()) * scale_a * scale_b + bias
    assert scaled.dtype == torch.bfloat16 and (scaled.float() - expected).norm() < 0.005 * expected.norm()


@needs_triton
@pytest.mark.usefixtures("block_scales")
def test_backward_needs_no_scale_of_rows():
    from trainer.kernels import triton_mx

    a, scale_a, b, _ = factors(140, 320, 256)
    found = triton_mx.multiply(a, scale_a, b, None, None, triton_mx.TILES[0])
    expected = (a.float() @ b.float().t()) * scale_a
    assert (found.float() - expected).norm() < 0.005 * expected.norm()


@needs_triton
@pytest.mark.usefixtures("block_scales")
@pytest.mark.parametrize("tile", range(3))
def test_what_is_tried_before_it_is_relied_on_is_right(tile):
    assert mx.kernel_error(DEVICE, tile) < mx.TOLERANCE / 2


def test_it_is_used_only_where_it_is_clearly_faster(caplog):
    with caplog.at_level("INFO"):
        assert mx.choose_tile([2.0, 1.0, 1.5], plain=1.9) == 1
        assert mx.choose_tile([2.0, 1.9, 2.1], plain=1.9) is None
    assert caplog.messages == [
        "fp8 products with block scales: 1.00 ms against PyTorch's 1.90",
        "falling back to PyTorch for fp8 products with block scales: they take 1.90 ms, PyTorch's 1.90",
    ]


@pytest.mark.parametrize(("capability", "tried"), [((8, 9), False), ((9, 0), False), ((12, 0), True), ((12, 1), True)])
def test_it_is_tried_on_consumer_blackwell_alone(monkeypatch, capability, tried):
    """Where it computes something else it is not used, and the log says so."""
    calls = []
    monkeypatch.setattr(trial, "HAS_TRITON", True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    monkeypatch.setitem(__import__("sys").modules, "trainer.kernels.triton_mx", type("M", (), {"TILES": (0, 1)}))
    monkeypatch.setattr(mx, "kernel_error", lambda _device, tile: calls.append(tile) or 0.5)
    mx._tile.cache_clear()
    assert not mx.works(torch.device("cuda"))
    assert calls == ([0, 1] if tried else [])
    mx._tile.cache_clear()


class OnGpu:
    """An 8-bit factor as far as the choice looks at it."""

    is_cuda, device = True, torch.device("cuda")

    def __init__(self, depth: int):
        self.shape = (64, depth)


def test_products_of_a_depth_in_blocks_are_taken(monkeypatch):
    monkeypatch.setattr(mx, "works", lambda _device: True)
    assert mx.can_multiply(OnGpu(3072)) and not mx.can_multiply(OnGpu(3080))  # type: ignore[arg-type]
    monkeypatch.setattr(mx, "works", lambda _device: False)
    assert not mx.can_multiply(OnGpu(3072))  # type: ignore[arg-type]
    assert not mx.can_multiply(torch.ones(2, 64))


def test_fp8_is_accepted_on_such_a_gpu_where_the_kernel_works(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (12, 1))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "GB10")
    monkeypatch.setattr(quantized, "product_error", lambda *_: 0.01)
    for works, expected in (True, 0), (False, 1):
        monkeypatch.setattr(mx, "works", lambda _device, works=works: works)
        assert len(quantized.precision_problems("fp8", torch.device("cuda"))) == expected


def test_the_frozen_layers_product_goes_through_it(monkeypatch):
    class Taken(Exception):
        pass

    def taken(*_):
        raise Taken

    class Cuda:
        device = torch.device("cuda")

    monkeypatch.setattr(products, "can_multiply", lambda *_: True)
    monkeypatch.setattr(products, "multiply", taken)
    with pytest.raises(Taken):
        products._multiply_fp8(Cuda(), None, Cuda(), None, None, torch.bfloat16)  # type: ignore[arg-type]
