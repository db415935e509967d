"""The Euclidean norm of a long tensor, right to a few millionths where torch's own is not; a tensor's dense values."""

from __future__ import annotations

import torch
from torch import Tensor


def dense_values(tensor: Tensor) -> Tensor:
    """The tensor's own values, detached and dense: those of a sparse tensor coalesced, of a complex one as pairs."""
    tensor = tensor.detach()
    if tensor.is_floating_point() and tensor.element_size() == 1:
        tensor = tensor.to(torch.float32)  # no reduction of torch's reads float8
    if tensor.layout != torch.strided:
        tensor = tensor.coalesce().values() if tensor.layout == torch.sparse_coo else tensor.values()
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


LONG = 1 << 17
"""Beyond so many elements a CPU tensor's norm is taken by rows."""
_ROW = 1 << 12


def norm_into(x: Tensor, out: Tensor) -> None:
    """Write ‖x‖ of a detached strided tensor, float32 or narrower, into a 0-d float32 tensor.

    On a CPU torch adds squares up in eight float32 sums, one after another and on one thread: the norm of 4 million
    numbers is off by 1e-4 of itself, that of 100 million by 1e-2. Norms of rows of 4,096 numbers, and the norm of
    those, are right to a few millionths and use all threads. On a GPU torch's own reduction is a tree already.
    """
    if x.numel() > LONG and x.is_cpu:
        x = _row_norms(x)
        if x.numel() > LONG:
            return norm_into(x, out)
    torch.linalg.vector_norm(x, dtype=torch.float32, out=out)
    return None


def _row_norms(x: Tensor) -> Tensor:
    """[rows] float32: norms of pieces that make up x."""
    if not x.is_contiguous():
        x = x.permute(sorted(range(x.dim()), key=x.stride, reverse=True))
        if not x.is_contiguous():
            if x.dim() > 1:
                return torch.linalg.vector_norm(x, dim=-1, dtype=torch.float32)
            x = x.contiguous()
    flat = x.view(-1)
    even = flat.numel() // _ROW * _ROW
    norms = torch.linalg.vector_norm(flat[:even].view(-1, _ROW), dim=1, dtype=torch.float32)
    if even == flat.numel():
        return norms
    return torch.cat([norms, torch.linalg.vector_norm(flat[even:], dtype=torch.float32).view(1)])
