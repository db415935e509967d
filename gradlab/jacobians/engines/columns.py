"""Columns of a Jacobian, for tall ones: by differentiating the backward, or by forward mode.

Both give Ju for many u at once. Differentiating the backward takes operations whose backward has a derivative. Forward
mode takes another forward and operations with a forward derivative; some that lack one give zeros and no error, which
the audit finds.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gradlab.errors import without_warnings
from gradlab.jacobians.engines.problem import End, Problem, Vectors
from gradlab.jacobians.engines.rows import BatchedVjp, rows


def columns(problem: Problem, vjp: BatchedVjp) -> Tensor:
    """[samples, rows, cols] by columns: they are the rows of the transpose.

    Cost: about two backward passes for the graph, then one for each column.
    """
    start, end = transposed(problem)
    transpose = Problem(
        of=end,
        wrt=start,
        vectors=Vectors(end, problem.cols),
        cols=problem.vectors.indices,
        samples=problem.samples,
        groups=problem.groups,
        averaged=False,
        chunk=problem.chunk,
    )
    return rows(transpose, vjp).transpose(1, 2)


def transposed(problem: Problem) -> tuple[End, End]:
    """A graph whose Jacobian is Jᵀ: g(v) = vᵀJ is linear in v. Its start v and its end g.

    Raises:
        RuntimeError: if the backward cannot be differentiated.
    """
    v = torch.zeros_like(problem.of.tensor, requires_grad=True)
    g = torch.autograd.grad(problem.of.node, problem.wrt.node, v, create_graph=True)[0]
    if not g.requires_grad:
        raise RuntimeError("the backward of this graph is not differentiable")
    return End(v, problem.of.batched), End(g, problem.wrt.batched)


def forward_columns(problem: Problem) -> Tensor:
    """[samples, rows, cols] by forward mode, a chunk of tangents at a time.

    Cost: about `groups * cols` forward passes with tangents, which are twice a forward.
    """
    run, of, wrt = problem.run, problem.of, problem.wrt
    if run is None:
        raise NotImplementedError("forward mode is for sites, not for parameters")
    at = wrt.tensor.detach()

    def jvp(tangent: Tensor) -> Tensor:
        product: Tensor = torch.func.jvp(run, (at,), (tangent,))[1]
        return product

    vectors = Vectors(wrt, problem.cols)
    picked = list(problem.vectors.indices)
    result = of.tensor.new_empty(problem.num_blocks, len(problem.vectors), len(vectors))
    first = 0
    for group in problem.groups:
        last = first + (len(group) if wrt.batched else 1)
        for start in range(0, len(vectors), problem.chunk):
            part = vectors.part(start, start + problem.chunk)
            with without_warnings(DeprecationWarning):  # torch scripts some rules when forward mode is first used
                products = torch.vmap(jvp, randomness="same")(wrt.at_samples(part, group)).detach()
            columns_of_part = of.of_samples(products, group)[..., picked]
            result[first:last, :, start : start + len(part)] = columns_of_part.transpose(1, 2)
        first = last
    return result
