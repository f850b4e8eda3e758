"""Kernels compiled for GPUs that are not here: that they can be, and ask for no more than such a GPU has."""

from collections.abc import Callable
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace

import pytest
import torch

from tests.triton_kernels import INTERPRETED
from trainer.kernels import fp8, low_rank, mx, prodigy, qk_norm_rope, quantize

pytestmark = pytest.mark.skipif(
    INTERPRETED or not find_spec("triton"), reason="needs Triton's compiler, not its interpreter: pip install triton"
)
# bytes of shared memory that a program can have: an A100, an RTX 4090, an H100, a B200, an RTX 5090, a GB10
SHARED = {80: 163 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10, 121: 99 << 10}
LEAST = {qk_norm_rope: 80, prodigy: 80, quantize: 89, low_rank: 89}
CASES = [(module, capability) for module, least in LEAST.items() for capability in SHARED if capability >= least]
CASES.append((fp8, 10 * fp8.HOPPER))
CASES += [(mx, capability) for capability in SHARED if capability // 10 == mx.MAJOR]


@pytest.fixture
def assembly() -> dict[str, str]:
    """The PTX of the kernels that `compiled` has compiled last, by name."""
    return {}


@pytest.fixture
def compiled(monkeypatch, assembly) -> Callable[[int, Callable[[], object]], dict[str, int]]:
    """compiled(capability, work): the kernels that `work` launches, compiled for a GPU of that capability and not run;
    by name, the bytes of shared memory that one takes at most."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    run, found = JITFunction.run, {}

    def compile_only(kernel, *arguments, **options):
        made = run(kernel, *arguments, **options | {"warmup": True})
        name = kernel.fn.__name__
        found[name], assembly[name] = max(found.get(name, 0), made.metadata.shared), made.asm["ptx"]
        return made

    def compile_for(capability: int, work: Callable[[], object]) -> dict[str, int]:
        gpu = SimpleNamespace(
            get_current_device=lambda: capability,  # what is compiled is kept by device
            get_current_stream=lambda _: 0,
            get_current_target=lambda: GPUTarget("cuda", capability, 32),
        )
        monkeypatch.setattr(driver, "_active", gpu)
        work()
        return found

    monkeypatch.setattr(JITFunction, "run", compile_only)
    monkeypatch.setattr(fp8, "_multiprocessors", lambda _: 132)
    return compile_for


@pytest.mark.parametrize("module, capability", CASES, ids=lambda each: getattr(each, "__name__", str(each)))
def test_kernels_can_be_had_there(module: ModuleType, capability: int, compiled):
    found = compiled(capability, lambda: module.kernel_error(torch.device("cpu")))
    assert found and all(shared <= SHARED[capability] for shared in found.values()), found


@pytest.mark.parametrize("tile", range(3))
@pytest.mark.parametrize(("capability", "since"), [(120, (3, 6)), (121, (3, 8))])
def test_consumer_blackwell_multiplies_fp8_with_the_instruction_of_full_rate(
    capability: int, since: tuple[int, int], tile: int, compiled, assembly
):
    import triton

    if tuple(map(int, triton.__version__.split(".")[:2])) < since:
        pytest.skip(f"Triton {triton.__version__} multiplies there in bfloat16")
    found = compiled(capability, lambda: mx.kernel_error(torch.device("cpu"), tile))
    assert all(shared <= SHARED[capability] for shared in found.values()), found
    assert "kind::mxf8f6f4.block_scale" in assembly["_multiply"] and ".bf16.bf16." not in assembly["_multiply"]


def widest() -> None:
    """The highest rank, and FLUX's longest row: the gradients of a single block's first layers."""
    from trainer.kernels import triton_low_rank, triton_quantize

    x, scale = torch.zeros(64, 15360, dtype=torch.bfloat16), torch.ones(64, 1)
    down, d_hidden = torch.zeros(low_rank.MAX_RANK, 15360), torch.zeros(64, low_rank.MAX_RANK)
    down, d_hidden = down.bfloat16(), d_hidden.bfloat16()
    triton_low_rank.hidden_values(x.to(quantize.FP8), scale, down)
    triton_low_rank.down_gradient(d_hidden, x.to(quantize.FP8), scale)
    triton_low_rank.down_gradient(d_hidden, x, activated=True)
    parts = [torch.zeros(64, width, dtype=torch.bfloat16) for width in (3072, 3072, 3072, 12288)]
    scales, largest = [part[0].float() for part in parts], quantize.LARGEST[quantize.FP8]
    triton_quantize.quantize_concatenated(parts, scales, [False] * 4, largest, quantize.MIN_ROW_MAX)


@pytest.mark.parametrize("capability", [each for each in SHARED if each >= LEAST[low_rank]])
def test_the_widest_kernels_can_be_had_there(capability: int, compiled):
    found = compiled(capability, widest)
    assert len(found) == 4 and all(shared <= SHARED[capability] for shared in found.values()), found
