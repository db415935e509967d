"""Central differences: the engine for a forward that has no backward at all. Its numbers are labelled as such."""

from __future__ import annotations

import torch
from torch import Tensor

from gradlab.errors import JacobianError
from gradlab.jacobians.engines.problem import Problem

MOST_FORWARDS = 8192
"""More than this is not what anybody meant."""


def by_differences(problem: Problem) -> tuple[Tensor, float]:
    """[blocks, rows, cols], and by how much two step sizes differ on a random direction, relatively.

    J[:, j] = (f(x + h e_j) − f(x − h e_j)) / 2h, for each sample alone, with h the cube root of the rounding unit times
    the size of x, where rounding and curvature cost about the same.

    Raises:
        JacobianError: if the forward is random, or `wrt` is a parameter.
    Cost: two forwards a column and sample.
    """
    run, wrt = problem.run, problem.wrt
    if run is None:
        raise JacobianError("no backward works here, and central differences are for sites, not for parameters.")
    forwards = 2 * len(problem.cols) * len(problem.groups)
    if forwards > MOST_FORWARDS:
        raise JacobianError(
            f"no backward works here, and central differences would take {forwards} forwards "
            f"({len(problem.cols)} columns, {len(problem.groups)} samples); give fewer with cols and samples."
        )
    x = wrt.tensor.detach()
    with torch.no_grad():
        if not torch.equal(run(x), run(x)):
            raise JacobianError("no backward works here, and two forwards differ, so that differences mean nothing.")
        step = torch.finfo(x.dtype).eps ** (1 / 3) * max(1.0, float(x.abs().max()))
        blocks = torch.stack([_block(problem, x, group[0], step) for group in problem.groups])
        error = max(_disagreement(problem, x, group[0], step) for group in problem.groups)
    return blocks, error


def _product(problem: Problem, x: Tensor, direction: Tensor, sample: int, step: float) -> Tensor:
    """[rows]: J times a direction, by two forwards."""
    assert problem.run is not None
    moved = step * direction.view_as(x)
    of = problem.of
    change = (problem.run(x + moved) - problem.run(x - moved)) / (2 * step)
    flat = change.reshape(1, of.size) if not of.batched else change[sample].reshape(1, of.size)
    vectors = problem.vectors
    return (vectors.part(0, len(vectors)) @ flat[0]) if vectors.weights is not None else flat[0, list(vectors.indices)]


def _part(problem: Problem, whole: Tensor, sample: int) -> Tensor:
    """The entries of one sample, flat, as a view."""
    return whole.view(len(whole), -1)[sample] if problem.wrt.batched else whole.view(-1)


def _block(problem: Problem, x: Tensor, sample: int, step: float) -> Tensor:
    columns = []
    for column in problem.cols:
        direction = torch.zeros_like(x)
        _part(problem, direction, sample)[column] = 1
        columns.append(_product(problem, x, direction, sample, step))
    return torch.stack(columns, 1)


def _disagreement(problem: Problem, x: Tensor, sample: int, step: float) -> float:
    direction = torch.zeros_like(x)
    part = _part(problem, direction, sample)
    part[list(problem.cols)] = torch.randint(0, 2, (len(problem.cols),), device="cpu").to(x.dtype) * 2 - 1
    part /= len(problem.cols) ** 0.5
    one, other = (_product(problem, x, direction, sample, h) for h in (step, step / 4))
    scale = torch.linalg.vector_norm(one)
    return float(torch.linalg.vector_norm(one - other) / scale) if scale > 0 else 0.0
