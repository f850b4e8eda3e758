"""Kernels by class: names as real traces have them, low-rank products by their shapes, traces added up."""

import json
import re

import pytest
import torch
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.kernels import (
    ATTENTION_BACKWARD,
    ATTENTION_FORWARD,
    COMMUNICATION,
    COPIES,
    ELEMENTWISE,
    LARGE,
    LOW_RANK,
    OPTIMIZER,
    OPTIMIZER_MARK,
    OTHER,
    QUANTISATION,
    classify,
    read_trace,
    shortest_side,
)
from tests.recipe_files import ROOT

NAMES = {
    ATTENTION_FORWARD: (
        "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_64x128x128_4x1x1_kernel0_0",
        "void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<128, 128, 64, 4>>",
        "fmha_cutlassF_bf16_aligned_64x128_rf_sm80(PyTorchMemEffAttention::AttentionKernel<cutlass::bfloat16_t>)",
        "void cutlass::device_kernel<flash::enable_sm90<flash::FlashAttnFwdSm90<flash::CollectiveMainloopFwdSm90>>>",
    ),
    ATTENTION_BACKWARD: (
        "cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_knob_26_64x64x128_1x1x1_kernel0_0",
        "void cudnn::fusion::compute_dot_do_o_specialized<true, 128, 128, __nv_bfloat16, float, 4>(unsigned int)",
        "void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<Flash_bwd_kernel_traits<128, 64, 128, 8>>",
        "fmha_cutlassB_bf16_aligned_128x128_k128_sm80(PyTorchMemEffAttention::AttentionBackwardKernel<>)",
        "void cutlass::device_kernel<flash::enable_sm90<flash::FlashAttnBwdSm90<flash::CollectiveMainloopBwdSm90>>>",
    ),
    LARGE: (
        "nvjet_tst_192x192_64x4_2x1_v_bz_coopB_TNN",
        "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_warpgroupsize1x1x1_execute_kernel__5x_cublas",
        "void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_relu_bf16_64x64_32x6_tn_align8>(Params)",
        "ampere_bf16_s16816gemm_bf16_128x128_ldg8_f2f_stages_32x5_tn",
        "void cublasLt::splitKreduce_kernel<32, 16, int, float, __nv_bfloat16, float, __nv_bfloat16, false>",
        "void cutlass::device_kernel<at::cuda::detail::enable_3x_kernel<cutlass::gemm::kernel::GemmUniversal<>>>",
        "sm89_xmma_gemm_e4m3bf16_e4m3f32_f32_tn_n_tilesize64x64x64_stage3_warpsize2x2x1_tensor16x8x32_kernel",
        "std::enable_if<!(false), void>::type internal::gemvx::kernel<int, int, __nv_bfloat16, float>",
        "triton_tem_fused_addmm_3",
    ),
    ELEMENTWISE: (
        "triton_poi_fused_add_addmm_gelu_mul_0",
        "triton_red_fused__to_copy_native_layer_norm_native_layer_norm_backward_7",
        "triton_per_fused__scaled_dot_product_cudnn_attention_mul_sum_12",
        "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<c10::BFloat16>>",
        "void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float, at::native::MeanOps<float>>>",
        "void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<c10::BFloat16, float>(int, float)",
        "_fused_rms_rope_kernel",
    ),
    QUANTISATION: ("_quantize_rowwise_kernel", "void at::native::float8_copy_kernel_cuda(at::TensorIteratorBase&)"),
    COPIES: (
        "Memcpy HtoD (Pinned -> Device)",
        "Memset (Device)",
        "void at::native::unrolled_elementwise_kernel<at::native::direct_copy_kernel_cuda(at::TensorIteratorBase&)>",
        "void at::native::(anonymous namespace)::CatArrayBatchedCopy_contig<at::native::OpaqueType<2u>, unsigned int>",
    ),
    OPTIMIZER: (
        "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<at::native::TensorListMetadata<2>>",
        "void at::native::<unnamed>::multi_tensor_apply_kernel<FusedOptimizerTensorListMetadata>",
    ),
    COMMUNICATION: ("ncclDevKernel_AllReduce_Sum_f32_RING_LL(ncclDevKernelArgsStorage<4096ul>)",),
    OTHER: ("autograd::engine::evaluate_function: MmBackward0",),
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in NAMES.items() for name in names])
def test_a_name_tells_the_class(kind, name):
    assert classify(name) == kind


def test_our_own_kernels_are_known_by_name():
    sources = sorted((ROOT / "trainer" / "kernels").glob("triton_*.py"))
    launched = {name for path in sources for name in re.findall(r"^ +(_\w+)\[\(", path.read_text(), re.MULTILINE)}
    assert {"_multiply_and_add", "_norm_rope", "_quantize", "_down_gradient"} <= launched
    assert all(classify(name) != OTHER for name in launched)


