"""From a question (which slice, of which samples) to a block on the host: replay, solve, audit, sum up."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradlab.errors import JacobianError
from gradlab.frame import JacobianBlock
from gradlab.identity import WeakIdentityDict
from gradlab.jacobians.audit import Audit, prepare, tolerance
from gradlab.jacobians.axes import entry_names
from gradlab.jacobians.engines.fallback import DIFFERENCES, Ladder, is_out_of_memory
from gradlab.jacobians.engines.finite_differences import by_differences
from gradlab.jacobians.engines.problem import Problem
from gradlab.jacobians.engines.rows import NoBackwardError, plain_vjp
from gradlab.jacobians.isolation import quiet
from gradlab.jacobians.matrix_free import PRODUCTS, estimated, norms
from gradlab.jacobians.problem_setup import count_samples, pose
from gradlab.jacobians.request import Question
from gradlab.jacobians.spectrum import Summary, summarise
from gradlab.jacobians.subgraph import Region, independent, parameter_named, replay
from gradlab.sites.leaves import leaves
from gradlab.sites.names import unwrapped

_ladders: WeakIdentityDict = WeakIdentityDict()
"""For each model, what was learned of each question."""
_MOST_LADDERS = 64


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


def ladder_for(model: nn.Module, inputs: Any, question: Question, engine: str) -> Ladder:
    """What was learned the last time that this was asked of this model with inputs of these shapes, or a new ladder."""
    key = question.key()
    if key is None:
        return Ladder(engine)
    shapes = tuple((suffix, t.shape, t.dtype, t.device) for suffix, t in leaves(inputs))
    known: dict[Hashable, Ladder] = _ladders.setdefault(unwrapped(model), {})
    if len(known) >= _MOST_LADDERS:
        known.clear()
    return known.setdefault((key, engine, shapes), Ladder(engine))


def measure(
    model: nn.Module, inputs: Any, question: Question, ladder: Ladder, generator: torch.Generator
) -> JacobianBlock:
    """Measure one slice on a quiet model, stepping down the ladder until an engine works and passes its audit.

    Args:
        model: any module, wrapped or not.
        inputs: a tensor, a tuple of arguments or a mapping of keyword arguments, on the model's device.
        question: what to measure.
        ladder: the engines to try; remembers what was learned.
        generator: of the CPU; gives the audit its vector and its sample.
    Raises:
        JacobianError: if a site, an index or a shape is wrong, or no engine can compute it.
    """
    if not question.block:
        return _estimate(model, inputs, question, ladder, generator)
    while True:
        try:
            solved = _attempt(model, inputs, question, ladder, generator)
        except NoBackwardError as error:
            if ladder.wanted != "auto" or ladder.engine == DIFFERENCES:
                raise
            ladder.fall(str(error))
            continue
        if solved is not None:
            return block_of(question, ladder, *solved)


def _attempt(
    model: nn.Module, inputs: Any, question: Question, ladder: Ladder, generator: torch.Generator
) -> tuple[Solved, float] | None:
    """The blocks and their audit error by the engine in use, or None after a step down.

    Each attempt replays anew, from the same random state and attributes: a failed engine may have used the graph up.
    """
    with posed(model, inputs, question, ladder) as problem:
        if ladder.engine == DIFFERENCES:
            blocks, error = by_differences(problem)
            return Solved(problem, blocks, None, error), error
        ladder.settle(problem)
        audit = prepare(problem, generator) if question.audit else None
        if question.audit and audit is None:
            raise JacobianError(independent(question.of, question.wrt))
        solved = _solve(problem, ladder, audit)
        if solved is None:
            return None
        if audit is None and _all_zero(solved.blocks) and _is_independent(problem):
            raise JacobianError(independent(question.of, question.wrt))
        audit_error = solved.audit_error()
    if audit_error > tolerance(solved.blocks.dtype):
        if ladder.coupled is False and len(problem.samples) > 1:
            ladder.coupled = None  # Samples that were apart may influence one another now.
        if not ladder.at_bottom:
            ladder.step_down(f"its audit error is {audit_error:.1e}")
            return None
    return solved, audit_error


def _solve(problem: Problem, ladder: Ladder, audit: Audit | None) -> Solved | None:
    try:
        return Solved(problem, ladder.solve(problem), audit)
    except (torch.OutOfMemoryError, JacobianError):
        raise
    # Batched backwards run a user's code (custom functions, hooks) on tensors of another kind: anything may come.
    except Exception as error:
        ladder.step_down(error)
        return None


@contextmanager
def posed(model: nn.Module, inputs: Any, question: Question, ladder: Ladder) -> Iterator[Problem]:
    """While open, the model is quiet and the problem's graph is there."""

    def wanted(core: nn.Module) -> list[nn.Parameter | None]:
        return [parameter_named(core, question.wrt)]

    with quiet(model, mode=question.mode, requires_grad=wanted) as core, ladder.conditions():
        region = _replayed(core, inputs, question, ladder)
        if ladder.widest_bytes is None:
            ladder.widest_bytes = region.widest_bytes
        problem = pose(question, region, count_samples(inputs, question.batched), ladder)
        yield problem


