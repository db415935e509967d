"""The audit of a block: vᵀJ against one plain backward of v, which shares nothing with the engines' batching.

v holds random signs, so ‖vᵀJ‖² is ‖J‖_F² on average, and an error anywhere in the block shows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gradlab.jacobians.engines.problem import Problem, as_tensor
from gradlab.jacobians.engines.rows import plain_vjp
from gradlab.jacobians.spectrum import frobenius

_ROWS = 128
"""Rows that are converted to float64 at once."""


@dataclass(frozen=True)
class Audit:
    """One plain backward, made before the block is computed."""

    signs: Tensor
    """[rows] of ±1: v."""
    expected: Tensor
    """[cols]: vᵀJ by a plain backward."""
    block: int | None
    """Which block it is about; None for the mean of all."""

    def error(self, blocks: Tensor) -> float:
        """‖vᵀJ − expected‖ over the larger of ‖expected‖ and ‖J‖_F; NaN where either is not finite.

        The norm of J counts where v happens to be in the null space of Jᵀ, as (1, ..., 1) is behind a softmax.
        """
        block = blocks.mean(0) if self.block is None else blocks[self.block]
        expected = self.expected.double()
        found = torch.zeros_like(expected)
        for rows, signs in zip(block.split(_ROWS), self.signs.double().split(_ROWS), strict=True):
            found += signs @ rows.double()
        scale = max(float(torch.linalg.vector_norm(expected)), frobenius(block))
        return 0.0 if scale == 0 else float(torch.linalg.vector_norm(found - expected)) / scale


def prepare_audit(problem: Problem, generator: torch.Generator) -> Audit | None:
    """Make the plain backward, at one sample chosen by the generator; None where `of` does not depend on `wrt`."""
    of, wrt = problem.of, problem.wrt
    signs = torch.randint(0, 2, (len(problem.vectors),), generator=generator, device="cpu") * 2 - 1
    signs = signs.to(of.tensor.device, of.tensor.dtype)
    block = int(torch.randint(0, len(problem.samples), (), generator=generator, device="cpu"))
    group = problem.samples if problem.averaged else (problem.samples[block],)
    vjp = plain_vjp(of, wrt, of.at_samples(problem.vectors.combined(signs[None]), group)[0])
    if vjp is None:
        return None
    expected = wrt.of_samples(vjp.detach()[None], group)[0, 0]
    if problem.cols != range(wrt.size):
        expected = expected[as_tensor(problem.cols, vjp.device)]
    return Audit(signs, expected, None if problem.averaged else block)


def tolerance(dtype: torch.dtype) -> float:
    """The largest error of a right block: the square root of the rounding unit (3e-4 in float32)."""
    return float(torch.finfo(dtype).eps ** 0.5)
