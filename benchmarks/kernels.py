"""Where the time of a step goes: kernels by class, from a profiler's trace.

On a GPU, the trace's kernels are added up, classified by name and by the operator that launched them. On a CPU, the
operators are added up, each without the time of the operators that it calls.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ATTENTION_FORWARD, ATTENTION_BACKWARD = "attention, forward", "attention, backward"
LARGE, LOW_RANK = "large products", "low-rank products"
ELEMENTWISE, QUANTISATION, COPIES = "elementwise and norms", "quantisation", "copies"
OPTIMIZER, COMMUNICATION, OTHER = "optimizer and clipping", "between processes", "other"
CLASSES = (
    ATTENTION_FORWARD, ATTENTION_BACKWARD, LARGE, LOW_RANK, ELEMENTWISE, QUANTISATION, COPIES, OPTIMIZER, COMMUNICATION,
    OTHER,
)  # fmt: skip
OPTIMIZER_MARK = "benchmarks: optimizer"  # the name of an optimizer step in the trace
NUM_LONGEST, NAME_LENGTH = 12, 120

# the kernels of trainer/kernels, by name
_OWN = {
    "_multiply_and_add": LARGE, "_multiply": LARGE,
    "_hidden_sums": LOW_RANK, "_add_hidden_sums": LOW_RANK, "_down_gradient": LOW_RANK,
    "_norm_rope": ELEMENTWISE, "_norm_rope_backward": ELEMENTWISE, "_quantize": QUANTISATION,
    "_prodigy_average": OPTIMIZER, "_prodigy_move": OPTIMIZER,
}  # fmt: skip
_FUSED = re.compile(r"triton_(poi|red|per|for)_|cpp_fused")  # inductor's kernels, named after everything that they fuse
_OPTIMIZER = re.compile(r"multi_tensor_apply|_foreach_|_fused_(adam|sgd)|FusedAdam|FusedOptim", re.I)
_COMMUNICATION = re.compile(r"nccl|all_?reduce|gloo", re.I)
_ATTENTION = re.compile(r"sdpa|flash|fmha|attention|attn|dot_do_o|qk_int_sv")
_BACKWARD = re.compile(r"bwd|bprop|backward|cutlassB|dot_do_o|convert_dq", re.I)
_PRODUCT = re.compile(r"gemm|gemv|nvjet|matmul|xmma|splitK|triton_tem_|triton_mm|cutlass|cublas|Cijk_|_mm_", re.I)
_QUANTISATION = re.compile(r"quant|e4m3|e5m2|float8|fp8|hadamard", re.I)
_COPY = re.compile(r"memcpy|memset|copy|CatArray|transpose|::(cat|clone|contiguous|to|_to_copy)$", re.I)
_ELEMENTWISE = re.compile(r"at::native|^aten::|norm|gelu|silu|rope|rotary|modul|gate|residual|elementwise|reduce", re.I)
# positions of an operator's two factors among its inputs; the second one of `linear` is transposed
_FACTORS = {"aten::addmm": 1, "aten::baddbmm": 1, "aten::_addmm_activation": 1}
_PRODUCT_OPS = {
    "aten::mm", "aten::bmm", "aten::linear", "aten::_scaled_mm", "aten::_int_mm", "aten::matmul",
    "mkldnn::_linear_pointwise", "mkl::_mkl_linear", *_FACTORS,
}  # fmt: skip
Dims = Sequence[Any]


@dataclass(frozen=True)
class Breakdown:
    """The time of one image. seconds: by class. idle: time without any kernel. launches: number of kernels.

    longest: the kernels that took the most time, each with name, class, seconds and launches.
    """

    seconds: dict[str, float]
    idle: float
    launches: float
    longest: list[dict[str, Any]]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class _Kernel:
    name: str
    kind: str
    begin: float
    end: float
    own: float  # microseconds


def classify(name: str, op: str = "", dims: Dims = (), low_rank_side: int = 0, in_optimizer: bool = False) -> str:
    """The class of a kernel.

    op, dims: the operator that launched it, and the shapes of its inputs, as recorded by the profiler. A product counts
    as low-rank if one of its three sides is at most `low_rank_side`: the adapters, and layers that see one row per
    image.
    """
    if in_optimizer or _OPTIMIZER.search(name):
        return OPTIMIZER
    if _COMMUNICATION.search(name):
        return COMMUNICATION
    if name in _OWN:
        return _OWN[name]
    if _FUSED.search(name):
        return ELEMENTWISE
    if _ATTENTION.search(name) or ("attention" in op and not _COPY.search(name)):
        return ATTENTION_BACKWARD if _BACKWARD.search(name) or "backward" in op else ATTENTION_FORWARD
    if _PRODUCT.search(name) or name in _PRODUCT_OPS:
        return LOW_RANK if 0 < shortest_side(op or name, dims) <= low_rank_side else LARGE
    for pattern, kind in ((_QUANTISATION, QUANTISATION), (_COPY, COPIES), (_ELEMENTWISE, ELEMENTWISE)):
        if pattern.search(name):
            return kind
    return OTHER


def shortest_side(op: str, dims: Dims) -> int:
    """The shortest of the three sides of a product [m, k] x [k, n]; 0 if the shapes are unknown."""
    if op not in _PRODUCT_OPS:
        return 0
    first = _FACTORS.get(op, 0)
    factors = [shape for shape in dims[first : first + 2] if isinstance(shape, list) and len(shape) >= 2]
    if len(factors) < 2:
        return 0
    left, right = factors
    rows = _rows(left) if "linear" in op or op == "aten::matmul" else left[-2]
    return min(rows, left[-1], *right[-2:])


def _rows(shape: Sequence[int]) -> int:
    rows = 1
    for side in shape[:-1]:
        rows *= side
    return rows


def read_trace(
    path: Path, pictures: int, low_rank_side: int, on_gpu: bool, num_longest: int = NUM_LONGEST
) -> Breakdown | None:
    """The breakdown of a trace that `torch.profiler` has exported, averaged over the number of images.

    num_longest: number of kernels to list. Returns None if a GPU's trace has no kernels: some systems allow only root
    to record them.
    """
    with path.open(encoding="utf-8") as file:
        events = [event for event in json.load(file)["traceEvents"] if event.get("ph") == "X"]
    on_device = {"kernel", "gpu_memcpy", "gpu_memset"}
    device = [event for event in events if event.get("cat") in on_device]
    ops = [event for event in events if event.get("cat") == "cpu_op"]
    windows = [_span(event) for event in events if event.get("name") == OPTIMIZER_MARK and "gpu" not in event["cat"]]
    kernels = (
        _device_kernels(device, events, ops, windows, low_rank_side) if on_gpu else _own(ops, windows, low_rank_side)
    )
    return summarise(kernels, pictures, num_longest) if kernels else None


def summarise(kernels: Sequence[_Kernel], pictures: int, num_longest: int = NUM_LONGEST) -> Breakdown:
    """Add up kernels, per image."""
    to_seconds = 1 / (1e6 * pictures)
    by_kind: Counter[str] = Counter()
    by_name: dict[tuple[str, str], list[float]] = defaultdict(list)
    for kernel in kernels:
        by_kind[kernel.kind] += kernel.own  # type: ignore  (counters count fractions too)
        by_name[kernel.name[:NAME_LENGTH], kernel.kind].append(kernel.own)
    longest = sorted(by_name.items(), key=lambda item: -sum(item[1]))[:num_longest]
    window = max((k.end for k in kernels), default=0.0) - min((k.begin for k in kernels), default=0.0)
    return Breakdown(
        seconds={kind: by_kind[kind] * to_seconds for kind in CLASSES if kind in by_kind},
        idle=(window - _covered((k.begin, k.end) for k in kernels)) * to_seconds,
        launches=len(kernels) / pictures,
        longest=[
            {"name": name, "class": kind, "seconds": sum(own) * to_seconds, "launches": len(own) / pictures}
            for (name, kind), own in longest
        ],
    )


def _span(event: Mapping[str, Any]) -> tuple[float, float]:
    return event["ts"], event["ts"] + event["dur"]


def _within(moment: float, windows: Iterable[tuple[float, float]]) -> bool:
    return any(begin <= moment <= end for begin, end in windows)


def _device_kernels(
    device: Iterable[Mapping], events: Iterable[Mapping], ops: Iterable[Mapping], windows: list, low_rank_side: int
) -> list[_Kernel]:
    """Kernels with the operators that launched them, matched by the profiler's ids."""
    by_id = {op["args"].get("External id"): op for op in ops}
    launched = {
        event["args"]["correlation"]: event["ts"]
        for event in events
        if event.get("cat") in ("cuda_runtime", "cuda_driver") and "correlation" in event.get("args", {})
    }
    found = []
    for kernel in device:
        arguments = kernel.get("args", {})
        op = by_id.get(arguments.get("External id"), {})
        begin, end = _span(kernel)
        moment = launched.get(arguments.get("correlation"), op.get("ts", -1.0))
        name, dims = kernel["name"], op.get("args", {}).get("Input Dims", ())
        kind = classify(name, op.get("name", ""), dims, low_rank_side, _within(moment, windows))
        found.append(_Kernel(name, kind, begin, end, end - begin))
    return found


def _own(ops: Iterable[Mapping], windows: list, low_rank_side: int) -> list[_Kernel]:
    """Operators without the time of those that they call."""
    found = []
    threads: dict[Any, list[Mapping]] = defaultdict(list)
    for op in ops:
        threads[op["tid"]].append(op)
    for each in threads.values():
        open_ops: list[list] = []  # [operator, end, time of its callees]
        for op in [*sorted(each, key=lambda op: (op["ts"], -op["dur"])), None]:
            begin = op["ts"] if op else float("inf")
            while open_ops and open_ops[-1][1] <= begin:
                done, end, inner = open_ops.pop()
                name, dims = done["name"], done["args"].get("Input Dims", ())
                kind = classify(name, name, dims, low_rank_side, _within(done["ts"], windows))
                found.append(_Kernel(name, kind, done["ts"], end, done["dur"] - inner))
            if op:
                if open_ops:
                    open_ops[-1][2] += op["dur"]
                open_ops.append([op, op["ts"] + op["dur"], 0.0])
    return found


def _covered(spans: Iterable[tuple[float, float]]) -> float:
    """The total time covered by at least one of the spans."""
    total, last = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, last))
        last = max(last, end)
    return total
