"""What a kernel or an operator is, by its name: on tensor cores or not, bound by arithmetic or by memory, a collective.

Belongs here: tables of names, which are all that a trace has without hardware counters. Does not: times. The tables
know cuBLAS of Hopper and Blackwell (`nvjet`), whose kernels the PyTorch Profiler tab takes for ordinary ones.
"""

from __future__ import annotations

import re
from functools import lru_cache

_TENSOR_CORES = re.compile(
    r"""nvjet                                   # cuBLAS since Hopper
      | wgmma | gmma | tensorop | [hi]?mma_     # CUTLASS, by instruction
      | [sh]16816 | [sh]1688 | [sh]884 | i8816 | i16832 | i16864 | bf16_16816   # cuBLAS up to Ampere, by tile
      | flash | fmha | cunn_attention | cudnn_generated_fort_native_sdpa | mem_eff | efficient_attention
      | cutlass3x | xmma | cutlass_\d\d_tensorop | tf32f32 | h16816cudnn | ampere_fp16_
    """,
    re.VERBOSE | re.IGNORECASE,
)
_PLAIN = re.compile(
    r"""simt | sgemm | dgemm | ffma               # the ordinary units
      | f32f32_f32f32_f32(?!.*tf32)             # cuDNN in full float32
      | (^|[^a-z])[sd]gemv | gemvx | gemv2
      | elementwise | reduce_kernel | memcpy | memset
    """,
    re.VERBOSE | re.IGNORECASE,
)
_DENSE = re.compile(
    r"gemm|conv|wgrad|dgrad|fprop|winograd|implicit|cutlass|xmma|nvjet|flash|fmha|attention|triton_tem|_mm_|matmul|sdpa",
    re.IGNORECASE,
)
_COPY = re.compile(r"^(Memcpy|Memset|CopyHostToDevice|CopyDeviceToHost)", re.IGNORECASE)
_COLLECTIVE = re.compile(r"nccl|rccl|AllReduce|ReduceScatter|AllGather")

DENSE_OPERATORS = re.compile(
    r"aten::(mm|addmm|bmm|baddbmm|addbmm|addmv|mv|dot|linear|convolution|_convolution|mkldnn|thnn_conv|slow_conv|conv"
    r"|.*convolution.*|_scaled_dot_product.*|_flash.*|_efficient.*|.*lstm.*|.*gru.*|linalg.*)|mkldnn::|xnnpack::"
)
"""Operators whose arithmetic outgrows what they read and write."""
HOST_COLLECTIVES = ("nccl:", "gloo:", "mpi:", "ucc:")
"""How the names of the host's events begin that last as long as a collective is under way."""


@lru_cache(maxsize=4096)
def uses_tensor_cores(kernel: str) -> bool:
    """Whether a kernel of this name multiplies matrices in the tensor cores."""
    return not _PLAIN.search(kernel) and _TENSOR_CORES.search(kernel) is not None


@lru_cache(maxsize=4096)
def is_dense(kernel: str) -> bool:
    """Whether its arithmetic outgrows what it reads and writes: products, convolutions, attention."""
    return uses_tensor_cores(kernel) or (not is_copy(kernel) and _DENSE.search(kernel) is not None)


def is_copy(kernel: str) -> bool:
    """Whether it is a copy or a fill by the copy engine."""
    return _COPY.match(kernel) is not None


@lru_cache(maxsize=4096)
def is_collective(kernel: str) -> bool:
    """Whether it talks to other devices."""
    return _COLLECTIVE.search(kernel) is not None
