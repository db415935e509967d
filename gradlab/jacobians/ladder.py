"""Which engine computes a Jacobian: the fastest that works on this graph and passes its audit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from gradlab.errors import JacobianError, did_you_mean
from gradlab.jacobians.problem import Problem, columns, rows
from gradlab.jacobians.rows import by_batched_grad, by_loop, by_vmap

ENGINES: dict[str, Callable[[Problem], Tensor]] = {
    "columns": partial(columns, pull=by_vmap),
    "columns_math": partial(columns, pull=by_vmap),
    "vmap": partial(rows, pull=by_vmap),
    "is_grads_batched": partial(rows, pull=by_batched_grad),
    "loop": partial(rows, pull=by_loop),
}
"""From the first that is tried to the one that always works; `columns_math` works on a forward by `plain_kernels`."""


class Ladder:
    """The engines that are left: starts at the fastest, steps down where one fails, and never climbs again.

    A probe keeps it from one measurement to the next, so an engine that fails is tried once.
    """

    def __init__(self, wanted: str = "auto") -> None:
        """Take `auto`, or the name of the only engine to try.

        Raises:
            JacobianError: if there is no such engine.
        """
        if wanted != "auto" and wanted not in ENGINES:
            raise JacobianError(
                f"engine={wanted!r} is no engine.{did_you_mean(wanted, ENGINES)} There are: auto, {', '.join(ENGINES)}."
            )
        self.rungs = [wanted] if wanted != "auto" else []
        self.coupled: bool | None = None
        self.notes: list[str] = []

    @property
    def engine(self) -> str:
        """The engine in use, or "" before the first problem has been seen."""
        return self.rungs[0] if self.rungs else ""

    @property
    def at_bottom(self) -> bool:
        """Whether nothing is left to step down to."""
        return len(self.rungs) == 1

    def settle(self, problem: Problem) -> None:
        """Choose the rungs that suit a problem, the first time one is seen."""
        if self.rungs:
            return
        batched = ["vmap", "is_grads_batched"] if min(problem.chunk, len(problem.vectors)) > 1 else []
        # A batch of one row costs twice a plain backward.
        self.rungs = [*(["columns", "columns_math"] if problem.is_tall else []), *batched, "loop"]

    def solve(self, problem: Problem) -> Tensor:
        """[blocks, rows, cols] by the engine in use."""
        return ENGINES[self.engine](problem)

    def step_down(self, reason: str | BaseException) -> None:
        """Give up the engine in use and note why.

        Raises:
            JacobianError: if it was the last one.
        """
        if isinstance(reason, BaseException):
            line = next(iter(str(reason).splitlines()), "")
            reason = f"{type(reason).__name__}: {line[:160]}"
        if self.at_bottom:
            raise JacobianError(f"engine {self.engine!r} cannot compute this Jacobian. {reason}")
        self.notes.append(f"{self.rungs.pop(0)} refused: {reason}")

    @contextmanager
    def conditions(self) -> Iterator[None]:
        """What the forward has to be run under for the engine in use."""
        if self.engine == "columns_math":
            with plain_kernels():
                yield
        else:
            yield


@contextmanager
def plain_kernels() -> Iterator[None]:
    """Attention and recurrent layers from operations whose backward is differentiable, as the fused ones' is not."""
    with sdpa_kernel(SDPBackend.MATH), torch.backends.cudnn.flags(enabled=False):
        yield
