"""Compiling the transformer's blocks: where compiled code is cached, and whether one graph serves all image sizes."""

import hashlib
import logging
import os
import threading
from importlib import import_module
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel
from torch._dynamo.utils import counters
from torch._functorch import config as functorch
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

log = logging.getLogger(__name__)
STATIC_SHAPES = 4  # up to so many shapes get graphs of their own, which are compiled once and never slower
GRAPHS_PER_SHAPE = 8  # of one kind of block: with or without gradients, adapter on or off, each at most twice
KEEP_OWN_FUNCTIONS = "autograd_cache_allow_custom_autograd_functions"
OWN_OPERATORS = tuple(Path(__file__).parents[1] / room for room in ("kernels", "lora", "models"))


def use_cache(folder: Path) -> None:
    """Make torch.compile and Triton cache in `folder`, unless environment variables name other folders.

    Sets environment variables and torch settings of this process. Complete graphs are cached, forward and backward: by
    default torch would skip those with custom autograd functions, whose source it does not see. The cache key therefore
    includes the source of this package's kernels, lora and models.
    """
    # torch writes its own default into the environment when it is imported
    if os.environ.get("TORCHINDUCTOR_CACHE_DIR", default_cache_dir()) == default_cache_dir():
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder.absolute() / "inductor")
    os.environ.setdefault("TRITON_CACHE_DIR", str(folder.absolute() / "triton"))
    tag = hashlib.sha256(os.environ.get("TORCH_COMPILE_CACHE_KEY_TAG", "").encode())
    for path in sorted(path for part in OWN_OPERATORS for path in part.glob("*.py")):
        tag.update(path.read_bytes())
    torch.compiler.config.cache_key_tag = tag.hexdigest()
    if hasattr(functorch, KEEP_OWN_FUNCTIONS):
        setattr(functorch, KEEP_OWN_FUNCTIONS, True)


def import_compiler() -> threading.Thread:
    """Start importing torch's compiler, which takes seconds, on the returned thread. Join it before compiling."""
    thread = threading.Thread(target=import_module, args=("torch._inductor.compile_fx",), name="compiler", daemon=True)
    thread.start()
    return thread


def is_dynamic(choice: str, num_shapes: int) -> bool:
    """Whether blocks are compiled once with dynamic shapes, instead of once for each shape of batch.

    choice: "auto", "true" or "false" (--compile_dynamic); num_shapes: number of different shapes in the run. A graph
    for one shape is never slower than a dynamic one, but each has to be compiled. With "auto", up to STATIC_SHAPES
    shapes therefore get their own graphs, and more share one.
    """
    return choice == "true" or (choice == "auto" and num_shapes > STATIC_SHAPES)


def compile_blocks(
    transformer: FluxTransformer2DModel, backend: str, choice: str, num_shapes: int, num_without_adapter: int = 0
) -> None:
    """Compile the transformer's blocks, in place, each kind of block once for all its repetitions.

    backend: of torch.compile; choice: "auto", "true" or "false" (--compile_dynamic); num_shapes: number of different
    (batch, image tokens) in the run; num_without_adapter: the same for forward passes with the adapter switched off.
    Torch limits the number of graphs of one function, to catch code that recompiles by mistake. Here their number is
    known, and the limit is raised to it.
    """
    dynamic = is_dynamic(choice, num_shapes)
    # dynamic: for one image, and for several
    limit = GRAPHS_PER_SHAPE * (2 if dynamic else max(num_shapes + num_without_adapter, 1))
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, limit)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, limit)
    transformer.compile_repeated_blocks(fullgraph=True, backend=backend, dynamic=dynamic)
    graphs = "one dynamic graph" if dynamic else "one graph per batch shape"
    log.info("compiling blocks: %s (%d batch shape%s)", graphs, num_shapes, "s" * (num_shapes != 1))


def compile_report() -> str | None:
    """How many graphs compiled so far came from the cache, as text for the log; None if nothing was compiled."""
    found = counters["inductor"]
    hits, misses = found["fxgraph_cache_hit"], found["fxgraph_cache_miss"]
    if not hits + misses:
        return None
    cached = f"{hits} of {hits + misses} compiled graphs from the cache {os.environ.get('TORCHINDUCTOR_CACHE_DIR')}"
    return cached + ("" if hits else ", which is filled now: the next start will be faster")
