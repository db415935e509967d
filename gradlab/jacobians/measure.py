"""Measuring one slice: a forward of the isolated model, an engine on its graph, the audit, else the next engine.

`measure` is what every replay comes to, `gradlab.jacobian` as well as a slice that is logged while a model trains.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gradlab.errors import JacobianError
from gradlab.frame import JacobianBlock
from gradlab.jacobians.audit import Audit, prepare_audit, tolerance
from gradlab.jacobians.block import Solved, to_block, without_values
from gradlab.jacobians.engines.fallback import DIFFERENCES, Fallback, is_out_of_memory
from gradlab.jacobians.engines.finite_differences import by_differences
from gradlab.jacobians.engines.problem import Problem
from gradlab.jacobians.engines.rows import NoBackwardError, plain_vjp
from gradlab.jacobians.inputs import count_samples
from gradlab.jacobians.isolation.isolated import isolated
from gradlab.jacobians.matrix_free import PRODUCTS, estimate, estimate_norms
from gradlab.jacobians.problem_setup import set_up_problem
from gradlab.jacobians.request import Request
from gradlab.jacobians.subgraph import Subgraph, independent, parameter_named, replay


def measure(
    model: nn.Module, inputs: Any, request: Request, fallback: Fallback, generator: torch.Generator
) -> JacobianBlock:
    """Measure one slice on an isolated model, by the first engine that works and passes its audit.

    Args:
        model: any module, wrapped or not.
        inputs: a tensor, a tuple of arguments or a mapping of keyword arguments, on the model's device.
        request: what to measure.
        fallback: the engines to try; remembers what was learned.
        generator: of the CPU; gives the audit its vector and its sample.
    Raises:
        JacobianError: if a site, an index or a shape is wrong, or no engine can compute it.
    """
    if not request.slice.block:
        return _without_block(model, inputs, request, fallback, generator)
    while True:
        try:
            solved = _attempt(model, inputs, request, fallback, generator)
        except NoBackwardError as error:
            if fallback.wanted != "auto" or fallback.engine == DIFFERENCES:
                raise
            fallback.only_differences(str(error))
            continue
        if solved is not None:
            return to_block(request, fallback, *solved)


def _attempt(
    model: nn.Module, inputs: Any, request: Request, fallback: Fallback, generator: torch.Generator
) -> tuple[Solved, float] | None:
    """The blocks and their audit error by the engine in use, or None where it was given up for the next.

    Each attempt replays anew, from the same random state and attributes: a failed engine may have used the graph up.
    """
    with replayed_problem(model, inputs, request, fallback) as problem:
        if fallback.engine == DIFFERENCES:
            blocks, error = by_differences(problem)
            return Solved(problem, blocks, None, error), error
        fallback.choose_engines(problem)
        audit = prepare_audit(problem, generator) if request.audit else None
        if request.audit and audit is None:
            raise JacobianError(independent(request.slice.of, request.slice.wrt))
        solved = _solve(problem, fallback, audit)
        if solved is None:
            return None
        if audit is None and _all_zero(solved.blocks) and _is_independent(problem):
            raise JacobianError(independent(request.slice.of, request.slice.wrt))
        audit_error = solved.audit_error()
    if audit_error > tolerance(solved.blocks.dtype):
        if fallback.coupled is False and len(problem.samples) > 1:
            fallback.coupled = None  # Samples that were independent may influence one another now.
        if not fallback.is_last:
            fallback.give_up(f"its audit error is {audit_error:.1e}")
            return None
    return solved, audit_error


def _solve(problem: Problem, fallback: Fallback, audit: Audit | None) -> Solved | None:
    try:
        return Solved(problem, fallback.solve(problem), audit)
    except (torch.OutOfMemoryError, JacobianError):
        raise
    # Batched backwards run a user's code (custom functions, hooks) on tensors of another kind: anything may come.
    except Exception as error:
        fallback.give_up(error)
        return None


@contextmanager
def replayed_problem(model: nn.Module, inputs: Any, request: Request, fallback: Fallback) -> Iterator[Problem]:
    """While open, the model is isolated and the problem's graph is there, from a forward of its own."""

    def wanted(core: nn.Module) -> list[nn.Parameter | None]:
        return [parameter_named(core, request.slice.wrt)]

    mode = request.module_mode
    with isolated(model, mode=mode, requires_grad=wanted) as core, fallback.forward_kernels():
        subgraph = _replayed(core, inputs, request, fallback)
        if fallback.widest_bytes is None:
            fallback.widest_bytes = subgraph.widest_bytes
        yield set_up_problem(request, subgraph, count_samples(inputs, request.batched), fallback)


def _replayed(core: nn.Module, inputs: Any, request: Request, fallback: Fallback) -> Subgraph:
    of, wrt = request.slice.of, request.slice.wrt
    graph = fallback.engine != DIFFERENCES
    known = fallback.widest_bytes is not None
    try:
        subgraph = replay(core, inputs, of=of, wrt=wrt, known=known, graph=graph)
    except JacobianError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            count = count_samples(inputs, request.batched)
            few = f"; give fewer than these {count} samples" if count and count > 1 else ""
            raise JacobianError(f"one forward of the probe batch does not fit in memory{few}. {error}") from error
        if not graph or fallback.wanted != "auto":
            raise
        line = next(iter(str(error).splitlines()), "")
        subgraph = replay(core, inputs, of=of, wrt=wrt, graph=False)
        fallback.only_differences(f"the forward fails where a gradient is wanted: {type(error).__name__}: {line[:160]}")
    return subgraph.with_widest(fallback.widest_bytes) if known else subgraph


def _all_zero(blocks: Tensor) -> bool:
    return not blocks[0, 0].any() and not blocks.any()  # Mostly the first row decides.


def _is_independent(problem: Problem) -> bool:
    return plain_vjp(problem.of, problem.wrt, torch.ones_like(problem.of.tensor)) is None


def _without_block(
    model: nn.Module, inputs: Any, request: Request, fallback: Fallback, generator: torch.Generator
) -> JacobianBlock:
    """Norm and leading singular values of each sample's Jacobian, matrix-free."""
    if fallback.engine not in PRODUCTS:
        fallback.engines = list(PRODUCTS)
    while True:
        with replayed_problem(model, inputs, request, fallback) as problem:
            audit = prepare_audit(problem, generator)
            if audit is None:
                raise JacobianError(independent(request.slice.of, request.slice.wrt))
            try:
                estimator = estimate_norms if fallback.is_last else estimate
                summaries, error = estimator(problem, request.top, audit, generator)
                if error > tolerance(problem.of.tensor.dtype) and not fallback.is_last:
                    raise ArithmeticError(f"its audit error is {error:.1e}")
                return without_values(request, fallback, problem, summaries, error)
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                fallback.give_up(error)
