"""A Jacobian with samples: two ends of a graph, the vectors to pull back, and the sample axis that both may have.

Where samples do not influence one another, one backward serves them all: the cotangent is put at every sample, and each
finds its own answer at its own place. Where they do (batch norm in training), each is pulled back on its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradlab.jacobians.axes import Indices
from gradlab.jacobians.rows import Pull, plain_vjp


@dataclass(frozen=True)
class End:
    """One end of a graph."""

    tensor: Tensor
    """[samples, *entry] where batched, else [*entry]."""
    batched: bool
    """Whether axis 0 counts samples."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return tuple(self.tensor.shape[1:] if self.batched else self.tensor.shape)

    @property
    def size(self) -> int:
        """Entries of one sample."""
        return self.tensor.numel() // (len(self.tensor) if self.batched else 1)

    def spread(self, vectors: Tensor, samples: Sequence[int]) -> Tensor:
        """[k, size] -> [k, *tensor.shape]: the vectors at each of these samples, zero at the others."""
        if not self.batched:
            return vectors.reshape(len(vectors), *self.tensor.shape)
        spread = vectors.new_zeros(len(vectors), len(self.tensor), self.size)
        spread[:, list(samples)] = vectors[:, None]
        return spread.view(len(vectors), *self.tensor.shape)

    def gather(self, pulled: Tensor, samples: Sequence[int]) -> Tensor:
        """[k, *tensor.shape] -> [samples, k, size], or [1, k, size] where there is no sample axis."""
        if not self.batched:
            return pulled.reshape(1, len(pulled), self.size)
        return pulled.reshape(len(pulled), len(self.tensor), self.size)[:, list(samples)].transpose(0, 1)


@dataclass(frozen=True)
class Vectors:
    """The vectors v of vᵀJ, made a chunk at a time: unit vectors at `indices`, or the rows of `weights`."""

    end: End
    """What they are vectors of."""
    indices: Indices
    """[k]: which entries; unused where there are weights."""
    weights: Tensor | None = None
    """[k, size], or None for unit vectors."""
    scale: float = 1.0
    """A factor on all of them."""

    def __len__(self) -> int:
        return len(self.indices if self.weights is None else self.weights)

    def part(self, start: int, stop: int) -> Tensor:
        """[stop - start, size]."""
        if self.weights is not None:
            return self.weights[start:stop] * self.scale
        picked = as_tensor(self.indices[start:stop], self.end.tensor.device)
        unit = torch.zeros(len(picked), self.end.size, dtype=self.end.tensor.dtype, device=picked.device)
        return unit.scatter_(1, picked[:, None], self.scale)

    def mixed(self, signs: Tensor) -> Tensor:
        """[1, size]: the sum of all vectors, each times its sign."""
        if self.weights is not None:
            return (signs @ self.weights)[None] * self.scale
        mixed = torch.zeros(self.end.size, dtype=signs.dtype, device=signs.device)
        return mixed.index_add_(0, as_tensor(self.indices, signs.device), signs * self.scale)[None]


@dataclass(frozen=True)
class Problem:
    """What is to be computed on one replayed graph: blocks [samples, rows, cols] of d(of)/d(wrt)."""

    of: End
    """What is differentiated."""
    wrt: End
    """What it is differentiated by."""
    vectors: Vectors
    """The rows, as vectors of `of`."""
    cols: Indices
    """[c]: which entries of `wrt`."""
    samples: Indices
    """Which samples; one alone where there is no sample axis."""
    groups: tuple[Indices, ...]
    """The samples that share a backward, in order: a block for each, or one a group where `wrt` has no samples."""
    averaged: bool
    """Whether the blocks of all samples are wanted as their mean only, which costs one backward a row."""
    chunk: int
    """Vectors pulled back at once."""

    @property
    def is_tall(self) -> bool:
        """Whether columns are so few that they are cheaper: making the transposed graph costs about two more."""
        return self.vectors.weights is None and 2 * len(self.cols) < len(self.vectors)


def as_tensor(indices: Indices, device: torch.device) -> Tensor:
    """[k] int64; a range needs no list."""
    if isinstance(indices, range):
        return torch.arange(indices.start, indices.stop, indices.step, device=device)
    return torch.tensor(indices, device=device)


def rows(problem: Problem, pull: Pull) -> Tensor:
    """[blocks, rows, cols] by pulling the vectors back, a chunk at a time into one tensor.

    Cost: `groups * rows` backward passes' arithmetic; memory of one chunk besides the result.
    """
    of, wrt, vectors, cols = problem.of, problem.wrt, problem.vectors, problem.cols
    blocks = sum(len(group) for group in problem.groups) if wrt.batched else len(problem.groups)
    result = torch.empty(blocks, len(vectors), len(cols), dtype=wrt.tensor.dtype, device=wrt.tensor.device)
    kept = slice(None) if cols == range(wrt.size) else as_tensor(cols, wrt.tensor.device)
    first = 0
    for group in problem.groups:
        last = first + (len(group) if wrt.batched else 1)
        for start in range(0, len(vectors), problem.chunk):
            part = vectors.part(start, start + problem.chunk)
            pulled = pull(of.tensor, wrt.tensor, of.spread(part, group))
            result[first:last, start : start + len(part)] = wrt.gather(pulled.detach(), group)[..., kept]
        first = last
    return result


def columns(problem: Problem, pull: Pull) -> Tensor:
    """[samples, rows, cols] by columns: they are the rows of the transpose.

    g(v) = vᵀJ is linear in v, and its Jacobian is Jᵀ: a graph of g, made once, is pulled back from the columns.
    Needs operations whose backward can be differentiated; no forward-mode rules, and no second forward.

    Cost: about two backward passes for the graph, then one for each column.
    """
    v = torch.zeros_like(problem.of.tensor, requires_grad=True)
    g = torch.autograd.grad(problem.of.tensor, problem.wrt.tensor, v, create_graph=True)[0]
    if not g.requires_grad:
        raise RuntimeError("the backward of this graph is not differentiable")
    end = End(g, problem.wrt.batched)
    turned = Problem(
        of=end,
        wrt=End(v, problem.of.batched),
        vectors=Vectors(end, problem.cols),
        cols=problem.vectors.indices,
        samples=problem.samples,
        groups=problem.groups,
        averaged=False,
        chunk=problem.chunk,
    )
    return rows(turned, pull).transpose(1, 2)


def coupled(of: End, wrt: End) -> bool:
    """Whether samples influence one another: a cotangent on half of them reaches the other half. One backward."""
    half = torch.zeros_like(of.tensor)
    half[::2].normal_()
    grad = plain_vjp(of.tensor, wrt.tensor, half)
    return grad is not None and bool((grad[1::2] != 0).any())
