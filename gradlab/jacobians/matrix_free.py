"""Matrix-free estimates: norm and leading singular values of a Jacobian, from products with a few vectors.

For Jacobians too large to hold, or to be worth holding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gradlab.jacobians.audit import Audit
from gradlab.jacobians.engines.columns import transposed
from gradlab.jacobians.engines.problem import End, Problem, as_tensor
from gradlab.jacobians.engines.rows import BatchedVjp, by_vmap
from gradlab.jacobians.spectrum import Summary, leading_singular_values, scalars_of_leading, summarise

PRODUCTS = ("columns", "columns_math", "vmap")
"""The engines that give the products. The last one gives none with J, and so the norm alone."""
EXACT_UP_TO = 64
"""The shorter side up to which the whole matrix costs no more than an estimate."""
_NUM_PROBES = 8
_T_95 = 2.365
"""The 97.5 % point of Student's distribution with one degree of freedom fewer."""


@dataclass(frozen=True)
class Operator:
    """One sample's slice J[rows, cols] as two products, each with many vectors at once."""

    problem: Problem
    sample: int
    transpose: tuple[End, End] | None
    """The graph whose Jacobian is the transpose, where there is one."""
    vjp: BatchedVjp = by_vmap

    @property
    def shape(self) -> tuple[int, int]:
        """[rows, cols]."""
        return len(self.problem.vectors), len(self.problem.cols)

    def rmv(self, vectors: Tensor) -> Tensor:
        """[k, rows] -> [k, cols]: Jᵀv."""
        of, wrt = self.problem.of, self.problem.wrt
        return self._products(of, wrt, self.problem.vectors.combined(vectors), self._cols())

    def mv(self, vectors: Tensor) -> Tensor:
        """[k, cols] -> [k, rows]: Ju."""
        assert self.transpose is not None
        start, end = self.transpose
        tangents = torch.zeros(len(vectors), end.size, dtype=vectors.dtype, device=vectors.device)
        tangents[:, self._cols()] = vectors
        products = self._products(end, start, tangents, slice(None))
        rows = self.problem.vectors
        if rows.weights is not None:
            return products @ rows.weights.T
        return products[:, as_tensor(rows.indices, products.device)]

    def _products(self, of: End, wrt: End, vectors: Tensor, kept: slice | Tensor) -> Tensor:
        chunk, group = self.problem.chunk, (self.sample,)
        parts = [
            wrt.of_samples(self.vjp(of, wrt, of.at_samples(part, group)).detach(), group)[0][:, kept]
            for part in vectors.split(chunk)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _cols(self) -> slice | Tensor:
        cols = self.problem.cols
        return slice(None) if cols == range(self.problem.wrt.size) else as_tensor(cols, self.problem.wrt.tensor.device)


def estimate(problem: Problem, top: int, audit: Audit, generator: torch.Generator) -> tuple[list[Summary], float]:
    """A summary for each sample's slice: `fro` with `fro_lo` and `fro_hi` (95 %), leading singular values; audit error.

    Raises:
        RuntimeError: if the backward of this graph cannot be differentiated.
    Cost: 8 + about 6 (top + 8) products with Jᵀ and as many with J, a sample.
    """
    transpose = transposed(problem)
    operators = [Operator(problem, sample, transpose) for sample in problem.samples]
    error = _audit_error(operators[audit.block or 0], audit)
    return [_summary(operator, top, generator) for operator in operators], error


def estimate_norms(problem: Problem, top: int, audit: Audit, generator: torch.Generator) -> tuple[list[Summary], float]:
    """`estimate` without singular values, where the backward has no derivative, so that there is no product with J."""
    operators = [Operator(problem, sample, None) for sample in problem.samples]
    error = _audit_error(operators[audit.block or 0], audit)
    return [_norm_summary(estimate_frobenius(operator, generator)) for operator in operators], error


def _norm_summary(norm: tuple[float, float, float]) -> Summary:
    finite = math.isfinite(norm[0])
    scalars = {"nonfinite": float(not finite)} | dict(zip(("fro", "fro_lo", "fro_hi"), norm, strict=True))
    return Summary(scalars, torch.empty(0, device="cpu"), complete=False)


def _audit_error(operator: Operator, audit: Audit) -> float:
    """The larger error of vᵀJ by the batched product against a plain backward, and of v·Ju for u along that."""
    expected = audit.expected.double()
    scale = torch.linalg.vector_norm(expected)
    if scale == 0:
        return 0.0
    off = torch.linalg.vector_norm(operator.rmv(audit.signs[None])[0].double() - expected) / scale
    if operator.transpose is not None:
        along = (expected / scale).to(audit.signs.dtype)
        image = operator.mv(along[None])[0].double()
        off = torch.maximum(off, (audit.signs.double() @ image / scale - 1).abs())
    return float(off)


def _summary(operator: Operator, top: int, generator: torch.Generator) -> Summary:
    like = operator.problem.of.tensor
    rows, cols = operator.shape
    if min(rows, cols) <= EXACT_UP_TO:
        return _exact(operator)
    fro, low, high = estimate_frobenius(operator, generator)
    width = min(top + 8, rows, cols)
    start = torch.randn(width, cols, generator=generator, device="cpu").to(like.device, like.dtype)
    sigma = leading_singular_values(operator.mv, operator.rmv, start, top)
    finite = bool(torch.isfinite(sigma).all()) and math.isfinite(fro)
    scalars = {"nonfinite": float(not finite), "fro": fro, "fro_lo": low, "fro_hi": high}
    return Summary(scalars | scalars_of_leading(sigma, fro), sigma, complete=False)


def _exact(operator: Operator) -> Summary:
    """By the whole matrix, where its short side is so short that estimates would cost more."""
    like = operator.problem.of.tensor
    rows, cols = operator.shape
    product = operator.rmv if rows <= cols else operator.mv
    matrix = product(torch.eye(min(rows, cols), dtype=like.dtype, device=like.device))
    summary = summarise(matrix)
    fro = summary.scalars["fro"]
    return replace(summary, scalars=summary.scalars | {"fro_lo": fro, "fro_hi": fro})


def estimate_frobenius(operator: Operator, generator: torch.Generator) -> tuple[float, float, float]:
    """‖J‖_F and its 95 % interval, from ‖Jᵀv‖² for random signs v (Hutchinson 1990).

    Signs have the smallest variance of all independent entries: only entries off the diagonal of JJᵀ make it up.
    """
    like = operator.problem.of.tensor
    rows = operator.shape[0]
    signs = torch.randint(0, 2, (_NUM_PROBES, rows), generator=generator, device="cpu") * 2 - 1
    signs = signs.to(like.device, like.dtype)
    squares = operator.rmv(signs).double().square().sum(1)
    mean, half = float(squares.mean()), _T_95 * float(squares.std()) / math.sqrt(_NUM_PROBES)
    return math.sqrt(mean), math.sqrt(max(0.0, mean - half)), math.sqrt(mean + half)
