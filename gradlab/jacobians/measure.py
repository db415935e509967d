"""From a question (which slice, of which samples) to a block on the host: replay, solve, audit, sum up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from gradlab.errors import JacobianError
from gradlab.frame import JacobianBlock
from gradlab.jacobians.audit import prepare, tolerance
from gradlab.jacobians.axes import Indices, Picks, chosen, entry_names
from gradlab.jacobians.ladder import Ladder
from gradlab.jacobians.problem import End, Problem, Vectors, coupled
from gradlab.jacobians.quiet import Mode, quiet
from gradlab.jacobians.replay import Region, independent, parameter_named, replay
from gradlab.jacobians.rows import chunk_rows
from gradlab.jacobians.spectrum import summarise
from gradlab.taps.sites import leaves

Reduce = Literal["mean", "rms", "none"]
"""How the blocks of several samples become one: entrywise mean or root mean square, or not at all."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A Jacobian slice to measure. The fields mean what they mean in `gradlab.jacobian`."""

    of: str = "output"
    wrt: str = "input"
    rows: Picks = None
    cols: Picks = None
    samples: Picks = None
    reduce: Reduce = "mean"
    of_map: Literal["softmax"] | None = None
    weights: Tensor | None = None
    mode: Mode = "eval"
    batched: bool | None = None
    label: str = ""

    def __post_init__(self) -> None:
        for name, known in _WORDS.items():
            if getattr(self, name) not in known:
                words = ", ".join(map(repr, known))
                raise JacobianError(f"{name}={getattr(self, name)!r} means nothing here; give one of {words}.")
        if self.weights is not None and self.rows is not None:
            raise JacobianError("rows and weights both say what the rows are; give one of them.")


_WORDS: dict[str, tuple[Any, ...]] = {
    "reduce": ("mean", "rms", "none"),
    "of_map": ("softmax", None),
    "mode": ("eval", "as_is"),
    "batched": (True, False, None),
}


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
    while True:
        solved = _attempt(model, inputs, question, ladder, generator)
        if solved is not None:
            return _block(question, ladder, *solved)


def _attempt(
    model: nn.Module, inputs: Any, question: Question, ladder: Ladder, generator: torch.Generator
) -> tuple[Problem, Tensor, float] | None:
    """The problem, its blocks and their audit error by the engine in use, or None after a step down.

    Each attempt replays anew, from the same random state and attributes: a failed engine may have used the graph up.
    """
    parameter = parameter_named(model, question.wrt)
    with quiet(model, mode=question.mode, parameter=parameter) as core, ladder.conditions():
        region = replay(core, inputs, of=question.of, wrt=question.wrt)
        problem = pose(question, region, count_samples(inputs, question.batched), ladder)
        ladder.settle(problem)
        audit = prepare(problem, generator)
        if audit is None:
            raise JacobianError(independent(question.of, question.wrt))
        try:
            blocks = ladder.solve(problem)
        except torch.OutOfMemoryError:
            raise
        # Batched backwards run a user's code (custom functions, hooks) on tensors of another kind: anything may come.
        except Exception as error:
            ladder.step_down(error)
            return None
        audit_error = audit.error(blocks)
    if audit_error > tolerance(blocks.dtype) and not ladder.at_bottom:
        ladder.step_down(f"its audit error is {audit_error:.1e}")
        return None
    return problem, blocks, audit_error


def pose(question: Question, region: Region, batch: int | None, ladder: Ladder) -> Problem:
    """Turn a question into entries and samples of the two tensors that were found.

    A sample axis is one of the batch's length at the front of both tensors. Where only one has it (a loss, a pooled
    output), the tensors are taken whole; a parameter has none, and the samples are those of `of`.
    """
    of_tensor = region.of.softmax(-1) if question.of_map == "softmax" else region.of
    is_parameter = isinstance(region.wrt, nn.Parameter)
    of_has, wrt_has = _has_axis(of_tensor, batch), not is_parameter and _has_axis(region.wrt, batch)
    if not is_parameter:
        of_has = wrt_has = of_has and wrt_has
    of, wrt = End(of_tensor, of_has), End(region.wrt, wrt_has)
    samples = _samples(question, of, batch)
    averaged = is_parameter and question.reduce == "mean" and len(samples) > 1
    together = averaged or (wrt_has and len(samples) > 1 and not _are_coupled(of, wrt, ladder))
    return Problem(
        of=of,
        wrt=wrt,
        vectors=_vectors(question, of, 1 / len(samples) if averaged else 1.0),
        cols=chosen(question.cols, wrt.size, axis="cols", site=question.wrt),
        samples=samples,
        groups=(samples,) if together else tuple((sample,) for sample in samples),
        averaged=averaged,
        chunk=chunk_rows(of_tensor, region.wrt, region.widest_bytes),
    )


