"""From the computed blocks of a problem to a `JacobianBlock` on the host: reduced over samples, summed up, named."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from gradlab.frame import JacobianBlock
from gradlab.jacobians.audit import Audit
from gradlab.jacobians.engines.fallback import Fallback
from gradlab.jacobians.engines.problem import Problem
from gradlab.jacobians.entries import entry_names
from gradlab.jacobians.request import Request
from gradlab.jacobians.spectrum import Summary, summarise


@dataclass(frozen=True)
class Solved:
    """The blocks of a problem, on the device, before anything is read from them."""

    problem: Problem
    blocks: Tensor
    """[blocks, rows, cols]."""
    audit: Audit | None
    known_error: float = float("nan")
    """The audit error where it is known without an audit."""

    def audit_error(self) -> float:
        """By the audit; NaN without one. Waits for the device."""
        return self.known_error if self.audit is None else self.audit.error(self.blocks)


def to_block(request: Request, fallback: Fallback, solved: Solved, audit_error: float) -> JacobianBlock:
    """Reduce over samples, sum up, and move to the host."""
    problem, blocks = solved.problem, solved.blocks
    reduced = _reduced(blocks.detach(), request.slice.reduce)
    of_each = list(reduced) if reduced.dim() == 3 else [reduced]
    summaries = [summarise(one, request.top) for one in of_each] if request.spectrum else []
    block = _named(request, fallback, problem, _on_host(reduced), summaries, audit_error)
    if request.spectrum and len(problem.samples) > 1 and not problem.averaged:
        norms = torch.linalg.vector_norm(blocks.double(), dim=(1, 2))
        block = replace(block, summaries={**block.summaries, "fro_of_samples": float(norms.mean())})
    return block


def without_values(
    request: Request, fallback: Fallback, problem: Problem, summaries: list[Summary], audit_error: float
) -> JacobianBlock:
    """A block that holds no values, only what was estimated: a summary for each sample."""
    return _named(request, fallback, problem, np.empty((0, 0), np.float32), summaries, audit_error)


def _named(
    request: Request,
    fallback: Fallback,
    problem: Problem,
    values: np.ndarray,
    summaries: list[Summary],
    audit_error: float,
) -> JacobianBlock:
    what, count = request.slice, len(problem.samples)
    how = {"mean": f"mean over {count} samples", "rms": f"root mean square over {count} samples"}.get(what.reduce)
    scalars = {
        name: float(np.mean([one.scalars[name] for one in summaries]))
        for name in (summaries[0].scalars if summaries else ())
    }
    sigma = [one.singular_values.numpy() for one in summaries]
    return JacobianBlock(
        of=what.of if what.of_map is None else f"{what.of_map}({what.of})",
        wrt=what.wrt,
        values=values,
        row_names=_row_names(request, problem),
        col_names=entry_names(problem.wrt.shape, problem.cols),
        engine=fallback.engine,
        audit_error=audit_error,
        summaries=scalars,
        singular_values=_stacked(sigma, values.ndim == 3 or (not what.block and count > 1)),
        complete=all(one.complete for one in summaries),
        notes=(*([how] if how and count > 1 and what.block else ()), *fallback.notes),
        label=request.label,
    )


def _row_names(request: Request, problem: Problem) -> tuple[str, ...]:
    if request.slice.groups is not None:
        return tuple(map(str, request.slice.groups))
    if request.slice.weights is not None:
        return tuple(f"w{row}" for row in range(len(problem.vectors)))
    return entry_names(problem.of.shape, problem.vectors.indices)


def _stacked(sigma: list[np.ndarray], of_each_sample: bool) -> np.ndarray:
    if not sigma:
        return np.empty(0)
    return np.stack(sigma) if of_each_sample else sigma[0]


def _reduced(blocks: Tensor, reduce: str) -> Tensor:
    if reduce == "none":
        return blocks
    if len(blocks) == 1 and reduce == "mean":
        return blocks[0]
    return blocks.mean(0) if reduce == "mean" else blocks.square().mean(0).sqrt()


def _on_host(values: Tensor) -> np.ndarray:
    """float64 stays; all else becomes float32, since NumPy has no bfloat16."""
    return values.to(torch.float64 if values.dtype == torch.float64 else torch.float32).cpu().numpy()
