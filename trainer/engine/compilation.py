"""Compiled blocks: where the compiler keeps its work, and for which sizes of picture it works."""

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
STATIC_SHAPES = 4  # each has graphs of its own, which cost compilation once and nothing afterwards
GRAPHS_PER_SHAPE = 8  # of one kind of block: with gradients or without, adapter on or off, each seen twice at most
KEEP_OWN_FUNCTIONS = "autograd_cache_allow_custom_autograd_functions"
OWN_OPERATORS = tuple(Path(__file__).parent / part for part in ("kernels", "lora", "models"))


def use_cache(folder: Path) -> None:
    """Keep compiled kernels and graphs in `folder`, unless the environment names other places.

    Whole graphs are kept, forward and backward as torch has split them, though blocks hold autograd functions of
    ours: torch leaves such graphs out unless told otherwise, since it cannot see what is in an operator that it
    takes as it is. What is cached is therefore bound to the source of our own ones.
    """
    # torch writes its own default into the environment as soon as it is imported
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
    """Begin to import the compiler, which takes seconds, while weights are read. To be joined before its first use."""
    thread = threading.Thread(target=import_module, args=("torch._inductor.compile_fx",), name="compiler", daemon=True)
    thread.start()
    return thread


def is_dynamic(choice: str, num_shapes: int) -> bool:
    """Whether one graph serves all sizes. choice: "auto", "true" or "false" (--compile_dynamic).

    A graph of fixed sizes is never slower than one for any size, but each must be compiled: so few
    sizes have their own graphs, and many share one.
    """
    return choice == "true" or (choice == "auto" and num_shapes > STATIC_SHAPES)


def compile_blocks(transformer: FluxTransformer2DModel, backend: str, choice: str, num_shapes: int) -> None:
    """Compile each kind of block. num_shapes: how many (batch, image tokens) the run will bring.

    Torch stops at its limit of graphs for one function, which is made for code that compiles again and
    again by mistake; here their number is known, so the limit follows it.
    """
    dynamic = is_dynamic(choice, num_shapes)
    limit = GRAPHS_PER_SHAPE * (2 if dynamic else max(num_shapes, 1))  # dynamic: one picture, or several
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, limit)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, limit)
    transformer.compile_repeated_blocks(fullgraph=True, backend=backend, dynamic=dynamic)
    why = f"{num_shapes} shape{'s' * (num_shapes != 1)} of batches"
    log.info("compiled blocks: %s (%s)", "one graph for any size" if dynamic else "a graph for each size", why)


def compile_report() -> str | None:
    """What the compiler has done so far and how much of it came from the cache; None when it did nothing."""
    found = counters["inductor"]
    hits, misses = found["fxgraph_cache_hit"], found["fxgraph_cache_miss"]
    if not hits + misses:
        return None
    warm = f"{hits} of {hits + misses} compiled graphs came from the cache {os.environ.get('TORCHINDUCTOR_CACHE_DIR')}"
    return warm + ("" if hits else ", which is filled now: the next start is faster")
