"""What an engine is given: two ends of a graph, the vectors v of vᵀJ, and the sample axis that both ends may have.

Where samples do not influence one another, one backward serves them all: the cotangent is put at every sample, and the
gradient at each sample is that sample's own vᵀJ. Where they do (batch norm in training), each takes its own backward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from gradlab.jacobians.entries import Indices


@dataclass(frozen=True)
class End:
    """One end of a graph."""

    tensor: Tensor
    """[samples, *entry] where batched, else [*entry]; with an edge, only its shape, dtype and device count."""
    batched: bool
    """Whether axis 0 counts samples."""
    edge: GradientEdge | None = None
    """The place in the graph, where the tensor itself may have been changed since."""
    through: Callable[[Tensor], Tensor] | None = None
    """[k, *tensor.shape] -> the same: a linear map that cotangents go through, as behind a softmax."""

    @property
    def node(self) -> Tensor | GradientEdge:
        """What autograd is given."""
        return self.tensor if self.edge is None else self.edge

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return tuple(self.tensor.shape[1:] if self.batched else self.tensor.shape)

    @property
    def size(self) -> int:
        """Entries of one sample."""
        return self.tensor.numel() // (len(self.tensor) if self.batched else 1)

    @property
    def has_one_sample(self) -> bool:
        """Whether there is one sample, or no sample axis."""
        return not self.batched or len(self.tensor) == 1

    def at_samples(self, vectors: Tensor, samples: Sequence[int]) -> Tensor:
        """[k, size] -> [k, *tensor.shape]: the vectors at each of these samples, zero at the others."""
        if self.has_one_sample:
            cotangents = vectors.reshape(len(vectors), *self.tensor.shape)
        else:
            by_sample = vectors.new_zeros(len(vectors), len(self.tensor), self.size)
            by_sample[:, list(samples)] = vectors[:, None]
            cotangents = by_sample.view(len(vectors), *self.tensor.shape)
        return cotangents if self.through is None else self.through(cotangents)

    def of_samples(self, gradients: Tensor, samples: Sequence[int]) -> Tensor:
        """[k, *tensor.shape] -> [samples, k, size]: those of these samples, or [1, k, size] without a sample axis."""
        if self.has_one_sample:
            return gradients.reshape(1, len(gradients), self.size)
        each = gradients.reshape(len(gradients), len(self.tensor), self.size).transpose(0, 1)
        return each if samples == range(len(each)) else each[list(samples)]


@dataclass(frozen=True)
class Vectors:
    """The vectors v of vᵀJ, made a chunk at a time: unit vectors at `indices`, or the rows of `weights`."""

    end: End
    """The end whose entries they run over: `of`, or of a transposed problem `wrt`."""
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

    def combined(self, coefficients: Tensor) -> Tensor:
        """[r, k] -> [r, size]: r linear combinations of the vectors."""
        if self.weights is not None:
            return (coefficients @ self.weights) * self.scale
        combined = torch.zeros(len(coefficients), self.end.size, dtype=coefficients.dtype, device=coefficients.device)
        return combined.index_add_(1, as_tensor(self.indices, coefficients.device), coefficients * self.scale)


@dataclass(frozen=True)
class Layer:
    """A linear layer whose weight or bias is differentiated by: its input and the place of its output."""

    input: Tensor
    """[*batch, in], as the layer saw it."""
    output: End
    """[*batch, out]."""
    is_bias: bool
    """Whether the parameter is the bias."""


@dataclass(frozen=True)
class Problem:
    """What is to be computed on one graph: blocks [samples, rows, cols] of d(of)/d(wrt)."""

    of: End
    """What is differentiated."""
    wrt: End
    """What it is differentiated by."""
    vectors: Vectors
    """The rows: the vectors v of vᵀJ, by the entries of `of`."""
    cols: Indices
    """[c]: which entries of `wrt`."""
    samples: Indices
    """Which samples; one alone where there is no sample axis."""
    groups: tuple[Indices, ...]
    """The samples that share a backward, in order: a block for each, or one a group where `wrt` has no samples."""
    averaged: bool
    """Whether the blocks of all samples are wanted as their mean only, which costs one backward a row."""
    chunk: int
    """How many vectors in one batched backward."""
    run: Callable[[Tensor], Tensor] | None = None
    """The tensor at `of` for another tensor at `wrt`, by another forward; None of a parameter."""
    layer: Layer | None = None
    """Where `wrt` is a parameter of a linear layer that was called once."""

    @property
    def is_tall(self) -> bool:
        """Whether columns are so few that they are cheaper: making the transposed graph costs about two more."""
        return self.vectors.weights is None and 2 * len(self.cols) < len(self.vectors)

    @property
    def num_blocks(self) -> int:
        """How many blocks there are."""
        return sum(map(len, self.groups)) if self.wrt.batched else len(self.groups)


def as_tensor(indices: Indices, device: torch.device) -> Tensor:
    """[k] int64; a range needs no list."""
    if isinstance(indices, range):
        return torch.arange(indices.start, indices.stop, indices.step, device=device)
    return torch.tensor(indices, device=device)
