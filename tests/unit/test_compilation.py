"""Compiled blocks: graphs are counted, many sizes of picture train, and the next process finds its work done."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from benchmarks.random_flux import ModelFiles
from tests.compilers import needs_inductor
from tests.recipe_files import ROOT, finish
from trainer.engine.compilation import OWN_OPERATORS, STATIC_SHAPES, compile_blocks, is_dynamic, use_cache
from trainer.lora.adapter import add_lora, disabled_adapter, linear_modules
from trainer.lora.blocks import use_training_blocks
from trainer.models.load import load_transformer
from trainer.models.transformer import Conditioning, predict_velocity, rotary_table

TXT = 7  # no size is equal to another by chance: torch would make one variable of them


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    with torch._dynamo.config.patch(recompile_limit=8, accumulated_recompile_limit=256):
        yield
    torch._dynamo.reset()
    counters.clear()


def graphs(
    tiny_flux: ModelFiles, shapes: list[tuple[int, int]], choice: str, preserve: bool = False, adapted: str = "to_q"
) -> list[int]:
    """How many graphs there are after each batch of (pictures, width of the latents).

    adapted: how the names of the layers with an adapter end.
    """
    transformer = load_transformer(tiny_flux.transformer, torch.device("cpu"), torch.float32)
    use_training_blocks(transformer)
    add_lora(transformer, {name: 2 for name in linear_modules(transformer) if name.endswith(adapted)}, None, 0)
    compile_blocks(transformer, "eager", choice, len(set(shapes)))
    counts = []
    for batch, width in shapes:
        rotary = rotary_table(transformer, 4, width, TXT, torch.device("cpu"))
        pooled_width = transformer.time_text_embed.text_embedder.linear_1.in_features
        text = Conditioning(
            torch.randn(batch, TXT, transformer.context_embedder.in_features), torch.randn(batch, pooled_width)
        )
        arguments = transformer, torch.randn(batch, 16, 4, width), torch.rand(batch), text, 1.0, rotary
        if preserve:
            with torch.no_grad(), disabled_adapter(transformer):
                predict_velocity(*arguments)
        predict_velocity(*arguments).square().mean().backward()
        counts.append(counters["stats"]["unique_graphs"])
    return counts


BUCKETS = [(1, 8 + 2 * index) for index in range(12)]
KINDS = 2  # double block, single block


def test_twelve_buckets_share_one_graph_of_each_kind(tiny_flux):
    assert graphs(tiny_flux, BUCKETS, "auto") == [KINDS] * 12


def test_they_share_it_if_all_layers_are_adapted_too(tiny_flux):
    assert graphs(tiny_flux, BUCKETS[:3], "true", adapted="") == [KINDS] * 3


def test_a_few_buckets_have_their_own_graphs_and_none_is_made_twice(tiny_flux):
    assert graphs(tiny_flux, [*BUCKETS[:2], *BUCKETS[:2]], "auto") == [2, 4, 4, 4]


@pytest.mark.slow
def test_more_graphs_than_torchs_limit_are_no_error_where_they_are_wanted(tiny_flux):
    assert graphs(tiny_flux, BUCKETS[:6], "false")[-1] == KINDS * 6


@pytest.mark.slow
def test_batches_of_all_sizes_with_preservation_train(tiny_flux):
    """One picture is a case of its own for torch; two models of it, with and without the adapter.

    Without it the first block has one more graph: its inputs are views there, whose sizes torch guards.
    """
    batches = [(4, 8), (4, 10), (3, 8), (2, 10), (1, 8), (1, 10), (4, 12)]
    counts = graphs(tiny_flux, batches, "auto", preserve=True)
    assert counts[-1] <= 2 * (2 * KINDS + 1) and counts[4:] == [counts[4]] * 3


def test_auto_goes_by_the_number_of_shapes():
    assert not is_dynamic("auto", STATIC_SHAPES) and is_dynamic("auto", STATIC_SHAPES + 1)
    assert is_dynamic("true", 1) and not is_dynamic("false", 100)


@pytest.mark.slow
@needs_inductor
def test_the_next_process_finds_the_compilers_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)

    def told() -> str:
        return finish([sys.executable, str(ROOT / "tests" / "compile_wave.py"), str(tmp_path)]).splitlines()[-1]

    assert told().startswith("0 0 of 2 compiled graphs") and any((tmp_path / "inductor" / "fxgraph").iterdir())
    assert told() == f"1 2 of 2 compiled graphs from the cache {tmp_path / 'inductor'}"


def test_the_rooms_with_our_operators_are_there():
    for room in OWN_OPERATORS:
        assert any(room.glob("*.py")), room


@pytest.fixture
def own_tag() -> Iterator[None]:
    """Whatever a test makes of torch's tag is undone; monkeypatch would delete the setting for good."""
    with torch.compiler.config.patch(cache_key_tag=""):
        yield


@pytest.mark.usefixtures("own_tag")
def test_what_is_cached_is_bound_to_the_source_of_our_operators(tmp_path: Path, monkeypatch):
    def tag() -> str:
        use_cache(tmp_path / "cache")
        return torch.compiler.config.cache_key_tag

    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setattr("trainer.engine.compilation.OWN_OPERATORS", [tmp_path])
    (tmp_path / "operator.py").write_text("y = x + 1")
    first = tag()
    assert tag() == first
    monkeypatch.setenv("TORCH_COMPILE_CACHE_KEY_TAG", "the user's own")
    of_user = tag()
    (tmp_path / "operator.py").write_text("y = x + 2")
    assert len({first, of_user, tag()}) == 3
