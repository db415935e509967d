"""Rows of a Jacobian by vector-Jacobian products (vjp), v ↦ vᵀJ, of many v at once, on an ordinary autograd graph.

`torch.vmap` over `autograd.grad` has batching rules for what models are made of; `is_grads_batched` is the older vmap,
with fewer rules but fewer objections; the loop works wherever a plain backward does. `torch.func.jacrev` is not used:
it refuses many ordinary training models and keeps a graph for a second derivative.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from gradlab.errors import JacobianError
from gradlab.jacobians.engines.problem import End, Problem, as_tensor

BatchedVjp = Callable[[End, End, Tensor], Tensor]
"""(of [*out], wrt [*in], cotangents [k, *out]) -> [k, *in]: k vector-Jacobian products; the graph is kept."""


class NoBackwardError(JacobianError):
    """Not even a plain backward works here."""


def rows(problem: Problem, vjp: BatchedVjp) -> Tensor:
    """[blocks, rows, cols] by vector-Jacobian products, a chunk at a time into one tensor.

    Cost: `groups * rows` backward passes' arithmetic; memory of one chunk besides the result.
    """
    of, wrt, vectors, cols = problem.of, problem.wrt, problem.vectors, problem.cols
    kept = slice(None) if cols == range(wrt.size) else as_tensor(cols, wrt.tensor.device)
    if len(problem.groups) == 1 and len(vectors) <= problem.chunk:
        products = vjp(of, wrt, of.at_samples(vectors.part(0, len(vectors)), problem.groups[0]))
        return wrt.of_samples(products.detach(), problem.groups[0])[..., kept]
    result = torch.empty(problem.num_blocks, len(vectors), len(cols), dtype=wrt.tensor.dtype, device=wrt.tensor.device)
    first = 0
    for group in problem.groups:
        last = first + (len(group) if wrt.batched else 1)
        for start in range(0, len(vectors), problem.chunk):
            part = vectors.part(start, start + problem.chunk)
            products = vjp(of, wrt, of.at_samples(part, group))
            result[first:last, start : start + len(part)] = wrt.of_samples(products.detach(), group)[..., kept]
        first = last
    return result


def plain_vjp(of: End, wrt: End, cotangent: Tensor) -> Tensor | None:
    """vᵀJ [*in] by one plain backward of `cotangent` [*out], or None where `of` does not depend on `wrt`.

    Raises:
        NoBackwardError: if that fails, as every engine on this graph then does.
    """
    try:
        return torch.autograd.grad(of.node, wrt.node, cotangent, retain_graph=True, allow_unused=True)[0]
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if "use_reentrant=True" in str(error) and wrt.edge is None and not isinstance(wrt.tensor, nn.Parameter):
            return _accumulated(of.tensor, wrt.tensor, cotangent)
        raise NoBackwardError(f"a plain backward fails here, so there is no Jacobian to measure: {error}") from error


def _accumulated(of: Tensor, wrt: Tensor, cotangent: Tensor) -> Tensor | None:
    """By `backward` into our own leaf, the only tensor that requires grad: reentrant checkpoints refuse all else."""
    wrt.grad = None
    torch.autograd.backward(of, cotangent, retain_graph=True)
    grad, wrt.grad = wrt.grad, None
    return grad


def by_vmap(of: End, wrt: End, cotangents: Tensor) -> Tensor:
    """All rows in one batched backward."""
    outputs, inputs = of.node, wrt.node

    def vjp(cotangent: Tensor) -> Tensor:
        return torch.autograd.grad(
            outputs, inputs, cotangent, retain_graph=True, allow_unused=True, materialize_grads=wrt.edge is None
        )[0]

    # An op without a batching rule runs row by row, which is slower and no less right: not worth a warning to the user.
    torch._C._functorch._set_vmap_fallback_warning_enabled(False)  # type: ignore[attr-defined]
    try:
        products: Tensor = torch.vmap(vjp)(cotangents)
    finally:
        torch._C._functorch._set_vmap_fallback_warning_enabled(True)  # type: ignore[attr-defined]
    return products


def by_batched_grad(of: End, wrt: End, cotangents: Tensor) -> Tensor:
    """The same by the older vmap, which batches fewer operations and accepts more graphs."""
    return torch.autograd.grad(
        of.node,
        wrt.node,
        cotangents,
        retain_graph=True,
        allow_unused=True,
        materialize_grads=wrt.edge is None,
        is_grads_batched=True,
    )[0]


def by_loop(of: End, wrt: End, cotangents: Tensor) -> Tensor:
    """One plain backward a row."""
    like = wrt.tensor
    products = torch.zeros((len(cotangents), *like.shape), dtype=like.dtype, device=like.device)
    for row, cotangent in zip(products, cotangents, strict=True):
        grad = plain_vjp(of, wrt, cotangent)
        if grad is not None:
            row.copy_(grad.detach())
    return products


def coupled(of: End, wrt: End) -> bool:
    """Whether samples influence one another: a cotangent on half of them reaches the other half. One backward."""
    half = torch.zeros_like(of.tensor)
    # From a generator of its own, so that training's random numbers stay as they are.
    some = torch.randn(half[::2].shape, generator=torch.Generator().manual_seed(0), device="cpu")
    half[::2] = some.to(half)
    grad = plain_vjp(of, wrt, half)
    return grad is not None and bool((grad[1::2] != 0).any())


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
