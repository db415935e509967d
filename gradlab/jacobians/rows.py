"""Pulling cotangents back: v ↦ vᵀJ for many v at once, by several engines, on an ordinary autograd graph.

`torch.vmap` over `autograd.grad` has batching rules for what models are made of; `is_grads_batched` is the older vmap,
with fewer rules but fewer objections; the loop works wherever a plain backward does. `torch.func.jacrev` is not used:
it refuses many ordinary training models and keeps a graph for a second derivative.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from gradlab.errors import JacobianError

Pull = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(of [*out], wrt [*in], cotangents [k, *out]) -> [k, *in]; the graph is kept."""


def plain_vjp(of: Tensor, wrt: Tensor, cotangent: Tensor) -> Tensor | None:
    """vᵀJ [*in] by one plain backward of `cotangent` [*out], or None where `of` does not depend on `wrt`.

    Raises:
        JacobianError: if that fails, and with it all hope of another engine.
    """
    try:
        return torch.autograd.grad(of, wrt, cotangent, retain_graph=True, allow_unused=True)[0]
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if "use_reentrant=True" in str(error) and not isinstance(wrt, nn.Parameter):
            return _accumulated(of, wrt, cotangent)
        raise JacobianError(f"a plain backward fails here, so there is no Jacobian to measure: {error}") from error


def _accumulated(of: Tensor, wrt: Tensor, cotangent: Tensor) -> Tensor | None:
    """By `backward` into our own leaf, the only tensor that requires grad: reentrant checkpoints refuse all else."""
    wrt.grad = None
    torch.autograd.backward(of, cotangent, retain_graph=True)
    grad, wrt.grad = wrt.grad, None
    return grad


def by_vmap(of: Tensor, wrt: Tensor, cotangents: Tensor) -> Tensor:
    """All rows in one batched backward."""

    def pull(cotangent: Tensor) -> Tensor:
        return torch.autograd.grad(of, wrt, cotangent, retain_graph=True, allow_unused=True, materialize_grads=True)[0]

    # An op without a batching rule runs row by row, which is slower and no less right: not worth a warning to the user.
    torch._C._functorch._set_vmap_fallback_warning_enabled(False)  # type: ignore[attr-defined]
    try:
        pulled: Tensor = torch.vmap(pull)(cotangents)
    finally:
        torch._C._functorch._set_vmap_fallback_warning_enabled(True)  # type: ignore[attr-defined]
    return pulled


def by_batched_grad(of: Tensor, wrt: Tensor, cotangents: Tensor) -> Tensor:
    """The same by the older vmap, which batches fewer operations and accepts more graphs."""
    return torch.autograd.grad(
        of, wrt, cotangents, retain_graph=True, allow_unused=True, materialize_grads=True, is_grads_batched=True
    )[0]


def by_loop(of: Tensor, wrt: Tensor, cotangents: Tensor) -> Tensor:
    """One plain backward a row."""
    pulled = torch.zeros((len(cotangents), *wrt.shape), dtype=wrt.dtype, device=wrt.device)
    for row, cotangent in zip(pulled, cotangents, strict=True):
        grad = plain_vjp(of, wrt, cotangent)
        if grad is not None:
            row.copy_(grad.detach())
    return pulled


def chunk_rows(of: Tensor, wrt: Tensor, widest_bytes: int) -> int:
    """How many rows to pull back at once.

    A row needs its two ends and, in the middle of the backward, about five times the widest tensor. On a CPU more than
    its caches hold makes it slower (`jacrev` whole and chunked, in benchmarks/jacobian.py); the number for GPUs, which
    wait for launches instead, is a guess.
    """
    on_cpu = wrt.device.type == "cpu"
    budget_bytes, most = (12 << 20, 512) if on_cpu else (256 << 20, 512)
    row_bytes = of.nbytes + wrt.nbytes + 5 * widest_bytes
    return max(1, min(most, budget_bytes // max(1, row_bytes)))