def test_the_operator_tells_what_the_name_does_not():
    backward = "aten::_scaled_dot_product_cudnn_attention_backward"
    assert classify("some_kernel", backward) == ATTENTION_BACKWARD
    assert classify("nvjet_tst_64x8_64x16", in_optimizer=True) == OPTIMIZER
    assert classify(backward, backward) == ATTENTION_BACKWARD


@pytest.mark.parametrize(
    ("op", "dims", "side"),
    [
        ("aten::mm", [[4608, 3072], [3072, 16]], 16),
        ("aten::mm", [[16, 4608], [4608, 3072]], 16),
        ("aten::addmm", [[9216], [1, 3072], [3072, 9216], [], []], 1),
        ("aten::addmm", [[4608, 3072], [4608, 3072], [3072, 3072]], 3072),
        ("aten::bmm", [[24, 512, 128], [24, 128, 512]], 128),
        ("aten::linear", [[1, 4608, 3072], [12288, 3072], [12288]], 3072),
        ("aten::_scaled_mm", [[4608, 3072], [3072, 12288], [4608, 1], [1, 12288]], 3072),
        ("aten::mm", [], 0),
        ("triton_poi_fused_0", [[4608, 3072], [3072, 16]], 0),
    ],
)
def test_a_product_is_low_rank_by_its_shortest_side(op, dims, side):
    assert shortest_side(op, dims) == side
    assert classify("nvjet_tst_128x16", op, dims, low_rank_side=16) == (LOW_RANK if 0 < side <= 16 else LARGE)


def event(cat: str, name: str, begin: float, duration: float, **args) -> dict:
    return {"ph": "X", "cat": cat, "name": name, "ts": begin, "dur": duration, "tid": 1, "args": args}


def test_a_gpu_trace_is_added_up_by_picture(tmp_path):
    dims = {"Input Dims": [[512, 64], [64, 8]]}
    events = [
        event("cpu_op", "aten::mm", 0, 5, **{"External id": 1}, **dims),
        event("cuda_runtime", "cudaLaunchKernel", 1, 1, correlation=11),
        event("kernel", "nvjet_tst_64x8", 100, 40, **{"External id": 1}, correlation=11),
        event("kernel", "triton_poi_fused_0", 120, 40, correlation=12),  # on another stream, half hidden
        event("user_annotation", OPTIMIZER_MARK, 10, 10),
        event("gpu_user_annotation", OPTIMIZER_MARK, 0, 1000),
        event("cuda_runtime", "cudaLaunchKernel", 15, 1, correlation=13),
        event("kernel", "triton_poi_fused_add_1", 200, 20, correlation=13),
        event("gpu_memcpy", "Memcpy DtoH (Device -> Pinned)", 230, 10, correlation=14),
        {"ph": "M", "name": "process_name"},
    ]
    (tmp_path / "trace.json").write_text(json.dumps({"traceEvents": events}))
    found = read_trace(tmp_path / "trace.json", pictures=2, low_rank_side=8, on_gpu=True)
    assert found is not None
    micro = {kind: round(seconds * 2e6) for kind, seconds in found.seconds.items()}
    assert micro == {LOW_RANK: 40, ELEMENTWISE: 40, OPTIMIZER: 20, COPIES: 10}
    assert round(found.idle * 2e6) == (200 - 160) + (230 - 220) and found.launches == 2
    assert found.longest[0]["launches"] == 0.5 and found.longest[0]["seconds"] == pytest.approx(20e-6)


def test_a_gpu_trace_without_kernels_tells_nothing(tmp_path):
    (tmp_path / "trace.json").write_text(json.dumps({"traceEvents": [event("cpu_op", "aten::mm", 0, 5)]}))
    assert read_trace(tmp_path / "trace.json", 1, 8, on_gpu=True) is None


def test_a_real_trace_of_the_cpu(tmp_path):
    weight, down = torch.randn(256, 256), torch.nn.Parameter(torch.randn(256, 4))
    optimizer = torch.optim.AdamW([down])
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        (torch.randn(512, 256) @ weight @ down).sum().backward()
        with record_function(OPTIMIZER_MARK):
            optimizer.step()
    profiler.export_chrome_trace(str(tmp_path / "trace.json"))
    found = read_trace(tmp_path / "trace.json", pictures=1, low_rank_side=4, on_gpu=False)
    assert found is not None and {LARGE, LOW_RANK, OPTIMIZER, ELEMENTWISE} <= found.seconds.keys()
    assert found.seconds[LARGE] > 0 and all(seconds >= 0 for seconds in found.seconds.values())
