"""The Jacobian by a linear layer's weight, in rank form: a row is Σ_t g_t ⊗ a_t.

g_t is the derivative by the layer's output at position t, a_t its input there: rows are pulled back to the output only,
which is narrow, and nothing the size of the weight is made but the block itself.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from gradlab.jacobians.engines.problem import Problem, as_tensor
from gradlab.jacobians.engines.rows import Pull, rows


def by_rank(problem: Problem, pull: Pull) -> Tensor:
    """[blocks, rows, cols] of a linear layer's weight or bias.

    Raises:
        NotImplementedError: if `wrt` is no parameter of a linear layer that was called once.
    """
    layer = problem.layer
    if layer is None:
        raise NotImplementedError("not a parameter of a linear layer that is called once")
    inner = replace(problem, wrt=layer.output, cols=range(layer.output.size), averaged=False)
    by_output = rows(inner, pull)
    if not layer.output.batched:
        positions = by_output.unflatten(-1, (-1, layer.output.tensor.shape[-1]))
        return _combined(positions, layer.input.reshape(1, -1, layer.input.shape[-1]), problem)
    positions = by_output.unflatten(-1, (-1, layer.output.tensor.shape[-1]))
    inputs = layer.input[list(problem.samples)].flatten(1, -2) if layer.input.dim() > 2 else None
    if inputs is None:
        inputs = layer.input[list(problem.samples)][:, None]
    if problem.averaged:
        positions = positions.transpose(0, 1).flatten(1, 2)[None]
        inputs = inputs.flatten(0, 1)[None]
    return _combined(positions, inputs, problem)


def _combined(by_output: Tensor, inputs: Tensor, problem: Problem) -> Tensor:
    """[blocks, rows, t, out] and [blocks, t, in] -> [blocks, rows, cols]."""
    layer, cols = problem.layer, problem.cols
    assert layer is not None
    if layer.is_bias:
        summed = by_output.sum(2)
        return summed if cols == range(summed.shape[-1]) else summed[..., as_tensor(cols, summed.device)]
    if cols == range(by_output.shape[-1] * inputs.shape[-1]):
        return torch.einsum("brto,bti->broi", by_output, inputs).flatten(2)
    picked = as_tensor(cols, inputs.device)
    out, into = picked // inputs.shape[-1], picked % inputs.shape[-1]
    return torch.einsum("brtc,btc->brc", by_output[..., out], inputs[..., into])