def _replayed(core: nn.Module, inputs: Any, question: Question, ladder: Ladder) -> Region:
    graph = ladder.engine != DIFFERENCES
    known = ladder.widest_bytes is not None
    try:
        region = replay(core, inputs, of=question.of, wrt=question.wrt, known=known, graph=graph)
    except JacobianError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            count = count_samples(inputs, question.batched)
            few = f"; give fewer than these {count} samples" if count and count > 1 else ""
            raise JacobianError(f"one forward of the probe batch does not fit in memory{few}. {error}") from error
        if not graph or ladder.wanted != "auto":
            raise
        line = next(iter(str(error).splitlines()), "")
        region = replay(core, inputs, of=question.of, wrt=question.wrt, graph=False)
        ladder.fall(f"the forward fails where a gradient is wanted: {type(error).__name__}: {line[:160]}")
    return region.with_widest(ladder.widest_bytes) if known else region


def _all_zero(blocks: Tensor) -> bool:
    return not blocks[0, 0].any() and not blocks.any()  # Most are settled by their first row.


def _is_independent(problem: Problem) -> bool:
    return plain_vjp(problem.of, problem.wrt, torch.ones_like(problem.of.tensor)) is None


def _estimate(
    model: nn.Module, inputs: Any, question: Question, ladder: Ladder, generator: torch.Generator
) -> JacobianBlock:
    """Norm and leading singular values of each sample's Jacobian by products with vectors."""
    if ladder.engine not in PRODUCTS:
        ladder.rungs = list(PRODUCTS)
    while True:
        with posed(model, inputs, question, ladder) as problem:
            audit = prepare(problem, generator)
            if audit is None:
                raise JacobianError(independent(question.of, question.wrt))
            try:
                estimate = norms if ladder.at_bottom else estimated
                summaries, error = estimate(problem, question.top, audit, generator)
                if error > tolerance(problem.of.tensor.dtype) and not ladder.at_bottom:
                    raise ArithmeticError(f"its audit error is {error:.1e}")
                return _described(question, ladder, problem, np.empty((0, 0), np.float32), summaries, error)
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                ladder.step_down(error)


def block_of(question: Question, ladder: Ladder, solved: Solved, audit_error: float) -> JacobianBlock:
    """Reduce over samples, sum up, and move to the host."""
    problem, blocks = solved.problem, solved.blocks
    reduced = _reduced(blocks.detach(), question.reduce)
    of_each = list(reduced) if reduced.dim() == 3 else [reduced]
    summaries = [summarise(one, question.top) for one in of_each] if question.spectrum else []
    block = _described(question, ladder, problem, _on_host(reduced), summaries, audit_error)
    if question.spectrum and len(problem.samples) > 1 and not problem.averaged:
        each = torch.linalg.vector_norm(blocks.double(), dim=(1, 2))
        block = replace(block, summaries={**block.summaries, "fro_of_samples": float(each.mean())})
    return block


def _described(
    question: Question,
    ladder: Ladder,
    problem: Problem,
    values: np.ndarray,
    summaries: list[Summary],
    audit_error: float = float("nan"),
) -> JacobianBlock:
    many = len(problem.samples)
    how = {"mean": f"mean over {many} samples", "rms": f"root mean square over {many} samples"}.get(question.reduce)
    scalars = {
        name: float(np.mean([one.scalars[name] for one in summaries]))
        for name in (summaries[0].scalars if summaries else ())
    }
    sigma = [one.singular_values.numpy() for one in summaries]
    return JacobianBlock(
        of=question.of if question.of_map is None else f"{question.of_map}({question.of})",
        wrt=question.wrt,
        values=values,
        row_names=_row_names(question, problem),
        col_names=entry_names(problem.wrt.shape, problem.cols),
        engine=ladder.engine,
        audit_error=audit_error,
        summaries=scalars,
        singular_values=_stacked(sigma, values.ndim == 3 or (not question.block and many > 1)),
        complete=all(one.complete for one in summaries),
        notes=(*([how] if how and many > 1 and question.block else ()), *ladder.notes),
        label=question.label,
    )


def _row_names(question: Question, problem: Problem) -> tuple[str, ...]:
    if question.groups is not None:
        return tuple(map(str, question.groups))
    if question.weights is not None:
        return tuple(f"w{row}" for row in range(len(problem.vectors)))
    return entry_names(problem.of.shape, problem.vectors.indices)


def _stacked(sigma: list[np.ndarray], apart: bool) -> np.ndarray:
    if not sigma:
        return np.empty(0)
    return np.stack(sigma) if apart else sigma[0]


def _reduced(blocks: Tensor, reduce: str) -> Tensor:
    if reduce == "none":
        return blocks
    if len(blocks) == 1 and reduce == "mean":
        return blocks[0]
    return blocks.mean(0) if reduce == "mean" else blocks.square().mean(0).sqrt()


def _on_host(values: Tensor) -> np.ndarray:
    """float64 stays; all else becomes float32, since NumPy has no bfloat16."""
    return values.to(torch.float64 if values.dtype == torch.float64 else torch.float32).cpu().numpy()
