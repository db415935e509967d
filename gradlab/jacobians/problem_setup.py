"""From a question and a piece of graph to a problem: entries, samples, vectors, and how many at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gradlab.errors import JacobianError
from gradlab.jacobians.axes import Indices, chosen
from gradlab.jacobians.engines.fallback import DIFFERENCES, Ladder
from gradlab.jacobians.engines.problem import End, Layer, Problem, Vectors
from gradlab.jacobians.engines.rows import chunk_rows, coupled
from gradlab.jacobians.request import Question
from gradlab.jacobians.subgraph import Region
from gradlab.sites.leaves import leaves


def pose(question: Question, region: Region, batch: int | None, ladder: Ladder) -> Problem:
    """Turn a question into entries and samples of the two tensors that were found.

    A sample axis is one of the batch's length at the front of both tensors. Where only one has it (a loss, a pooled
    output), the tensors are taken whole; a parameter has none, and the samples are those of `of`.
    """
    run = region.run
    of_tensor, through = region.of, None
    if question.of_map == "softmax" and region.of_edge is not None:
        through = _softmax_pull(region.of)
    elif question.of_map == "softmax":
        of_tensor = region.of.softmax(-1)
        run = None if region.run is None else _with_softmax(region.run)
    is_parameter = isinstance(region.wrt, nn.Parameter)
    of_has, wrt_has = _has_axis(of_tensor, batch), not is_parameter and _has_axis(region.wrt, batch)
    if not is_parameter:
        of_has = wrt_has = of_has and wrt_has
    of, wrt = End(of_tensor, of_has, region.of_edge, through), End(region.wrt, wrt_has, region.wrt_edge)
    samples = _samples(question, of, batch)
    averaged = is_parameter and question.reduce == "mean" and len(samples) > 1
    may_share = wrt_has and len(samples) > 1 and ladder.engine != DIFFERENCES
    together = averaged or (may_share and not _are_coupled(of, wrt, ladder))
    return Problem(
        of=of,
        wrt=wrt,
        vectors=_vectors(question, of, 1 / len(samples) if averaged else 1.0),
        cols=chosen(question.cols, wrt.size, axis="cols", site=question.wrt),
        samples=samples,
        groups=(samples,) if together else tuple((sample,) for sample in samples),
        averaged=averaged,
        chunk=question.chunk or chunk_rows(of_tensor, region.wrt, region.widest_bytes),
        run=None if is_parameter else run,
        layer=_layer(region, batch) if is_parameter else None,
    )


def count_samples(inputs: Any, batched: bool | None) -> int | None:
    """The length of the inputs' sample axis, or None without one: as told, else where there are fewer than 2 axes."""
    first = inputs if isinstance(inputs, Tensor) else next(leaves(inputs), ("", None))[1]
    if first is None or batched is False or first.dim() == 0:
        return None
    return len(first) if batched or first.dim() > 1 else None


def _with_softmax(run: Any) -> Any:
    return lambda value: run(value).softmax(-1)


def _layer(region: Region, batch: int | None) -> Layer | None:
    found = region.layer
    if found is None:
        return None
    return Layer(found.input, End(found.output, _has_axis(found.output, batch), found.edge), found.is_bias)


def _has_axis(tensor: Tensor, batch: int | None) -> bool:
    return batch is not None and tensor.dim() > 0 and len(tensor) == batch


def _samples(question: Question, of: End, batch: int | None) -> Indices:
    if of.batched and batch is not None:
        return chosen(question.samples, batch, axis="samples", site="input")
    if question.samples is not None:
        shape = list(of.tensor.shape)
        raise JacobianError(
            f"samples: of={question.of!r} {shape} and wrt={question.wrt!r} do not both begin with a sample axis, "
            "so samples cannot be told apart; leave samples out."
        )
    return (0,)


def _are_coupled(of: End, wrt: End, ladder: Ladder) -> bool:
    if ladder.coupled is None:
        ladder.coupled = coupled(of, wrt)
        if ladder.coupled:
            ladder.notes.append("samples influence one another here, so each is pulled back on its own")
    return ladder.coupled


def _vectors(question: Question, of: End, scale: float) -> Vectors:
    indices = chosen(question.rows, of.size, axis="rows", site=question.of)
    weights = _group_weights(question, of) if question.groups is not None else question.weights
    if weights is None:
        return Vectors(of, indices, scale=scale)
    weights = torch.as_tensor(weights).to(of.tensor.device, of.tensor.dtype)
    if weights.dim() == 1:
        weights = weights[None]
    if weights.dim() != 2 or weights.shape[1] != of.size:
        raise JacobianError(
            f"weights must be [k, {of.size}], one weight for each entry of {question.of!r}; got {list(weights.shape)}."
        )
    return Vectors(of, indices, weights, scale)


def _group_weights(question: Question, of: End) -> Tensor:
    """[groups, size]: a row that takes the mean of each group's entries."""
    assert question.groups is not None
    if not question.groups:
        raise JacobianError("groups is empty; give a name and indices for each row, as {'even': [0, 2]}.")
    weights = torch.zeros(len(question.groups), of.size, device="cpu")
    for row, (name, picks) in zip(weights, question.groups.items(), strict=True):
        picked = chosen(picks, of.size, axis=f"groups[{name!r}]", site=question.of)
        row.index_add_(0, torch.tensor(picked, device="cpu"), torch.full((len(picked),), 1 / len(picked), device="cpu"))
    return weights


def _softmax_pull(logits: Tensor) -> Callable[[Tensor], Tensor]:
    """v ↦ vᵀ(diag p − ppᵀ) over the last axis: the softmax behind an edge, whose tensor is not to be touched."""
    p = logits.detach().softmax(-1)
    return lambda v: p * (v - (v * p).sum(-1, keepdim=True))
