"""Setting up a problem: from a request and the graph between two tensors to entries, samples and vectors for an engine.

Whether the graph is that of a replay or of the training step makes no difference here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from gradlab.errors import JacobianError
from gradlab.jacobians.engines.fallback import DIFFERENCES, Fallback
from gradlab.jacobians.engines.problem import End, Layer, Problem, Vectors
from gradlab.jacobians.engines.rows import chunk_rows, coupled
from gradlab.jacobians.entries import Indices, chosen
from gradlab.jacobians.request import Request
from gradlab.jacobians.subgraph import Subgraph


def set_up_problem(request: Request, subgraph: Subgraph, batch: int | None, fallback: Fallback) -> Problem:
    """The problem that a request is on this graph.

    A sample axis is one of the batch's length at the front of both tensors. Where only one has it (a loss, a pooled
    output), the tensors are taken whole; a parameter has none, and the samples are those of `of`.
    """
    what, run = request.slice, subgraph.run
    of_tensor, through = subgraph.of, None
    if what.of_map == "softmax" and subgraph.of_edge is not None:
        through = _softmax_vjp(subgraph.of)
    elif what.of_map == "softmax":
        of_tensor = subgraph.of.softmax(-1)
        run = None if subgraph.run is None else _with_softmax(subgraph.run)
    is_parameter = isinstance(subgraph.wrt, nn.Parameter)
    of_has, wrt_has = _has_axis(of_tensor, batch), not is_parameter and _has_axis(subgraph.wrt, batch)
    if not is_parameter:
        of_has = wrt_has = of_has and wrt_has
    of, wrt = End(of_tensor, of_has, subgraph.of_edge, through), End(subgraph.wrt, wrt_has, subgraph.wrt_edge)
    samples = _samples(request, of, batch)
    averaged = is_parameter and what.reduce == "mean" and len(samples) > 1
    may_share = wrt_has and len(samples) > 1 and fallback.engine != DIFFERENCES
    together = averaged or (may_share and not _are_coupled(of, wrt, fallback))
    return Problem(
        of=of,
        wrt=wrt,
        vectors=_vectors(request, of, 1 / len(samples) if averaged else 1.0),
        cols=chosen(what.cols, wrt.size, axis="cols", site=what.wrt),
        samples=samples,
        groups=(samples,) if together else tuple((sample,) for sample in samples),
        averaged=averaged,
        chunk=request.chunk or chunk_rows(of_tensor, subgraph.wrt, subgraph.widest_bytes),
        run=None if is_parameter else run,
        layer=_layer(subgraph, batch) if is_parameter else None,
    )


def _with_softmax(run: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda value: run(value).softmax(-1)


def _layer(subgraph: Subgraph, batch: int | None) -> Layer | None:
    found = subgraph.layer
    if found is None:
        return None
    return Layer(found.input, End(found.output, _has_axis(found.output, batch), found.edge), found.is_bias)


def _has_axis(tensor: Tensor, batch: int | None) -> bool:
    return batch is not None and tensor.dim() > 0 and len(tensor) == batch


def _samples(request: Request, of: End, batch: int | None) -> Indices:
    if of.batched and batch is not None:
        return chosen(request.samples, batch, axis="samples", site="input")
    if request.samples is not None:
        what, shape = request.slice, list(of.tensor.shape)
        raise JacobianError(
            f"samples: of={what.of!r} {shape} and wrt={what.wrt!r} do not both begin with a sample axis, "
            "so samples cannot be told apart; leave samples out."
        )
    return (0,)


def _are_coupled(of: End, wrt: End, fallback: Fallback) -> bool:
    if fallback.coupled is None:
        fallback.coupled = coupled(of, wrt)
        if fallback.coupled:
            fallback.notes.append("samples influence one another here, so each is pulled back on its own")
    return fallback.coupled


def _vectors(request: Request, of: End, scale: float) -> Vectors:
    what = request.slice
    indices = chosen(what.rows, of.size, axis="rows", site=what.of)
    weights = _mean_of_groups(what.groups, of, what.of) if what.groups is not None else request.weights
    if weights is None:
        return Vectors(of, indices, scale=scale)
    weights = torch.as_tensor(weights).to(of.tensor.device, of.tensor.dtype)
    if weights.dim() == 1:
        weights = weights[None]
    if weights.dim() != 2 or weights.shape[1] != of.size:
        raise JacobianError(
            f"weights must be [k, {of.size}], one weight for each entry of {what.of!r}; got {list(weights.shape)}."
        )
    return Vectors(of, indices, weights, scale)


def _mean_of_groups(groups: Mapping[str, Sequence[int]], of: End, site: str) -> Tensor:
    """[groups, size]: weights that take the mean of each group's entries."""
    if not groups:
        raise JacobianError("groups is empty; give a name and indices for each row, as {'even': [0, 2]}.")
    weights = torch.zeros(len(groups), of.size, device="cpu")
    for row, (name, picks) in zip(weights, groups.items(), strict=True):
        picked = chosen(picks, of.size, axis=f"groups[{name!r}]", site=site)
        row.index_add_(0, torch.tensor(picked, device="cpu"), torch.full((len(picked),), 1 / len(picked), device="cpu"))
    return weights


def _softmax_vjp(logits: Tensor) -> Callable[[Tensor], Tensor]:
    """v ↦ vᵀ(diag p − ppᵀ) over the last axis: the softmax behind an edge, whose tensor is not to be touched."""
    p = logits.detach().softmax(-1)
    return lambda v: p * (v - (v * p).sum(-1, keepdim=True))