def count_samples(inputs: Any, batched: bool | None) -> int | None:
    """The length of the inputs' sample axis, or None without one: as told, else where there are fewer than 2 axes."""
    _, first = next(leaves(inputs), ("", None))
    if first is None or batched is False or first.dim() == 0:
        return None
    return len(first) if batched or first.dim() > 1 else None


def _has_axis(tensor: Tensor, batch: int | None) -> bool:
    return batch is not None and tensor.dim() > 0 and len(tensor) == batch


def _samples(question: Question, of: End, batch: int | None) -> Indices:
    if of.batched and batch is not None:
        return chosen(question.samples, batch, axis="samples", site="input")
    if question.samples is not None:
        shape = list(of.tensor.shape)
        raise JacobianError(
            f"samples: of={question.of!r} {shape} and wrt={question.wrt!r} do not both begin with a sample axis, "
            "so samples cannot be told apart; leave samples out."
        )
    return (0,)


def _are_coupled(of: End, wrt: End, ladder: Ladder) -> bool:
    if ladder.coupled is None:
        ladder.coupled = coupled(of, wrt)
        if ladder.coupled:
            ladder.notes.append("samples influence one another here, so each is pulled back on its own")
    return ladder.coupled


def _vectors(question: Question, of: End, scale: float) -> Vectors:
    indices = chosen(question.rows, of.size, axis="rows", site=question.of)
    if question.weights is None:
        return Vectors(of, indices, scale=scale)
    weights = torch.as_tensor(question.weights).to(of.tensor.device, of.tensor.dtype)
    if weights.dim() == 1:
        weights = weights[None]
    if weights.dim() != 2 or weights.shape[1] != of.size:
        raise JacobianError(
            f"weights must be [k, {of.size}], one weight for each entry of {question.of!r}; got {list(weights.shape)}."
        )
    return Vectors(of, indices, weights, scale)


def _block(question: Question, ladder: Ladder, problem: Problem, blocks: Tensor, audit_error: float) -> JacobianBlock:
    """Reduce over samples, sum up, and move to the host."""
    vectors, wrt = problem.vectors, problem.wrt
    if vectors.weights is None:
        row_names = entry_names(problem.of.shape, vectors.indices)
    else:
        row_names = tuple(f"w{row}" for row in range(len(vectors)))
    reduced = _reduced(blocks.detach(), question.reduce)
    scalars, sigma = _summaries(reduced)
    many = len(problem.samples)
    if many > 1 and not problem.averaged:
        scalars["fro_of_samples"] = float(torch.linalg.vector_norm(blocks.double(), dim=(1, 2)).mean())
    how = {"mean": f"mean over {many} samples", "rms": f"root mean square over {many} samples"}.get(question.reduce)
    return JacobianBlock(
        of=question.of if question.of_map is None else f"{question.of_map}({question.of})",
        wrt=question.wrt,
        values=_on_host(reduced),
        row_names=row_names,
        col_names=entry_names(wrt.shape, problem.cols),
        engine=ladder.engine,
        audit_error=audit_error,
        summaries=scalars,
        singular_values=sigma,
        notes=(*([how] if how and many > 1 else ()), *ladder.notes),
        label=question.label,
    )


def _reduced(blocks: Tensor, reduce: Reduce) -> Tensor:
    if reduce == "none":
        return blocks
    return blocks.mean(0) if reduce == "mean" else blocks.square().mean(0).sqrt()


def _summaries(values: Tensor) -> tuple[dict[str, float], np.ndarray]:
    """Of a block, or the means over the blocks of samples."""
    if values.dim() == 2:
        summary = summarise(values)
        return summary.scalars, summary.singular_values.numpy()
    each = [summarise(block) for block in values]
    scalars = {name: float(np.mean([one.scalars[name] for one in each])) for name in each[0].scalars}
    return scalars, np.stack([one.singular_values.numpy() for one in each])


def _on_host(values: Tensor) -> np.ndarray:
    """float64 stays; all else becomes float32, since NumPy has no bfloat16."""
    return values.to(torch.float64 if values.dtype == torch.float64 else torch.float32).cpu().numpy()
