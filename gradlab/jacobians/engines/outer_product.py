"""The Jacobian by a linear layer's weight, as sums of outer products: a row is Σ_t g_t ⊗ a_t.

g_t is the derivative by the layer's output at position t, a_t its input there: the backward goes to the output only,
which is narrow, and nothing the size of the weight is made but the block itself.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from gradlab.jacobians.engines.problem import Problem, as_tensor
from gradlab.jacobians.engines.rows import BatchedVjp, rows


def by_outer_products(problem: Problem, vjp: BatchedVjp) -> Tensor:
    """[blocks, rows, cols] of a linear layer's weight or bias.

    Raises:
        NotImplementedError: if `wrt` is no parameter of a linear layer that was called once.
    """
    layer = problem.layer
    if layer is None:
        raise NotImplementedError("not a parameter of a linear layer that is called once")
    output = layer.output
    by_output = rows(replace(problem, wrt=output, cols=range(output.size), averaged=False), vjp)
    by_position = by_output.unflatten(-1, (-1, output.tensor.shape[-1]))
    if not output.batched:
        return _outer_products(by_position, layer.input.reshape(1, -1, layer.input.shape[-1]), problem)
    inputs = layer.input[list(problem.samples)]
    inputs = inputs.flatten(1, -2) if inputs.dim() > 2 else inputs[:, None]
    if problem.averaged:
        by_position = by_position.transpose(0, 1).flatten(1, 2)[None]
        inputs = inputs.flatten(0, 1)[None]
    return _outer_products(by_position, inputs, problem)


def _outer_products(by_position: Tensor, inputs: Tensor, problem: Problem) -> Tensor:
    """[blocks, rows, t, out] and [blocks, t, in] -> [blocks, rows, cols]."""
    layer, cols = problem.layer, problem.cols
    assert layer is not None
    if layer.is_bias:
        summed = by_position.sum(2)
        return summed if cols == range(summed.shape[-1]) else summed[..., as_tensor(cols, summed.device)]
    if cols == range(by_position.shape[-1] * inputs.shape[-1]):
        return torch.einsum("brto,bti->broi", by_position, inputs).flatten(2)
    picked = as_tensor(cols, inputs.device)
    out, into = picked // inputs.shape[-1], picked % inputs.shape[-1]
    return torch.einsum("brtc,btc->brc", by_position[..., out], inputs[..., into])
