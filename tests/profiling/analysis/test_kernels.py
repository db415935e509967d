import json

import pytest
from profiling.example import events_of

from gradlab.profiling.analysis.kernels import DENSE_OPERATORS, is_collective, is_copy, is_dense, uses_tensor_cores

IN_TENSOR_CORES = [
    "nvjet_tst_128x256_64x4_2x1_v_bz_coopA_TNT",  # cuBLAS on Hopper
    "nvjet_hsh_192x192_64x4_1x2_h_bz_coopB_NTN",
    "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_warpgroupsize1x1x1_execute_segment_k_off_kernel__5x_cublas",
    "void cutlass::device_kernel<flash::enable_sm90<flash::FlashAttnFwdSm90<flash::CollectiveMainloopFwdSm90<2>>>>",
    "void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_relu_bf16_256x128_32x3_tn_align8>(...)",
    "void cutlass::Kernel<cutlass_80_tensorop_s1688gemm_256x64_16x4_nn_align4>(...)",
    "ampere_bf16_s16816gemm_bf16_128x64_ldg8_f2f_stages_64x4_tn",
    "ampere_fp16_s1688gemm_fp16_128x128_ldg8_f2f_stages_32x1_nn",
    "volta_h884gemm_128x64_ldg8_nn",
    "volta_fp16_s884gemm_fp16_64x64_ldg8_f2f_tn",
    "turing_fp16_s1688cudnn_fp16_128x128_ldg8_relu_f2f_exp_small_nhwc_tn_v1",
    "sm80_xmma_wgrad_implicit_gemm_indexed_tf32f32_tf32f32_f32_nhwckrsc_nhwc_tilesize128x128x16_stage4_kernel_cudnn_train",
    "sm90_xmma_fprop_implicit_gemm_f16f16_f16f32_f32_nhwckrsc_nhwc_tilesize128x128x64_kernel__5x_cudnn",
    "fmha_cutlassF_bf16_aligned_64x128_rf_sm80(PyTorchMemEffAttention::AttentionKernel<...>::Params)",
    "void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64, 128, 128, 4>>(...)",
    "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_64x128x64_4x1x1_cga1x1x1_kernel0_0",
]
PLAIN_BUT_DENSE = [
    "ampere_sgemm_128x64_tn",
    "volta_sgemm_64x32_sliced1x4_nt",
    "void cutlass::Kernel2<cutlass_80_simt_sgemm_128x64_8x5_nn_align1>(...)",
    "sm80_xmma_fprop_implicit_gemm_indexed_f32f32_f32f32_f32_nchwkcrs_nchw_tilesize64x32x8_stage3_kernel_cudnn",
    "void implicit_convolve_sgemm<float, float, 1024, 5, 5, 3, 3, 3, 1, false, false, true>(...)",
]
MOVES_MEMORY = [
    "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>, Array<char*, 3> >(...)",
    "void at::native::reduce_kernel<512, 1, ReduceOp<float, NormTwoOps<float>, unsigned int, float, 4>>(...)",
    "void cudnn::bn_bw_1C11_kernel_new<float, float, float2, 128, true, 1>(float, float)",
    "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<TensorListMetadata<1>>(...)",
    "void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<float, float>(int, float)",
    "triton_poi_fused_add_gelu_0",
    "Memcpy HtoD (Pageable -> Device)",
    "Memset (Device)",
]


@pytest.mark.parametrize("name", IN_TENSOR_CORES)
def test_kernels_in_tensor_cores_are_known(name):
    assert uses_tensor_cores(name) and is_dense(name) and not is_copy(name)


@pytest.mark.parametrize("name", PLAIN_BUT_DENSE)
def test_products_outside_tensor_cores_are_dense_all_the_same(name):
    assert not uses_tensor_cores(name) and is_dense(name)


@pytest.mark.parametrize("name", MOVES_MEMORY)
def test_what_moves_memory_is_not_dense(name):
    assert not uses_tensor_cores(name) and not is_dense(name)


def test_copies_and_collectives_are_told_from_kernels():
    assert is_copy("Memcpy DtoD (Device -> Device)") and is_copy("Memset (Device)")
    assert not is_copy("void at::native::elementwise_kernel<128, 2, direct_copy_kernel_cuda>")
    assert is_collective("ncclDevKernel_AllReduce_Sum_f32_RING_LL(ncclDevKernelArgsStorage<4096ul>)")
    assert not is_collective("ampere_sgemm_128x64_tn")


@pytest.mark.parametrize(
    ("name", "dense"),
    [
        ("aten::addmm", True),
        ("aten::mm", True),
        ("aten::mkldnn_convolution", True),
        ("aten::convolution_backward", True),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", True),
        ("aten::mul", False),
        ("aten::native_layer_norm", False),
        ("aten::copy_", False),
        ("aten::_foreach_add_", False),
    ],
)
def test_operators_of_the_host_are_told_apart_too(name, dense):
    assert bool(DENSE_OPERATORS.match(name)) is dense


def test_every_kernel_of_a_stored_trace_has_a_kind(cuda_trace):
    names = {e.name for e in events_of(json.loads(cuda_trace("nccl_parser_config.json.gz"))) if e.on_device}
    cutlass = {name for name in names if "tensorop" in name or "tf32f32" in name}
    assert len(cutlass) > 5 and all(map(uses_tensor_cores, cutlass))
    assert not any(uses_tensor_cores(name) for name in names if "elementwise" in name or "bn_" in name)
