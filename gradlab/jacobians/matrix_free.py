"""Norm and leading singular values of a Jacobian that is never made, from products with a few vectors.

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
from gradlab.jacobians.engines.rows import Pull, by_vmap
from gradlab.jacobians.spectrum import Summary, leading, of_leading, summarise

PRODUCTS = ("columns", "columns_math", "vmap")
"""What the products are made of, as engines are called; the last one has none with J, and gives the norm alone."""
EXACT_UP_TO = 64
"""The shorter side up to which the whole strip costs no more than an estimate."""
_PROBES = 8
_T_95 = (
    math.nan,
    12.706,
    4.303,
    3.182,
    2.776,
    2.571,
    2.447,
    2.365,
    2.306,
    2.262,
    2.228,
    2.201,
    2.179,
    2.16,
    2.145,
    2.131,
)
"""The 97.5 % points of Student's distribution, by degrees of freedom."""


@dataclass(frozen=True)
class Operator:
    """One sample's slice J[rows, cols] as two products, each with many vectors at once."""

    problem: Problem
    sample: int
    turned: tuple[End, End] | None
    """The graph whose Jacobian is the transpose, where there is one."""
    pull: Pull = by_vmap

    @property
    def shape(self) -> tuple[int, int]:
        """[rows, cols]."""
        return len(self.problem.vectors), len(self.problem.cols)

    def rmv(self, vectors: Tensor) -> Tensor:
        """[k, rows] -> [k, cols]: Jᵀv."""
        of, wrt = self.problem.of, self.problem.wrt
        return self._through(of, wrt, self.problem.vectors.mixed(vectors), self._cols())

    def mv(self, vectors: Tensor) -> Tensor:
        """[k, cols] -> [k, rows]: Ju."""
        assert self.turned is not None
        start, end = self.turned
        spread = torch.zeros(len(vectors), end.size, dtype=vectors.dtype, device=vectors.device)
        spread[:, self._cols()] = vectors
        pushed = self._through(end, start, spread, slice(None))
        of = self.problem.vectors
        if of.weights is not None:
            return pushed @ of.weights.T
        return pushed[:, as_tensor(of.indices, pushed.device)]

    def _through(self, of: End, wrt: End, flat: Tensor, kept: slice | Tensor) -> Tensor:
        chunk = self.problem.chunk
        group = (self.sample,)
        parts = [
            wrt.gather(self.pull(of, wrt, of.spread(flat[first : first + chunk], group)).detach(), group)[0][:, kept]
            for first in range(0, len(flat), chunk)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _cols(self) -> slice | Tensor:
        cols = self.problem.cols
        return slice(None) if cols == range(self.problem.wrt.size) else as_tensor(cols, self.problem.wrt.tensor.device)


def estimated(problem: Problem, top: int, audit: Audit, generator: torch.Generator) -> tuple[list[Summary], float]:
    """A summary for each sample's slice: `fro` with `fro_lo` and `fro_hi` (95 %), leading singular values; audit error.

    Raises:
        RuntimeError: if the backward of this graph cannot be differentiated.
    Cost: 8 + about 6 (top + 8) products with Jᵀ and as many with J, a sample.
    """
    turned = transposed(problem)
    operators = [Operator(problem, sample, turned) for sample in problem.samples]
    error = _audited(operators[audit.block or 0], audit)
    return [_summary(operator, top, generator) for operator in operators], error


def norms(problem: Problem, top: int, audit: Audit, generator: torch.Generator) -> tuple[list[Summary], float]:
    """Without singular values: for a graph whose backward has no derivative, so that there is no product with J."""
    operators = [Operator(problem, sample, None) for sample in problem.samples]
    error = _audited(operators[audit.block or 0], audit)
    return [_norm_summary(frobenius(operator, generator)) for operator in operators], error


def _norm_summary(norm: tuple[float, float, float]) -> Summary:
    finite = math.isfinite(norm[0])
    scalars = {"nonfinite": float(not finite)} | dict(zip(("fro", "fro_lo", "fro_hi"), norm, strict=True))
    return Summary(scalars, torch.empty(0, device="cpu"), complete=False)


def _audited(operator: Operator, audit: Audit) -> float:
    """The larger error of vᵀJ by the batched product against a plain backward, and of v·Ju for u along that."""
    expected = audit.expected.double()
    scale = torch.linalg.vector_norm(expected)
    if scale == 0:
        return 0.0
    off = torch.linalg.vector_norm(operator.rmv(audit.signs[None])[0].double() - expected) / scale
    if operator.turned is not None:
        along = (expected / scale).to(audit.signs.dtype)
        pushed = operator.mv(along[None])[0].double()
        off = torch.maximum(off, (audit.signs.double() @ pushed / scale - 1).abs())
    return float(off)


def _summary(operator: Operator, top: int, generator: torch.Generator) -> Summary:
    like = operator.problem.of.tensor
    rows, cols = operator.shape
    if min(rows, cols) <= EXACT_UP_TO:
        return _exact(operator)
    fro, low, high = frobenius(operator, generator)
    width = min(top + 8, rows, cols)
    start = torch.randn(width, cols, generator=generator, device="cpu").to(like.device, like.dtype)
    sigma = leading(operator.mv, operator.rmv, start, top)
    finite = bool(torch.isfinite(sigma).all()) and math.isfinite(fro)
    scalars = {"nonfinite": float(not finite), "fro": fro, "fro_lo": low, "fro_hi": high}
    return Summary(scalars | of_leading(sigma, fro), sigma, complete=False)


def _exact(operator: Operator) -> Summary:
    """All of it, where the short side is so short that estimates would cost more: no matrix but that strip is made."""
    like = operator.problem.of.tensor
    rows, cols = operator.shape
    through = operator.rmv if rows <= cols else operator.mv
    strip = through(torch.eye(min(rows, cols), dtype=like.dtype, device=like.device))
    summary = summarise(strip)
    fro = summary.scalars["fro"]
    return replace(summary, scalars=summary.scalars | {"fro_lo": fro, "fro_hi": fro})


def frobenius(operator: Operator, generator: torch.Generator, probes: int = _PROBES) -> tuple[float, float, float]:
    """‖J‖_F and its 95 % interval, from ‖Jᵀv‖² for random signs v (Hutchinson 1990).

    Signs have the smallest variance of all independent entries: what is left is off the diagonal of JJᵀ.
    """
    like = operator.problem.of.tensor
    rows = operator.shape[0]
    signs = torch.randint(0, 2, (probes, rows), generator=generator, device="cpu").to(like.device, like.dtype) * 2 - 1
    squares = operator.rmv(signs).double().square().sum(1)
    mean, half = float(squares.mean()), _T_95[probes - 1] * float(squares.std()) / math.sqrt(probes)
    return math.sqrt(mean), math.sqrt(max(0.0, mean - half)), math.sqrt(mean + half)
